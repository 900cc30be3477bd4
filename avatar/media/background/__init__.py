"""What lies behind the person: a steady matte of the frames, and the compositor that uses it."""
