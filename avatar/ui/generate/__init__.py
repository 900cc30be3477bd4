"""Generate: from a press to the finished video, and what the page shows of the run meanwhile."""
