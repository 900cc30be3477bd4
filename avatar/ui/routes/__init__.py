"""What is answered beside Gradio's own routes, and which requests are let through at all."""
