"""Measures of a finished talking video: numbers about its face, its seams and its sound."""
