"""How the vendored data files were made; nothing here runs in the app."""
