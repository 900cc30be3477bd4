"""The sound of a session: one clock, two rates, bounded memory."""

from __future__ import annotations

import numpy as np
import pytest

from avatar.geometry import SOUND_HZ, SPEECH_HZ
from avatar.media.timeline import Timeline


def test_sound_comes_back_by_its_place_until_forgotten():
    timeline, rng = Timeline(keep_s=1.0), np.random.default_rng(0)
    sound = rng.integers(-9000, 9000, 5 * SOUND_HZ).astype(np.int16)
    for piece in np.array_split(sound, 77):
        timeline.append(piece)
        stop = timeline.num_samples
        start = max(0, stop - SOUND_HZ)
        assert np.array_equal(timeline.sound(start, stop), sound[start:stop])
    with pytest.raises(LookupError):
        timeline.sound(0, 10)
    with pytest.raises(LookupError):
        timeline.sound(stop, stop + 1)


@pytest.mark.parametrize("pieces", [1, 7, 500])
def test_what_is_heard_is_the_sound_at_16_khz(pieces):
    timeline = Timeline(keep_s=4.0)
    places = np.arange(2 * SOUND_HZ) / SOUND_HZ
    too_high = 0.3 * np.sin(2 * np.pi * 12_000 * places)
    sound = 0.5 * np.sin(2 * np.pi * 440 * places) + too_high
    for piece in np.array_split((sound * 32767).astype(np.int16), pieces):
        timeline.append(piece)
    heard = timeline.listen(-10, timeline.num_heard)
    assert not heard[:10].any()
    assert timeline.num_heard >= 2 * SPEECH_HZ - 8
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(len(heard) - 10) / SPEECH_HZ)
    assert np.abs(heard[10:] - expected)[50:].max() < 0.01


def test_memory_holds_what_is_kept_alone():
    timeline = Timeline(keep_s=0.5)
    before = timeline.num_held
    for _ in range(200):
        timeline.append(np.ones(30_000, np.int16))
    assert timeline.num_held == before
    assert timeline.num_samples == 200 * 30_000
