"""Files in, files out: portraits, speech, segments, the finished video and its report."""
