"""What a preset needs, whether this machine can run it, and how much memory is in use while it runs."""
