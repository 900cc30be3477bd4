"""THE function that turns any engine's frames into events: segments, progress, notices, the finished file."""

from __future__ import annotations

from collections.abc import Iterator

from avatar.engine import FrameSource
from avatar.events import Event
from avatar.request import Request


def stream_frames(source: FrameSource, request: Request) -> Iterator[Event]:
    """Run source to its end and yield events; progress at least twice a second; Finished last.

    The source runs in one thread, the encoder in another; a slow consumer slows neither. Closing the iterator cancels
    the source and finishes the file with what was made. After cancel(): Finished(stopped=True), or Cancelled raised where
    no frame was made. After an error: Finished(stopped=True, error=…) where frames were made, then the error is raised.
    Beside request.output lie the thumbnail (.jpg) and the report (.json).
    """
    raise NotImplementedError
    yield
