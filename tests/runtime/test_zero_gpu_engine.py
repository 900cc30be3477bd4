"""Runs made where ZeroGPU attaches a GPU, by this process: the same video, one way of ending each."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain, repeat
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from avatar.errors import AvatarError, Cancelled, DoesNotFit, WeightsMissing, WorkerLost
from avatar.events import Event, Finished, Notice, Progress, Segment
from avatar.geometry import Size
from avatar.hardware.inventory import Inventory
from avatar.media.intake import open_request
from avatar.media.sample_inputs import write_sample
from avatar.planning.placement import ALL_ON_GPU
from avatar.planning.planner import plan
from avatar.preset import Fallback, Preset, load_preset
from avatar.request import Request
from avatar.runtime.engine import Engine
from avatar.runtime.factory import open_engine
from avatar.runtime.protocol import Ended, Run
from avatar.runtime.report import RUNG_PLANNED
from avatar.runtime.zero_gpu import EngineSpec, Make, ZeroGpu, ZeroGpuEngine, duration_s

PRESET = load_preset("self-test")


def on_the_cpu(make: Make, seconds: object = None) -> Make:
    """Attaches no GPU: the run is made here."""
    return make


def never(make: Make, seconds: object) -> Make:
    """Fails when a GPU is asked for."""

    def made(spec: EngineSpec, run: Run):
        raise AssertionError("a GPU was asked for")
        yield

    return made


@pytest.fixture
def ask(tmp_path: Path) -> Callable[..., Request]:
    def build(name: str, seconds: float = 1.0, preset: Preset = PRESET) -> Request:
        folder = tmp_path / name
        folder.mkdir()
        portrait, speech = write_sample(folder, Size(96, 96), seconds)
        made = open_request(portrait, speech, preset, output=folder / "out.mp4", work=folder / "work")
        return made

    return build


@pytest.fixture
def zero_gpu_engine(tiny_checkpoint: Path) -> Iterator[Engine]:
    engine = open_engine(PRESET, weights=tiny_checkpoint, zero_gpu=ZeroGpu(on_the_cpu))
    assert isinstance(engine, ZeroGpuEngine)
    yield engine
    engine.close()


def pictures(events: list[Event]) -> np.ndarray:
    finished = events[-1]
    assert isinstance(finished, Finished)
    with av.open(str(finished.video)) as video:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)])


def test_zero_gpu_gives_the_video_of_an_engines_process(ask, zero_gpu_engine, tiny_checkpoint):
    here = list(zero_gpu_engine.stream(ask("here")))
    there = open_engine(PRESET, weights=tiny_checkpoint)
    try:
        expected = pictures(list(there.stream(ask("there"))))
    finally:
        there.close()
    assert np.array_equal(pictures(here), expected)
    assert len(expected) == 25
    assert zero_gpu_engine.label == "self-test: noise"
    assert any(isinstance(event, Segment) for event in here)


def test_models_are_loaded_once_and_before_the_gpu(ask, tiny_checkpoint, monkeypatch):
    from avatar.pipeline import zero_gpu_pipeline as pipeline

    reported: list[str] = []
    load = pipeline.Components.load
    monkeypatch.setattr(
        pipeline.Components,
        "load",
        lambda *a, **options: reported.append(str(options["device"])) or load(*a, **options),
    )

    def attaching(make: Make, seconds: object) -> Make:
        def made(spec: EngineSpec, run: Run):
            reported.append("attached")
            yield from make(spec, run)

        return made

    engine = open_engine(PRESET, weights=tiny_checkpoint, zero_gpu=ZeroGpu(attaching))
    engine.warm()
    for name in ("first", "second"):
        assert isinstance(list(engine.stream(ask(name)))[-1], Finished)
    engine.close()
    assert reported == ["cpu", "attached", "attached"]


def test_a_cancelled_run_ends_with_what_was_made(ask, zero_gpu_engine):
    reported: list[Event] = []
    for event in zero_gpu_engine.stream(ask("long", 8.0)):
        reported.append(event)
        if isinstance(event, Segment):
            zero_gpu_engine.cancel()
    assert isinstance(reported[-1], Finished)
    assert reported[-1].stopped
    assert reported[-1].error is None
    assert 0 < reported[-1].num_frames < 200
    assert isinstance(list(zero_gpu_engine.stream(ask("next")))[-1], Finished), (
        "the next run is not cancelled"
    )


def test_a_gpu_that_is_taken_away_leaves_what_was_shown(ask, tiny_checkpoint):
    def taken(make: Make, seconds: object) -> Make:
        def made(spec: EngineSpec, run: Run):
            for event in make(spec, run):
                yield event
                if isinstance(event, Segment):
                    raise WorkerLost("ZeroGPU: GPU task aborted.")

        return made

    engine = open_engine(PRESET, weights=tiny_checkpoint, zero_gpu=ZeroGpu(taken))
    reported: list[Event] = []
    with pytest.raises(WorkerLost, match="aborted"):
        reported.extend(noted(reported, engine.stream(ask("taken", 8.0))))
    engine.close()
    assert isinstance(reported[-1], Finished)
    assert reported[-1].stopped
    assert "aborted" in (reported[-1].error or "")
    assert 0 < len(pictures(reported)) < 200


def noted(reported: list[Event], events: Iterator[Event]) -> Iterator[Event]:
    """Nothing more; each event is in the list before the next one is asked for, whatever is raised then."""
    for event in events:
        reported.append(event)
    yield from ()


def test_a_second_run_at_a_time_is_refused(ask, zero_gpu_engine):
    first = zero_gpu_engine.stream(ask("first"))
    assert isinstance(next(first), Progress)
    with pytest.raises(AvatarError, match="busy"):
        next(zero_gpu_engine.stream(ask("second")))
    first.close()


def test_a_fork_leaves_the_files_of_the_process_it_left(tiny_checkpoint, tmp_path):
    held = ZeroGpu(on_the_cpu)
    spec = EngineSpec("avatar.pipeline.zero_gpu_pipeline:ZeroGpuPipeline", {"preset": PRESET}, engine=1)
    held.load(spec)
    folder = held._held.source._models._folder
    assert forked(lambda: held.drop(spec)) == 0
    assert list(folder.iterdir())
    held.drop(spec)
    assert not folder.exists()


def forked(work: Callable[[], None]) -> int:
    """The exit code of a fork of this process that does it; it must compute nothing."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(60)
    assert process.exitcode is not None
    return process.exitcode


@pytest.mark.parametrize("decoder", ["full", "tiny"])
def test_every_model_is_moved_to_the_gpu(ask, tiny_checkpoint, monkeypatch, decoder):
    from avatar.pipeline import zero_gpu_pipeline as pipeline

    preset = PRESET.with_settings(decoder=decoder)
    models = pipeline.ZeroGpuModels(preset, tiny_checkpoint)
    models.read()
    meta = torch.device("meta")  # a device that is always there, and holds nothing
    monkeypatch.setattr(pipeline, "best_device", lambda: meta)
    parts = models.load(replace(ask("moved"), preset=preset), ALL_ON_GPU, lambda: None)
    assert models._ahead is None, "nothing else keeps them"
    models.close()
    moved = [parts.vae.model, parts.conditions.speech.model, parts.transformer, parts.decoder.decoder]
    places = {tensor.device for model in moved for tensor in (*model.parameters(), *model.buffers())}
    assert places == {meta}
    assert {parts.device, parts.vae.device, parts.transformer.device} == {meta}


def test_a_run_cancelled_while_models_load_asks_for_no_gpu(ask, tiny_checkpoint):
    engine = open_engine(PRESET, weights=tiny_checkpoint, zero_gpu=ZeroGpu(never))
    run = engine.stream(ask("left"))
    assert isinstance(next(run), Progress)
    engine.cancel()
    with pytest.raises(Cancelled):
        next(run)
    engine.close()


def test_a_missing_checkpoint_is_reported_before_a_gpu_is_asked_for(ask, tmp_path):
    engine = open_engine(PRESET, weights=tmp_path / "nowhere", zero_gpu=ZeroGpu(never))
    with pytest.raises(WeightsMissing):
        list(engine.stream(ask("none")))
    engine.close()


def test_what_the_source_raises_comes_back_as_the_runs_end(ask):
    spec = EngineSpec("tests.runtime.test_zero_gpu_engine:Broken")
    reported = list(ZeroGpu(on_the_cpu).make(spec, Run(7, ask("broken"))))
    assert isinstance(reported[-1], Ended)
    assert (reported[-1].run, reported[-1].error.message) == (7, "The engine failed.")


class Broken:
    def __init__(self) -> None:
        raise KeyError("a fault")


def test_a_card_that_is_too_full_is_given_a_smaller_run(ask, tiny_checkpoint, monkeypatch):
    from avatar.pipeline import zero_gpu_pipeline as pipeline

    preset = replace(PRESET, fallback=Fallback(("online_decode",))).with_settings(enable_online_decode=False)
    free_gib = chain([20.0], repeat(44.5))
    plans = (plan(load_preset("48gb"), Inventory.imagine(1, vram)) for vram in free_gib)
    monkeypatch.setattr(pipeline.ZeroGpuPipeline, "plan_for", lambda self, request: next(plans))
    source = pipeline.ZeroGpuPipeline(preset, tiny_checkpoint)
    source.load()
    items = list(source.frames(ask("full", preset=preset), lambda: False))
    source.close()
    [notice] = [item for item in items if isinstance(item, Notice)]
    assert (notice.code, notice.rung) == (RUNG_PLANNED, "online_decode")
    assert sum(len(item) for item in items if isinstance(item, np.ndarray)) == 25


def test_memory_that_runs_out_ends_the_run_in_words(ask, tiny_checkpoint, monkeypatch):
    from avatar.pipeline.pipeline import DiffusionPipeline

    def full(self, request, cancelled):
        raise RuntimeError("CUDA error: out of memory")
        yield

    monkeypatch.setattr(DiffusionPipeline, "frames", full)
    engine = open_engine(PRESET, weights=tiny_checkpoint, zero_gpu=ZeroGpu(on_the_cpu))
    with pytest.raises(DoesNotFit, match="ran out of memory"):
        list(engine.stream(ask("full")))
    engine.close()


def test_longer_speech_asks_for_the_gpu_for_longer(ask):
    spec = EngineSpec("")
    short, long = (duration_s(spec, Run(1, ask(str(seconds), seconds))) for seconds in (1.0, 11.0))
    assert long - short == 30
