"""Live sessions of open-ended length: sound in, frames out; their queue, conversation and transports."""
