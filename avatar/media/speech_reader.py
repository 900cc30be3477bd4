"""Decode any audio track to a canonical 48 kHz 16-bit WAV on disk, mono or stereo, and read slices of it."""

from __future__ import annotations

import logging
import math
import wave
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import av
import numpy as np

from avatar.errors import BadInput
from avatar.events import Notice
from avatar.geometry import FPS, SOUND_HZ, SPEECH_HZ
from avatar.media.audio_track import Track, damaged
from avatar.media.channels import mono_weights
from avatar.media.files import check_file, display_name, minutes
from avatar.media.limits import InputLimits
from avatar.media.sound_notices import fault_notices, gain_notices

log = logging.getLogger(__name__)

# Every accepted kind of file; a test writes and reads each.
SPEECH_SUFFIXES = (
    ".wav", ".w64", ".aif", ".aiff", ".aifc", ".au", ".snd", ".caf", ".voc", ".flac", ".tta", ".wv",
    ".mp3", ".mp2", ".m4a", ".m4b", ".aac", ".ac3", ".eac3", ".ogg", ".oga", ".opus", ".weba", ".mka", ".wma",
    ".amr", ".awb", ".mp4", ".m4v", ".mov", ".3gp", ".3g2", ".webm", ".mkv", ".asf", ".wmv", ".avi", ".flv",
    ".ts", ".mts", ".mpg", ".mpeg",
)  # fmt: skip

_QUIET_DBFS, _RAISED_DBFS = -40.0, -26.0  # speech whose loud part is below the first is raised to the second
_LOUD_SHARE = 0.05  # a recording's loudness is that of this loudest share of its time
_CEILING = 10 ** (-1 / 20)  # highest peak after raising
_OVER = 1.01  # times full scale: more than codecs add, so the recording would be clipped
_BAD_PACKETS = 0.02  # share of undecodable packets up to which a file is still accepted
_LOST = 0.1  # share of a damaged file's length that may be missing
_GRACE_S = 1.0  # over the longest speech: codecs add a little
_WAV_BYTES = 2**32 - 1024  # most that a WAV can hold

_DECIMATION = SOUND_HZ // SPEECH_HZ
_BLOCK = 2 * SPEECH_HZ  # samples at 16 kHz resampled at once
_MARGIN = SPEECH_HZ // 20  # samples on either side, more than the filter's half-length


@dataclass(frozen=True)
class Speech:
    """Properties of a decoded speech file.

    num_samples: at 48 kHz. peak_dbfs: of the louder channel, before any gain. source_hz, channels:
    of the original. num_channels: of the canonical WAV, 1 or 2.
    """

    num_samples: int
    peak_dbfs: float
    source_hz: int
    channels: int
    notices: tuple[Notice, ...] = ()
    num_channels: int = 1

    @property
    def duration_s(self) -> float:
        return self.num_samples / SOUND_HZ

    def num_frames(self, fps: int = FPS) -> int:
        """Number of video frames that cover the speech; the last may be covered in part."""
        return -(-self.num_samples * fps // SOUND_HZ)


def write_speech(
    source: Path, target: Path, *, name: str | None = None, limits: InputLimits | None = None
) -> Speech:
    """Decode the audio track of source into target, 48 kHz 16-bit WAV, in bounded memory.

    More than one channel becomes stereo. After an error target does not exist. Raises: BadInput.
    """
    try:
        return _read(source, target, display_name(source, name), limits or InputLimits())
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def check_speech(source: Path, *, name: str | None = None, limits: InputLimits | None = None) -> Speech:
    """Check a file as write_speech does, without writing. Raises: BadInput."""
    return _read(source, None, display_name(source, name), limits or InputLimits())


def _read(source: Path, target: Path | None, name: str, limits: InputLimits) -> Speech:
    check_file(source, name, limits.max_speech_bytes, "speech")
    with source.open("rb") as file, Track(file, source, name, limits) as track:
        promised_s = (track.promised_s or 0.0) if track.certain else 0.0
        if promised_s > limits.max_speech_s + _GRACE_S:
            raise _too_long(name, promised_s, limits)
        num_channels = 1 if track.channels == 1 or too_large(promised_s, 2) else 2
        level = _write(track, target, num_channels, 1.0, limits)
    speech = _judge(track, level, num_channels, limits)
    if level.gain != 1 and target is not None:
        with source.open("rb") as file, Track(file, source, name, limits) as again:
            _write(again, target, num_channels, level.gain, limits)
    return speech


def _write(track: Track, target: Path | None, num_channels: int, gain: float, limits: InputLimits) -> _Level:
    """Decode the track into a WAV, amplified by gain; return its level before the gain."""
    level, most = _Level(), math.ceil((limits.max_speech_s + _GRACE_S) * SOUND_HZ)
    try:
        with ExitStack() as stack:
            out = None
            if target is not None:
                out = stack.enter_context(wave.open(str(target), "wb"))
                out.setparams((num_channels, 2, SOUND_HZ, 0, "NONE", ""))
            for samples in track.samples(num_channels):
                level.add(samples)
                if level.num_samples > most or too_large(level.num_samples / SOUND_HZ, num_channels):
                    raise _too_long(track.name, None, limits)
                if out is not None:
                    scaled = np.rint(samples * np.float32(32768 * gain)).clip(-32768, 32767)
                    out.writeframesraw(scaled.astype("<i2").tobytes())
    except av.FFmpegError as error:
        raise damaged(track.name) from error
    return level


def too_large(seconds: float, num_channels: int) -> bool:
    """Whether a WAV of 48 kHz in 16 bits cannot hold so much."""
    return seconds * SOUND_HZ * 2 * num_channels > _WAV_BYTES


class _Level:
    """A recording's loudness, measured chunk by chunk. num_samples: per channel."""

    _FRAME = SOUND_HZ // 50
    _QUIETEST_DB, _NUM_DB = -160, 260

    def __init__(self) -> None:
        self.num_samples, self.peak = 0, 0.0
        self._counts = np.zeros(self._NUM_DB, np.int64)  # histogram of 20 ms frames by power in dB
        self._rest = np.zeros(0, np.float32)

    def add(self, samples: np.ndarray) -> None:
        """samples: float32 (n, channels)."""
        self.num_samples += len(samples)
        self.peak = max(self.peak, float(np.abs(samples).max(initial=0)))
        powers = np.concatenate([self._rest, np.square(samples).max(1)])
        whole = len(powers) // self._FRAME * self._FRAME
        frames, self._rest = powers[:whole].reshape(-1, self._FRAME).mean(1), powers[whole:]
        places = np.int64(10 * np.log10(frames + 1e-16)) - self._QUIETEST_DB
        self._counts += np.bincount(places.clip(0, self._NUM_DB - 1), minlength=self._NUM_DB)

    @property
    def loud_dbfs(self) -> float:
        """The level that the loudest _LOUD_SHARE of the recording reaches at least."""
        louder = np.cumsum(self._counts[::-1])
        place = self._NUM_DB - 1 - int(np.searchsorted(louder, max(1, _LOUD_SHARE * louder[-1])))
        return float(place + self._QUIETEST_DB)

    @property
    def gain(self) -> float:
        """Factor of amplification: 1 except for very quiet recordings and those over full scale."""
        if self.peak > _OVER:
            return 1 / self.peak
        if self.loud_dbfs >= _QUIET_DBFS or not self.peak:
            return 1.0
        return max(1.0, min(10 ** ((_RAISED_DBFS - self.loud_dbfs) / 20), _CEILING / self.peak))


def is_audible(samples: np.ndarray) -> bool:
    """Whether speech, float32 (n,), needs no gain. Where it does, its whole length must be known first."""
    level = _Level()
    level.add(samples[:, None])
    return level.loud_dbfs >= _QUIET_DBFS and level.peak <= _OVER


def _judge(track: Track, level: _Level, num_channels: int, limits: InputLimits) -> Speech:
    name, found, seconds = track.name, track.found, level.num_samples / SOUND_HZ
    gaps_s = sum(length for _, length in found.gaps)
    if found.bad_packets > 1 + _BAD_PACKETS * found.num_packets or (
        found.bad_packets and gaps_s > _LOST * seconds
    ):
        raise damaged(name)
    if seconds < limits.min_speech_s and (found.broken or found.bad_packets):
        raise damaged(name)
    if level.num_samples == 0:
        raise BadInput(f"{name} holds no sound: it is 0 seconds long.", "Choose or record another one.")
    if seconds < limits.min_speech_s:
        raise BadInput(
            f"{name} is too short ({seconds:.2f} s).",
            f"Speech must last {minutes(limits.min_speech_s)} or more.",
        )
    peak_dbfs = 20 * math.log10(level.peak) if level.peak else -math.inf
    if peak_dbfs < limits.silence_dbfs:
        if found.not_numbers:
            raise BadInput(
                f"{name} holds no sound: its samples are not numbers (NaN or infinite).",
                "Export it again, for example as 16-bit WAV.",
            )
        raise BadInput(
            f"{name} is silent.", "Check the microphone or the export, and choose another recording."
        )
    promised_s = track.promised_s if track.certain else None
    notices = fault_notices(name, found, promised_s, seconds) + gain_notices(name, level.gain, peak_dbfs)
    return Speech(level.num_samples, peak_dbfs, track.source_hz, track.channels, notices, num_channels)


def _too_long(name: str, seconds: float | None, limits: InputLimits) -> BadInput:
    length = f" ({minutes(seconds)})" if seconds else ""
    longer = f", or {limits.longer}" if limits.longer else ""
    return BadInput(
        f"{name} is too long{length}.",
        f"Speech may last {minutes(limits.max_speech_s)} at most; cut it or split it{longer}.",
    )


def silence(start: int, stop: int) -> np.ndarray:
    """What SpeechReader.listen returns where nobody says anything."""
    return np.zeros(max(0, stop - start), np.float32)


class Length(Protocol):
    """How long a file is, in samples at 48 kHz; it may grow while it is read."""

    def has(self, num_samples: int) -> bool:
        """Whether there are this many, or no more come: until() does not wait for them."""
        ...

    def until(self, num_samples: int) -> int:
        """How many there are, once there are this many, or no more come."""
        ...


@dataclass(frozen=True)
class _Fixed:
    """A Length that does not change."""

    num_samples: int

    def has(self, num_samples: int) -> bool:
        return True

    def until(self, num_samples: int) -> int:
        return self.num_samples


class SpeechReader:
    """Slices of a canonical WAV, in constant memory. Not thread-safe; a context manager."""

    AHEAD_16K = _BLOCK + _MARGIN  # samples that listen() may read beyond those asked for

    def __init__(self, path: Path, fps: int = FPS, length: Length | None = None) -> None:
        """length: of a file that grows; None for that in its header."""
        self._file = wave.open(str(path), "rb")  # noqa: SIM115 (closed by close)
        found = self._file.getframerate(), self._file.getnchannels(), self._file.getsampwidth()
        if (found[0], found[2]) != (SOUND_HZ, 2) or found[1] not in (1, 2):
            self._file.close()
            raise ValueError(f"{path.name} is no {SOUND_HZ} Hz 16-bit WAV in mono or stereo")
        self.num_channels = found[1]
        self.length = length or _Fixed(self._file.getnframes())
        self.samples_per_frame = SOUND_HZ // fps
        self._block = lru_cache(maxsize=4)(self._resample_block)
        self._weights = lru_cache(maxsize=8)(self._block_weights)

    @property
    def num_samples(self) -> int:
        """At 48 kHz; of a file that grows, so far."""
        return self.length.until(0)

    @property
    def num_samples_16k(self) -> int:
        """At 16 kHz; of a file that grows, so far."""
        return self.until_16k(0)

    def until_16k(self, num_samples: int) -> int:
        """How many samples there are at 16 kHz, once there are this many, or no more come."""
        return -(-self.length.until(num_samples * _DECIMATION) // _DECIMATION)

    def has_16k(self, num_samples: int) -> bool:
        """Whether listen() would not wait for any of the first num_samples."""
        return self.length.has((num_samples + self.AHEAD_16K) * _DECIMATION)

    def until_frame(self, frame: int) -> int:
        """The frame given, or the number of video frames if there are fewer. Of a file that grows, waits."""
        num_samples = self.length.until(frame * self.samples_per_frame)
        return min(frame, -(-num_samples // self.samples_per_frame))

    def sound(self, start_frame: int, num_frames: int) -> np.ndarray:
        """Samples of these video frames, int16 (num_frames * 1920, channels); silence past the end."""
        start = start_frame * self.samples_per_frame
        return self.samples(start, start + num_frames * self.samples_per_frame)

    def listen(self, start: int, stop: int) -> np.ndarray:
        """Samples start:stop at 16 kHz in mono, float32 in [-1, 1]; silence outside the speech.

        Samples are bit-identical for any start and stop, because blocks are resampled at fixed positions.
        """
        out = silence(start, stop)
        first, last = max(start, 0), min(stop, self.until_16k(stop))
        if first >= last:  # wholly outside
            return out
        for index in range(first // _BLOCK, -(-last // _BLOCK)):
            lo, hi = max(first, index * _BLOCK), min(last, (index + 1) * _BLOCK)
            out[lo - start : hi - start] = self._block(index)[lo - index * _BLOCK : hi - index * _BLOCK]
        return out

    def _resample_block(self, index: int) -> np.ndarray:
        """Block `index` of the 16 kHz speech, float32 (_BLOCK,)."""
        import soxr

        start = (index * _BLOCK - _MARGIN) * _DECIMATION
        sound = self.samples(start, start + (_BLOCK + 2 * _MARGIN) * _DECIMATION)
        mono = (sound * self._mix(index)).sum(1, dtype=np.float32) / 32768
        block = soxr.resample(mono, SOUND_HZ, SPEECH_HZ, quality="HQ")
        return block[_MARGIN : _MARGIN + _BLOCK].clip(-1, 1)

    def _mix(self, index: int) -> np.ndarray:
        """Weights of the channels over a block with its margins, float32 (1, channels) or one row per sample.

        They cross-fade from one block's weights to the next's over the two margins at the border.
        """
        if self.num_channels == 1:  # without the next block, which a file that grows may not have yet
            return np.ones((1, 1), np.float32)
        here = self._weights(index)
        if here is None:
            return np.full((1, self.num_channels), 1 / self.num_channels, np.float32)
        before, after = (self._weights(index + step) for step in (-1, 1))
        before, after = here if before is None else before, here if after is None else after
        if np.array_equal(before, here) and np.array_equal(here, after):
            return here[None]
        width = 2 * _MARGIN * _DECIMATION
        fade = ((np.arange(width, dtype=np.float32) + 0.5) / width)[:, None]
        middle = np.repeat(here[None], (_BLOCK - 2 * _MARGIN) * _DECIMATION, 0)
        return np.concatenate([before + (here - before) * fade, middle, here + (after - here) * fade])

    def _block_weights(self, index: int) -> np.ndarray | None:
        """mono_weights of a block, which may lie outside the speech."""
        start = index * _BLOCK * _DECIMATION
        return mono_weights(self.samples(start, start + _BLOCK * _DECIMATION))

    def samples(self, start: int, stop: int) -> np.ndarray:
        """Samples start:stop at 48 kHz, int16 (n, channels); silence outside the speech."""
        out = np.zeros((stop - start, self.num_channels), np.int16)
        first, last = max(start, 0), min(stop, self.length.until(stop))
        if first < last:
            self._file.setpos(first)
            read = np.frombuffer(self._file.readframes(last - first), "<i2")
            out[first - start : last - start] = read.reshape(-1, self.num_channels)
        return out

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> SpeechReader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
