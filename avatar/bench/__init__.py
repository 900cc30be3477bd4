"""How fast a machine is and how much memory it takes: the engine's own parts, timed apart and end to end."""
