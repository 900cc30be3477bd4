"""One H.264 encoder whose packets go both into playable segments and into the finished file.

The finished file grows beside the segments and is moved to its place when complete. If the process is
killed before, join_segments rebuilds it from the segments without re-encoding video.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer, OutputContainer
from av.video.frame import PictureType
from av.video.reformatter import ColorRange, Colorspace
from av.video.stream import VideoStream

from avatar.events import Segment
from avatar.geometry import FPS
from avatar.media import atomic
from avatar.media.side_files import MARK
from avatar.media.sound import GridSound, LosslessSound
from avatar.media.speech_reader import SpeechReader
from avatar.request import Part

log = logging.getLogger(__name__)

_WHOLE = "whole.mp4"  # the finished file while it is being made, in the segments' folder

_BT709 = 1  # primaries, transfer and matrix, ITU-T H.273
_H264 = {"preset": "veryfast", "crf": "20", "tune": "zerolatency"}  # one packet out for every frame in
INDEX_FIRST = {"movflags": "faststart"}


class SegmentWriter:
    """Encodes frames into segments in `folder` and the finished file at `output`, in constant memory.

    lengths: number of frames of each segment; later ones may be changed meanwhile. threads: of the encoder.
    part: set if the video is one part of a long speech; frames and segments count from the part's own
    beginning. Not thread-safe.
    """

    def __init__(
        self,
        speech: SpeechReader,
        folder: Path,
        output: Path,
        *,
        lengths: Sequence[int],
        fps: int = FPS,
        threads: int = 1,
        part: Part | None = None,
    ) -> None:
        self._speech, self._folder, self._output = speech, folder, output
        self.lengths, self._fps, self._threads = lengths, fps, threads
        self._part, self._first_frame = part, part.first_frame if part else 0
        self._whole: _Movie | None = None
        self._segment: _Movie | None = None
        self._segment_start = 0
        self.num_segments = 0
        self.num_frames = 0
        self.width = self.height = 0  # of the stream, known from the first frame on

    def write(self, frames: np.ndarray) -> Iterator[Segment]:
        """Encode uint8 (T, H, W, 3) RGB and yield each completed segment; iterate this to its end.

        Odd sizes lose one row or column. Frames of another size than the first are scaled to it.
        Raises: ValueError for anything else, or for more frames than all segments hold.
        """
        if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8:
            raise ValueError(f"frames must be uint8 (T, H, W, 3), not {frames.dtype} {frames.shape}")
        while len(frames):
            if self.num_segments == len(self.lengths):
                raise ValueError("more frames than the segments hold")
            room = self._segment_start + self.lengths[self.num_segments] - self.num_frames
            self._encode(frames[:room])
            if len(frames) >= room:
                yield self._end_segment()
            frames = frames[room:]

    def finish(self) -> Iterator[Segment]:
        """Yield the last segment if it is short, then move the finished file to its place.

        Iterate this to its end. Raises: ValueError when no frame was written; NotPlaced.
        """
        if self._segment:
            yield self._end_segment()
        if self._whole is None:
            raise ValueError("no frame was written")
        self._whole.close()
        self._whole = None
        atomic.place(self._folder / _WHOLE, self._output)

    def abort(self) -> None:
        """Close open files and delete unfinished ones; complete segments stay."""
        for movie in (self._segment, self._whole):
            if movie:
                movie.discard()
        if self._segment:
            self._segment_path().unlink(missing_ok=True)
        if self._whole:
            (self._folder / _WHOLE).unlink(missing_ok=True)
        self._segment = self._whole = None

    def _encode(self, frames: np.ndarray) -> None:
        if self._whole is None:
            self.height, self.width = (side // 2 * 2 for side in frames.shape[1:3])
            self._whole = _Movie(self._folder / _WHOLE, self._fps)
            tag(self._whole.container, self._part)
            self._whole.add_encoder(self.width, self.height, self._threads, max(self.lengths))
            self._whole.add_sound(GridSound, self._speech, self._first_frame)
            self._whole.open()
        if self._segment is None:
            self._segment = _Movie(self._segment_path(), self._fps)
            self._segment.add_copy(self._whole.video)
            self._segment.add_sound(LosslessSound, self._speech, self._first_frame + self.num_frames)
            self._segment_start = self.num_frames
        for pixels in frames:
            for packet in self._whole.encode(self._picture(pixels)):
                self._whole.copy(packet)
                self._segment.copy(packet)
            self.num_frames += 1
        self._whole.sound.add(len(frames))
        self._segment.sound.add(len(frames))

    def _picture(self, pixels: np.ndarray) -> av.VideoFrame:
        """RGB → yuv420p, BT.709, limited range, the stream's size; an IDR frame where a segment starts."""
        height, width = pixels.shape[:2]
        if (height // 2 * 2, width // 2 * 2) == (self.height, self.width):
            pixels = pixels[: self.height, : self.width]
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24").reformat(
            self.width,
            self.height,
            "yuv420p",
            dst_colorspace=Colorspace.ITU709,
            src_color_range=ColorRange.JPEG,
            dst_color_range=ColorRange.MPEG,
        )
        frame.pts, frame.time_base = self.num_frames, Fraction(1, self._fps)
        first = self.num_frames == self._segment_start
        frame.pict_type = PictureType.I if first else PictureType.NONE
        return frame

    def _end_segment(self) -> Segment:
        assert self._segment is not None
        self._segment.close()
        self._segment = None
        start = self._segment_start
        segment = Segment(self._segment_path(), self.num_segments, start, self.num_frames - start)
        self._segment_start = self.num_frames
        self.num_segments += 1
        return segment

    def _segment_path(self) -> Path:
        return self._folder / f"segment-{self.num_segments:05d}.mp4"


class _Movie:
    """An .mp4 being written: one video stream, encoded or copied, then one audio stream."""

    video: VideoStream
    sound: LosslessSound | GridSound

    def __init__(self, path: Path, fps: int) -> None:
        self.container = av.open(str(path), "w", format="mp4", container_options=INDEX_FIRST)
        self._fps = fps
        self._num_frames = 0

    def add_encoder(self, width: int, height: int, threads: int, keyframe_interval: int) -> None:
        self.video = self.container.add_stream("libx264", rate=self._fps, options=_H264)
        context = self.video.codec_context
        context.width, context.height, context.pix_fmt = width, height, "yuv420p"
        context.time_base, context.thread_count = Fraction(1, self._fps), threads
        context.max_b_frames, context.gop_size = 0, keyframe_interval
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = ColorRange.MPEG

    def add_copy(self, video: VideoStream) -> None:
        self.video = self.container.add_stream_from_template(video, opaque=True)

    def add_sound(
        self, kind: type[LosslessSound] | type[GridSound], speech: SpeechReader, first_frame: int
    ) -> None:
        """Add the sound of the speech from a frame on, after the picture."""
        self.sound = kind(self.container, speech, first_frame)

    def open(self) -> None:
        """Open the encoder; streams that copy its packets need its parameter sets."""
        self.container.start_encoding()

    def encode(self, picture: av.VideoFrame) -> list[av.Packet]:
        return list(self.video.encode(picture))

    def copy(self, packet: av.Packet) -> None:
        """Write a copy of a packet as the next frame; the packet itself is not modified."""
        self.container.mux(picture_packet(self.video, packet, self._num_frames, self._fps))
        self._num_frames += 1

    def close(self) -> None:
        self.sound.end()
        self.container.close()

    def discard(self) -> None:
        """Close a file that is no longer needed; on a full disk even that may fail."""
        try:
            self.container.close()
        except (av.FFmpegError, OSError) as error:
            log.info("while discarding a file: %r", error)


def picture_packet(video: VideoStream, packet: av.Packet, index: int, fps: int) -> av.Packet:
    """A copy of a packet, to be written as frame `index`; the packet itself is not modified."""
    copy = av.Packet(bytes(packet))
    copy.stream, copy.time_base = video, Fraction(1, fps)
    copy.pts = copy.dts = index
    copy.duration, copy.is_keyframe = 1, packet.is_keyframe
    return copy


def tag(container: OutputContainer, part: Part | None) -> None:
    """Mark a file as made by this project, and as which part; call this before its first packet."""
    tag = {} if part is None else {"run": part.run, "first_frame": part.first_frame}
    container.metadata["comment"] = json.dumps(MARK | tag)


def read_tag(container: InputContainer) -> tuple[str, int] | None:
    """A part's run and first frame; None for any other file."""
    try:
        tag = json.loads(container.metadata["comment"])
        return str(tag["run"]), int(tag["first_frame"])
    except (KeyError, TypeError, ValueError):
        return None


def join_segments(
    segments: Sequence[Segment],
    speech: SpeechReader,
    output: Path,
    fps: int = FPS,
    part: Part | None = None,
) -> None:
    """Build the finished file from segments: video packets are copied, sound is encoded from the speech.

    Raises: av.FFmpegError or OSError when a segment cannot be read or the file cannot be written; NotPlaced.
    """
    path = segments[0].path.with_name(_WHOLE)
    whole = _Movie(path, fps)
    tag(whole.container, part)
    try:
        for segment in segments:
            with av.open(str(segment.path)) as piece:
                if segment is segments[0]:
                    whole.add_copy(piece.streams.video[0])
                    first_frame = (part.first_frame if part else 0) + segment.start_frame
                    whole.add_sound(GridSound, speech, first_frame)
                for packet in piece.demux(video=0):
                    if packet.dts is not None:  # the last packet is empty
                        whole.copy(packet)
            whole.sound.add(segment.num_frames)
        whole.close()
    except BaseException:
        whole.discard()
        path.unlink(missing_ok=True)
        raise
    atomic.place(path, output)
