"""Presets on the page: their cards, the form of settings, and the model's download."""
