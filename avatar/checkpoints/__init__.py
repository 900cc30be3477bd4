"""Model files, without opening a tensor: where they lie, what they hold, and how they are downloaded."""
