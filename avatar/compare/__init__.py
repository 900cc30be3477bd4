"""Runs or finished videos that differ in what is named, measured and shown side by side."""
