"""Benchmarks of speed and memory: the engine's own components, timed separately and end to end."""
