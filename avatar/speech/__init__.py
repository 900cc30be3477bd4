"""Text to speech: one protocol, three kinds of voice. Nothing is loaded before it is asked to speak."""
