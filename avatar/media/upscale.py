"""Enlarge a finished video to 1080p: by a filter, by a small network, or from what a program made of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from fractions import Fraction
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.video.reformatter import ColorRange, Colorspace, Interpolation
from av.video.stream import VideoStream

from avatar.errors import AvatarError, BadInput
from avatar.geometry import FPS, Size
from avatar.media import atomic
from avatar.media.segments import INDEX_FIRST
from avatar.settings import Upscale

log = logging.getLogger(__name__)

LANCZOS, ARNET = "lanczos", "arnet"  # by what a video was enlarged, in its report
LONGER_PX, SHORTER_PX = 1920, 1080
UPSCALED_AREA = LONGER_PX * SHORTER_PX
ARNET_LIBRARY, ARNET_FROM = "pyanime4k", 3  # from this version on it has the network

_H264 = {"preset": "veryfast", "crf": "18"}
_BT709 = 1  # primaries, transfer and matrix, ITU-T H.273

Enlarge = Callable[[av.VideoFrame], av.VideoFrame]
"""A frame to a larger one, of any size."""


def upscaled_size(size: Size) -> Size | None:
    """The largest even size of that shape within 1920 x 1080, upright or not; None if it is no larger."""
    longer, shorter = max(size.width, size.height), min(size.width, size.height)
    scale = min(LONGER_PX / longer, SHORTER_PX / shorter)
    if scale <= 1:
        return None
    return Size(round(size.width * scale / 2) * 2, round(size.height * scale / 2) * 2)


def check_upscale(upscale: Upscale, size: Size, transparent: bool) -> None:
    """Refuse what cannot be enlarged, before anything is made. size: the video's. Raises: BadInput."""
    if upscale == "off":
        return
    if transparent:
        raise BadInput(
            "A transparent video cannot be upscaled.", "Set upscale to off, or choose another background."
        )
    if upscaled_size(size) is None:
        raise BadInput(
            f"The video is {size} without upscale: no smaller than 1080p.",
            "Set upscale to off, or choose a smaller size.",
        )
    if upscale == "1080p-arnet" and not has_arnet():
        raise BadInput(
            f"For upscale 1080p-arnet the package {ARNET_LIBRARY} is missing.",
            f'Install it (pip install "{ARNET_LIBRARY}>={ARNET_FROM}"), or set upscale to 1080p.',
        )


def has_arnet() -> bool:
    """Whether the network's library is installed."""
    try:
        return int(version(ARNET_LIBRARY).split(".")[0]) >= ARNET_FROM
    except (PackageNotFoundError, ValueError):
        return False


def as_made(frame: av.VideoFrame) -> av.VideoFrame:
    """The frame itself, for the filter that fits every frame to its size."""
    return frame


def check_larger(made: Path, than: Path, name: str) -> None:
    """Check that a program, `name`, has made a larger video of another. Raises: AvatarError."""
    try:
        with av.open(str(made)) as seen, av.open(str(than)) as given:
            new, old = seen.streams.video[0], given.streams.video[0]
            larger = new.width > old.width and new.height > old.height
    except (av.FFmpegError, OSError, IndexError) as error:
        raise AvatarError(f"{name} wrote no video that can be read.") from error
    if not larger:
        raise AvatarError(f"{name} wrote a video of {new.width}*{new.height}, no larger than the one it got.")


def enlarge_by(upscale: Upscale, size: Size) -> Enlarge:
    """What enlarges frames to about `size`; they are fitted to it exactly afterwards."""
    return _Arnet(size) if upscale == "1080p-arnet" else as_made


def rewritten(
    pictures: Path, sound: Path, output: Path, size: Size, enlarge: Enlarge = as_made
) -> Iterator[int]:
    """Write the pictures of one video at a size, with another's sound and marks, to `output`, atomically.

    Yields the number of frames written so far. Until the end, and on an error, output stays as it is: it may
    be one of the two. Raises: AvatarError if the pictures cannot be read, or are not as many as the sound's.
    """
    try:
        with atomic.whole(output) as draft:
            num_frames = 0
            with (
                av.open(str(pictures)) as seen,
                av.open(str(sound)) as heard,
                av.open(str(draft), "w", format="mp4", container_options=INDEX_FIRST) as out,
            ):
                expected = heard.streams.video[0].frames
                for num_frames in _written(seen, heard, out, size, enlarge):
                    yield num_frames
            if num_frames != expected:
                raise AvatarError(f"The upscaled video has {num_frames} frames instead of {expected}.")
    except (av.FFmpegError, OSError) as error:
        log.exception("a video could not be upscaled")
        failure = atomic.disk_error(error)
        if isinstance(failure, AvatarError):
            raise failure from error
        raise AvatarError("The upscaled video could not be read or written.") from error


def _written(
    seen: InputContainer, heard: InputContainer, out: OutputContainer, size: Size, enlarge: Enlarge
) -> Iterator[int]:
    out.metadata["comment"] = heard.metadata.get("comment", "")
    video = _encoder(out, size)
    spoken = heard.streams.audio[0]
    sound = out.add_stream_from_template(spoken, opaque=True)
    assert isinstance(sound, AudioStream)
    packets = (packet for packet in heard.demux(spoken) if packet.dts is not None)
    waiting = next(packets, None)
    for index, frame in enumerate(seen.decode(video=0)):
        larger = enlarge(frame).reformat(
            width=size.width,
            height=size.height,
            format="yuv420p",
            interpolation=Interpolation.LANCZOS,
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
        )
        larger.pts, larger.time_base = index, Fraction(1, FPS)
        out.mux(video.encode(larger))
        while waiting is not None and _begins(waiting) <= Fraction(index + 1, FPS):
            waiting.stream = sound
            out.mux(waiting)
            waiting = next(packets, None)
        yield index + 1
    out.mux(video.encode())
    while waiting is not None:
        waiting.stream = sound
        out.mux(waiting)
        waiting = next(packets, None)


def _begins(packet: av.Packet) -> Fraction:
    assert packet.dts is not None
    return packet.dts * Fraction(packet.time_base or 1)


def _encoder(out: OutputContainer, size: Size) -> VideoStream:
    video = out.add_stream("libx264", rate=FPS, options=_H264)
    context = video.codec_context
    context.width, context.height, context.pix_fmt = size.width, size.height, "yuv420p"
    context.time_base = Fraction(1, FPS)
    context.colorspace = context.color_primaries = context.color_trc = _BT709
    context.color_range = ColorRange.MPEG
    return video


class _Arnet:
    """The residual network of Anime4KCPP, on the first of CUDA, OpenCL and the CPU that works."""

    def __init__(self, size: Size) -> None:
        from pyanime4k import pyac  # optional, and needed for this alone

        self._size = size
        tried = (pyac.core.Processor(kind, 0, "arnet-hdn") for kind in ("cuda", "opencl", "cpu"))
        self._processor: Any = next((one for one in tried if one.ok()), None)
        if self._processor is None:
            raise AvatarError(f"{ARNET_LIBRARY} works on no device here.", "Set upscale to 1080p.")

    def __call__(self, frame: av.VideoFrame) -> av.VideoFrame:
        factor = max(self._size.width / frame.width, self._size.height / frame.height)
        larger = self._processor(np.ascontiguousarray(frame.to_ndarray(format="rgb24")), factor)
        return av.VideoFrame.from_ndarray(larger, format="rgb24")
