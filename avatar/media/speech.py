"""Speech: any audio track → a canonical 48 kHz mono 16-bit WAV on disk, and exact slices of it."""

from __future__ import annotations

import logging
import math
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import av
import numpy as np
from av.audio.stream import AudioStream

from avatar.errors import BadInput
from avatar.geometry import FPS, SOUND_HZ, SPEECH_HZ
from avatar.media.files import check_file, display_name, minutes
from avatar.media.limits import Limits

log = logging.getLogger(__name__)

_CONTAINERS = "wav,w64,mp3,mov,mp4,m4a,matroska,webm,ogg,flac,aac"  # no playlists: those may open other files
# The endings of files of these containers.
SPEECH_SUFFIXES = (
    ".wav",
    ".w64",
    ".mp3",
    ".m4a",
    ".mp4",
    ".m4v",
    ".mov",
    ".mkv",
    ".mka",
    ".webm",
    ".ogg",
    ".oga",
    ".opus",
    ".flac",
    ".aac",
)
_EXACT = ("wav", "w64", "flac", "mov", "mp4")  # containers whose header tells the length for sure
_READABLE = "Use a WAV, MP3, M4A, OGG, FLAC, WebM or MP4 file."
_QUIET_DBFS = -40.0  # below this peak the user is told
_UNKNOWN_RIFF_BYTES = 0x7FFF_0000  # sizes above are placeholders of programs that write into a pipe
_BAD_PACKETS = 0.02  # share of undecodable packets up to which a file is used nevertheless
_RATES_HZ = range(
    4000, 768_001
)  # that recordings have; a forged one could make a second of sound fill memory
_GRACE_S = 1.0  # over the longest speech: coders add a little
_MOST_CHANNELS = 8  # as in 7.1; for more no order of speakers is agreed on
_TRUNCATED = 0.9  # share of the promised length below which a file counts as cut short

_DECIMATION = SOUND_HZ // SPEECH_HZ
_BLOCK = 2 * SPEECH_HZ  # samples at 16 kHz that are resampled at once
_MARGIN = SPEECH_HZ // 20  # samples on either side, beyond the reach of the filter


@dataclass(frozen=True)
class Speech:
    """What was found in a file.

    num_samples: at 48 kHz. peak_dbfs: of the mono mix. source_hz, channels: of the original.
    """

    num_samples: int
    peak_dbfs: float
    source_hz: int
    channels: int
    notices: tuple[str, ...] = ()

    @property
    def duration_s(self) -> float:
        return self.num_samples / SOUND_HZ

    def num_frames(self, fps: int = FPS) -> int:
        """Video frames that cover it, the last one perhaps in part."""
        return -(-self.num_samples * fps // SOUND_HZ)


def write_speech(
    source: Path, target: Path, *, name: str | None = None, limits: Limits | None = None
) -> Speech:
    """Decode the audio track of source into target, 48 kHz mono 16-bit WAV, in bounded memory.

    On refusal target does not exist. Raises: BadInput.
    """
    name, limits = display_name(source, name), limits or Limits()
    check_file(source, name, limits.max_speech_bytes, "speech")
    try:
        with source.open("rb") as file, _Track(file, name) as track:
            if _cut_short(source):
                raise _damaged(name)
            if track.promised_s is not None and track.promised_s > limits.max_speech_s + _GRACE_S:
                raise _too_long(name, track.promised_s, limits)
            num_samples, peak = _write_samples(track, target, limits)
            return _judge(track, num_samples, peak, limits)
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def _write_samples(track: _Track, target: Path, limits: Limits) -> tuple[int, int]:
    """Number of samples written and their largest magnitude."""
    num_samples = peak = 0
    most = math.ceil((limits.max_speech_s + _GRACE_S) * SOUND_HZ)
    with wave.open(str(target), "wb") as out:
        out.setparams((1, 2, SOUND_HZ, 0, "NONE", ""))
        for samples in track.samples():
            num_samples += len(samples)
            if num_samples > most:
                raise _too_long(track.name, None, limits)
            peak = max(peak, int(np.abs(samples.astype(np.int32)).max(initial=0)))
            out.writeframesraw(samples.astype("<i2").tobytes())
    return num_samples, peak


def _judge(track: _Track, num_samples: int, peak: int, limits: Limits) -> Speech:
    name, seconds = track.name, num_samples / SOUND_HZ
    if track.bad_packets > 1 + _BAD_PACKETS * track.num_packets:
        raise _damaged(name)
    if track.exact and track.promised_s and seconds < _TRUNCATED * track.promised_s - 0.1:
        raise _damaged(name)
    if num_samples == 0:
        raise (
            _damaged(name)
            if track.bad_packets
            else BadInput(f"{name} holds no sound: it is 0 seconds long.", "Choose or record another one.")
        )
    if seconds < limits.min_speech_s:
        raise BadInput(
            f"{name} is too short ({seconds:.2f} s).",
            f"Speech must last {minutes(limits.min_speech_s)} or more.",
        )
    peak_dbfs = 20 * math.log10(peak / 32768) if peak else -math.inf
    if peak_dbfs < limits.silence_dbfs:
        raise BadInput(
            f"{name} is silent.", "Check the microphone or the export, and choose another recording."
        )
    notices = []
    if track.bad_packets:
        notices.append(f"A small part of {name} is damaged and was left out.")
    if peak_dbfs < _QUIET_DBFS:
        notices.append(f"{name} is very quiet (peak {peak_dbfs:.0f} dB); the mouth may hardly move.")
    return Speech(num_samples, peak_dbfs, track.source_hz, track.channels, tuple(notices))


def _damaged(name: str) -> BadInput:
    return BadInput(f"{name} is damaged or cut short.", "Export or record it again, or choose another file.")


def _cut_short(source: Path) -> bool:
    """Whether a WAV file is much shorter than its header says, which FFmpeg passes over in silence."""
    with source.open("rb") as file:
        head = file.read(12)
    promised = int.from_bytes(head[4:8], "little")
    if head[:4] != b"RIFF" or head[8:] != b"WAVE" or promised > _UNKNOWN_RIFF_BYTES:
        return False
    return source.stat().st_size < _TRUNCATED * (promised + 8)


def _too_long(name: str, seconds: float | None, limits: Limits) -> BadInput:
    length = f" ({minutes(seconds)})" if seconds else ""
    return BadInput(
        f"{name} is too long{length}.",
        f"Speech may last {minutes(limits.max_speech_s)} at most; cut it or split it.",
    )


class _Track:
    """The best audio track of an open file; promised_s is the length that its header tells, if any."""

    def __init__(self, file: object, name: str) -> None:
        self.name, self.num_packets, self.bad_packets = name, 0, 0
        try:
            self._container = av.open(
                file, "r", metadata_errors="replace", container_options={"format_whitelist": _CONTAINERS}
            )
        except (av.FFmpegError, ValueError, OSError) as error:
            log.info("%s: %r", name, error)
            raise BadInput(f"{name} is not a sound file that can be read.", _READABLE) from error
        stream = self._container.streams.best("audio")
        if not isinstance(stream, AudioStream) or not stream.codec_context or not stream.rate:
            self._container.close()
            raise BadInput(f"{name} has no audio track.", _READABLE)
        self._stream = stream
        self.source_hz, self.channels = stream.rate, stream.channels
        self.exact = not set(_EXACT).isdisjoint(self._container.format.name.split(","))
        self.promised_s = self._promised_s()

    def _promised_s(self) -> float | None:
        if self._stream.duration and self._stream.time_base:
            return float(self._stream.duration * self._stream.time_base)
        return self._container.duration / av.time_base if self._container.duration else None

    def samples(self) -> Iterator[np.ndarray]:
        """Chunks of int16 mono at 48 kHz, in order, as they are decoded. Raises: BadInput."""
        resampler, setup = av.AudioResampler("s16", "mono", SOUND_HZ), None
        try:
            for frame in self._frames():
                self._check(frame)
                now = (frame.format.name, frame.layout.name, frame.sample_rate)
                if setup and now != setup:  # some streams change midway
                    yield from (out.to_ndarray()[0] for out in resampler.resample(None))
                    resampler = av.AudioResampler("s16", "mono", SOUND_HZ)
                frame.pts, setup = None, now
                yield from (out.to_ndarray()[0] for out in resampler.resample(frame))
            if setup:
                yield from (out.to_ndarray()[0] for out in resampler.resample(None))
        except av.FFmpegError as error:
            raise _damaged(self.name) from error

    def _check(self, frame: av.AudioFrame) -> None:
        """Refuse what cannot be mixed and resampled in safety."""
        channels, rate = frame.layout.nb_channels, frame.sample_rate
        if channels > _MOST_CHANNELS:
            raise BadInput(f"{self.name} has {channels} channels.", "Mix it down to mono or stereo.")
        if rate not in _RATES_HZ:
            raise BadInput(f"{self.name} has a sample rate of {rate} Hz.", "Export it at 16000 to 48000 Hz.")

    def _frames(self) -> Iterator[av.AudioFrame]:
        try:
            for packet in self._container.demux(self._stream):
                self.num_packets += 1
                try:
                    yield from packet.decode()  # type: ignore[misc]  # audio packets make audio frames
                except av.FFmpegError as error:
                    self.bad_packets += 1
                    log.debug("%s: packet %d: %r", self.name, self.num_packets, error)
        except av.FFmpegError as error:  # the container itself breaks off
            self.bad_packets += 1
            log.info("%s: after packet %d: %r", self.name, self.num_packets, error)

    def __enter__(self) -> _Track:
        return self

    def __exit__(self, *exc: object) -> None:
        self._container.close()


class SpeechReader:
    """Slices of a canonical WAV; memory does not grow with its length. For one thread; a context manager."""

    def __init__(self, path: Path, fps: int = FPS) -> None:
        self._file = wave.open(str(path), "rb")  # noqa: SIM115 (closed by close)
        found = self._file.getframerate(), self._file.getnchannels(), self._file.getsampwidth()
        if found != (SOUND_HZ, 1, 2):
            self._file.close()
            raise ValueError(f"{path.name} is no {SOUND_HZ} Hz mono 16-bit WAV")
        self.num_samples = self._file.getnframes()
        self.num_samples_16k = -(-self.num_samples // _DECIMATION)
        self.samples_per_frame = SOUND_HZ // fps
        self._block = lru_cache(maxsize=4)(self._resample_block)

    def sound(self, start_frame: int, num_frames: int) -> np.ndarray:
        """Samples of these video frames, int16 (num_frames * 1920,) at 48 kHz; silence past the end."""
        start = start_frame * self.samples_per_frame
        return self.samples(start, start + num_frames * self.samples_per_frame)

    def listen(self, start: int, stop: int) -> np.ndarray:
        """Samples start:stop at 16 kHz, float32 in [-1, 1]; silence outside the speech.

        Every sample comes out the same to the bit however it is cut: blocks are resampled at fixed places.
        """
        out = np.zeros(max(0, stop - start), np.float32)
        first, last = max(start, 0), min(stop, self.num_samples_16k)
        for index in range(first // _BLOCK, -(-last // _BLOCK)):
            lo, hi = max(first, index * _BLOCK), min(last, (index + 1) * _BLOCK)
            out[lo - start : hi - start] = self._block(index)[lo - index * _BLOCK : hi - index * _BLOCK]
        return out

    def _resample_block(self, index: int) -> np.ndarray:
        """Block `index` of the 16 kHz speech, float32 (_BLOCK,)."""
        import soxr

        start = index * _BLOCK - _MARGIN
        sound = self.samples(start * _DECIMATION, (start + _BLOCK + 2 * _MARGIN) * _DECIMATION)
        block = soxr.resample(sound.astype(np.float32) / 32768, SOUND_HZ, SPEECH_HZ, quality="HQ")
        return block[_MARGIN : _MARGIN + _BLOCK].clip(-1, 1)

    def samples(self, start: int, stop: int) -> np.ndarray:
        """Samples start:stop at 48 kHz, int16, silence outside the speech."""
        out = np.zeros(stop - start, np.int16)
        first, last = max(start, 0), min(stop, self.num_samples)
        if first < last:
            self._file.setpos(first)
            out[first - start : last - start] = np.frombuffer(self._file.readframes(last - first), "<i2")
        return out

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> SpeechReader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
