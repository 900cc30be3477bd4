"""The diffusion engine whole, on a tiny real checkpoint: frames, bits, cancel, what is in memory when."""

from __future__ import annotations

import gc
import os
import shutil
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from avatar.checkpoints.locations import CACHE_ENVIRONMENT, DIFFUSERS
from avatar.errors import BadInput, Cancelled, DoesNotFit, WeightsMissing
from avatar.events import Activity, Notice, Phase, Progress
from avatar.geometry import BLOCK_FRAMES, FPS, LEAD_IN_FRAMES, SOUND_HZ, Size
from avatar.media.intake import open_request
from avatar.media.prompt import worded
from avatar.media.sample_inputs import write_sample
from avatar.model.text_encoder import TextEncoder, TextWeights
from avatar.model.wav2vec2 import SpeechEncoder
from avatar.model.weights import weight_cache
from avatar.model.weights.checkpoint import open_checkpoint
from avatar.pipeline import checkpoint_choice, components, pipeline
from avatar.pipeline.components import Components
from avatar.pipeline.conditioning import ConditionEncoder, LocalTextEncoder
from avatar.pipeline.denoiser import LocalDenoiser
from avatar.pipeline.denoiser_choice import local_denoiser
from avatar.pipeline.device import DTYPES
from avatar.pipeline.layer_stack import CompiledPieces
from avatar.pipeline.model_loading import MadeModels
from avatar.pipeline.pipeline import SELF_TEST_LABEL, DiffusionPipeline
from avatar.preset import load_preset
from avatar.request import Request
from tests.fixtures.local_ranks import LocallyRanked

PRESET = load_preset("self-test")


@pytest.fixture(scope="module")
def warm(tiny_checkpoint: Path) -> DiffusionPipeline:
    """One source for all tests that leave it as they found it."""
    return DiffusionPipeline(PRESET, tiny_checkpoint)


@pytest.fixture
def ask(tmp_path: Path) -> Callable[..., Request]:
    """A request of so many seconds of babble, with settings laid over the preset."""

    def build(
        seconds: float = 1.0, *, prompt: str = "a fox speaks", segment_s: float = 2.0, **settings
    ) -> Request:
        folder = Path(tmp_path, f"request-{len(list(tmp_path.iterdir()))}")
        folder.mkdir()
        portrait, speech = write_sample(folder, Size(96, 96), seconds)
        preset = PRESET.with_settings(**settings)
        return open_request(
            portrait,
            speech,
            preset,
            output=folder / "out.mp4",
            work=folder / "work",
            prompt=prompt,
            segment_s=segment_s,
        )

    return build


def batches(engine: DiffusionPipeline, request: Request) -> Iterator[np.ndarray]:
    found = engine.frames(request, lambda: False)
    return (item for item in found if isinstance(item, np.ndarray))


def video(engine: DiffusionPipeline, request: Request) -> np.ndarray:
    """All frames, T H W 3."""
    return np.concatenate(list(batches(engine, request)))


@pytest.mark.parametrize("num_frames", [5, 9, 10, 21, 22, 50])
def test_as_many_frames_as_the_speech_has(warm, ask, num_frames):
    request = ask(num_frames / FPS)
    parts = list(batches(warm, request))
    assert sum(map(len, parts)) == request.num_frames == num_frames
    assert [len(part) for part in parts[:-1]] == [9, 12, 12, 12][: len(parts) - 1]
    assert {part.shape[1:] for part in parts} == {(64, 64, 3)}
    assert all(part.dtype == np.uint8 for part in parts)
    assert np.concatenate(parts).std() > 5  # a picture, not one colour


def test_a_missing_fast_path_is_reported_once_a_run(warm, ask, monkeypatch):
    monkeypatch.setattr(pipeline, "missing", lambda: [("pinned", "Copies are slower.")])
    for _ in range(2):
        found = list(warm.frames(ask(1.5), lambda: False))
        notices = [item for item in found if isinstance(item, Notice)]
        assert notices == [Notice("slow_pinned", "Copies are slower.", "warning")]


def test_clips_end_the_video_before_the_speech_does(warm, ask):
    request = ask(3.0, num_clip=2)
    assert len(video(warm, request)) == 32


def test_phases_are_reported_in_order(warm, ask):
    reported = [item.phase for item in warm.frames(ask(0.2), lambda: False) if isinstance(item, Progress)]
    assert reported == [Phase.LOADING, Phase.ENCODING, Phase.GENERATING]


def test_same_request_same_bits_also_when_the_consumer_dawdles(warm, ask, tiny_checkpoint):
    expected = video(warm, ask())
    assert np.array_equal(video(warm, ask()), expected)
    slow = []
    for index, part in enumerate(batches(DiffusionPipeline(PRESET, tiny_checkpoint), ask())):
        slow.append(part)
        torch.manual_seed(index)  # whatever others draw meanwhile
        torch.randn(1000)
        np.random.default_rng().normal(size=10)
    assert np.array_equal(np.concatenate(slow), expected)
    assert not np.array_equal(video(warm, ask(seed=1)), expected)
    assert not np.array_equal(video(warm, ask(prompt="a robot is silent")), expected)


def test_motion_reaches_the_model_as_words(warm, ask):
    usual, words = video(warm, ask(0.6)), worded("a fox speaks", "lively")
    assert np.array_equal(video(warm, ask(0.6, motion="normal")), usual)
    lively = video(warm, ask(0.6, motion="lively"))
    assert not np.array_equal(lively, usual)
    assert np.array_equal(lively, video(warm, ask(0.6, prompt=words)))


def test_a_run_leaves_no_trace_in_the_next(warm, ask, tiny_checkpoint):
    video(warm, ask(0.6, size="128*64", infer_frames=20, sample_steps=1, seed=3))
    expected = video(DiffusionPipeline(PRESET, tiny_checkpoint), ask(0.6))
    assert np.array_equal(video(warm, ask(0.6)), expected)


@pytest.mark.parametrize("settings", [{"segment_s": 0.4}, {"segment_s": 10}, {"enable_online_decode": False}])
def test_neither_segments_nor_the_time_of_decoding_change_a_bit(warm, ask, settings):
    assert np.array_equal(video(warm, ask(2.0, **settings)), video(warm, ask(2.0)))


def test_compiled_pieces_change_nothing_that_shows(warm, ask, monkeypatch):
    expected = video(warm, ask(0.6)).astype(int)
    monkeypatch.setattr(warm, "pieces", CompiledPieces.compiled(backend="aot_eager"))
    assert np.abs(video(warm, ask(0.6)) - expected).max() <= 1


def test_the_diffusers_layout_gives_the_same(warm, ask, tiny_diffusers_checkpoint):
    assert (tiny_diffusers_checkpoint / DIFFUSERS.repo.split("/")[1]).is_dir()
    repacked = DiffusionPipeline(PRESET, tiny_diffusers_checkpoint)
    assert np.array_equal(video(repacked, ask(0.4)), video(warm, ask(0.4)))


def test_without_online_decode_the_transformer_leaves_first(ask, tiny_checkpoint, monkeypatch):
    rings: list[weakref.ref[Tensor]] = []
    engine = DiffusionPipeline(PRESET, tiny_checkpoint)
    transformers: list[weakref.ref[torch.nn.Module]] = []
    begin = LocalDenoiser.begin

    def spied(self, conditions):
        begin(self, conditions)
        rings.append(weakref.ref(self.stack.caches[0].rings[0].k))
        transformers.append(weakref.ref(self.transformer))

    monkeypatch.setattr(LocalDenoiser, "begin", spied)
    for _ in range(2):  # it is loaded again for the next run
        frames = batches(engine, ask(0.6, enable_online_decode=False))
        next(frames)
        gc.collect()
        assert transformers[-1]() is None
        assert rings[-1]() is None
        assert len(list(frames)) == 1
    frames = batches(engine, ask(0.6))
    next(frames)
    assert transformers[-1]() is not None
    frames.close()


def test_the_prompt_encoder_is_gone_before_the_first_step(ask, tiny_checkpoint, monkeypatch):
    encoders: list[weakref.ref[TextEncoder]] = []
    places = []
    streamed = TextWeights.streamed

    def spied(self, device, dtype):
        encoder = streamed(self, device, dtype)
        encoders.append(weakref.ref(encoder))
        places.append(str(device))
        return encoder

    monkeypatch.setattr(TextWeights, "streamed", spied)
    alive = []
    begin = LocalDenoiser.begin

    def noting(self, conditions):
        gc.collect()
        alive.append(encoders[-1]() is not None)
        begin(self, conditions)

    monkeypatch.setattr(LocalDenoiser, "begin", noting)
    video(DiffusionPipeline(PRESET, tiny_checkpoint), ask(0.2))
    assert (alive, places) == ([False], ["cpu"])


@pytest.mark.parametrize(("setting", "place"), [("gpu", "meta"), ("cpu", "cpu")])
def test_the_prompt_encoder_goes_where_the_preset_says(setting, place, tiny_checkpoint, monkeypatch):
    """The device is imagined: tensors on meta have shapes and no values."""
    monkeypatch.setattr(components, "best_device", lambda: torch.device("meta"))
    placed = []

    def noted(self, files, vae, speech, encode_text):
        placed.append(encode_text.device.type)

    monkeypatch.setattr(ConditionEncoder, "__init__", noted)
    Components.load(replace(PRESET.memory, text_encoder=setting), open_checkpoint(tiny_checkpoint))
    assert placed == [place]


@pytest.mark.parametrize("after", [3, 6, 11])
def test_cancel_takes_effect_within_a_step(warm, ask, monkeypatch, after):
    steps = []
    advance = LocalDenoiser.advance

    def counted(self, due):
        steps.append(due[0].step)
        advance(self, due)

    monkeypatch.setattr(LocalDenoiser, "advance", counted)
    with pytest.raises(Cancelled):
        for _ in warm.frames(ask(3.0), lambda: len(steps) >= after):
            pass
    assert len(steps) == after


def test_cancel_while_loading_stops_between_two_tensors(warm, ask, tiny_checkpoint):
    engine = DiffusionPipeline(PRESET, tiny_checkpoint)
    asked = []

    def cancelled() -> bool:
        asked.append(1)
        return len(asked) > 20  # two side models come first, then the transformer's tensors

    with pytest.raises(Cancelled):
        list(engine.frames(ask(0.2), cancelled))
    assert len(asked) == 21
    assert np.array_equal(video(engine, ask(0.2)), video(warm, ask(0.2)))


def test_another_transformer_keeps_the_models_around_it(ask, tiny_checkpoint):
    """As when another preset is chosen on the page; the frames are those of a fresh engine."""
    engine = DiffusionPipeline(PRESET, tiny_checkpoint)
    video(engine, ask(0.4, weight_dtype="bf16"))
    before = engine._parts
    assert before is not None
    again = video(engine, ask(0.4, weight_dtype="fp8"))
    after = engine._parts
    assert after is not None
    assert after.vae is before.vae
    assert after.conditions is before.conditions
    assert after.transformer is not before.transformer
    fresh = DiffusionPipeline(PRESET, tiny_checkpoint)
    assert np.array_equal(again, video(fresh, ask(0.4, weight_dtype="fp8")))


def test_models_around_it_that_differ_are_loaded_anew(ask, tiny_checkpoint, tmp_path):
    folder = tmp_path / "weights"
    shutil.copytree(tiny_checkpoint, folder)
    engine = DiffusionPipeline(PRESET, folder)
    video(engine, ask(0.4, weight_dtype="bf16"))
    first = weakref.ref(engine._parts.vae)
    video(engine, ask(0.4, weight_dtype="bf16", decoder="tiny"))
    gc.collect()
    assert first() is None, "freed, and not kept beside the next"
    second = engine._parts.vae
    os.utime(open_checkpoint(folder).vae)
    video(engine, ask(0.4, weight_dtype="fp8", decoder="tiny"))
    assert engine._parts.vae is not second


def test_what_a_start_does_is_reported(ask, tiny_checkpoint, monkeypatch, tmp_path):
    """Weights in 8 bits are converted once for the machine; a warm engine has nothing to do."""
    monkeypatch.setenv(CACHE_ENVIRONMENT, str(tmp_path / "cache"))
    monkeypatch.setattr(weight_cache, "FILE_BYTES", 100_000)

    def reported(engine: DiffusionPipeline) -> list[Activity]:
        found = engine.frames(ask(0.2, weight_dtype="fp8"), lambda: False)
        return [item.activity for item in found if isinstance(item, Progress) and item.activity]

    first = DiffusionPipeline(PRESET, tiny_checkpoint)
    assert reported(first) == [Activity.READING, Activity.CONVERTING]
    assert reported(first) == []
    assert reported(DiffusionPipeline(PRESET, tiny_checkpoint)) == [Activity.READING]


def test_other_dtypes_are_loaded_anew(ask, tiny_checkpoint):
    engine = DiffusionPipeline(PRESET, tiny_checkpoint)
    for dtype in ("fp32", "bf16", "bf16"):
        held = engine._parts
        assert len(video(engine, ask(0.2, weight_dtype=dtype, ring_dtype=dtype))) == 5
        assert engine._parts is not None
        assert engine._parts.load_transformer().dtype == DTYPES[dtype]
    assert engine._parts is held


@pytest.mark.parametrize(
    ("weight_dtype", "ring_dtype"), [("fp32", "bf16"), ("bf16", "fp32"), ("fp32", "fp32")]
)
def test_rings_are_kept_as_the_preset_says(tiny_checkpoint, weight_dtype, ring_dtype):
    preset = PRESET.with_settings(weight_dtype=weight_dtype, ring_dtype=ring_dtype)
    loaded = Components.load(preset.memory, open_checkpoint(tiny_checkpoint))
    denoiser = local_denoiser(preset, loaded, Size(64, 64), CompiledPieces())
    assert denoiser.stack.new_ring().k.dtype == DTYPES[ring_dtype]
    assert denoiser.stack.dtype == DTYPES[weight_dtype]


def test_a_gpu_out_of_memory_is_reported_and_the_next_run_is_whole(warm, ask, tiny_checkpoint, monkeypatch):
    engine = LocallyRanked(PRESET, lambda: DiffusionPipeline(PRESET, tiny_checkpoint))

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(LocalDenoiser, "advance", full)
        with pytest.raises(DoesNotFit, match="ran out of memory"):
            video(engine, ask(0.2))
    assert np.array_equal(video(engine, ask(0.2)), video(warm, ask(0.2)))
    engine.close()


def test_a_prompt_too_long_is_refused_before_any_weight_is_read(ask, tiny_checkpoint, monkeypatch):
    request = ask(0.2, prompt="a" * 900)  # one word for intake's estimate, 900 tokens for this vocabulary
    monkeypatch.setattr(Components, "load", lambda *_: pytest.fail("loaded"))
    with pytest.raises(BadInput, match="512"):
        video(DiffusionPipeline(PRESET, tiny_checkpoint), request)


def test_the_self_tests_checkpoint_is_in_the_runs_own_folder(ask, no_weights_elsewhere):
    engine = DiffusionPipeline(PRESET)
    assert engine.label == SELF_TEST_LABEL
    first, second = ask(0.4), ask(0.4)
    assert np.array_equal(video(engine, first), video(engine, second))
    for request in (first, second):
        assert (request.work / checkpoint_choice.TINY_FOLDER).is_dir()
    assert list(Path.cwd().iterdir()) == []


def test_the_self_test_takes_a_toy_checkpoint_and_no_other(ask, tiny_checkpoint, monkeypatch):
    request = ask(0.2)
    assert len(video(DiffusionPipeline(PRESET, tiny_checkpoint), request)) == 5
    assert not (request.work / checkpoint_choice.TINY_FOLDER).exists()
    monkeypatch.setattr(checkpoint_choice, "TINY_BYTES", 1000)
    with pytest.raises(BadInput, match="toy model"):
        video(DiffusionPipeline(PRESET, tiny_checkpoint), request)


def test_other_presets_never_take_a_toy(ask, no_weights_elsewhere):
    engine = DiffusionPipeline(load_preset("80gb"))
    assert engine.label == ""
    request = ask(0.2)
    with pytest.raises(WeightsMissing, match="No model weights"):
        video(engine, replace(request, preset=load_preset("80gb")))


class Ear(SpeechEncoder):
    """Hears each moment by itself: loudness, in every layer and channel alike."""

    def encode(self, samples: Tensor) -> Tensor:
        loudness = samples.unfold(0, 400, self.stride).abs().mean(dim=1)
        return loudness[None, :, None].expand(self.num_layers, -1, self.width)


@pytest.mark.parametrize(("onset_frame", "first_block"), [(21.8, 2), (20.5, 1), (9.5, 1), (8.5, 0)])
def test_a_sound_shows_in_its_own_frame(tiny_checkpoint, ask, onset_frame, first_block):
    """Blocks begin at frames 0, 9, 21: a sound less than a frame from an edge moves the right one first."""
    files = open_checkpoint(tiny_checkpoint)
    loaded = Components.load(PRESET.memory, files)
    ear = Ear(SpeechEncoder.load(files.speech_encoder, "cpu", torch.float32).model, normalise=False)
    encode_text = LocalTextEncoder(files.text_encoder, torch.device("cpu"), torch.float32)
    loaded.conditions = ConditionEncoder(files, loaded.vae, ear, encode_text)
    engine = DiffusionPipeline(PRESET, models=MadeModels.given(loaded))
    request = ask(1.6)
    hum = np.full(round(1.6 * SOUND_HZ), 0.1)
    onset = round(onset_frame / FPS * SOUND_HZ)
    frames = []
    for level in (0.1, 0.9):
        hum[onset:] = level
        soundfile.write(request.speech, hum, SOUND_HZ, subtype="PCM_16")
        frames.append(video(engine, request))
    difference = np.abs(frames[0].astype(int) - frames[1]).max(axis=(1, 2, 3))
    changed = np.flatnonzero(difference > 1)  # resampling may move all samples by a rounding
    assert changed[0] == max(first_block * BLOCK_FRAMES - LEAD_IN_FRAMES, 0)
