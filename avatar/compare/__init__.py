"""Compare runs with different settings, or finished videos: measure them and show them side by side."""
