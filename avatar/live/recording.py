"""Record a session as a finished video, from the frames as generated, not as sent.

What is being recorded is a fragmented MP4, readable up to where a full disk ends it. At the end its packets
are copied to an ordinary one; where there is no room for that, the fragments are kept as they are.
"""

from __future__ import annotations

import logging
import os
import queue
import struct
import threading
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.audio.stream import AudioStream
from av.video.stream import VideoStream
from PIL import Image

from avatar.geometry import FPS, SOUND_HZ
from avatar.live.transports.fragments import picture
from avatar.media.segments import tag
from avatar.media.side_files import COMMENT, thumbnail_path
from avatar.runtime.gallery import About, Gallery, GalleryEntry, video_name
from avatar.runtime.live_protocol import LiveFrames

log = logging.getLogger(__name__)

MOST_QUEUED = 100  # frames; when more are waiting to be written, the recording ends
MOST_S = 3600.0
LEAST_FRAMES = 5
_FRAGMENTS = "recorded.mp4"  # within the draft
THUMBNAIL_PX = 480
_H264 = {"preset": "veryfast", "crf": "20"}
_BT709 = 1


class Recording:
    """A watcher that records a session; it encodes and writes in its own thread."""

    def __init__(self, gallery: Gallery, about: About, kept: Callable[[GalleryEntry | None], None]) -> None:
        """kept: called once with the gallery's entry, or None if nothing could be saved.

        Raises: AvatarError when the outputs folder cannot be written.
        """
        self._gallery, self._about, self._kept = gallery, about, kept
        self._draft = gallery.draft()
        self._frames: queue.Queue[LiveFrames | None] = queue.Queue(MOST_QUEUED)
        self._stopping = threading.Event()
        self.num_frames = 0
        self._thread = threading.Thread(target=self._work, name="live-recording", daemon=True)
        self._thread.start()

    def show(self, made: LiveFrames) -> None:
        """See Watcher."""
        if self._stopping.is_set():
            return
        try:
            self._frames.put_nowait(made)
        except queue.Full:
            log.warning("a recording ends: frames come faster than they can be written")
            self.stop()

    def on_event(self, what: Mapping[str, Any]) -> None:
        """See Watcher."""

    def end(self, reason: str) -> None:
        """See Watcher."""
        self.stop()

    def stop(self) -> None:
        """Finish the file with the frames shown so far. Thread-safe; returns at once."""
        self._stopping.set()

    def join(self, timeout_s: float = 30.0) -> None:
        """Wait until the video is in the gallery, timeout_s at most."""
        self._thread.join(timeout_s)

    def _work(self) -> None:
        entry: GalleryEntry | None = None
        video = self._draft / video_name(self._draft.name)
        fragments = self._draft / _FRAGMENTS
        try:
            self._write(fragments, video)
        except (av.FFmpegError, OSError):
            log.exception("a recording ends early")
        self._stopping.set()
        try:
            if self.num_frames >= LEAST_FRAMES:
                self.num_frames = finish(fragments, video)
                about = vars(self._about) | {
                    "num_frames": self.num_frames,
                    "duration_s": self.num_frames / FPS,
                    "stopped": False,
                }
                entry = self._gallery.keep(self._draft, About(**about))
        except (av.FFmpegError, OSError):
            log.exception("a recording cannot be kept")
        finally:
            if entry is None:
                video.unlink(missing_ok=True)
                self._gallery.discard(self._draft)
            self._kept(entry)

    def _write(self, fragments: Path, video: Path) -> None:
        movie: _LiveMovie | None = None
        self._gallery.describe(self._draft, self._about)  # while there is room for it
        try:
            while self.num_frames < MOST_S * FPS:
                try:
                    made = self._frames.get(timeout=0.1)
                except queue.Empty:
                    if self._stopping.is_set():
                        return
                    continue
                assert made is not None
                if movie is None:
                    self._keep_thumbnail(made.frames[0], video)
                    movie = _LiveMovie(fragments, made.frames.shape[2], made.frames.shape[1])
                movie.add(made)
                self.num_frames += len(made.frames)
        finally:
            if movie is not None:
                movie.close()

    def _keep_thumbnail(self, frame: np.ndarray, video: Path) -> None:
        small = Image.fromarray(frame)
        small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
        small.save(thumbnail_path(video), quality=85, comment=COMMENT)


def finish(fragments: Path, video: Path) -> int:
    """Make an ordinary MP4 of a fragmented one, which is removed, or used as it is if the disk is full.

    Returns the number of its frames. Raises: av.FFmpegError, OSError when not even that can be read.
    """
    num_frames = 0
    cut_broken_fragment(fragments)
    with av.open(str(fragments)) as source:
        tracks = (source.streams.video[0], source.streams.audio[0])
        try:
            with av.open(str(video), "w", format="mp4", container_options={"movflags": "faststart"}) as movie:
                tag(movie, None)
                copies = {one.index: movie.add_stream_from_template(one, opaque=True) for one in tracks}
                for packet in source.demux(tracks):
                    if packet.dts is None:
                        continue
                    num_frames += packet.stream.index == tracks[0].index
                    packet.stream = copies[packet.stream.index]
                    movie.mux(packet)
        except (av.FFmpegError, OSError):
            log.exception("a recording stays in fragments")
            video.unlink(missing_ok=True)
            num_frames += sum(packet.dts is not None for packet in source.demux(tracks[0]))
    if video.exists():
        fragments.unlink()
    else:
        fragments.replace(video)
    return num_frames


def cut_broken_fragment(path: Path) -> None:
    """Shorten a fragmented MP4 to its whole fragments. Source: ISO/IEC 14496-12, 4.2, on boxes."""
    end = position = 0
    with path.open("r+b") as file:
        length = file.seek(0, os.SEEK_END)
        while position + 8 <= length:
            file.seek(position)
            size, kind = struct.unpack(">I4s", file.read(8))
            position += size
            if size < 8 or position > length:
                break
            if kind in (b"moov", b"mdat"):
                end = position
        if end < length:
            file.truncate(end)


class _LiveMovie:
    """A fragmented MP4 of H.264 and AAC, written as frames arrive."""

    def __init__(self, path: Path, width: int, height: int) -> None:
        self._width, self._height = width // 2 * 2, height // 2 * 2
        options = {"movflags": "frag_keyframe+empty_moov+default_base_moof", "flush_packets": "1"}
        self._container = av.open(str(path), "w", format="mp4", container_options=options)
        tag(self._container, None)
        video = self._container.add_stream("libx264", rate=FPS, options=_H264)
        assert isinstance(video, VideoStream)
        context = video.codec_context
        context.width, context.height, context.pix_fmt = self._width, self._height, "yuv420p"
        context.time_base, context.thread_count, context.gop_size = Fraction(1, FPS), 1, 2 * FPS
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        sound = self._container.add_stream("aac", rate=SOUND_HZ, layout="mono")
        assert isinstance(sound, AudioStream)
        sound.bit_rate = 128_000
        self._video, self._sound = video, sound
        self._num_frames = self._num_samples = 0

    def add(self, made: LiveFrames) -> None:
        for pixels in made.frames:
            frame = picture(pixels, self._width, self._height)
            frame.pts, frame.time_base = self._num_frames, Fraction(1, FPS)
            self._num_frames += 1
            self._container.mux(self._video.encode(frame))
        heard = av.AudioFrame.from_ndarray(np.ascontiguousarray(made.sound)[None], "s16", "mono")
        heard.sample_rate, heard.pts, heard.time_base = SOUND_HZ, self._num_samples, Fraction(1, SOUND_HZ)
        self._num_samples += len(made.sound)
        self._container.mux(self._sound.encode(heard))

    def close(self) -> None:
        self._container.mux(self._video.encode(None))
        self._container.mux(self._sound.encode(None))
        self._container.close()
