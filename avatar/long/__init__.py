"""Long videos: a speech in parts, each saved when it is finished, so that an interrupted run can resume."""
