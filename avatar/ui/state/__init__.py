"""What all pages share: runs and their owners, uploads, voices, presets of this machine; no Gradio here."""
