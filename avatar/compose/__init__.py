"""Edit finished videos with moviepy: captions, music, intros, logos, videos side by side."""
