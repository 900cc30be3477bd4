"""How a live session reaches those who watch it: WebRTC, or fragments of MP4 over a WebSocket."""
