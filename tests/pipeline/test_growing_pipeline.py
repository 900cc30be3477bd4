"""The diffusion engine begins before a text's voice has ended, and makes the same frames as afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from avatar.errors import Cancelled
from avatar.geometry import Size
from avatar.media.intake import open_request
from avatar.media.sample_inputs import write_sample
from avatar.model.voice_wav2vec2 import VoiceFeatures
from avatar.pipeline import conditioning
from avatar.pipeline.pipeline import DiffusionPipeline
from avatar.preset import load_preset
from avatar.request import Request
from tests.fixtures.growing import SlowVoice, interleaved

PRESET = load_preset("self-test")
WINDOW_S, MARGIN_S = 3.0, 0.5


@pytest.fixture(scope="module")
def engine(tiny_checkpoint: Path) -> DiffusionPipeline:
    return DiffusionPipeline(PRESET, tiny_checkpoint)


@pytest.fixture
def short_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        conditioning, "VoiceFeatures", partial(VoiceFeatures, window_s=WINDOW_S, margin_s=MARGIN_S)
    )


def asked(folder: Path, voice: SlowVoice, grows: bool = True) -> Request:
    """A request for a voice's speech."""
    portrait, _ = write_sample(folder, Size(96, 96), 1.0)
    given = {"output": folder / "out.mp4", "work": folder / "work", "prompt": "a fox", "spoken": "a digest"}
    if grows:
        return open_request(portrait, voice.wav, PRESET, growing=voice.journal, **given)
    return open_request(portrait, voice.wav, PRESET, **given)


def made(items: Iterator[object]) -> np.ndarray:
    return np.concatenate([item for item in items if isinstance(item, np.ndarray)])


@pytest.mark.parametrize("lengths_s", [(1.2, 1.0, 1.3, 0.9, 1.4, 1.27), (2.0, 0.7)])
def test_the_frames_are_those_of_the_whole_speech(engine, short_windows, tmp_path, lengths_s):
    finished = SlowVoice(tmp_path, lengths_s).all()
    whole = made(engine.frames(asked(tmp_path, finished, grows=False), lambda: False))
    folder = tmp_path / "grows"
    folder.mkdir()
    voice = SlowVoice(folder, lengths_s)
    voice.next()
    items = engine.frames(asked(folder, voice), lambda: False)
    grown = made(iter(interleaved(voice, items, lambda item: isinstance(item, np.ndarray))))
    assert len(whole) == round(sum(lengths_s) * 25 + 0.49)
    assert np.array_equal(whole, grown)
    first = voice.events.index("made")
    fits = sum(lengths_s) <= WINDOW_S
    assert (first < voice.events.index(f"said {len(lengths_s)}")) is not fits


def test_a_stopped_run_does_not_wait_for_the_voice(engine, short_windows, tmp_path):
    voice = SlowVoice(tmp_path, (1.0, 5.0))
    voice.next()
    polls = iter(range(1_000_000))
    with pytest.raises(Cancelled):
        list(engine.frames(asked(tmp_path, voice), lambda: next(polls) > 40))
    assert voice.num_said == 1


def test_a_part_of_a_spoken_text_is_as_long_as_was_asked(engine, short_windows, tmp_path):
    voice = SlowVoice(tmp_path, (1.5, 1.5, 1.5)).all()
    request = replace(asked(tmp_path, voice, grows=False), num_frames=50)
    assert len(made(engine.frames(request, lambda: False))) == 50
