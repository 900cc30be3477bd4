"""Long videos: a speech in parts, each kept when it is made, so that a run goes on wherever it was ended."""
