"""The portrait on the page: its faces, their points, what is shown of it, and who speaks."""
