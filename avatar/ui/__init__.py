"""The page: the only room that knows Gradio, and one that never loads torch."""
