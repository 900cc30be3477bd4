"""Read a video of poses, as pose detectors draw them, to frames of the engine's rate and size."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.stream import VideoStream
from PIL import Image

from avatar.errors import BadInput
from avatar.events import Notice
from avatar.geometry import FPS, Size, covering_size
from avatar.media.files import check_file, display_name, minutes
from avatar.media.limits import InputLimits

log = logging.getLogger(__name__)

READABLE = "Use an MP4, MOV, WebM, MKV or AVI file."
_CONTAINERS = "mov,mp4,m4a,matroska,webm,avi,flv,mpeg,mpegts"  # no playlists: they may open other files
_LOSSLESS = {"preset": "ultrafast", "qp": "0"}
_SLACK_S = 0.001  # of time stamps, which are rounded
_MOST_BAD = 0.1  # share of packets that may be damaged


@dataclass(frozen=True)
class PoseVideo:
    """What was read of a pose video. num_frames: at FPS, at most as many as were wanted."""

    num_frames: int
    notices: tuple[Notice, ...] = ()


def write_pose(
    source: Path,
    target: Path,
    *,
    size: Size,
    num_frames: int,
    name: str | None = None,
    limits: InputLimits | None = None,
) -> PoseVideo:
    """Write the first num_frames of a pose video to target, losslessly: at FPS, scaled to cover the size.

    Frames are taken by their time stamps, so that a second stays a second. What covers too much is cut off
    evenly, as of a portrait. Raises: BadInput.
    """
    name, limits = display_name(source, name), limits or InputLimits()
    check_file(source, name, limits.max_speech_bytes, "pose")
    try:
        with (
            source.open("rb") as file,
            av.open(
                file, "r", metadata_errors="replace", container_options={"format_whitelist": _CONTAINERS}
            ) as seen,
            av.open(str(target), "w", format="matroska") as out,
        ):
            count = _copy(seen, out, size, num_frames, name, limits)
    except (av.FFmpegError, ValueError, IndexError) as error:
        log.info("%s: %r", name, error)
        raise BadInput(f"{name} is not a video that can be read.", READABLE) from error
    if not count:
        raise BadInput(f"{name} holds no picture.", "Choose another pose video.")
    return PoseVideo(count, _shortage(count, num_frames, name))


def _copy(
    seen: av.container.InputContainer,
    out: av.container.OutputContainer,
    size: Size,
    num_frames: int,
    name: str,
    limits: InputLimits,
) -> int:
    video = seen.streams.video[0]
    if video.width * video.height > limits.max_pixels:
        raise BadInput(
            f"{name} has {video.width} x {video.height} pixels.", "Scale it down, for example to 720p."
        )
    written = out.add_stream("libx264rgb", rate=FPS, options=_LOSSLESS)
    written.width, written.height, written.pix_fmt = size.width, size.height, "rgb24"
    count = 0
    for picture in _at_fps(seen, video, name):
        if count == num_frames:
            break
        frame = av.VideoFrame.from_ndarray(_covering(picture, size), format="rgb24")
        frame.pts, frame.time_base = count, Fraction(1, FPS)
        out.mux(written.encode(frame))
        count += 1
    if count:
        out.mux(written.encode())
    return count


def _at_fps(seen: av.container.InputContainer, video: VideoStream, name: str) -> Iterator[av.VideoFrame]:
    """Each frame as often as it is the newest one at k / FPS seconds after the first."""
    rate = float(video.average_rate or FPS)
    newest: av.VideoFrame | None = None
    begin_s = end_s = 0.0
    count = 0
    for index, frame in enumerate(_decoded(seen, video, name)):
        time_s = frame.time if frame.time is not None else index / rate
        begin_s = time_s if newest is None else begin_s
        while newest is not None and count / FPS < time_s - begin_s - _SLACK_S:
            yield newest
            count += 1
        newest, end_s = frame, time_s - begin_s + 1 / rate
    while newest is not None and count / FPS < end_s - _SLACK_S:
        yield newest
        count += 1


def _decoded(seen: av.container.InputContainer, video: VideoStream, name: str) -> Iterator[av.VideoFrame]:
    """Frames in order, leaving out damaged ones. Raises: BadInput when there are many."""
    num_bad = 0
    for num_packets, packet in enumerate(seen.demux(video), 1):
        try:
            yield from packet.decode()
        except av.FFmpegError as error:
            log.info("%s: %r", name, error)
            num_bad += 1
            if num_bad > 1 + _MOST_BAD * num_packets:
                raise BadInput(f"{name} is damaged.", "Choose or make another one.") from error


def _covering(frame: av.VideoFrame, size: Size) -> np.ndarray:
    """The picture scaled to cover the size and cropped about its centre, uint8 (H, W, 3)."""
    image = Image.fromarray(frame.to_ndarray(format="rgb24"))
    scaled = covering_size(image.width, image.height, size)
    left, top = round((scaled.width - size.width) / 2), round((scaled.height - size.height) / 2)
    image = image.resize((scaled.width, scaled.height), Image.Resampling.BILINEAR)
    return np.asarray(image.crop((left, top, left + size.width, top + size.height)))


def _shortage(count: int, num_frames: int, name: str) -> tuple[Notice, ...]:
    """That a pose video ends before the speech does."""
    if count >= num_frames:
        return ()
    text = (
        f"{name} ends after {minutes(count / FPS)} of {minutes(num_frames / FPS)}: from there on the model"
        " gets black frames, which show no pose."
    )
    values = {"name": name, "seconds": f"{count / FPS:.1f}", "of": f"{num_frames / FPS:.1f}"}
    return (Notice("pose_short", text, "warning", values=values),)


class PoseReader:
    """Frames of a pose video that write_pose wrote, in order; a context manager."""

    def __init__(self, path: Path) -> None:
        self._container = av.open(str(path), "r", format="matroska")
        self._frames = self._container.decode(video=0)
        self._first: np.ndarray | None = None
        self._shown: np.ndarray = np.zeros(
            (0, 0, 3), np.uint8
        )  # the last frame; a written file has one at least
        self._num_read = 0
        self.is_over = False

    def frames(self, start: int, num_frames: int) -> np.ndarray:
        """Frames start .. start + num_frames, uint8 (T, H, W, 3): the first one before 0, black past the end.

        Calls must be in ascending order, without overlap.
        """
        taken: list[np.ndarray] = []
        for index in range(start, start + num_frames):
            if index < 0 or (index == 0 and self._num_read == 1):
                taken.append(self._begin())
            else:
                while self._num_read < index:
                    self._next()
                taken.append(self._next())
        return np.stack(taken)

    def _begin(self) -> np.ndarray:
        if self._first is None:
            self._first = self._next()
        return self._first

    def _next(self) -> np.ndarray:
        frame = next(self._frames, None)
        self._num_read += 1
        if frame is not None:
            self._shown = frame.to_ndarray(format="rgb24")
            return self._shown
        self.is_over = True
        return np.zeros_like(self._shown)

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def __enter__(self) -> PoseReader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
