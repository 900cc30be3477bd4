"""The preview engine, on the CPU: face landmarks, speech to mouth shapes, image warping."""
