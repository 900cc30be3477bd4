"""The voices of several speakers as WAVs: mixed to one sound, or told apart in one recording.

All files are canonical WAVs (see speech_reader), read and written a second at a time.
"""

from __future__ import annotations

import wave
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from avatar.errors import BadInput
from avatar.geometry import SOUND_HZ
from avatar.media.speech_reader import SpeechReader, too_large
from avatar.media.turns import Turn

CEILING = 10 ** (-0.1 / 20)  # highest peak of a mix that had to be made quieter
FADE_S = 0.02  # a turn's ends are faded in and out outside of it
ALIKE = 1e-4  # channels whose difference has less than this share of their power are the same recording
HOP_S = 0.01  # steps in which channels are compared
NEAR_S = 0.1  # to either side, for their loudness
CROSSTALK = 0.1  # of the other channel's power: what is quieter is that speaker, heard by this microphone
_BLOCK = SOUND_HZ
_HOP = round(HOP_S * SOUND_HZ)

Shares = Callable[[int, int], np.ndarray]  # of samples start..stop, float32 (stop - start,) in 0..1


def mix(voices: Sequence[Path], target: Path) -> float:
    """Add voices up to one recording, as long as the longest; stereo if one of them is.

    Returns the factor by which all were made quieter so that nothing is clipped, 1 where that was not needed.
    """
    with ExitStack() as stack:
        readers = [stack.enter_context(SpeechReader(path)) for path in voices]
        length = max(reader.num_samples for reader in readers)
        num_channels = max(reader.num_channels for reader in readers)
        if too_large(length / SOUND_HZ, num_channels):
            num_channels = 1

        def sums() -> Iterator[np.ndarray]:
            for start in range(0, length, _BLOCK):
                total = _sum(readers, start, min(start + _BLOCK, length))
                yield total.mean(1, keepdims=True) if num_channels == 1 else total

        peak = max(float(np.abs(block).max()) for block in sums()) / 32767
        gain = CEILING / peak if peak > 1 else 1.0
        with wave.open(str(target), "wb") as out:
            out.setparams((num_channels, 2, SOUND_HZ, 0, "NONE", ""))
            for block in sums():
                samples = np.rint(block * gain).clip(-32768, 32767).astype("<i2")
                out.writeframesraw(np.broadcast_to(samples, (len(samples), num_channels)).tobytes())
    return gain


def split_turns(recording: Path, turns: Sequence[Turn], label: str, target: Path) -> None:
    """One speaker's voice: the recording, silent outside that speaker's turns."""
    own = [turn for turn in turns if turn.speaker == label]
    starts, ends = np.array([turn.start_s for turn in own]), np.array([turn.end_s for turn in own])

    def shares(start: int, stop: int) -> np.ndarray:
        here = (ends + FADE_S > start / SOUND_HZ) & (starts - FADE_S < stop / SOUND_HZ)
        times, out = np.arange(start, stop) / SOUND_HZ, np.zeros(stop - start, np.float32)
        for begin, end in zip(starts[here], ends[here], strict=True):
            inside = np.minimum(times - begin, end - times) / FADE_S + 1
            np.maximum(out, inside.clip(0, 1).astype(np.float32), out=out)
        return out

    with SpeechReader(recording) as reader:
        _write(reader, slice(None), shares, target)


def split_channels(recording: Path, targets: Sequence[Path | None], name: str, silence_dbfs: float) -> None:
    """The left and the right channel of a stereo recording as two voices, without each other's crosstalk.

    targets: for left and right; None is not written. Raises: BadInput for channels that are no two voices.
    """
    with SpeechReader(recording) as reader:
        if reader.num_channels != 2:
            raise BadInput(
                f"{name} is mono: it has no left and right voice.",
                "Give a stereo recording, a list of turns as split, or a recording for each face.",
            )
        powers = _powers(reader, name, silence_dbfs)
        for channel, target in enumerate(targets):
            if target is not None:
                _write(reader, slice(channel, channel + 1), _own(powers, channel), target)


def _sum(readers: Sequence[SpeechReader], start: int, stop: int) -> np.ndarray:
    """float32 (stop - start, channels): mono voices are heard on both sides."""
    blocks = [reader.samples(start, stop).astype(np.float32) for reader in readers]
    total = blocks[0]
    for block in blocks[1:]:
        total = total + block  # of different widths
    return total


def _write(reader: SpeechReader, channels: slice, shares: Shares, target: Path) -> None:
    """Write channels of a recording, each sample times its share."""
    with wave.open(str(target), "wb") as out:
        num_channels = len(range(reader.num_channels)[channels])
        out.setparams((num_channels, 2, SOUND_HZ, 0, "NONE", ""))
        for start in range(0, reader.num_samples, _BLOCK):
            stop = min(start + _BLOCK, reader.num_samples)
            samples = reader.samples(start, stop)[:, channels] * shares(start, stop)[:, None]
            out.writeframesraw(np.rint(samples).astype("<i2").tobytes())


def _powers(reader: SpeechReader, name: str, silence_dbfs: float) -> np.ndarray:
    """Both channels' mean squares by HOP_S, smoothed over NEAR_S, (steps, 2). Raises: BadInput."""
    steps, peak, differing, total = [], np.zeros(2), 0.0, 0.0
    for start in range(0, reader.num_samples, _BLOCK):
        block = reader.samples(start, start + _BLOCK).astype(np.float32) / 32768
        steps.append(np.square(block).reshape(-1, _HOP, 2).mean(1))
        peak = np.maximum(peak, np.abs(block).max(0))
        differing += float(np.square(block[:, 0] - block[:, 1]).sum())
        total += float(np.square(block).sum())
    if differing < ALIKE * total:
        raise BadInput(
            f"Both channels of {name} hold the same: it is mono in stereo.",
            "Give a recording with a voice on either side, a list of turns as split, or one for each face.",
        )
    for side, loudest in zip(("left", "right"), peak, strict=True):
        if loudest < 10 ** (silence_dbfs / 20):
            raise BadInput(f"The {side} channel of {name} is silent.", "Give a voice on either side.")
    reach = round(NEAR_S / HOP_S)
    kernel = np.full(2 * reach + 1, 1 / (2 * reach + 1))
    powers = np.concatenate(steps)
    return np.stack([np.convolve(powers[:, side], kernel, "same") for side in range(2)], axis=1)


def _own(powers: np.ndarray, channel: int) -> Shares:
    """1 where a channel holds its own speaker, 0 where it only hears the other one."""
    own = (powers[:, channel] >= CROSSTALK * powers[:, 1 - channel]).astype(np.float32)
    middles = (np.arange(len(own)) + 0.5) * _HOP

    def shares(start: int, stop: int) -> np.ndarray:
        return np.interp(np.arange(start, stop), middles, own).astype(np.float32)

    return shares
