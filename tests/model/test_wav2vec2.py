"""Speech features: every layer as wav2vec2 defines it, windows against one pass, the public code's frames."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Wav2Vec2FeatureExtractor, Wav2Vec2Model

from avatar.errors import WeightsMissing
from avatar.geometry import BLOCK_FRAMES, FPS, LEAD_IN_FRAMES, SPEECH_HZ, audio_indices
from avatar.model.wav2vec2 import SpeechEncoder, SpeechFeatures, interpolation, num_features
from avatar.model.weights.checkpoint import open_checkpoint

GOLDEN = Path(__file__).parents[1] / "golden"
LEAD_IN_SAMPLES = LEAD_IN_FRAMES * SPEECH_HZ // FPS


@pytest.fixture(scope="module")
def folder(tiny_checkpoint: Path) -> Path:
    return open_checkpoint(tiny_checkpoint).speech_encoder


@pytest.fixture(scope="module")
def encoder(folder: Path) -> SpeechEncoder:
    return SpeechEncoder.load(folder, "cpu", torch.float32)


class Recording:
    """Speech-like sound of any length, made where it is listened to; counts the samples asked for at once."""

    def __init__(self, seconds: float) -> None:
        self.num_samples = int(seconds * SPEECH_HZ)
        self.largest = 0

    def listen(self, start: int, stop: int) -> np.ndarray:
        self.largest = max(self.largest, stop - start)
        index = np.arange(start, stop)
        time = index / SPEECH_HZ
        loudness = np.clip(np.sin(6 * np.pi * time) + np.sin(0.8 * time), 0, None)
        hiss = np.sin(index * 12.9898) * 43758.5453 % 1 - 0.5
        sound = loudness * (0.2 * np.sin(2 * np.pi * 180 * time) + 0.2 * hiss)
        return np.where((index >= 0) & (index < self.num_samples), sound, 0).astype(np.float32)

    def features(self, encoder: SpeechEncoder, **window: float) -> SpeechFeatures:
        return SpeechFeatures(encoder, self.listen, self.num_samples, **window)


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def test_hidden_states_are_every_layers_input_and_the_normed_end(encoder: SpeechEncoder) -> None:
    """A twin that listens to the layers themselves, whatever way a library release collects states."""
    stack, seen = encoder.model.encoder, []
    hooks = [
        layer.register_forward_pre_hook(lambda _, args, kwargs: seen.append(args[0]), with_kwargs=True)
        for layer in stack.layers
    ]
    hooks.append(stack.layer_norm.register_forward_hook(lambda _, args, output: seen.append(output)))
    states = encoder.encode(torch.randn(2 * SPEECH_HZ, generator=torch.Generator().manual_seed(0)))
    for hook in hooks:
        hook.remove()
    assert states.shape == (25, 99, encoder.width)
    assert torch.equal(states, torch.cat(seen))


def test_loading_equals_the_librarys(folder: Path, encoder: SpeechEncoder) -> None:
    library = Wav2Vec2Model.from_pretrained(folder).eval()
    samples = torch.randn(SPEECH_HZ, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(library(samples[None]).last_hidden_state[0], encoder.encode(samples)[-1])


@pytest.mark.parametrize("num_samples", [0, 399, 400, 719, 720, 16000, 123456])
def test_frames_are_counted_as_the_convolutions_make_them(num_samples: int, encoder: SpeechEncoder) -> None:
    counted = encoder.num_hidden(num_samples)
    assert counted == (0 if num_samples < 400 else (num_samples - 400) // 320 + 1)
    if counted:
        assert len(encoder.encode(torch.zeros(num_samples))[0]) == counted
        assert encoder.num_samples(counted) <= num_samples < encoder.num_samples(counted + 1)


def test_interpolation_and_frames_are_the_public_codes() -> None:
    golden = load_file(GOLDEN / "audio_buckets.safetensors")
    hidden = golden["hidden_states_50hz"]
    length = num_features(hidden.shape[1])
    assert length == golden["features_30hz"].shape[1]
    places = [interpolation(index, length, hidden.shape[1]) for index in range(length)]
    features = torch.stack([torch.lerp(hidden[:, a], hidden[:, b], weight) for a, b, weight in places], dim=1)
    assert relative(features, golden["features_30hz"]) < 1e-5
    for clip in (32, 48, 80):
        frames = golden[f"bucket_fps25_clip{clip}"]
        indices = audio_indices(len(frames))
        for frame, index in zip(frames, indices, strict=True):
            expected = (
                golden["features_30hz"][:, index] if index < length else torch.zeros(25, hidden.shape[2])
            )
            assert torch.equal(frame, expected)


def test_frames_equal_the_plain_computation_over_the_whole_speech(encoder: SpeechEncoder) -> None:
    """The twin: silence before the speech, the library's normalisation, one pass, torch's interpolation."""
    recording = Recording(4.3)
    samples = recording.listen(-LEAD_IN_SAMPLES, recording.num_samples)
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True)
    values = extractor(samples, sampling_rate=SPEECH_HZ, return_tensors="pt").input_values[0]
    hidden = encoder.encode(values)
    length = int(hidden.shape[1] / 50 * 30)
    features = F.interpolate(hidden.transpose(1, 2), size=length, align_corners=True, mode="linear")
    num_frames = 12 * BLOCK_FRAMES
    indices = torch.from_numpy(audio_indices(num_frames))
    expected = F.pad(features, (0, int(indices[-1]) + 1 - length))[:, :, indices]
    ours = recording.features(encoder)
    blocks = torch.cat(
        [ours.frames(start, BLOCK_FRAMES) for start in range(0, num_frames, BLOCK_FRAMES)], dim=-1
    )
    assert blocks.shape == (25, encoder.width, num_frames)
    assert relative(blocks, expected) < 1e-5
    spoken = int((recording.num_samples + LEAD_IN_SAMPLES) / SPEECH_HZ * FPS)
    assert not blocks[:, :, spoken + 2 :].any()
    assert blocks[:, :, : spoken - 2].abs().sum((0, 1)).all()


@pytest.mark.slow
def test_three_minutes_in_windows_are_one_pass_to_a_hundredth(encoder: SpeechEncoder) -> None:
    recording, num_frames = Recording(180), 180 * FPS
    whole = recording.features(encoder, window_s=1000.0).frames(0, num_frames)
    windows = recording.features(encoder).frames(0, num_frames)
    assert not torch.equal(whole, windows)
    assert relative(windows, whole) < 1e-2
    assert max(relative(ours, theirs) for ours, theirs in zip(windows, whole, strict=True)) < 1e-2


def test_a_speech_that_fits_the_window_is_one_pass(encoder: SpeechEncoder) -> None:
    recording = Recording(55)
    frames = recording.features(encoder).frames(0, 100)
    assert torch.equal(frames, recording.features(encoder, window_s=1000.0).frames(0, 100))


def test_windows_leave_no_jump_where_they_meet(encoder: SpeechEncoder) -> None:
    recording = Recording(30)
    whole = recording.features(encoder, window_s=1000.0).frames(0, 30 * FPS)
    windows = recording.features(encoder, window_s=15.0, margin_s=4.0).frames(0, 30 * FPS)
    worst = ((windows - whole).norm(dim=(0, 1)) / whole.norm(dim=(0, 1))).max()
    assert worst < 5e-2


def test_memory_does_not_grow_with_the_speech(encoder: SpeechEncoder) -> None:
    """Twenty minutes are read in pieces of at most one; only one window of states is held."""
    recording = Recording(1200)
    tracemalloc.start()
    features = recording.features(encoder, window_s=10.0, margin_s=2.0)
    for start in range(0, 1200 * FPS, 400 * FPS):
        features.frames(start, BLOCK_FRAMES)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert recording.largest <= 60 * SPEECH_HZ
    assert peak < 80 * 2**20  # what making a minute of sound takes here; the samples alone would be 77 MB
    first, end, states = features._held or (0, 0, torch.empty(0))
    assert end - first <= 10 * 50
    assert states.untyped_storage().nbytes() == states.nbytes


def test_the_shortest_speech_has_a_feature(encoder: SpeechEncoder) -> None:
    frames = Recording(0.01).features(encoder).frames(0, BLOCK_FRAMES)
    assert frames[:, :, 0].any()
    assert torch.isfinite(frames).all()


def test_margins_must_leave_room(encoder: SpeechEncoder) -> None:
    with pytest.raises(ValueError, match="no room"):
        Recording(1).features(encoder, window_s=4.0, margin_s=2.0)


def copy_of(folder: Path, target: Path) -> dict[str, Tensor]:
    for name in ("config.json", "preprocessor_config.json"):
        (target / name).write_bytes((folder / name).read_bytes())
    return load_file(folder / "model.safetensors")


def test_names_of_older_releases_are_read(folder: Path, encoder: SpeechEncoder, tmp_path: Path) -> None:
    tensors = copy_of(folder, tmp_path)
    old = {
        "parametrizations.weight.original0": "weight_g",
        "parametrizations.weight.original1": "weight_v",
    }
    for new, name in old.items():
        key = next(key for key in tensors if key.endswith(new))
        tensors[key.replace(new, name)] = tensors.pop(key)
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    samples = torch.randn(SPEECH_HZ)
    again = SpeechEncoder.load(tmp_path, "cpu", torch.float32)
    assert torch.equal(again.encode(samples), encoder.encode(samples))


def test_missing_and_unexpected_tensors_are_named(folder: Path, tmp_path: Path) -> None:
    tensors = copy_of(folder, tmp_path)
    del tensors["wav2vec2.encoder.layers.7.final_layer_norm.weight"]
    tensors["wav2vec2.stranger"] = torch.zeros(1)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(WeightsMissing) as refused:
        SpeechEncoder.load(tmp_path, "cpu", torch.float32)
    assert "missing: encoder.layers.7.final_layer_norm.weight" in str(refused.value)
    assert "unexpected: stranger" in str(refused.value)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_a_missing_or_broken_file_is_named(name: str, folder: Path, tmp_path: Path) -> None:
    save_file(copy_of(folder, tmp_path), tmp_path / "model.safetensors")
    (tmp_path / name).write_text("{")
    with pytest.raises(WeightsMissing, match=name) as refused:
        SpeechEncoder.load(tmp_path, "cpu", torch.float32)
    assert str(tmp_path) not in str(refused.value)
    (tmp_path / name).unlink()
    with pytest.raises(WeightsMissing, match=name):
        SpeechEncoder.load(tmp_path, "cpu", torch.float32)
