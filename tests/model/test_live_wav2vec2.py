"""Speech features of a stream against those of one pass, by window and look-ahead, on the tiny encoder.

Its random weights attend evenly over all they see, more than a trained encoder does: what is shown here is
that the curve falls to where it is chosen, not how far a trained encoder is from one pass.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from avatar.geometry import BLOCK_FRAMES, FPS, SPEECH_HZ, audio_indices
from avatar.model.live_wav2vec2 import LOOK_AHEAD_S, WINDOW_S, LiveSpeechFeatures, RunningLevel16k
from avatar.model.wav2vec2 import SpeechEncoder, SpeechFeatures
from avatar.model.weights.checkpoint import open_checkpoint
from tests.model.test_wav2vec2 import Recording, relative

NUM_BLOCKS = 40  # 19 s


@pytest.fixture(scope="module")
def encoder(tiny_checkpoint: Path) -> SpeechEncoder:
    return SpeechEncoder.load(open_checkpoint(tiny_checkpoint).speech_encoder, "cpu", torch.float32)


def streamed(encoder: SpeechEncoder, recording: Recording, **options: float) -> Tensor:
    features = LiveSpeechFeatures(encoder, recording.listen, **options)
    blocks = [features.frames(index * BLOCK_FRAMES, BLOCK_FRAMES) for index in range(NUM_BLOCKS)]
    return torch.cat(blocks, dim=-1)


def one_pass(encoder: SpeechEncoder, recording: Recording) -> Tensor:
    whole = SpeechFeatures(encoder, recording.listen, recording.num_samples, window_s=1000.0)
    return whole.frames(0, NUM_BLOCKS * BLOCK_FRAMES)


@pytest.mark.slow
def test_features_near_one_pass_as_window_and_look_ahead_grow(encoder, record_property):
    recording = Recording(NUM_BLOCKS * BLOCK_FRAMES / FPS + 2)
    whole, settled = one_pass(encoder, recording), slice(5 * FPS, None)
    far = {}
    for window_s in (1.0, 2.0, 4.0, WINDOW_S, 16.0):
        for look_ahead_s in (0.0, 0.2, LOOK_AHEAD_S, 0.8):
            ours = streamed(encoder, recording, window_s=window_s, look_ahead_s=look_ahead_s)
            far[window_s, look_ahead_s] = relative(ours[..., settled], whole[..., settled])
    record_property("distance", str(far))
    assert (
        far[WINDOW_S, LOOK_AHEAD_S] < 0.09
    )  # 0.08 of it: one pass knows the level, and stretches features to the end
    assert far[WINDOW_S, LOOK_AHEAD_S] < 0.8 * far[1.0, LOOK_AHEAD_S]  # a longer window is nearer
    assert far[WINDOW_S, LOOK_AHEAD_S] < 0.95 * far[WINDOW_S, 0.0]  # and so is a look ahead
    assert far[WINDOW_S, LOOK_AHEAD_S] < 1.02 * far[16.0, 0.8]  # more of either brings little


def test_one_window_with_the_true_level_is_one_pass(encoder, monkeypatch):
    """The twin: the whole speech in the window, and its level known; 30 Hz are read off 50 Hz at 5/3."""
    recording = Recording(4.0)
    whole = SpeechFeatures(encoder, recording.listen, recording.num_samples, window_s=1000.0)
    features = LiveSpeechFeatures(encoder, recording.listen, window_s=1000.0, look_ahead_s=0.0)
    monkeypatch.setattr(RunningLevel16k, "at", lambda *_: (whole._mean, whole._std))
    num_frames = 4 * FPS + 3
    assert features.needs(0, num_frames) == recording.num_samples
    ours = features.frames(0, num_frames)
    states = encoder.encode(torch.from_numpy(whole._normalised(0, whole._total)))
    for frame in (0, 1, 40, 99):
        place = audio_indices(num_frames)[frame] * 5 / 3
        low = int(place)
        expected = torch.lerp(states[:, low], states[:, low + 1], place - low)
        assert relative(ours[..., frame], expected) < 1e-5


def test_the_level_of_a_voice_is_found_and_kept_through_silence():
    rng = np.random.default_rng(0)
    voice = rng.normal(0.002, 0.03, 20 * SPEECH_HZ).astype(np.float32)
    silence = rng.normal(0, 1e-4, 60 * SPEECH_HZ).astype(np.float32)
    sound = np.concatenate([silence, voice, silence])
    level = RunningLevel16k(lambda start, stop: sound[start:stop])
    _, before = level.at(60 * SPEECH_HZ)
    mean, during = level.at(80 * SPEECH_HZ)
    assert before == pytest.approx(0.05, rel=0.1)  # a voice as it usually is: silence is not made noise
    assert during == pytest.approx(0.03, rel=0.1)
    assert mean == pytest.approx(0.002, abs=5e-4)
    assert level.at(len(sound)) == (mean, during)


def test_no_more_is_listened_to_than_the_window(encoder):
    recording = Recording(60.0)
    features = LiveSpeechFeatures(encoder, recording.listen)
    for index in range(100):
        features.frames(index * BLOCK_FRAMES, BLOCK_FRAMES)
    assert recording.largest <= (WINDOW_S + 0.1) * SPEECH_HZ
