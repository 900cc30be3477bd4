"""Many videos in one go: the job list, engines here or on a Ray cluster, and the outcomes."""
