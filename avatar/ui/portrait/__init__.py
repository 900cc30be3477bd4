"""The portrait on the page: its faces, their points, and what is shown of it."""
