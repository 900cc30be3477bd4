"""Many videos in one go: what is asked for, engines here or on a Ray cluster, what came of it."""
