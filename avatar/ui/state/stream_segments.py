"""The live player's segments: on disk instead of in memory, and only until they have been played."""

from __future__ import annotations

import logging
import secrets
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import gradio as gr

log = logging.getLogger(__name__)

BEHIND = 4  # segments before the one last requested that a player may request again
IDLE_S = 600.0  # a stream without requests or new segments for this long is dropped


@dataclass
class _Stream:
    """Segments of one run on one page."""

    folder: Path
    used: float
    files: list[Path] = field(default_factory=list)
    played: int = 0  # segments before this one were removed


class StreamSegments:
    """The segments of all streams being played; safe to use from several threads."""

    def __init__(
        self, folder: Path, idle_s: float = IDLE_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """folder: created when it is needed."""
        self._folder, self._idle_s, self._clock = folder, idle_s, clock
        self.playlists: dict[str, dict[str, Any]] = {}  # Gradio's, by session and run
        self._streams: dict[str, _Stream] = {}
        self._lock = threading.Lock()

    def keep_those_of(self, player: gr.Video) -> None:
        """Keep a streaming player's segments here; the player holds their paths in place of the bytes."""
        stream_output, flush = player.stream_output, player.flush_stream_output

        async def streamed(value: Any, output_id: str, first_chunk: bool) -> tuple[Any, Any]:
            chunk, file = await stream_output(value, output_id, first_chunk)
            return self._kept(output_id, chunk), file

        async def flushed(output_id: str) -> Any:
            return self._kept(output_id, await flush(output_id))

        player.stream_output = streamed  # type: ignore[method-assign]
        player.flush_stream_output = flushed  # type: ignore[method-assign]

    def _kept(self, output_id: str, chunk: Any) -> Any:
        if chunk is None:
            return None
        key = output_id.rpartition("/")[0]  # session/run/component, from Gradio
        with self._lock:
            stream = self._streams.get(key)
            if stream is None:
                stream = self._streams[key] = _Stream(self._folder / secrets.token_hex(8), self._clock())
                stream.folder.mkdir(mode=0o700, parents=True)
            path = stream.folder / f"{len(stream.files)}{chunk['extension']}"
            path.write_bytes(chunk["data"])
            stream.files.append(path)
            stream.used = self._clock()
        return {**chunk, "data": path}

    def play(self, key: str, path: Path) -> bool:
        """Note a player's request for a segment; remove those well before it. False: it was removed itself.

        key: session/run/component.
        """
        with self._lock:
            stream = self._streams.get(key)
            if stream is None or path not in stream.files:
                return False
            stream.used = self._clock()
            last = stream.files.index(path) - BEHIND
            for old in stream.files[stream.played : max(stream.played, last)]:
                old.unlink(missing_ok=True)
                stream.played += 1
            return path.exists()

    def tidy(self) -> None:
        """Drop streams that nobody watches any more, whether or not their pages reported being closed."""
        with self._lock:
            now = self._clock()
            for key in [key for key, stream in self._streams.items() if now - stream.used > self._idle_s]:
                shutil.rmtree(self._streams.pop(key).folder)
                session, run, _ = key.split("/")
                self.playlists.get(session, {}).pop(run, None)
