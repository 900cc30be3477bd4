"""Frames and samples as MP4 fragments for a browser's Media Source Extensions, one fragment per call.

libav's muxer holds a packet back until the next arrives; fragments are therefore written by hand, so that
a frame leaves as soon as it is encoded. Only the header is libav's.
Source: ISO/IEC 14496-12, boxes moof, mfhd, traf, tfhd, tfdt, trun and mdat.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
from av.audio.stream import AudioStream
from av.video.frame import PictureType
from av.video.reformatter import ColorRange, Colorspace
from av.video.stream import VideoStream

from avatar.geometry import FPS, SOUND_HZ
from avatar.runtime.live_protocol import LiveFrames

VIDEO_TRACK, SOUND_TRACK = 1, 2
PACKET = 960  # samples per Opus packet: 20 ms
KEYFRAME_EVERY = 4 * FPS
_H264 = {"preset": "veryfast", "crf": "23", "tune": "zerolatency", "profile": "high"}
_KEY, _DELTA = 0x02000000, 0x01010000  # sample flags: independent; depends on other samples
_BT709 = 1


@dataclass(frozen=True)
class _Sample:
    data: bytes
    duration: int
    flags: int


class FragmentWriter:
    """The stream of one watcher: send header first, then the results of write, in order."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width // 2 * 2, height // 2 * 2
        buffer = _Kept()
        self._container = av.open(
            buffer,
            "w",
            format="mp4",
            options={
                "movflags": "empty_moov+default_base_moof+skip_sidx",
                "video_track_timescale": str(SOUND_HZ),
            },
        )
        self._video = self._add_video()
        self._sound = self._container.add_stream("libopus", rate=SOUND_HZ, layout="mono")
        assert isinstance(self._sound, AudioStream)
        self._sound.bit_rate = 48_000
        self._sound.codec_context.options = {"application": "lowdelay", "frame_duration": "20"}
        self._container.start_encoding()
        self.header = bytes(buffer.data)
        self._sequence = self._num_frames = 0
        self._place = {VIDEO_TRACK: 0, SOUND_TRACK: 0}  # start of each track's next sample, at SOUND_HZ
        self._fresh = True

    @property
    def codecs(self) -> str:
        """The MIME type with codecs, for MediaSource.isTypeSupported."""
        extra = self._video.codec_context.extradata or b""
        at = extra.find(b"\x67")  # the sequence parameter set
        profile = extra[at + 1 : at + 4].hex() if at >= 0 else "64001f"
        return f'video/mp4; codecs="avc1.{profile},opus"'

    def restart(self, first_frame: int) -> None:
        """Continue after dropped frames: at this frame, with a keyframe."""
        self._place = dict.fromkeys(self._place, first_frame * (SOUND_HZ // FPS))
        self._fresh = True

    def write(self, made: LiveFrames) -> bytes:
        """One fragment with these frames and their samples; after missing frames the stream restarts."""
        if made.first_frame * (SOUND_HZ // FPS) != self._place[VIDEO_TRACK]:
            self.restart(made.first_frame)
        video = [self._coded(pixels) for pixels in made.frames]
        sound = [
            _Sample(bytes(packet), PACKET, _KEY)
            for piece in made.sound.reshape(-1, PACKET)
            for packet in self._sound.encode(self._heard(piece))
        ]
        tracks = [(track, samples) for track, samples in ((1, video), (2, sound)) if samples]
        fragment = self._fragment(tracks)
        for track, samples in tracks:
            self._place[track] += sum(sample.duration for sample in samples)
        return fragment

    def close(self) -> None:
        """Free the encoders."""
        self._container.close()

    def _add_video(self) -> VideoStream:
        video = self._container.add_stream("libx264", rate=FPS, options=_H264)
        assert isinstance(video, VideoStream)
        context = video.codec_context
        context.width, context.height, context.pix_fmt = self.width, self.height, "yuv420p"
        context.time_base, context.thread_count = Fraction(1, FPS), 1
        context.max_b_frames, context.gop_size = 0, KEYFRAME_EVERY
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = ColorRange.MPEG
        return video

    def _coded(self, pixels: np.ndarray) -> _Sample:
        frame = picture(pixels, self.width, self.height)
        frame.pts, frame.time_base = self._num_frames, Fraction(1, FPS)
        frame.pict_type = PictureType.I if self._fresh else PictureType.NONE
        self._fresh = False
        self._num_frames += 1
        (packet,) = self._video.encode(frame)
        return _Sample(_with_lengths(bytes(packet)), SOUND_HZ // FPS, _KEY if packet.is_keyframe else _DELTA)

    def _heard(self, samples: np.ndarray) -> av.AudioFrame:
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples)[None], "s16", "mono")
        frame.sample_rate = SOUND_HZ
        return frame

    def _fragment(self, tracks: list[tuple[int, list[_Sample]]]) -> bytes:
        self._sequence += 1
        size = len(self._moof(tracks, 0))
        data = b"".join(sample.data for _, samples in tracks for sample in samples)
        return self._moof(tracks, size + 8) + _box(b"mdat", data)

    def _moof(self, tracks: list[tuple[int, list[_Sample]]], offset: int) -> bytes:
        """The moof box. offset: of the first sample, in bytes from the moof's beginning."""
        parts = [_box(b"mfhd", struct.pack(">II", 0, self._sequence))]
        for track, samples in tracks:
            head = _box(b"tfhd", struct.pack(">II", 0x020000, track))
            time = _box(b"tfdt", struct.pack(">IQ", 0x01000000, self._place[track]))
            run = struct.pack(">IIi", 0x000701, len(samples), offset)
            run += b"".join(struct.pack(">III", one.duration, len(one.data), one.flags) for one in samples)
            parts.append(_box(b"traf", head + time + _box(b"trun", run)))
            offset += sum(len(one.data) for one in samples)
        return _box(b"moof", b"".join(parts))


def picture(pixels: np.ndarray, width: int, height: int) -> av.VideoFrame:
    """uint8 (H, W, 3) RGB → yuv420p, BT.709, limited range; odd sizes lose a row or column."""
    pixels = np.ascontiguousarray(pixels[:height, :width])
    return av.VideoFrame.from_ndarray(pixels, "rgb24").reformat(
        width,
        height,
        "yuv420p",
        dst_colorspace=Colorspace.ITU709,
        src_color_range=ColorRange.JPEG,
        dst_color_range=ColorRange.MPEG,
    )


def _with_lengths(data: bytes) -> bytes:
    """Replace the start code of each NAL unit by its length, as MP4 requires."""
    units = [unit.rstrip(b"\0") for unit in data.split(b"\0\0\1") if unit.strip(b"\0")]
    return b"".join(struct.pack(">I", len(unit)) + unit for unit in units)


def _box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", 8 + len(content)) + kind + content


class _Kept(io.RawIOBase):
    """Collects the header that libav writes."""

    def __init__(self) -> None:
        self.data = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        chunk = bytes(data)  # type: ignore[call-overload]
        self.data += chunk
        return len(chunk)
