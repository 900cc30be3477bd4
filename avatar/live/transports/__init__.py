"""Transports of a live session to its watchers: WebRTC, or MP4 fragments over a WebSocket."""
