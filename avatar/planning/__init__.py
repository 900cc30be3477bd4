"""What a machine has, what a preset needs of it, and how full it is while it works."""
