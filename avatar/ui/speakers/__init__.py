"""Several speakers: who of a portrait's faces says what, and where in the picture each voice acts."""
