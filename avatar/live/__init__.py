"""A session that has no end: sound in, frames out, whom it is for, and how it reaches them."""
