"""The finished file of a transparent video: VP9 with alpha in WebM, or ProRes 4444 in a QuickTime .mov.

The pictures are first encoded into a Matroska draft, which can be read up to where it breaks off, even after
the process was killed. Its packets are then copied into the finished file, together with the sound.
"""

from __future__ import annotations

import logging
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.video.reformatter import ColorRange, Colorspace
from av.video.stream import VideoStream

from avatar.errors import AvatarError
from avatar.geometry import FPS, SOUND_HZ
from avatar.media import atomic
from avatar.media.segments import INDEX_FIRST, tag
from avatar.media.sound import GridSound
from avatar.media.speech_reader import SpeechReader

log = logging.getLogger(__name__)

DRAFT = "transparent.mkv"  # in the run's folder
_BT709 = 1  # primaries, transfer and matrix, ITU-T H.273
_DRAFT_OPTIONS = {"cluster_time_limit": "1000", "flush_packets": "1"}  # a killed run loses a second at most
_VP9 = {"deadline": "realtime", "cpu-used": "7", "row-mt": "1", "crf": "22", "b": "0"}
_VP9 |= {"lag-in-frames": "0", "auto-alt-ref": "0"}  # with alpha, no frame may wait for later ones
_PRORES = {"profile": "4444", "alpha_bits": "8", "vendor": "apl0"}
_OPUS_BITS_PER_S = {1: 96_000, 2: 128_000}  # by number of channels
_LAYOUTS = {1: "mono", 2: "stereo"}


class TransparentWriter:
    """Encodes frames with alpha for the finished file, in constant memory. Not thread-safe."""

    def __init__(self, folder: Path, output: Path, *, fps: int = FPS, threads: int = 1) -> None:
        """folder: of the draft. output: its suffix, .webm or .mov, says how frames are encoded."""
        self._folder, self._output, self._fps, self._threads = folder, output, fps, threads
        self._container: OutputContainer | None = None
        self._video: VideoStream
        self.num_frames = 0

    def write(self, frames: np.ndarray) -> None:
        """Encode uint8 (T, H, W, 4), colour not premultiplied. Odd sizes lose one row or column."""
        if self._container is None:
            self._container = av.open(
                str(self._folder / DRAFT), "w", format="matroska", container_options=_DRAFT_OPTIONS
            )
            self._add_video(frames.shape[2] // 2 * 2, frames.shape[1] // 2 * 2)
        context = self._video.codec_context
        width, height = context.width, context.height
        for pixels in frames:
            if (pixels.shape[0] // 2 * 2, pixels.shape[1] // 2 * 2) == (height, width):
                pixels = pixels[:height, :width]
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgba").reformat(
                width,
                height,
                context.pix_fmt,
                dst_colorspace=Colorspace.ITU709,
                src_color_range=ColorRange.JPEG,
                dst_color_range=ColorRange.MPEG,
            )
            frame.pts, frame.time_base = self.num_frames, Fraction(1, self._fps)
            self._container.mux(self._video.encode(frame))
            self.num_frames += 1

    def finish(self, speech: SpeechReader) -> None:
        """Write the finished file and move it to its place. Raises: AvatarError, NotPlaced."""
        assert self._container is not None, "no frame was written"
        self._container.mux(self._video.encode(None))
        self._container.close()
        self._container = None
        if complete(self._folder, speech, self._output, self._fps) != self.num_frames:
            raise AvatarError("The transparent video could not be completed.", "Free disk space; try again.")

    def abort(self) -> None:
        """Close the draft, which stays for complete(); on a full disk even that may fail."""
        if self._container is not None:
            try:
                self._container.close()
            except (av.FFmpegError, OSError) as error:
                log.info("while closing the transparent draft: %r", error)
            self._container = None

    def _add_video(self, width: int, height: int) -> None:
        assert self._container is not None
        webm = self._output.suffix.lower() == ".webm"
        codec, options = ("libvpx-vp9", _VP9) if webm else ("prores_ks", _PRORES)
        video = self._container.add_stream(codec, rate=self._fps, options=options)
        assert isinstance(video, VideoStream)
        context = video.codec_context
        context.width, context.height = width, height
        context.pix_fmt = "yuva420p" if webm else "yuva444p10le"
        context.time_base, context.thread_count = Fraction(1, self._fps), self._threads
        if webm:
            context.gop_size = 2 * self._fps
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = ColorRange.MPEG
        self._video = video


def complete(folder: Path, speech: SpeechReader, output: Path, fps: int = FPS) -> int:
    """Make the finished file of the draft in a folder, as far as it can be read; returns its frames.

    Raises: av.FFmpegError or OSError when nothing can be read or the file cannot be written; NotPlaced.
    """
    path = folder / f"transparent{output.suffix.lower()}"
    webm = output.suffix.lower() == ".webm"
    kind, options = ("webm", {}) if webm else ("mov", INDEX_FIRST)
    num_frames = 0
    try:
        with (
            av.open(str(folder / DRAFT), format="matroska") as draft,
            av.open(str(path), "w", format=kind, container_options=options) as whole,
        ):
            tag(whole, None)
            video = whole.add_stream_from_template(draft.streams.video[0], opaque=True)
            video.time_base = Fraction(1, fps)
            if webm:
                video.metadata["alpha_mode"] = "1"  # by which players know that there is an alpha channel
            else:
                video.codec_context.codec_tag = "ap4h"  # ProRes 4444; otherwise it would be called 422 HQ
            sound = _OpusSound(whole, speech) if webm else GridSound(whole, speech, 0)
            packets = draft.demux(video=0)
            while (packet := _next(packets)) is not None:
                packet.stream, packet.time_base = video, Fraction(1, fps)
                packet.pts = packet.dts = num_frames
                packet.duration = 1
                whole.mux(packet)
                num_frames += 1
                sound.add(1)
            sound.end()
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    atomic.place(path, output)
    return num_frames


def _next(packets: object) -> av.Packet | None:
    """The next packet of a draft; None at its end, and where it breaks off."""
    try:
        packet = next(packets)  # type: ignore[call-overload]
    except StopIteration:
        return None
    except av.FFmpegError as error:
        log.warning("the transparent draft breaks off: %s", error)
        return None
    return None if packet.dts is None else packet


class _OpusSound:
    """Opus of the speech from its beginning, as long as the frames last."""

    def __init__(self, container: OutputContainer, speech: SpeechReader) -> None:
        self._container, self._speech, self._frame = container, speech, 0
        self._layout = _LAYOUTS[speech.num_channels]
        stream = container.add_stream("libopus", rate=SOUND_HZ, layout=self._layout)
        assert isinstance(stream, AudioStream)
        stream.bit_rate = _OPUS_BITS_PER_S[speech.num_channels]
        self._stream = stream

    def add(self, num_frames: int) -> None:
        """Write the sound of the next frames."""
        samples = self._speech.sound(self._frame, num_frames)
        frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), "s16", self._layout)
        frame.sample_rate, frame.time_base = SOUND_HZ, Fraction(1, SOUND_HZ)
        frame.pts = self._frame * self._speech.samples_per_frame
        self._container.mux(self._stream.encode(frame))
        self._frame += num_frames

    def end(self) -> None:
        """Flush the encoder."""
        self._container.mux(self._stream.encode(None))
