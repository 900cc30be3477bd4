"""The mouth: right shapes at the right times on voices never heard, shut on what is no speech."""

import tracemalloc

import numpy as np
import pytest

from avatar.geometry import FPS, SPEECH_HZ
from avatar.preview.articulation import KEYS, SpokenFrame, articulate
from avatar.preview.visemes import Listen, VisemeNetwork
from tests.preview.listening import CountingListen, in_memory
from tests.preview.truth import Clip, clips
from training.evaluate import CLOSED_OPEN, OPEN, ROUND, WIDE, correlation, non_speech, score

# What a jaw driven by the phonemes of another sentence reaches at most: the control for all correlations.
UNRELATED = 0.45


@pytest.fixture(scope="module")
def network() -> VisemeNetwork:
    return VisemeNetwork.load()


@pytest.fixture(scope="module")
def known() -> list[Clip]:
    return clips()


@pytest.fixture(scope="module")
def driven(network: VisemeNetwork, known: list[Clip]) -> list[np.ndarray]:
    """Articulation of each clip as the video shows it, (num_frames, KEYS)."""
    return [curves(clip.sentence.listen, clip.num_frames, network=network) for clip in known]


def curves(listen: Listen, num_frames: int, **options) -> np.ndarray:
    frames = list(articulate(listen, num_frames, **options))
    return np.array([[getattr(frame.articulation, key) for key in KEYS] for frame in frames])


def test_the_clips_are_eighteen_unheard_voices_with_bilabials(known: list[Clip]) -> None:
    assert len(known) == 18
    assert len({clip.sentence.voice for clip in known}) >= 4
    assert sum(len(clip.bilabials_s) for clip in known) >= 54


def test_jaw_and_lips_follow_the_phonemes(driven: list[np.ndarray], known: list[Clip]) -> None:
    jaw = [correlation(mouth[:, OPEN], clip.opening_with_lead) for mouth, clip in zip(driven, known)]
    others = known[1:] + known[:1]
    control = [correlation(mouth[:, OPEN], clip.opening_with_lead) for mouth, clip in zip(driven, others)]
    assert np.median(jaw) >= 0.75
    assert min(jaw) >= 0.6
    assert np.median(control) < UNRELATED


def test_lip_width_and_rounding_follow_the_phonemes(network: VisemeNetwork, known: list[Clip]) -> None:
    scores = [score(network, clip.sentence) for clip in known]
    assert np.median([entry.lips for entry in scores]) >= 0.5
    assert np.median([entry.jaw for entry in scores]) >= 0.75


def test_lip_width_of_another_sentence_does_not_fit(driven: list[np.ndarray], known: list[Clip]) -> None:
    widths = [mouth[:, WIDE] - mouth[:, ROUND] for mouth in driven]
    control = [correlation(width, clip.width) for width, clip in zip(widths, known[1:] + known[:1])]
    assert np.median(control) < UNRELATED


def test_lips_meet_for_p_b_m(network: VisemeNetwork, known: list[Clip]) -> None:
    met = [
        score(network, clip.sentence).closures * len(clip.bilabials_s) for clip in known if clip.bilabials_s
    ]
    assert sum(met) / sum(len(clip.bilabials_s) for clip in known) >= 0.75


def test_lips_meet_in_video_frames_too(driven: list[np.ndarray], known: list[Clip]) -> None:
    met = []
    for mouth, clip in zip(driven, known):
        for start_s, stop_s in clip.bilabials_s:
            first, last = int((start_s - 0.06) * FPS), int(np.ceil(stop_s * FPS))
            met.append(mouth[first : last + 1, OPEN].min() < CLOSED_OPEN)
    assert np.mean(met) >= 0.75


def test_the_mouth_leads_the_sound_by_little(driven: list[np.ndarray], known: list[Clip]) -> None:
    shifts = range(-5, 6)
    fits = np.zeros(len(shifts))
    for mouth, clip in zip(driven, known):
        for index, shift in enumerate(shifts):
            fits[index] += correlation(np.roll(mouth[:, OPEN], -shift)[5:-5], clip.opening[5:-5])
    lag_s = shifts[int(fits.argmax())] / FPS
    assert -0.08 <= lag_s <= 0.04


@pytest.mark.parametrize("name", sorted(non_speech()))
def test_the_mouth_stays_shut_on(network: VisemeNetwork, name: str) -> None:
    samples = non_speech()[name]
    opening = curves(in_memory(samples), len(samples) * FPS // SPEECH_HZ, network=network)[:, OPEN]
    assert opening.max() < 0.06


def test_an_empty_speech_leaves_the_mouth_at_rest() -> None:
    mouth = curves(in_memory(np.zeros(0, np.float32)), 40)
    assert mouth.shape == (40, len(KEYS))
    assert np.abs(mouth).max() == 0


def test_values_stay_in_their_ranges(driven: list[np.ndarray]) -> None:
    everything = np.concatenate(driven)
    assert everything.min() >= 0
    assert everything[:, OPEN].max() <= 1.1 + 1e-6
    assert everything[:, OPEN].max() > 0.7
    assert everything.max() <= 1.15


def test_starting_in_the_middle_changes_nothing(network: VisemeNetwork, known: list[Clip]) -> None:
    clip = known[0]
    whole = curves(clip.sentence.listen, clip.num_frames, network=network)
    tail = curves(clip.sentence.listen, clip.num_frames, first_frame=17, network=network)
    np.testing.assert_allclose(tail, whole[17:], atol=1e-5)


def test_the_frame_rate_only_samples_the_same_motion(network: VisemeNetwork, known: list[Clip]) -> None:
    clip = known[0]
    at_25 = curves(clip.sentence.listen, clip.num_frames, network=network)
    at_50 = curves(clip.sentence.listen, 2 * clip.num_frames, fps=50, network=network)
    np.testing.assert_allclose(at_50[::2], at_25, atol=1e-5)


def test_energy_and_emphasis_rise_with_the_speech(network: VisemeNetwork, known: list[Clip]) -> None:
    clip = known[6]
    padded = np.concatenate([np.zeros(SPEECH_HZ * 2, np.float32), clip.sentence.samples])
    frames: list[SpokenFrame] = list(
        articulate(in_memory(padded), clip.num_frames + 2 * FPS, network=network)
    )
    energy = np.array([frame.energy for frame in frames])
    emphasis = np.array([frame.emphasis for frame in frames])
    assert energy[:5].max() < 0.01
    assert energy[3 * FPS :].max() > 0.3
    assert emphasis[: FPS // 2].max() < 0.01
    assert 0.1 < emphasis.max() <= 1
    assert np.abs(np.diff(emphasis)).max() < 0.25


def test_memory_does_not_grow_with_the_speech(network: VisemeNetwork) -> None:
    speech = CountingListen(5 * 60 * SPEECH_HZ)
    tracemalloc.start()
    try:
        for _ in articulate(speech, 5 * 60 * FPS, network=network):
            pass
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert speech.longest <= 6 * SPEECH_HZ
    assert peak_bytes < 16e6
