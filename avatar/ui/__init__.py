"""The web page: the only package that imports Gradio, and one that never loads torch."""
