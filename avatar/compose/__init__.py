"""What people do with finished videos, by moviepy: captions, music, intros, logos, pictures side by side."""
