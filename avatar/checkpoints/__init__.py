"""Model files, without opening a tensor: where they are, what they contain, and how they are downloaded."""
