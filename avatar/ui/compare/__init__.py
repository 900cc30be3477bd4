"""The section Compare."""
