"""Voices are added up without clipping, and told apart in one recording."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest
from media_samples import tone, write_wav

from avatar.errors import BadInput
from avatar.media.speech_reader import SpeechReader, write_speech
from avatar.media.turns import parse_turns
from avatar.media.voice_tracks import mix, split_channels, split_turns

RATE = 48_000


def canonical(folder: Path, name: str, samples: np.ndarray) -> Path:
    """A WAV as intake writes it. samples: float (n,) or (n, 2)."""
    write_speech(write_wav(folder / f"{name}.in.wav", samples, RATE, "FLOAT"), folder / f"{name}.wav")
    return folder / f"{name}.wav"


def levels(path: Path, *spans: tuple[float, float]) -> list[float]:
    """The rms of stretches of a WAV, in seconds, over full scale."""
    with SpeechReader(path) as reader:
        parts = [reader.samples(round(a * RATE), round(b * RATE)).astype(float) for a, b in spans]
    return [round(float(np.sqrt(np.square(part / 32768).mean())), 3) for part in parts]


def test_the_mix_is_the_sum_and_as_long_as_the_longest(tmp_path: Path) -> None:
    a, b = tone(1.0, RATE, 220, 0.3), tone(2.5, RATE, 330, 0.2)
    gain = mix([canonical(tmp_path, "a", a), canonical(tmp_path, "b", b)], tmp_path / "mix.wav")
    with SpeechReader(tmp_path / "mix.wav") as reader:
        assert (gain, reader.num_samples, reader.num_channels) == (1.0, len(b), 1)
        mixed = reader.samples(0, len(b))[:, 0] / 32768
    assert np.abs(mixed - np.pad(a, (0, len(b) - len(a))) - b).max() < 2e-4


def test_a_mix_never_clips(tmp_path: Path) -> None:
    loud = canonical(tmp_path, "a", tone(1.5, RATE, 220, 0.9))
    gain = mix([loud, loud, loud], tmp_path / "mix.wav")
    with SpeechReader(tmp_path / "mix.wav") as reader, SpeechReader(loud) as one:
        mixed, alone = reader.samples(0, RATE).astype(float), one.samples(0, RATE).astype(float)
    assert gain == pytest.approx(0.9886 / 2.7, rel=0.01)
    assert np.abs(mixed).max() < 32767
    assert np.abs(mixed - 3 * gain * alone).max() < 2


def test_a_mono_voice_is_heard_on_both_sides_of_a_stereo_mix(tmp_path: Path) -> None:
    stereo = np.stack([tone(1, RATE, 220, 0.2), np.zeros(RATE, np.float32)], axis=1)
    voices = [canonical(tmp_path, "a", stereo), canonical(tmp_path, "b", tone(1, RATE, 330, 0.2))]
    mix(voices, tmp_path / "mix.wav")
    with wave.open(str(tmp_path / "mix.wav")) as file:
        assert file.getnchannels() == 2
        heard = np.frombuffer(file.readframes(RATE), "<i2").reshape(-1, 2) / 32768
    assert np.sqrt(np.square(heard).mean(axis=0)) == pytest.approx([0.2, 0.1414], abs=0.005)


def test_turns_leave_each_voice_alone(tmp_path: Path) -> None:
    talk = canonical(tmp_path, "talk", tone(4, RATE, 220, 0.4))
    turns = parse_turns("0 1 Anna\n1 2 Ben\n2.5 3 Anna", "turns.txt")
    for label in ("Anna", "Ben"):
        split_turns(talk, turns, label, tmp_path / f"{label}.wav")
    spans = ((0.05, 0.95), (1.05, 1.95), (2.05, 2.45), (2.55, 2.95), (3.05, 4))
    full = pytest.approx(0.283, abs=0.002)
    assert levels(tmp_path / "Anna.wav", *spans) == [full, 0, 0, full, 0]
    assert levels(tmp_path / "Ben.wav", *spans) == [0, full, 0, 0, 0]
    with SpeechReader(tmp_path / "Ben.wav") as reader:
        assert reader.num_samples == 4 * RATE
        edge = np.abs(reader.samples(round(0.97 * RATE), RATE)[:, 0]).astype(float)
    assert edge[:480].max() == 0  # faded in over the 20 ms before, without a click
    assert 0 < edge[480:600].max() < 0.2 * edge.max() < edge[900:1000].max() < edge[-200:].max()


def test_channels_are_voices_without_crosstalk(tmp_path: Path) -> None:
    second = slice(RATE, 2 * RATE)
    left, right = tone(3, RATE, 220, 0.4), tone(3, RATE, 330, 0.4)
    left[second] = right[: RATE // 2] = 0
    heard = np.stack([left + 0.1 * right, right + 0.1 * left], axis=1)
    talk = canonical(tmp_path, "talk", heard)
    split_channels(talk, (tmp_path / "l.wav", tmp_path / "r.wav"), "talk.wav", -60)
    spans = ((0.1, 0.35), (1.15, 1.85), (2.1, 3))
    full = pytest.approx(0.283, abs=0.005)
    assert levels(tmp_path / "l.wav", *spans) == [full, 0, full]
    assert levels(tmp_path / "r.wav", *spans) == [0, full, full]
    split_channels(talk, (None, tmp_path / "only.wav"), "talk.wav", -60)
    assert (tmp_path / "only.wav").read_bytes() == (tmp_path / "r.wav").read_bytes()


@pytest.mark.parametrize(
    ("left", "right", "words"),
    [
        (0.4, None, "talk.wav is mono: it has no left and right voice"),
        (0.4, 0.4, "Both channels of talk.wav hold the same"),
        (0.4, 0.0, "The right channel of talk.wav is silent"),
        (0.0, 0.4, "The left channel of talk.wav is silent"),
    ],
)
def test_channels_that_are_no_two_voices_are_refused(
    left: float, right: float | None, words: str, tmp_path: Path
) -> None:
    sides = [tone(1, RATE, 220, level) for level in (left, right) if level is not None]
    talk = canonical(tmp_path, "talk", np.stack(sides, axis=1) if len(sides) > 1 else sides[0])
    with pytest.raises(BadInput, match=words):
        split_channels(talk, (tmp_path / "l.wav", tmp_path / "r.wav"), "talk.wav", -60)
    assert not (tmp_path / "l.wav").exists()


@pytest.mark.parametrize("start", [0, 7_000, 15_900, 16_000, 40_000])
def test_listening_past_the_end_is_silence(start: int, tmp_path: Path) -> None:
    with SpeechReader(canonical(tmp_path, "a", tone(1, RATE))) as reader:
        heard = reader.listen(start, start + 10_000)
    inside = max(0, 16_000 - start)
    assert len(heard) == 10_000
    assert not heard[inside:].any()
    assert heard[:inside].any() == (inside > 0)
