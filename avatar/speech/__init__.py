"""Text to speech: one protocol, three kinds of voice. Models load when a voice first speaks."""
