"""Out of memory at any point of a run: a rung down, nothing shown lost or repeated, what was made kept.

The allocator is imagined: hooks on modules of the tiny model raise where a device would have been full. Ranks
that are started anew are imagined, too: tests of real ones are in tests/parallel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from avatar.errors import DoesNotFit
from avatar.events import Finished, Notice, PlanMade
from avatar.geometry import FPS, Size
from avatar.media.intake import open_request
from avatar.media.sample_inputs import write_sample
from avatar.model.voice_wav2vec2 import VoiceFeatures
from avatar.pipeline import conditioning
from avatar.pipeline.checkpoint_choice import find_files
from avatar.pipeline.components import Components
from avatar.pipeline.denoiser_choice import LocalDenoising
from avatar.pipeline.device import is_out_of_memory
from avatar.pipeline.device_budget import plan_here
from avatar.pipeline.frame_size import resized, size_within
from avatar.pipeline.model_loading import MadeModels
from avatar.pipeline.pipeline import DiffusionPipeline
from avatar.planning import fallback_ladder
from avatar.planning.plan import GIB, DevicePlan, MemoryItem, Plan
from avatar.preset import Fallback, Preset, load_preset
from avatar.request import Part, Request
from avatar.runtime.engine import FrameSource
from avatar.runtime.ranked_source import RankedSource
from avatar.runtime.report import read_report
from avatar.runtime.stream import stream_frames
from tests.fixtures.growing import SlowVoice, interleaved
from tests.fixtures.local_ranks import LocallyRanked

FULL = replace(
    load_preset("self-test").with_settings(infer_frames=36, sample_steps=4),
    fallback=Fallback(("infer_frames", "sample_steps")),
)
NUM_FRAMES = 50  # five blocks
ITEMS = FULL.generation.sample_steps  # work items in a block


@dataclass
class Allocator:
    """Full at the given calls, counted from 1 over the whole run: of the head (one for each block and step),
    of the decoder (for each latent frame, 7 of them motion), of the encoder, and of loading."""

    head: set[int] = field(default_factory=set)
    decoder: set[int] = field(default_factory=set)
    encoder: set[int] = field(default_factory=set)
    load: set[int] = field(default_factory=set)
    counts: dict[str, int] = field(default_factory=dict)

    def ask(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1
        if self.counts[what] in getattr(self, what):
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {what}.")

    def hook(self, module: torch.nn.Module, what: str) -> None:
        module.register_forward_pre_hook(lambda *_: self.ask(what))

    def parts(self, folder: Path) -> Callable[..., Components]:
        """What makes the models of a source whose memory this is."""

        def make(request: Request, placement: object, check: Callable[[], None]) -> Components:
            self.ask("load")
            parts = Components.load(request.preset.memory, find_files(FULL, folder, request.work), check)
            load = parts.make_transformer

            def transformer(*given: object) -> torch.nn.Module:
                model = load(*given)
                self.hook(model.head, "head")
                return model

            parts.make_transformer = transformer
            self.hook(parts.vae.model.post_quant_conv, "decoder")
            self.hook(parts.vae.model.quant_conv, "encoder")
            return parts

        return make


@pytest.fixture
def ask(tmp_path: Path) -> Callable[..., Request]:
    """A request of so many frames."""

    def build(num_frames: int, preset: Preset = FULL, size: Size | None = None) -> Request:
        folder = Path(tmp_path, f"request-{len(list(tmp_path.iterdir()))}")
        folder.mkdir()
        portrait, speech = write_sample(folder, size or Size(96, 96), num_frames / FPS)
        return open_request(portrait, speech, preset, output=folder / "out.mp4", work=folder / "work")

    return build


Start = Callable[[Callable[[], DiffusionPipeline]], RankedSource]


@pytest.fixture
def start() -> Iterator[Start]:
    """A supervisor whose fresh ranks have sources of this kind."""
    started: list[RankedSource] = []

    def build(make: Callable[[], DiffusionPipeline]) -> RankedSource:
        started.append(LocallyRanked(FULL, make))
        return started[-1]

    yield build
    for one in started:
        one.close()


@pytest.fixture
def source(start: Start, tiny_checkpoint: Path) -> Callable[[Allocator], RankedSource]:
    return lambda allocator: start(
        lambda: DiffusionPipeline(FULL, tiny_checkpoint, models=MadeModels(allocator.parts(tiny_checkpoint)))
    )


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> dict[int, np.ndarray]:
    """The video in two parts, the second a rung lower, by the frame between them; NUM_FRAMES: never lower."""
    folder = tmp_path_factory.mktemp("expected")
    inputs = write_sample(folder, Size(96, 96), NUM_FRAMES / FPS)
    request = open_request(*inputs, FULL, output=folder / "out.mp4", work=folder / "work")
    engine, lower = DiffusionPipeline(FULL, tiny_checkpoint), FULL.with_settings(infer_frames=32)
    found = {
        shown: in_two(engine, request, shown, lower) for shown in {shown for _, shown in MOMENTS.values()}
    }
    return {**found, NUM_FRAMES: np.concatenate(ran(engine, request)[0])}


def ran(engine: FrameSource, request: Request) -> tuple[list[np.ndarray], list[Notice]]:
    """Batches of frames, and notices."""
    frames, notices = [], []
    for item in engine.frames(request, lambda: False):
        if isinstance(item, np.ndarray):
            frames.append(item)
        elif isinstance(item, Notice):
            notices.append(item)
    return frames, notices


def in_two(engine: FrameSource, request: Request, shown: int, lower: Preset) -> np.ndarray:
    """The same video as two parts, the second with another preset: what stepping down must equal."""
    if not shown:
        return np.concatenate(ran(engine, replace(request, preset=lower))[0])
    carry = request.work / "carry"
    first = Part("r", 0, request.num_frames, leave=carry)
    second = Part("r", shown, request.num_frames, carry=carry)
    made = [
        *ran(engine, replace(request, num_frames=shown, part=first))[0],
        *ran(engine, replace(request, num_frames=request.num_frames - shown, part=second, preset=lower))[0],
    ]
    return np.concatenate(made)


def head_call(block: int, step: int = 1) -> int:
    """The call of the head in which a block's step (from 1) is computed, if nothing was made twice before."""
    return block * ITEMS + step


MOMENTS = {  # what fails, and how many frames are shown by then
    "at the very first step": (Allocator(head={1}), 0),
    "in the middle of the first block": (Allocator(head={3}), 0),
    "in the middle of the first clip": (Allocator(head={head_call(1, 3)}), 9),
    "at the block of the anchor's refresh": (Allocator(head={head_call(3)}), 33),
    "after the anchor's refresh": (Allocator(head={head_call(4, 2)}), 45),
    "while the decoder is primed": (Allocator(decoder={4}), 0),
    "while the first block is decoded": (Allocator(decoder={8}), 0),
    "while a later block is decoded": (Allocator(decoder={7 + 3 * 2 + 2}), 21),
    "while the portrait is encoded": (Allocator(encoder={1}), 0),
    "while loading": (Allocator(load={1}), 0),
}


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_goes_on_a_rung_lower_from_the_last_block_shown(moment, ask, source, expected):
    given, shown = MOMENTS[moment]
    allocator = replace(given, counts={})
    frames, notices = ran(source(allocator), ask(NUM_FRAMES))
    whole = np.concatenate(frames)
    assert [len(batch) for batch in frames] == [9, 12, 12, 12, 5]
    (notice,) = notices
    assert (notice.code, notice.level, notice.rung) == ("rung_oom", "warning", "infer_frames")
    block = 0 if not shown else (shown + 3) // 12
    assert notice.values == {"was": "36", "now": "32", "device": "GPU 3 (rank 0)", "block": block}
    assert "infer_frames 32" in notice.text
    assert np.array_equal(whole, expected[shown])
    assert np.array_equal(whole[:shown], expected[NUM_FRAMES][:shown])


@pytest.mark.slow
def test_several_rungs_also_at_one_block(ask, source):
    lower = FULL.with_settings(infer_frames=32)
    again = replace(lower, fallback=FULL.fallback)
    allocator = Allocator(head={head_call(2), head_call(2) + 1})
    frames, notices = ran(source(allocator), request := ask(60))
    assert [(notice.rung, notice.values["block"]) for notice in notices] == [
        ("infer_frames", 2),
        ("sample_steps", 2),
    ]
    expected = in_two(source(Allocator()), request, 21, again.with_settings(sample_steps=3))
    assert np.array_equal(np.concatenate(frames), expected)


@pytest.mark.parametrize(
    ("rung", "now"),
    [("online_decode", "True"), ("infer_frames", "32"), ("sample_steps", "3"), ("offload", "True")],
)
def test_each_rung_alone_in_a_presets_own_order(rung, now, ask, source):
    preset = replace(FULL.with_settings(enable_online_decode=False), fallback=Fallback((rung,)))
    allocator = Allocator(head={head_call(1)})
    frames, notices = ran(source(allocator), ask(30, preset))
    assert sum(map(len, frames)) == 30
    assert [(notice.rung, notice.values["now"]) for notice in notices] == [(rung, now)]


@pytest.mark.slow
def test_in_a_deferred_decode_too(ask, source):
    preset = replace(FULL.with_settings(enable_online_decode=False), fallback=Fallback(("online_decode",)))
    allocator = Allocator(decoder={7 + 3 + 2})  # in the second block's decoding: the first is shown
    frames, _ = ran(source(allocator), request := ask(40, preset))
    assert sum(map(len, frames)) == 40
    online = preset.with_settings(enable_online_decode=True)
    assert np.array_equal(np.concatenate(frames), in_two(source(Allocator()), request, 9, online))


LARGE = replace(
    FULL.with_settings(size="256*128", infer_frames=16, sample_steps=1), fallback=Fallback(("size",))
)


@pytest.fixture(scope="module")
def resized_run(tmp_path_factory, tiny_checkpoint):
    """A stream whose model's size changes after two blocks: the request, its events, what was encoded."""
    folder = tmp_path_factory.mktemp("resized")
    portrait, speech = write_sample(folder, Size(256, 128), 40 / FPS)
    request = open_request(portrait, speech, LARGE, output=folder / "out.mp4", work=folder / "work")
    allocator = Allocator(head={3})
    made = allocator.parts(tiny_checkpoint)
    encoded = []

    def watched(*given):
        parts = made(*given)
        encode, encode_still = parts.vae.encode, parts.vae.encode_still

        def still(picture, num_frames):
            encoded.append(picture.expand(-1, -1, num_frames, -1, -1))
            return encode_still(picture, num_frames)

        parts.vae.encode = lambda video: encoded.append(video) or encode(video)
        parts.vae.encode_still = still
        return parts

    models = MadeModels(watched)
    engine = LocallyRanked(LARGE, lambda: DiffusionPipeline(LARGE, tiny_checkpoint, models=models))
    with pytest.MonkeyPatch.context() as patch, closing(engine):
        patch.setattr(fallback_ladder, "LOW_SIZE", Size(160, 96))  # the real one is large for a CPU
        return request, list(stream_frames(engine, request)), encoded


def test_a_changed_size_is_scaled_to_the_streams(resized_run):
    _, events, _ = resized_run
    (notice,) = (event for event in events if isinstance(event, Notice))
    assert (notice.rung, notice.values["was"], notice.values["now"]) == ("size", "256*128", "160*96")
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert (finished.num_frames, finished.stopped, finished.error) == (40, False, None)
    with av.open(str(finished.video)) as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert len(frames) == 40
    assert {frame.shape for frame in frames} == {(128, 256, 3)}
    report = read_report(finished.report)
    assert [(taken.rung, taken.frame) for taken in report.rungs] == [("size", 21)]
    assert [notice["code"] for notice in report.notices] == ["rung_oom"]
    assert (report.width, report.height) == (256, 128)


def test_at_the_new_size_the_model_sees_what_was_shown(resized_run):
    """The portrait, then the last 73 frames as motion, then the first frame shown as a still: the anchor."""
    _, _, encoded = resized_run
    low = size_within(Size(256, 128), LARGE.with_settings(size="160*96"))
    assert low != Size(256, 128)
    assert low.area <= Size.parse("160*96").area
    shapes = [tuple(video.shape[2:]) for video in encoded]
    lower = (low.height, low.width)
    assert shapes == [(73, 128, 256), (73, *lower), (73, *lower), (5, *lower)]
    _, still, motion, anchor = encoded
    assert torch.equal(motion[:, :, :1].round(decimals=5), still[:, :, :1].round(decimals=5))
    assert not torch.equal(motion[:, :, -1], still[:, :, -1])
    assert torch.equal(anchor[:, :, 0], anchor[:, :, 4])
    assert torch.equal(
        anchor[:, :, 0], motion[:, :, 73 - 21]
    )  # 21 frames were shown, the first is the anchor


def test_frames_of_the_streams_size_are_left_alone_and_others_scaled():
    frames = np.zeros((2, 64, 128, 3), np.uint8)
    frames[:, :, 64:] = 200
    assert resized(frames, Size(128, 64)) is frames
    small = resized(frames, Size(64, 64))
    assert small.shape == (2, 64, 64, 3)
    assert (small[:, :, :28].max(), small[:, :, 36:].min()) == (0, 200)


@pytest.mark.slow
def test_without_a_rung_left_what_was_made_is_kept(ask, source):
    request = ask(60)
    allocator = Allocator(head=set(range(head_call(2), 1000)))
    events: list[object] = []
    with pytest.raises(DoesNotFit, match=r"ran out of memory.*choose a preset"):
        events.extend(stream_frames(source(allocator), request))
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert (finished.num_frames, finished.stopped) == (21, True)
    assert "ran out of memory" in (finished.error or "")
    with av.open(str(finished.video)) as video:
        assert sum(1 for _ in video.decode(video=0)) == 21
    report = read_report(finished.report)
    assert [taken.rung for taken in report.rungs] == ["infer_frames", "sample_steps"]


class Cramped(LocalDenoising):
    """Its plan does not fit before some rungs are taken."""

    lacking: tuple[int, ...] = (36,)  # values of infer_frames

    def plan(self, preset: Preset, **_: Any) -> Plan:
        lacks = preset.generation.infer_frames in self.lacking
        item = MemoryItem("kv_rings", 3 * GIB if lacks else 1 * GIB)
        gpu = DevicePlan("GPU 3 (Card)", 3, (item,), 2 * GIB, 4 * GIB)
        return Plan("mine", "diffusion", (gpu,), DevicePlan("the host", None, (), GIB, GIB))


def cramped_in(weights: Path) -> DiffusionPipeline:
    return DiffusionPipeline(FULL, weights, denoising=Cramped(weights))


def test_a_plan_that_does_not_fit_steps_down_before_loading(ask, tiny_checkpoint, start, source):
    cramped = start(lambda: cramped_in(tiny_checkpoint))
    request = ask(20)
    assert cramped.plan_for(request).shortfall
    frames, notices = ran(cramped, request)
    (notice,) = notices
    assert (notice.code, notice.rung) == ("rung_planned", "infer_frames")
    assert notice.values == {"was": "36", "now": "32", "device": "GPU 3", "block": None}
    assert "1.0 GiB" in notice.text
    lower = replace(request, preset=FULL.with_settings(infer_frames=32))
    assert np.array_equal(np.concatenate(frames), np.concatenate(ran(source(Allocator()), lower)[0]))


def test_a_run_is_planned_once(ask, tiny_checkpoint, monkeypatch):
    planned: list[Plan] = []

    def counted(*args, **options):
        planned.append(plan_here(*args, **options))
        return planned[-1]

    monkeypatch.setattr("avatar.pipeline.denoiser_choice.plan_here", counted)
    source, request = DiffusionPipeline(FULL, tiny_checkpoint), ask(20)
    assert source.plan_for(request) is planned[0]
    assert sum(map(len, ran(source, request)[0])) == 20
    assert len(planned) == 1, "the run follows the plan that was asked for"
    assert sum(map(len, ran(source, request)[0])) == 20
    assert len(planned) == 2, "another run has a plan of its own: memory may be taken by now"


def test_a_rung_has_a_plan_of_its_own(ask, tiny_checkpoint, start):
    items = list(start(lambda: cramped_in(tiny_checkpoint)).frames(ask(20), lambda: False))
    (reported,) = [item for item in items if isinstance(item, PlanMade)]
    assert reported.plan.gpus[0].peak_bytes == GIB


def test_a_plan_that_fits_on_no_rung_is_refused_before_loading(ask, tiny_checkpoint, start, monkeypatch):
    monkeypatch.setattr(Cramped, "lacking", (36, 32))
    monkeypatch.setattr(Components, "load", lambda *_: pytest.fail("loaded"))
    with pytest.raises(DoesNotFit, match=r"1.0 GiB short.*largest item"):
        ran(start(lambda: cramped_in(tiny_checkpoint)), ask(20))


def test_a_plan_that_does_not_bind_takes_no_rung(ask, tiny_checkpoint, start, monkeypatch):
    monkeypatch.setattr(Cramped, "plan_binds", False)
    frames, notices = ran(start(lambda: cramped_in(tiny_checkpoint)), ask(20))
    assert (sum(map(len, frames)), notices) == (20, [])


def test_a_plan_counts_on_less_each_time_that_memory_ran_out(ask, start, tiny_checkpoint, monkeypatch):
    shares: list[float] = []

    def planned(preset, device, *, share, **options):
        shares.append(share)
        return plan_here(preset, device, share=share, **options)

    monkeypatch.setattr("avatar.pipeline.denoiser_choice.plan_here", planned)
    allocator = Allocator(head={1, 2})
    engine = start(
        lambda: DiffusionPipeline(FULL, tiny_checkpoint, models=MadeModels(allocator.parts(tiny_checkpoint)))
    )
    _, notices = ran(engine, ask(20))
    assert len(notices) == 2
    assert sorted({round(share, 6) for share in shares}) == [0.81, 0.9, 1.0]


@pytest.mark.slow
def test_after_a_failed_run_the_next_is_whole_and_begins_at_the_top(ask, source):
    engine = source(Allocator(head={1, 2, 3}))
    with pytest.raises(DoesNotFit):
        ran(engine, ask(20))
    frames, notices = ran(engine, request := ask(20))
    assert notices == []
    assert np.array_equal(np.concatenate(frames), np.concatenate(ran(source(Allocator()), request)[0]))


@pytest.mark.slow
def test_a_long_videos_next_part_begins_on_the_last_ones_rung(ask, source):
    request = ask(60)
    carry = request.work / "carry"
    engine = source(Allocator(head={head_call(1)}))
    first = Part("run", 0, 60, leave=carry)
    second = Part("run", 33, 60, carry=carry)
    _, notices = ran(engine, replace(request, num_frames=33, part=first))
    assert len(notices) == 1
    frames, notices = ran(engine, replace(request, num_frames=27, part=second))
    assert notices == []
    lower = FULL.with_settings(infer_frames=32)
    plain, _ = ran(source(Allocator()), replace(request, num_frames=27, part=second, preset=lower))
    assert np.array_equal(np.concatenate(frames), np.concatenate(plain))
    other = replace(second, run="another")
    frames, _ = ran(engine, replace(request, num_frames=27, part=other))
    plain, _ = ran(source(Allocator()), replace(request, num_frames=27, part=other))
    assert np.array_equal(np.concatenate(frames), np.concatenate(plain))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (
            RuntimeError(
                "ncclUnhandledCudaError: Call to CUDA function failed.\nFailed to CUDA calloc 64 bytes"
            ),
            True,
        ),
        (RuntimeError("The size of tensor a must match"), False),
    ],
)
def test_what_counts_as_out_of_memory(error, expected):
    assert is_out_of_memory(error) == expected


def test_any_other_error_is_not_mistaken_for_it(ask, source):
    class Broken(Allocator):
        def ask(self, what: str) -> None:
            raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        ran(source(Broken()), ask(20))


def test_a_voice_that_still_speaks_goes_on_after_memory_ran_out(source, tmp_path, monkeypatch):
    windows = partial(VoiceFeatures, window_s=1.5, margin_s=0.3)
    monkeypatch.setattr(conditioning, "VoiceFeatures", windows)
    videos = []
    for name in ("whole", "growing"):
        folder = tmp_path / name
        folder.mkdir()
        voice, grows = SlowVoice(folder, (0.9, 0.9, 0.8, 0.41)), name == "growing"
        voice.next() if grows else voice.all()
        request = open_request(
            write_sample(folder, Size(96, 96), 1.0)[0],
            voice.wav,
            FULL,
            output=folder / "out.mp4",
            work=folder / "work",
            spoken="a digest",
            growing=voice.journal if grows else None,
        )
        items = source(Allocator(head={head_call(1, 3)})).frames(request, lambda: False)
        found = interleaved(voice, items, lambda item: isinstance(item, np.ndarray))
        assert [one.code for one in found if isinstance(one, Notice) and one.rung] == ["rung_oom"]
        videos.append(np.concatenate([one for one in found if isinstance(one, np.ndarray)]))
    assert len(videos[0]) == 76
    assert np.array_equal(*videos)
