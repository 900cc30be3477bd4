"""The gallery of finished and unfinished videos."""
