"""The audio track of an open file: its samples, placed in time by the packets' time stamps.

Recorders leave out silence, films begin with the picture, packets get lost: where the time stamps leave a
gap, silence is filled in, so that sound stays in sync. This module does not know what the samples are for.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
from av.audio.stream import AudioStream

from avatar.errors import BadInput
from avatar.geometry import SOUND_HZ
from avatar.media import truncation
from avatar.media.channels import mix_matrix
from avatar.media.limits import InputLimits

log = logging.getLogger(__name__)

READABLE = "Use a WAV, MP3, M4A, OGG, FLAC, WebM or MP4 file."

_CONTAINERS = (  # no playlists: they may open other files
    "wav,w64,mp3,mov,mp4,m4a,matroska,webm,ogg,flac,aac,loas,ac3,eac3,amr,aiff,au,caf,asf,avi,flv,mpeg,mpegts,"
    "tta,wv,voc"
)
_FROM_ZERO = ("mov", "matroska", "flac", "asf")  # containers whose time starts at 0 for all streams
_EXACT = (
    "wav",
    "w64",
    "flac",
    "mov",
    "aiff",
    "au",
    "caf",
    "tta",
    "wv",
)  # containers whose headers state the exact length
_TAGGED = ("mp3", "flac")  # formats in which tags of other programs may follow the last frame
_RATES_HZ = range(4000, 384_001)  # others are forged, to make a second of sound fill memory
_MOST_CHANNELS = 8  # as in 7.1; for more there is no standard order of speakers
_GAP_S = 0.03  # smaller errors of time stamps are ignored; sound stays in sync to 40 ms
_OVERLAP_S = 0.04  # time stamps may go back by this much
_SLACK_S = 0.1  # codecs may add or remove this much at either end
_ABSURD = 1e9  # times full scale: not a recording but uninitialised memory


@dataclass
class TrackFindings:
    """Statistics and faults of a decoded track.

    gaps: (start, length) in seconds. not_numbers: samples that are NaN or infinite.
    """

    num_samples: int = 0  # of all channels, as decoded
    num_packets: int = 0
    bad_packets: int = 0  # undecodable packets that good ones follow
    gaps: list[tuple[float, float]] = field(default_factory=list)
    astray_s: float | None = None  # where time stamps first go back, or beyond the file's length
    not_numbers: int = 0
    broken: bool = False  # the last packet was damaged, or the file ends early


class Track:
    """The best audio track of an open file.

    promised_s: the length that the file states, or None; certain: whether that length is exact.
    source_hz, channels: as in the file.
    """

    def __init__(self, file: BinaryIO, path: Path, name: str, limits: InputLimits) -> None:
        """Raises: BadInput."""
        self.name, self.found = name, TrackFindings()
        self._path, self._limits = path, limits
        self._end_s: float | None = None  # by the time stamp of the last packet
        self._last_packet: tuple[int, int] | None = None  # its first byte in the file, and its end
        self._ends_badly = False
        try:
            self._container = av.open(
                file, "r", metadata_errors="replace", container_options={"format_whitelist": _CONTAINERS}
            )
        except (av.FFmpegError, ValueError, OSError) as error:
            log.info("%s: %r", name, error)
            if truncation.begins_like_sound(path):
                raise damaged(name) from error
            raise BadInput(f"{name} is not a sound file that can be read.", READABLE) from error
        try:
            stream = self._container.streams.best("audio")
            if not isinstance(stream, AudioStream) or not stream.codec_context or not stream.rate:
                raise BadInput(f"{name} has no audio track.", READABLE)
            self._stream = stream
            self.source_hz, self.channels = stream.rate, stream.channels
            self._check(self.source_hz, self.channels)
            self.promised_s, self.certain = self._promise()
            self._zero_s = self._origin_s()
        except BaseException:
            self._container.close()
            raise

    def _check(self, rate: int, channels: int) -> None:
        """Refuse a track that cannot be mixed and resampled safely."""
        if channels > _MOST_CHANNELS:
            raise BadInput(f"{self.name} has {channels} channels.", "Mix it down to mono or stereo.")
        if rate not in _RATES_HZ:
            raise BadInput(f"{self.name} has a sample rate of {rate} Hz.", "Export it at 16000 to 48000 Hz.")

    def _promise(self) -> tuple[float | None, bool]:
        """The track's length in seconds from its zero, if the file states it, and whether that is exact."""
        formats, stream = self._container.format.name.split(","), self._stream
        whole_s = self._container.duration / av.time_base if self._container.duration else None
        if "matroska" in formats:
            stated_s = _clock_s(stream.metadata.get("DURATION", ""))
            return stated_s or whole_s, bool(stated_s) or len(self._container.streams) == 1
        certain = not set(_EXACT).isdisjoint(formats)
        certain = certain or ("mp3" in formats and truncation.tells_length(self._path))
        if stream.duration and stream.time_base:
            begin = (stream.start_time or 0) if "mov" in formats else 0
            return float((begin + stream.duration) * stream.time_base), certain
        return whole_s, certain and len(self._container.streams) == 1

    def samples(self, num_channels: int) -> Iterator[np.ndarray]:
        """Yield chunks at 48 kHz, float32 (n, num_channels), in order; full scale is 1. Raises: BadInput."""
        clock, resampler, setup = _Clock(self._zero_s, self.promised_s, self.found), _resampler(), None
        matrix = np.ones((1, num_channels), np.float32)
        for frame in self._frames():
            self._check(frame.sample_rate, frame.layout.nb_channels)
            now = (frame.format.name, frame.layout.name, frame.sample_rate)
            silence = clock.silence_before(frame)
            if setup is not None and (silence or now != setup):  # some streams change midway
                for out in resampler.resample(None):
                    yield clock.counted(_mixed(out, matrix))
            if silence or now != setup:
                resampler, setup, matrix = _resampler(), now, mix_matrix(frame.layout, num_channels)
            yield from clock.fill(silence, num_channels)
            clock.heard(frame)
            frame = self._numbers(frame)
            frame.pts = None
            for out in resampler.resample(frame):
                yield clock.counted(_mixed(out, matrix))
        if setup is not None:
            for out in resampler.resample(None):
                yield clock.counted(_mixed(out, matrix))
        yield from clock.fill(clock.silence_until(self._end_s), num_channels)
        self.found.broken = self._breaks_off(clock)

    def _breaks_off(self, clock: _Clock) -> bool:
        """Whether the track ends before it should."""
        if self.certain and self.promised_s is not None:
            if clock.now_s < 0.98 * self.promised_s - _SLACK_S:
                return True
            if self._container.format.name in _TAGGED and clock.now_s > self.promised_s - _SLACK_S:
                return False
        return self._ends_badly or truncation.breaks_off(self._path, self._last_packet)

    def _frames(self) -> Iterator[av.AudioFrame]:
        """Yield decoded frames; undecodable packets are counted and skipped."""
        found, bad = self.found, 0
        most = round(self._limits.max_decoded_samples)
        try:
            for packet in self._container.demux(self._stream):
                found.num_packets += 1
                if packet.pos is not None and packet.size:
                    self._last_packet = packet.pos, packet.pos + packet.size
                try:
                    frames = packet.decode()
                except av.FFmpegError as error:
                    bad += 1
                    log.debug("%s: packet %d: %r", self.name, found.num_packets, error)
                    continue
                if frames and packet.size:  # the last, empty packet only flushes the decoder
                    found.bad_packets, bad = found.bad_packets + bad, 0
                bad += packet.is_corrupt
                for frame in frames:
                    assert isinstance(frame, av.AudioFrame)
                    found.num_samples += frame.samples * frame.layout.nb_channels
                    if found.num_samples > most:
                        raise self._too_much()
                    yield frame
                if packet.pts is not None and packet.duration and packet.time_base:
                    self._end_s = float((packet.pts + packet.duration) * packet.time_base)
        except av.FFmpegError as error:  # the container itself breaks off
            bad += 1
            log.info("%s: after packet %d: %r", self.name, found.num_packets, error)
        self._ends_badly = bad > 0

    def _too_much(self) -> BadInput:
        return BadInput(
            f"{self.name} has too much audio to decode ({self.channels} channels at {self.source_hz} Hz).",
            "Export it in mono or stereo, at 48000 Hz.",
        )

    def _origin_s(self) -> float | None:
        """The time stamp that counts as zero; None for that of the first frame."""
        if not set(_FROM_ZERO).isdisjoint(self._container.format.name.split(",")):
            begin = float((self._stream.start_time or 0) * (self._stream.time_base or 0))
            if self.promised_s is not None and 0 <= begin < self.promised_s:
                return 0.0
        if len(self._container.streams) > 1 and self._container.start_time is not None:
            return self._container.start_time / av.time_base
        return None

    def _numbers(self, frame: av.AudioFrame) -> av.AudioFrame:
        """The frame, with samples that are not finite numbers set to 0."""
        if frame.format.name[:3] not in ("flt", "dbl"):
            return frame
        samples = frame.to_ndarray()
        good = np.abs(samples) < _ABSURD
        if good.all():
            return frame
        self.found.not_numbers += int(good.size - good.sum())
        mended = av.AudioFrame.from_ndarray(np.where(good, samples, 0), frame.format.name, frame.layout)
        mended.sample_rate = frame.sample_rate
        return mended

    def __enter__(self) -> Track:
        return self

    def __exit__(self, *exc: object) -> None:
        self._container.close()


class _Clock:
    """Counts the samples that are output, and finds where the time stamps call for silence.

    zero_s: the time stamp of sample 0, None for the first frame's. promised_s: no silence goes beyond it.
    """

    def __init__(self, zero_s: float | None, promised_s: float | None, found: TrackFindings) -> None:
        self._zero_s, self._promised_s, self._found = zero_s, promised_s, found
        self._heard_s = 0.0  # of sound and silence so far
        self._out = 0  # samples at 48 kHz output so far

    @property
    def now_s(self) -> float:
        return self._heard_s

    def silence_before(self, frame: av.AudioFrame) -> float:
        """Seconds of silence that the time stamps call for before this frame."""
        if frame.pts is None or not frame.time_base:
            return 0.0
        stamp_s = float(frame.pts * frame.time_base)
        if self._zero_s is None:
            self._zero_s = stamp_s
        ahead_s = stamp_s - self._zero_s - self._heard_s
        if -_OVERLAP_S <= ahead_s <= _GAP_S:
            return 0.0
        beyond = self._promised_s is not None and self._heard_s + ahead_s > self._promised_s + _SLACK_S
        if ahead_s < 0 or beyond:  # the time stamp is wrong: count on from here
            if self._found.astray_s is None:
                self._found.astray_s = self._heard_s
            self._zero_s += ahead_s
            return 0.0
        return ahead_s

    def silence_until(self, end_s: float | None) -> float:
        """Seconds of silence after the last frame, by the time stamp of its end."""
        if end_s is None or self._zero_s is None or self._promised_s is None:
            return 0.0
        left_s = min(end_s - self._zero_s, self._promised_s) - self._heard_s
        return left_s if left_s > _SLACK_S else 0.0

    def heard(self, frame: av.AudioFrame) -> None:
        self._heard_s += frame.samples / frame.sample_rate

    def counted(self, chunk: np.ndarray) -> np.ndarray:
        self._out += len(chunk)
        return chunk

    def fill(self, seconds: float, num_channels: int) -> Iterator[np.ndarray]:
        """Yield silence for a gap, in chunks of a second, exact to the sample."""
        if not seconds:
            return
        self._found.gaps.append((self._heard_s, seconds))
        self._heard_s += seconds
        left = round(self._heard_s * SOUND_HZ) - self._out
        for start in range(0, left, SOUND_HZ):
            yield self.counted(np.zeros((min(SOUND_HZ, left - start), num_channels), np.float32))


def damaged(name: str) -> BadInput:
    return BadInput(f"{name} is damaged or cut short.", "Export or record it again, or choose another file.")


def _resampler() -> av.AudioResampler:
    return av.AudioResampler("flt", None, SOUND_HZ)


def _mixed(frame: av.AudioFrame, matrix: np.ndarray) -> np.ndarray:
    """A frame's interleaved samples times a matrix (channels, mixed): float32 (n, mixed)."""
    samples = frame.to_ndarray().reshape(-1, len(matrix))
    return samples if np.array_equal(matrix, np.eye(len(matrix))) else samples @ matrix


def _clock_s(text: str) -> float | None:
    """ "00:00:06.008" in seconds; None for anything else."""
    try:
        hours, minutes, seconds = (float(part) for part in text.split(":"))
    except ValueError:
        return None
    total = 3600 * hours + 60 * minutes + seconds
    return total if 0 < total < math.inf else None
