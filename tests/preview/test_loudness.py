"""A quiet passage moves the mouth as it would alone; noise and music around it change nothing."""

import numpy as np
import pytest

from avatar.geometry import FPS, SPEECH_HZ
from avatar.preview.articulation import articulate
from avatar.preview.loudness import PassageLevel
from avatar.preview.visemes import VisemeNetwork
from tests.preview.listening import in_memory
from tests.preview.truth import clips


@pytest.fixture(scope="module")
def network() -> VisemeNetwork:
    return VisemeNetwork.load()


@pytest.fixture(scope="module")
def loud() -> np.ndarray:
    return whole_frames(np.concatenate([clip.sentence.samples for clip in clips()[0:4]]))


@pytest.fixture(scope="module")
def passage() -> np.ndarray:
    return whole_frames(np.concatenate([clip.sentence.samples for clip in clips()[6:10]]))


@pytest.fixture(scope="module")
def alone(network: VisemeNetwork, passage: np.ndarray) -> np.ndarray:
    return opening(network, passage)


def whole_frames(samples: np.ndarray) -> np.ndarray:
    return samples[: len(samples) * FPS // SPEECH_HZ * SPEECH_HZ // FPS]


def opening(network: VisemeNetwork, samples: np.ndarray) -> np.ndarray:
    """How far the mouth opens in each video frame."""
    listen = in_memory(samples.astype(np.float32))
    frames = articulate(listen, len(samples) * FPS // SPEECH_HZ, network=network)
    return np.array([frame.articulation.open for frame in frames])


def quieter(samples: np.ndarray, decibels: float) -> np.ndarray:
    return samples * 10 ** (-decibels / 20)


def noise(count: int, dbfs: float) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 10 ** (dbfs / 20), count)


def music(seconds: float) -> np.ndarray:
    """Chords that pulse, at full scale."""
    t = np.arange(round(seconds * SPEECH_HZ)) / SPEECH_HZ
    chord = sum(np.sin(2 * np.pi * hz * t) for hz in (110, 220, 330, 440, 554, 659))
    sound = chord * np.abs(np.sin(2 * np.pi * t)) ** 0.5
    return 0.9 * sound / np.abs(sound).max()


@pytest.mark.parametrize("pause_s", [0, 4])
@pytest.mark.parametrize("under_db", [12, 18, 24])
def test_a_passage_under_a_louder_one_opens_as_far(
    under_db: float, pause_s: float, network: VisemeNetwork, loud, passage, alone
) -> None:
    speech = np.concatenate([loud, np.zeros(pause_s * SPEECH_HZ), quieter(passage, under_db)])
    found = opening(network, speech)[-len(alone) :]
    assert found.mean() == pytest.approx(alone.mean(), rel=0.05)
    assert np.corrcoef(found, alone)[0, 1] > 0.97


def test_speech_after_loud_music_opens_as_far(network: VisemeNetwork, passage, alone) -> None:
    found = opening(network, np.concatenate([music(8), quieter(passage, 20)]))[-len(alone) :]
    assert found.mean() == pytest.approx(alone.mean(), rel=0.1)
    assert np.corrcoef(found, alone)[0, 1] > 0.95


@pytest.mark.parametrize("dbfs", [-60, -50, -45])
def test_noise_in_pauses_does_not_open_the_mouth(
    dbfs: float, network: VisemeNetwork, loud, passage, alone
) -> None:
    pause = 10 * SPEECH_HZ
    speech = np.concatenate([loud, np.zeros(pause), quieter(passage, 12), np.zeros(pause)])
    found = opening(network, speech + noise(len(speech), dbfs))
    first = len(loud) * FPS // SPEECH_HZ
    between = found[first + 10 : first + 10 * FPS - 10]
    assert max(between.max(), found[-10 * FPS + 10 :].max()) < 0.1
    spoken = found[first + 10 * FPS :][: len(alone)]
    assert spoken.mean() == pytest.approx(alone.mean(), rel=0.25), "and the passage in noise still speaks"


def test_an_even_speech_keeps_its_one_level(loud) -> None:
    listen = in_memory(loud)
    found = 20 * np.log10(PassageLevel(listen, len(loud))(0, len(loud) * 100 // SPEECH_HZ))
    assert np.ptp(found) < 9


def test_levels_do_not_depend_on_where_they_are_asked(loud, passage) -> None:
    speech = np.concatenate([loud, quieter(passage, 18)]).astype(np.float32)
    level, count = PassageLevel(in_memory(speech), len(speech)), len(speech) * 100 // SPEECH_HZ
    whole = level(-30, count + 30)
    for start, stop in ((-30, 10), (333, 334), (501, 777), (count - 5, count + 30)):
        fresh = PassageLevel(in_memory(speech), len(speech))
        np.testing.assert_allclose(fresh(start, stop), whole[start + 30 : stop + 30], rtol=1e-6)


def test_a_click_is_no_passage(loud) -> None:
    speech = np.concatenate([loud, np.zeros(8 * SPEECH_HZ)]).astype(np.float32)
    calm = PassageLevel(in_memory(speech), len(speech))
    clicked = speech.copy()
    at = len(loud) + 4 * SPEECH_HZ
    clicked[at : at + 200] = 0.01
    after = PassageLevel(in_memory(clicked), len(clicked))
    frame = at * 100 // SPEECH_HZ
    assert after(frame, frame + 1)[0] > 0.5 * calm(frame, frame + 1)[0]
