"""The mouth while speech is still being spoken: close to what the whole speech gives, whatever the pace."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from avatar.geometry import FPS, SPEECH_HZ
from avatar.media.speech_reader import SpeechReader, write_speech
from avatar.media.timeline import SAMPLES_PER_FRAME, Timeline
from avatar.preview import live_mouth
from avatar.preview.articulation import SpokenFrame, articulate
from avatar.preview.live_mouth import LOOK_AHEAD_FRAMES, LiveMouth
from avatar.preview.visemes import VisemeNetwork
from tests.preview.listening import in_memory

ROOT = Path(__file__).parents[2]
NETWORK = VisemeNetwork.load()


def speech(tmp_path: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """int16 at 48 kHz, whole frames of it, and float32 at 16 kHz."""
    path = tmp_path / "speech.wav"
    write_speech(ROOT / "assets" / "speech" / name, path)
    with SpeechReader(path) as reader:
        num_frames = reader.num_samples_16k * FPS // SPEECH_HZ
        sound = reader.samples(0, num_frames * SAMPLES_PER_FRAME)[:, 0]
        return sound.astype(np.int16), reader.listen(0, num_frames * SPEECH_HZ // FPS)


def followed(sound: np.ndarray, piece: int = SAMPLES_PER_FRAME) -> list[SpokenFrame]:
    """What a live mouth makes of int16 sound that comes in pieces."""
    timeline, made = Timeline(), []
    mouth = LiveMouth(timeline, NETWORK)
    for start in range(0, len(sound), piece):
        timeline.append(sound[start : start + piece])
        while mouth.is_ready:
            made.append(mouth.next())
    return made


def opening(frames: list[SpokenFrame]) -> np.ndarray:
    return np.array([frame.articulation.open for frame in frames])


@pytest.mark.parametrize("name", ["hello-en.flac", "nihao-zh.flac"])
@pytest.mark.parametrize("gain", [1.0, 0.1])
def test_live_lips_follow_as_those_of_the_whole_speech(tmp_path, name, gain):
    sound, heard = speech(tmp_path, name)
    quiet = np.rint(sound * gain).astype(np.int16)
    live = opening(followed(quiet))
    whole = opening(list(articulate(in_memory(heard * np.float32(gain)), len(live), network=NETWORK)))
    assert len(live) == len(sound) // SAMPLES_PER_FRAME - LOOK_AHEAD_FRAMES + 1
    settled = slice(FPS, None)  # the level of a voice is known after a second of it
    assert np.corrcoef(live[settled], whole[settled])[0, 1] > 0.98
    assert np.abs(live - whole)[settled].mean() < 0.03
    assert np.abs(live - whole)[:FPS].mean() < 0.1


def test_a_shorter_look_ahead_is_further_from_the_whole(tmp_path, monkeypatch):
    sound, heard = speech(tmp_path, "hello-en.flac")
    whole = opening(list(articulate(in_memory(heard), len(sound) // SAMPLES_PER_FRAME, network=NETWORK)))
    far = []
    for look_ahead in (3, 4, LOOK_AHEAD_FRAMES):
        hop, reach = 160, 8 + 280
        monkeypatch.setattr(live_mouth, "LOOK_AHEAD_FRAMES", look_ahead)
        monkeypatch.setattr(live_mouth, "_AHEAD", (look_ahead * 640 - reach) // hop + 1)
        live = opening(followed(sound))
        far.append(np.abs(live - whole[: len(live)])[FPS:].mean())
    assert far[0] > 1.4 * far[1] > 1.4 * far[2]
    assert LOOK_AHEAD_FRAMES / FPS <= 0.2


def test_the_pace_of_the_sound_changes_nothing(tmp_path):
    sound, _ = speech(tmp_path, "hello-en.flac")
    sound = sound[: 6 * 48_000]
    expected = followed(sound)
    for piece in (480, 1024, 3000, 48_000):
        assert followed(sound, piece) == expected[: len(followed(sound, piece))]
        assert len(expected) - len(followed(sound, piece)) <= 1


def test_silence_shuts_the_mouth_and_noise_stays_shut():
    rng = np.random.default_rng(0)
    silence = np.zeros(4 * 48_000, np.int16)
    hiss = rng.normal(0, 20, 4 * 48_000).astype(np.int16)  # −64 dBFS
    for sound in (silence, hiss):
        assert opening(followed(sound)).max() < 0.05


def test_a_mouth_that_rests_in_silence_is_the_same(tmp_path, monkeypatch):
    sound, _ = speech(tmp_path, "hello-en.flac")
    pause = np.zeros(8 * 48_000, np.int16)
    sound = np.concatenate([pause, sound[: 3 * 48_000], pause, sound[3 * 48_000 : 6 * 48_000]])
    rested = followed(sound)
    monkeypatch.setattr(live_mouth, "_SILENT_DB", -np.inf)
    for one, other in zip(rested, followed(sound), strict=True):
        for name in ("open", "wide", "round", "press", "ff"):
            expected = getattr(other.articulation, name)
            assert getattr(one.articulation, name) == pytest.approx(expected, abs=1e-4)
        assert one.energy == pytest.approx(other.energy, abs=1e-4)


def test_a_mouth_closes_when_the_sound_is_cut(tmp_path):
    sound, _ = speech(tmp_path, "hello-en.flac")
    cut = 5 * FPS
    sound = np.concatenate([sound[: cut * SAMPLES_PER_FRAME], np.zeros(FPS * SAMPLES_PER_FRAME, np.int16)])
    assert opening(followed(sound))[cut + 4 :].max() < 0.06
