"""Join the parts of one long video into one file: packets are copied, nothing is re-encoded."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
from av.audio.stream import AudioStream
from av.video.stream import VideoStream

from avatar.errors import BadInput
from avatar.geometry import FPS, SOUND_HZ
from avatar.media import atomic
from avatar.media.files import display_name, megabytes
from avatar.media.segments import INDEX_FIRST, picture_packet, read_tag, tag
from avatar.media.side_files import check_free
from avatar.media.sound import packet_start, sound_packet
from avatar.request import Part

log = logging.getLogger(__name__)

_SAMPLES_PER_FRAME = SOUND_HZ // FPS


@dataclass(frozen=True)
class _Piece:
    """A part to join. coded: codec name, width, height and extradata of its video."""

    path: Path
    run: str
    first_frame: int
    num_frames: int
    coded: tuple[str, int, int, bytes]

    @property
    def end_frame(self) -> int:
        return self.first_frame + self.num_frames


def join_parts(paths: Sequence[Path], output: Path) -> int:
    """Join parts of one video, in order and without gaps, into output; return its number of frames.

    The joined file is a part itself and can be joined again. Output is written atomically.
    Raises: BadInput for files that do not belong together, AvatarError when the disk is full.
    """
    if not paths:
        raise BadInput("There is nothing to join.", "Name the parts, in their order.")
    if output.suffix.lower() != ".mp4":
        raise BadInput(f"{display_name(output)} cannot be the output.", "Give it a name that ends in .mp4.")
    pieces = [_look(path) for path in paths]
    for before, after in pairwise(pieces):
        _check_follows(before, after)
    if output.exists() and any(output.samefile(piece.path) for piece in pieces):
        raise BadInput(f"The output {output.name} is one of the parts.", "Choose another name.")
    check_free(output)
    try:
        _check_disk(pieces, output)
        with atomic.whole(output) as draft:
            _write(pieces, draft)
    except BaseException as error:
        failure = atomic.disk_error(error)
        if isinstance(error, OSError) and failure is error:
            log.error("joining failed", exc_info=error)
            failure = BadInput(
                f"{display_name(output)} cannot be made of these parts ({error.strerror}).",
                "Check the output's folder; make damaged parts again.",
            )
        raise failure from error
    return pieces[-1].end_frame - pieces[0].first_frame


def _look(path: Path) -> _Piece:
    """Read a part's tag and codec. Raises: BadInput for anything but a part."""
    name = display_name(path)
    try:
        with av.open(str(path)) as container:
            tag = read_tag(container)
            video = container.streams.best("video")
            if tag is None or not isinstance(video, VideoStream) or not container.streams.audio:
                raise BadInput(
                    f"{name} is not a part of a long video.", "Join files that --checkpoint_every made."
                )
            context = video.codec_context
            coded = (context.name, video.width, video.height, bytes(context.extradata or b""))
            return _Piece(path, *tag, video.frames, coded)
    except (av.FFmpegError, OSError) as error:
        log.info("%s: %r", name, error)
        raise BadInput(f"{name} cannot be read.", "It is damaged or not there; make it again.") from error


def _check_follows(before: _Piece, after: _Piece) -> None:
    names = f"{display_name(after.path)} does not follow {display_name(before.path)}"
    if after.run != before.run:
        raise BadInput(f"{names}: they are of different videos.", "Join parts of one video.")
    if after.first_frame != before.end_frame:
        raise BadInput(
            f"{names}: it begins with frame {after.first_frame}, not {before.end_frame}.",
            "Name all parts, in their order.",
        )
    if after.coded != before.coded:
        raise BadInput(f"{names}: its video is encoded differently.", "Make the parts again, all alike.")


def _check_disk(pieces: Sequence[_Piece], output: Path) -> None:
    need, free = sum(piece.path.stat().st_size for piece in pieces), shutil.disk_usage(output.parent).free
    if free < need:
        raise BadInput(
            f"The disk is nearly full: {megabytes(need)} MB are needed, {megabytes(free)} MB are free.",
            "Free disk space, then join again.",
        )


def _write(pieces: Sequence[_Piece], path: Path) -> None:
    first = pieces[0]
    with av.open(str(path), "w", format="mp4", container_options=INDEX_FIRST) as out:
        tag(out, Part(first.run, first.first_frame, first.num_frames))
        with av.open(str(first.path)) as source:
            video = out.add_stream_from_template(source.streams.video[0], opaque=True)
            sound = out.add_stream_from_template(source.streams.audio[0], opaque=True)
        assert isinstance(video, VideoStream)
        assert isinstance(sound, AudioStream)
        for piece, after in zip(pieces, [*pieces[1:], None]):
            for packet in _packets(piece):
                if isinstance(packet.stream, VideoStream):
                    index = piece.first_frame - first.first_frame + _units(packet.pts, packet, FPS)
                    out.mux(picture_packet(video, packet, index, FPS))
                else:
                    at = piece.first_frame * _SAMPLES_PER_FRAME + _units(packet.pts, packet, SOUND_HZ)
                    if _sounds(at, piece is first, piece.first_frame, after):
                        duration = _units(packet.duration, packet, SOUND_HZ)
                        at -= first.first_frame * _SAMPLES_PER_FRAME
                        out.mux(sound_packet(sound, bytes(packet), at, duration))


def _packets(piece: _Piece) -> Iterator[av.Packet]:
    with av.open(str(piece.path)) as source:
        for packet in source.demux(video=0, audio=0):
            if packet.dts is not None:  # the last packet of each stream is empty
                yield packet


def _units(time: int | None, packet: av.Packet, rate: int) -> int:
    """A packet's time in units of 1 / rate."""
    assert time is not None
    assert packet.time_base is not None
    return round(time * Fraction(packet.time_base) * rate)


def _sounds(at: int, is_first: bool, first_frame: int, after: _Piece | None) -> bool:
    """Whether the sound packet at a sample of the speech is taken from this part, not an adjacent one."""
    if not is_first and at < packet_start(first_frame * _SAMPLES_PER_FRAME):
        return False
    return after is None or at < packet_start(after.first_frame * _SAMPLES_PER_FRAME)
