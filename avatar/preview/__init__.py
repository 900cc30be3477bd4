"""The CPU engine: landmarks, speech to mouth shapes, image warping."""
