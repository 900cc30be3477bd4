"""Input and output files: portraits, speech, segments, the finished video and its report."""
