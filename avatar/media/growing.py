"""A recording that is read while it is still written: a canonical WAV, and beside it a journal.

The journal has one JSON object per line, each written after the samples that it counts. So a reader that goes
by it never meets samples that are not there yet. Both files are only ever appended to, until the WAV's header
is completed at the end.
"""

from __future__ import annotations

import json
import logging
import math
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import av
import numpy as np

from avatar.errors import AvatarError, Cancelled
from avatar.events import Notice
from avatar.geometry import FPS, SOUND_HZ
from avatar.media.limits import InputLimits
from avatar.media.speech_reader import SpeechReader
from avatar.preset import Preset
from avatar.request import Caption, Request

GROWING = Notice(
    "growing",
    "The voice goes on speaking while the video is made; until it has ended, the length is an estimate.",
)
log = logging.getLogger(__name__)

JOURNAL, _BROKEN = ".journal", ".broken"  # suffixes of the file beside the WAV
POLL_S = 0.02
_ABANDONED = ("The text's sound cannot be written.", "Free disk space, then run it again.")
_HEADER = struct.Struct("<4sI4s4sIHHIIHH4sI")
_UNKNOWN_BYTES = 2**32 - 2**10  # stated in the header while the length is not known


@dataclass(frozen=True)
class Growth:
    """How far a recording has come.

    num_samples: at 48 kHz, in the file. expected_s: the length that it will probably have. captions: of what
    is in it. ended: nothing more comes. error: message and remedy, if it ended before its time.
    """

    num_samples: int = 0
    expected_s: float = 0.0
    captions: tuple[Caption, ...] = ()
    ended: bool = False
    error: tuple[str, str] | None = None

    @property
    def num_frames(self) -> int:
        """Video frames that cover what is there; the last may be covered in part."""
        return -(-self.num_samples * FPS // SOUND_HZ)

    @property
    def expected_frames(self) -> int:
        """Video frames that there will probably be; exact once it has ended."""
        return self.num_frames if self.ended else max(self.num_frames, round(self.expected_s * FPS))


class GrowingWriter:
    """Writes a growing recording from mono sound of any rate. Not thread-safe."""

    def __init__(self, wav: Path) -> None:
        """Raises: OSError."""
        self.wav, self.journal = wav, wav.with_suffix(JOURNAL)
        self._sound, self._lines = wav.open("wb"), self.journal.open("wb")
        self._resampler = av.AudioResampler("flt", "mono", SOUND_HZ)
        self.num_samples = 0
        self._sound.write(_header(_UNKNOWN_BYTES))
        self._sound.flush()

    def add(self, samples: np.ndarray, hz: int, caption: Caption | None, expected_s: float) -> None:
        """Append what was said, int16 (n,) at hz. expected_s: see Growth. Raises: OSError."""
        frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), "s16", "mono")
        frame.sample_rate = hz
        self._write(frame)
        said = None if caption is None else [caption.start_s, caption.end_s, caption.text]
        self._note(caption=said, expected_s=expected_s)

    def end(self, error: AvatarError | None = None) -> None:
        """Complete the file. error: why no more comes. Raises: OSError."""
        self._write(None)
        self._sound.seek(0)
        self._sound.write(_header(2 * self.num_samples))
        self._sound.flush()
        self._note(ended=True, error=None if error is None else [error.message, error.remedy])
        self.close()

    def close(self) -> None:
        """Close the files, even before the end."""
        for file in (self._sound, self._lines):
            try:
                file.close()
            except OSError as error:  # what was left to write does not fit on the disk
                log.warning("a growing recording is not written to its end (%s)", error.strerror)

    def abandon(self) -> None:
        """End where not even that can be noted: the journal's new name says that no more comes."""
        self.close()
        self.journal.replace(self.journal.with_suffix(_BROKEN))

    def _write(self, frame: av.AudioFrame | None) -> None:
        """Resample and write; None: what is left in the resampler."""
        for out in self._resampler.resample(frame):
            scaled = np.rint(out.to_ndarray().reshape(-1) * np.float32(32768)).clip(-32768, 32767)
            self._sound.write(scaled.astype("<i2").tobytes())
            self.num_samples += len(scaled)
        self._sound.flush()

    def _note(self, **said: object) -> None:
        line = {"num_samples": self.num_samples, **said}
        self._lines.write((json.dumps(line, ensure_ascii=False) + "\n").encode())
        self._lines.flush()


class GrowingRecording:
    """A growing recording as its readers see it; thread-safe."""

    def __init__(self, journal: Path, cancelled: Callable[[], bool] | None = None) -> None:
        """cancelled: polled while until() waits; None: it does not wait."""
        self._journal, self._read_to, self._growth = journal, 0, Growth()
        self._cancelled = cancelled
        self._lock = threading.Lock()

    def look(self) -> Growth:
        """How far it has come by now."""
        with self._lock:
            try:
                if not self._growth.ended:
                    self._read()
            except FileNotFoundError:  # see GrowingWriter.abandon
                self._journal = self._journal.with_suffix(_BROKEN)
                self._read()
                self._growth = replace(self._growth, ended=True, error=_ABANDONED)
            return self._growth

    def _read(self) -> None:
        """Read the lines that have come."""
        with self._journal.open("rb") as file:
            file.seek(self._read_to)
            whole, newline, _ = file.read().rpartition(b"\n")
        self._read_to += len(whole) + len(newline)
        for line in whole.splitlines():
            self._growth = _after(self._growth, json.loads(line))

    def has(self, num_samples: int) -> bool:
        """See speech_reader.Length."""
        growth = self.look()
        return growth.ended or growth.num_samples >= num_samples

    def until(self, num_samples: int) -> int:
        """See speech_reader.Length. Raises: Cancelled."""
        while self._cancelled is not None and not self.has(num_samples):
            if self._cancelled():
                raise Cancelled("The run was stopped.")
            time.sleep(POLL_S)
        return self.look().num_samples


def can_grow(preset: Preset) -> bool:
    """Whether a preset's videos can begin before their length is known."""
    return not preset.generation.trim and not preset.generation.num_clip


def most_frames(journal: Path, preset: Preset, limits: InputLimits) -> tuple[int, int]:
    """The most frames that a growing speech can have, and those to keep room for on the disk."""
    assert can_grow(preset), "its speech is spoken first"
    growth = GrowingRecording(journal).look()
    most = math.ceil(limits.max_speech_s * FPS)
    return most, min(most, 2 * growth.expected_frames)


def end_frame(request: Request) -> int:
    """The frame of the speech before which the video ends, by what is known by now."""
    end = request.first_frame + request.num_frames
    if request.growing is None:
        return end
    growth = GrowingRecording(request.growing).look()
    return min(end, growth.num_frames) if growth.ended else end


def settled(request: Request) -> Request:
    """The request with the captions and the length that its speech has by now. See Request.growing."""
    if request.growing is None:
        return request
    growth = GrowingRecording(request.growing).look()
    return replace(request, num_frames=growth.expected_frames, captions=growth.captions)


def open_speech(request: Request, cancelled: Callable[[], bool] | None = None) -> SpeechReader:
    """The request's speech. If it is still growing, reading beyond what is there waits for it.

    cancelled: polled meanwhile, and Cancelled is raised then; None: nothing waits, what is not there is
    silent.
    """
    if request.growing is None:
        return SpeechReader(request.speech)
    return SpeechReader(request.speech, length=GrowingRecording(request.growing, cancelled))


def _after(growth: Growth, line: dict[str, object]) -> Growth:
    """The growth after one more line of the journal."""
    caption, error = line.get("caption"), line.get("error")
    more = (Caption(*caption),) if isinstance(caption, list) else ()
    return Growth(
        num_samples=int(str(line["num_samples"])),
        expected_s=float(str(line.get("expected_s", growth.expected_s))),
        captions=(*growth.captions, *more),
        ended=bool(line.get("ended")),
        error=(str(error[0]), str(error[1])) if isinstance(error, list) else None,
    )


def _header(data_bytes: int) -> bytes:
    """A canonical WAV's header: mono, 16 bit."""
    riff, form = (b"RIFF", data_bytes + 36, b"WAVE"), (b"fmt ", 16, 1, 1, SOUND_HZ, 2 * SOUND_HZ, 2, 16)
    return _HEADER.pack(*riff, *form, b"data", data_bytes)
