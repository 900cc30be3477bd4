"""The speech on the page: a recording, or a text that is typed."""
