"""Out of memory on any rank of any layout: fresh ranks go on a rung lower from the last block shown."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from avatar.distributed.rank0_pipeline import RankDenoising
from avatar.distributed.rank_meter import RankMeter
from avatar.distributed.rendezvous import RankContext
from avatar.errors import DoesNotFit
from avatar.events import Finished, Notice
from avatar.geometry import FPS, Size
from avatar.hardware.inventory import Inventory
from avatar.media.intake import open_request
from avatar.media.sample_inputs import write_sample
from avatar.pipeline.pipeline import DiffusionPipeline
from avatar.planning import fallback_ladder
from avatar.planning.estimates import CUDA_CONTEXT_BYTES
from avatar.planning.plan import GIB
from avatar.preset import Fallback, Preset, load_preset
from avatar.request import Part, Request
from avatar.runtime.engine import FrameSource
from avatar.runtime.local_ranks import Limits
from avatar.runtime.ranked_source import FILE, RankedSource
from avatar.runtime.report import read_report
from avatar.runtime.stream import stream_frames
from tests.distributed import full_roles

ROLES = "tests.distributed.full_roles"
LIMITS = Limits(silence_s=30.0, start_s=240.0, stall_s=60.0)
NUM_FRAMES = 50  # five blocks
LATE = 4  # a block that is not begun before some others are shown
CPU = torch.device("cpu")
SHORTER = replace(
    load_preset("self-test").with_settings(infer_frames=36), fallback=Fallback(("infer_frames",))
)
SMALLER = replace(
    load_preset("self-test").with_settings(size="128*64", sample_steps=1), fallback=Fallback(("size",))
)


@pytest.fixture(autouse=True)
def few_threads(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(fallback_ladder, "LOW_SIZE", full_roles.LOW_SIZE)


@pytest.fixture
def full(tmp_path: Path, monkeypatch) -> Callable[..., None]:
    """full(1, "layer", 5): rank 1 runs out of memory at its fifth layer; see full_roles for turns."""
    folder = tmp_path / "full"
    folder.mkdir()
    monkeypatch.setenv(full_roles.FOLDER, str(folder))
    return lambda rank, what, call, turns="1": (folder / f"{rank}-{what}-{call}").write_text(turns)


@pytest.fixture
def ask(tmp_path: Path) -> Callable[[Preset], Request]:
    return lambda preset: request_in(tmp_path / f"request-{len(list(tmp_path.iterdir()))}", preset)


def request_in(folder: Path, preset: Preset) -> Request:
    folder.mkdir()
    inputs = write_sample(folder, Size.parse(preset.generation.size), NUM_FRAMES / FPS)
    return open_request(*inputs, preset, output=folder / "out.mp4", work=folder / "work", segment_s=0.4)


@pytest.fixture(scope="module")
def expected(
    tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path
) -> Callable[[Preset, int], np.ndarray]:
    """The video by one device, a rung lower after so many frames: the same for every layout."""
    alone = cache(lambda preset: DiffusionPipeline(preset, tiny_checkpoint))

    @cache
    def video(preset: Preset, shown: int) -> np.ndarray:
        request = request_in(tmp_path_factory.mktemp("alone") / "request", preset)
        if shown == NUM_FRAMES:
            return ran(alone(preset), request)[0]
        return in_two(alone(preset), request, shown)

    return video


@contextmanager
def ranks(preset: Preset, weights: Path) -> Iterator[RankedSource]:
    source = RankedSource(preset, weights, roles=ROLES, limits=LIMITS)
    try:
        yield source
    finally:
        source.close()


def ran(source: FrameSource, request: Request) -> tuple[np.ndarray, list[Notice], list[int]]:
    """All frames, notices, and how many frames were shown before each."""
    batches: list[np.ndarray] = []
    notices, shown = [], []
    for item in source.frames(request, lambda: False):
        if isinstance(item, np.ndarray):
            batches.append(item)
        elif isinstance(item, Notice):
            notices.append(item)
            shown.append(sum(map(len, batches)))
    return np.concatenate(batches), notices, shown


def in_two(alone: DiffusionPipeline, request: Request, shown: int) -> np.ndarray:
    """The same video by one device, a rung lower after so many frames."""
    carry, made = request.work / "carry", []
    if shown:
        upper = Part("r", 0, request.num_frames, leave=carry)
        made.append(ran(alone, replace(request, num_frames=shown, part=upper))[0])
    lower = Part("r", shown, request.num_frames, carry=carry if shown else None, num_rungs=1)
    made.append(ran(alone, replace(request, num_frames=request.num_frames - shown, part=lower))[0])
    return np.concatenate(made)


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    """Equal but for the rounding of a pixel to one level or the next."""
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= 1


def item(layers: int, steps: int = 2) -> int:
    """The first layer of LATE's last item, counted in layers of a rank."""
    return (LATE * steps + steps - 1) * layers + 1


ALONE = {"layout": "layers", "num_gpus_dit": 1}
CASES = {  # the layout, the preset, and who is full at what, how often called
    "alone, while a late block is decoded": (ALONE, SHORTER, (0, "decode", 3)),
    "alone, at a late block": (ALONE, SHORTER, (0, "layer", item(3))),
    "alone, while the prompt is encoded": (ALONE, SHORTER, (0, "prompt", 1)),
    "layers and a decode rank": (
        {"layout": "layers", "num_gpus_dit": 2, "decode_gpu": True},
        SHORTER,
        (0, "decode", 3),
    ),
    "layers and a sharded prompt encoder": (
        {"layout": "layers", "num_gpus_dit": 2, "text_encoder": "sharded"},
        SHORTER,
        (1, "text", 1),
    ),
    "timesteps": ({"layout": "timesteps", "num_gpus_dit": 2}, SHORTER, (1, "rings", 1)),
    "layers": ({"layout": "layers", "num_gpus_dit": 2}, SHORTER, (1, "layer", item(2))),
    "ulysses": ({"layout": "ulysses", "num_gpus_dit": 2}, SMALLER, (0, "exchange", 2 * item(3, 1) + 2 * 6)),
    "fsdp": ({"layout": "fsdp", "num_gpus_dit": 2}, SHORTER, (1, "fetch", 2 * item(3) + 3 * 6)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_full_rank_ends_the_group_and_a_fresh_one_goes_on(name, ask, full, expected, tiny_checkpoint):
    settings, preset, (rank, what, call) = CASES[name]
    request = ask(preset.with_settings(**settings))
    with ranks(request.preset, tiny_checkpoint) as source:
        full(rank, what, call)
        frames, (notice,), (shown,) = ran(source, request)
        assert (notice.code, notice.rung) == ("rung_oom", preset.fallback.order[0])
        assert notice.values["device"] == f"CPU (rank {rank})"
        assert notice.values["block"] == -(-shown // 12)
        assert shown < NUM_FRAMES
        assert shown or what in ("text", "prompt", "rings")
        assert_close(frames, expected(preset, shown))
        frames, notices, _ = ran(source, request)
        assert notices == []
        assert_close(frames, expected(preset, NUM_FRAMES))
    assert not (request.work / FILE).exists()


@pytest.mark.slow
def test_without_a_rung_left_the_full_gpu_is_named(ask, full, tiny_checkpoint):
    request = ask(SHORTER.with_settings(layout="layers", num_gpus_dit=2))
    full(1, "take", 22)  # a buffer for what comes from the other rank, at LATE
    full(1, "rings", 1, "01")  # and the second group's rings
    events: list[object] = []
    words = r"^CPU \(rank 1\) ran out of memory, and .*choose a preset"
    with ranks(request.preset, tiny_checkpoint) as source, pytest.raises(DoesNotFit, match=words):
        events.extend(stream_frames(source, request))
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert finished.stopped
    assert "CPU (rank 1) ran out of memory" in (finished.error or "")
    with av.open(str(finished.video)) as video:
        assert sum(1 for _ in video.decode(video=0)) == finished.num_frames > 0
    assert [taken.rung for taken in read_report(finished.report).rungs] == ["infer_frames"]


def test_shares_that_are_loaded_stay_whatever_a_plan_says(ask):
    request = ask(SHORTER.with_settings(layout="layers", num_gpus_dit=3))
    denoising = RankDenoising(request.preset, None, RankContext(0, 3, CPU, RankMeter(CPU), "CPU"), None)
    source = DiffusionPipeline(request.preset, denoising=denoising)
    assert source.plan_binds
    denoising._conductor = object()  # they count as used, if not as ours
    assert not source.plan_binds


def test_what_ranks_already_hold_of_the_gpus_counts_as_theirs(ask, monkeypatch):
    """Each has a context by now; in a container the driver may know its process by another number."""
    asked = []

    def probe(weights: Path | None, our_pids: set[int]) -> Inventory:
        asked.append(our_pids)
        return Inventory.imagine(2, 24)

    monkeypatch.setattr("avatar.distributed.rank0_pipeline.probe", probe)
    request = ask(SHORTER)
    preset = load_preset("80gb").with_settings(layout="layers", num_gpus_dit=2)
    denoising = RankDenoising(preset, None, RankContext(0, 2, CPU, RankMeter(CPU), "CPU"), None)
    source = DiffusionPipeline(preset, denoising=denoising)
    planned = source.plan_for(replace(request, preset=preset))
    assert [gpu.available_bytes for gpu in planned.gpus] == 2 * [24 * GIB + CUDA_CONTEXT_BYTES]
    assert {os.getpid(), os.getppid()} <= asked[0]  # who started the ranks, and all of those
