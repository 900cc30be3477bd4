"""The viseme network: exact in stretches, bounded in what it reads, in numpy alone."""

import subprocess
import sys

import numpy as np
import pytest

from avatar.geometry import SPEECH_HZ
from avatar.preview import visemes
from avatar.preview.visemes import VISEMES, VisemeNetwork, log_mels, speech_level
from tests.preview.listening import CountingListen, in_memory
from tests.preview.truth import clips


@pytest.fixture(scope="module")
def network() -> VisemeNetwork:
    return VisemeNetwork.load()


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    return np.concatenate([clip.sentence.samples for clip in clips()[::5]])


@pytest.mark.parametrize("stretch", [1, 37, 200])
def test_stretches_equal_the_whole(network: VisemeNetwork, speech: np.ndarray, stretch: int) -> None:
    listen, level = in_memory(speech), speech_level(in_memory(speech), len(speech))
    count = min(len(speech) // visemes.HOP, 400)
    whole = network.probabilities(listen, 0, count, level)
    parts = [
        network.probabilities(listen, start, min(start + stretch, count), level)
        for start in range(0, count, stretch)
    ]
    assert whole.shape == (count, len(VISEMES))
    np.testing.assert_allclose(whole.sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-5)


def test_a_listener_that_pads_with_silence_changes_nothing(
    network: VisemeNetwork, speech: np.ndarray
) -> None:
    def padding(start: int, stop: int) -> np.ndarray:
        return np.pad(speech[start:stop], (0, max(0, stop - max(start, len(speech)))))

    count = len(speech) // visemes.HOP + 50
    expected = network.probabilities(in_memory(speech), -20, count, 0.05)
    np.testing.assert_array_equal(network.probabilities(padding, -20, count, 0.05), expected)


def test_log_mels_equal_a_frame_by_frame_computation(speech: np.ndarray) -> None:
    level, first, last = 0.03, 100, 112
    found = log_mels(in_memory(speech), first, last, level)
    filters = visemes.mel_filters().astype(np.float64)
    for row, frame in enumerate(range(first, last)):
        middle = frame * visemes.HOP + visemes.HOP // 2
        window = speech[middle - visemes.WINDOW // 2 : middle + visemes.WINDOW // 2].astype(np.float64)
        window = window * (visemes.NORMAL_RMS / level) * np.hanning(visemes.WINDOW)
        power = np.abs(np.fft.fft(window, visemes.FFT_SIZE)[: visemes.FFT_SIZE // 2 + 1]) ** 2
        expected = visemes.LOG_SCALE * np.log(power @ filters + visemes.POWER_FLOOR)
        np.testing.assert_allclose(found[row], expected, atol=1e-4)


def test_mel_filters_cover_the_range_evenly() -> None:
    filters = visemes.mel_filters()
    assert filters.shape == (visemes.FFT_SIZE // 2 + 1, visemes.NUM_MELS)
    assert (filters >= 0).all()
    assert (filters.max(0) > 0.3).all()
    peaks = filters.argmax(0)
    assert (np.diff(peaks) >= 0).all()


def test_the_network_does_not_depend_on_how_loud_the_speech_is(
    network: VisemeNetwork, speech: np.ndarray
) -> None:
    count = len(speech) // visemes.HOP
    results = []
    for gain in (1.0, 0.3):
        samples = speech * np.float32(gain)
        level = speech_level(in_memory(samples), len(samples))
        results.append(network.probabilities(in_memory(samples), 0, count, level))
    np.testing.assert_allclose(results[0], results[1], atol=1e-3)


def test_level_is_the_rms_of_the_loud_part() -> None:
    rng = np.random.default_rng(0)
    loud, quiet = rng.normal(0, 0.1, 4 * SPEECH_HZ), rng.normal(0, 0.001, 6 * SPEECH_HZ)
    samples = np.concatenate([loud, quiet]).astype(np.float32)
    assert speech_level(in_memory(samples), len(samples)) == pytest.approx(0.1, rel=0.02)


@pytest.mark.parametrize("num_samples", [0, 1, 100, SPEECH_HZ])
def test_quiet_or_missing_sound_has_the_floor_as_its_level(num_samples: int) -> None:
    silence = np.zeros(num_samples, np.float32)
    assert speech_level(in_memory(silence), num_samples) == visemes.FLOOR_RMS


def test_the_level_of_an_hour_is_found_in_two_minutes_of_it() -> None:
    hour = CountingListen(3600 * SPEECH_HZ)
    level = speech_level(hour, hour.num_samples)
    assert hour.total <= 120 * SPEECH_HZ
    assert hour.longest <= 2 * SPEECH_HZ
    assert level == pytest.approx(0.05, rel=0.1)


def test_running_it_needs_neither_torch_nor_the_training_code() -> None:
    program = (
        "import sys, numpy as np\n"
        "from avatar.preview.animate import animate\n"
        "assert len(list(animate(lambda start, stop: np.zeros(0, np.float32), 30))) == 30\n"
        "unwanted = {'torch', 'scipy', 'librosa', 'training'} & set(sys.modules)\n"
        "assert not unwanted, unwanted\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
