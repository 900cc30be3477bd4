"""Pauses in speech, found with librosa, which is imported on first use because that takes seconds."""

from __future__ import annotations

import shutil
import wave
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from avatar.events import Notice
from avatar.geometry import SOUND_HZ, SPEECH_HZ
from avatar.media.speech_reader import Speech, SpeechReader

DEPTHS_DB = (60, 45, 35, 25, 18, 12)  # below the loudest frame: the deepest pauses are looked for first
TRIM_DB = 40  # at the ends, silence is this much below the loudest frame
KEPT_S = 0.2  # silence kept at a trimmed end, because breath and first consonants are soft
LOOKED_AT_S = 120  # at either end
_FRAME, _HOP = 1024, 256  # samples at 16 kHz


def pauses(samples: np.ndarray, depth_db: float) -> list[tuple[float, float]]:
    """(start, stop) in seconds of stretches depth_db or more below peak. samples: float32 (n,) at 16 kHz."""
    import librosa

    sounding = librosa.effects.split(samples, top_db=depth_db, frame_length=_FRAME, hop_length=_HOP)
    edges = [0, *sounding.flatten().tolist(), len(samples)]
    found = zip(edges[::2], edges[1::2], strict=True)
    return [(start / SPEECH_HZ, stop / SPEECH_HZ) for start, stop in found if stop > start]


def trim(wav: Path, speech: Speech, name: str) -> Speech:
    """Cut the silence from both ends of a canonical WAV; return the shortened speech, with a notice."""
    start_s, stop_s = _ends(wav)
    start, stop = round(start_s * SOUND_HZ), min(round(stop_s * SOUND_HZ), speech.num_samples)
    if start == 0 and stop == speech.num_samples:
        return speech
    short = wav.with_suffix(".trimmed")
    with wave.open(str(wav), "rb") as whole, wave.open(str(short), "wb") as out:
        out.setparams(whole.getparams())
        whole.setpos(start)
        for at in range(start, stop, SOUND_HZ):
            out.writeframesraw(whole.readframes(min(SOUND_HZ, stop - at)))
    shutil.move(short, wav)
    first, last = f"{start_s:.1f}", f"{(speech.num_samples - stop) / SOUND_HZ:.1f}"
    text = f"Silence was cut from {name}: {first} s at the beginning and {last} s at the end."
    notice = Notice("trimmed", text, values={"name": name, "first": first, "last": last})
    return replace(speech, num_samples=stop - start, notices=(*speech.notices, notice))


def _ends(wav: Path) -> tuple[float, float]:
    """Where the audible speech begins and ends, in seconds, with KEPT_S kept on either side."""
    import librosa

    with SpeechReader(wav) as reader:
        total = reader.num_samples_16k
        most = min(total, LOOKED_AT_S * SPEECH_HZ)
        head, tail = reader.listen(0, most), reader.listen(total - most, total)
    rms = partial(librosa.feature.rms, frame_length=_FRAME, hop_length=_HOP)
    loudest = max(float(rms(y=samples).max()) for samples in (head, tail))
    trimmed = partial(librosa.effects.trim, top_db=TRIM_DB, ref=loudest, frame_length=_FRAME, hop_length=_HOP)
    _, (start, _) = trimmed(head)
    _, (_, stop) = trimmed(tail)
    if stop == 0 or start == most:  # two minutes of silence at an end: trim nothing
        return 0.0, total / SPEECH_HZ
    start_s, stop_s = start / SPEECH_HZ - KEPT_S, (total - most + stop) / SPEECH_HZ + KEPT_S
    return max(0.0, start_s), min(total / SPEECH_HZ, stop_s)
