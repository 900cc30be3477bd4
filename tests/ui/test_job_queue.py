"""The job queue: one run at a time, places, stopping anywhere, nothing lost and nothing left behind."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from engines import PREVIEW, ScriptedEngine, make_request

from avatar.errors import AvatarError, Cancelled, NotPlaced, WorkerLost
from avatar.events import Notice, Phase, PlanMade, Progress, Segment
from avatar.hardware.inventory import Inventory
from avatar.planning.planner import plan
from avatar.preset import Preset, load_preset
from avatar.runtime.gallery import Gallery, owner_hash, video_name
from avatar.ui.state.job_queue import JobQueue, KeptVideo, QueuedRun, QueueFull, Requester, WaitingInQueue

PLANS = [plan(load_preset(name), Inventory.imagine(1, 80)) for name in ("80gb", "24gb")]


class Counter:
    """A job queue with a scripted engine, and a way to submit."""

    def __init__(self, folder: Path, engine: ScriptedEngine, max_waiting: int = 8) -> None:
        self.engine = engine
        self.opened: list[Preset] = []
        self.gallery = Gallery(folder / "outputs")
        self.job_queue = JobQueue(self.open, self.gallery, max_waiting)
        self.folder = folder
        self.count = 0

    def open(self, preset: Preset) -> ScriptedEngine:
        self.opened.append(preset)
        return self.engine

    def submit(self, preset: Preset = PREVIEW, owner: str = "") -> QueuedRun:
        self.count += 1
        draft = self.gallery.draft()
        work = self.folder / f"work-{self.count}"
        return self.job_queue.submit(
            make_request(draft / video_name(draft.name), work, preset),
            draft,
            {"seed": 1},
            Requester(owner_hash(owner)),
        )


@pytest.fixture
def counter(tmp_path: Path):
    made: list[Counter] = []

    def make(engine: ScriptedEngine | None = None, max_waiting: int = 8) -> Counter:
        made.append(Counter(tmp_path, engine or ScriptedEngine(), max_waiting))
        return made[-1]

    yield make
    for one in made:
        one.engine.go.set()
        one.job_queue.close()


def follow(run: QueuedRun) -> list:
    return [said for said in run.follow(0.05) if said is not None]


def wait_until(holds: Callable[[], object]) -> None:
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_run_is_reported_kept_and_cleared_away(counter):
    c = counter()
    run = c.submit(owner="me")
    said = follow(run)
    assert [one.index for one in said if isinstance(one, Segment)] == [0, 1, 2]
    assert any(isinstance(one, Notice) for one in said)
    kept = said[-1]
    assert isinstance(kept, KeptVideo)
    assert kept.entry.about.owner_hash == owner_hash("me")
    assert kept.entry.about.settings == {"seed": 1}
    assert kept.entry.about.label == "preview"
    assert kept.finished.video == kept.entry.video
    assert kept.error is None
    assert run.request.work.exists(), "the follower may still read segments"
    run.let_go()
    wait_until(lambda: not run.request.work.exists())
    assert [entry.id for entry in c.gallery.entries()] == [kept.entry.id]


def test_plans_are_shown_as_they_are_made(counter):
    class Lowered(ScriptedEngine):
        def stream(self, request):
            yield PlanMade(PLANS[0])
            for event in super().stream(request):
                yield event
                if isinstance(event, Segment) and event.index == 0:
                    yield Notice("rung_oom", "Full.", "warning", rung="infer_frames")
                    yield PlanMade(PLANS[1])

    c, shown = counter(Lowered()), []
    c.job_queue.on_start, c.job_queue.on_plan = lambda: shown.append("start"), shown.append
    said = follow(c.submit())
    assert shown == ["start", *PLANS]
    assert [one.rung for one in said if isinstance(one, Notice) and one.rung] == ["infer_frames"]
    assert not [one for one in said if isinstance(one, PlanMade)], "they are not for the page's visitors"


def test_pinned_memory_is_what_the_engine_tells(counter):
    engine = ScriptedEngine()
    c = counter(engine)
    assert c.job_queue.pinned_bytes == 0, "no engine is open"
    follow(c.submit())
    assert c.job_queue.pinned_bytes is None, "this engine does not tell"
    engine.pinned_bytes = 77
    assert c.job_queue.pinned_bytes == 77


def test_one_at_a_time_and_places_move_up(counter):
    c = counter(ScriptedEngine(hold=True))
    first = c.submit()
    wait_until(lambda: c.job_queue.running is first)
    second, third = c.submit(), c.submit()
    c.engine.go.set()
    follow(first)
    assert isinstance(follow(second)[-1], KeptVideo)
    said = follow(third)
    assert [one.place for one in said if isinstance(one, WaitingInQueue)][:2] == [2, 1]
    assert isinstance(said[-1], KeptVideo)
    order = [request.work.name for request in c.engine.requests]
    assert order == ["work-1", "work-2", "work-3"]


def test_a_full_queue_says_so(counter):
    c = counter(ScriptedEngine(hold=True), max_waiting=1)
    first = c.submit()
    wait_until(lambda: c.job_queue.running is first)
    c.submit()
    with pytest.raises(QueueFull, match="The queue is full: 1 waiting"):
        c.submit()
    with pytest.raises(QueueFull):
        c.job_queue.check_not_full()


def test_stopping_a_run_keeps_what_was_made(counter):
    c = counter(ScriptedEngine(num_segments=1000))
    run = c.submit()
    for said in run.follow(0.05):
        if isinstance(said, Segment) and said.index == 1:
            c.job_queue.stop(run)
        last = said
    assert isinstance(last, KeptVideo)
    assert last.finished.stopped
    assert last.entry.about.stopped
    assert last.error is None


def test_stopping_before_the_first_frame_keeps_nothing(counter):
    c = counter(ScriptedEngine(hold=True))
    run = c.submit()
    wait_until(lambda: run.engine is not None)
    c.job_queue.stop(run)
    with pytest.raises(Cancelled):
        follow(run)
    assert c.gallery.entries() == []
    wait_until(lambda: not run.draft.exists())


def test_leaving_the_queue_while_another_runs(counter):
    c = counter(ScriptedEngine(hold=True))
    first = c.submit()
    wait_until(lambda: c.job_queue.running is first)
    second, third = c.submit(), c.submit()
    c.job_queue.stop(second)
    with pytest.raises(Cancelled):
        follow(second)
    assert not second.draft.exists()
    second.let_go()
    assert not second.request.work.exists()
    c.engine.go.set()
    follow(first)
    said = follow(third)
    assert [one.place for one in said if isinstance(one, WaitingInQueue)][:2] == [2, 1], "it moved up at once"
    assert isinstance(said[-1], KeptVideo)


def test_an_error_after_frames_comes_with_the_video(counter):
    error = WorkerLost("The engine's process was killed.", "Try again.")
    run = counter(ScriptedEngine(fail_at=2, error=error)).submit()
    kept = follow(run)[-1]
    assert isinstance(kept, KeptVideo)
    assert kept.error is error
    assert kept.entry.about.error
    assert kept.finished.num_frames == 100


def test_an_error_before_any_frame_is_raised(counter):
    error = AvatarError("No.", "Try.")
    c = counter(ScriptedEngine(fail_at=0, error=error))
    with pytest.raises(AvatarError, match="No"):
        follow(c.submit())
    assert c.gallery.entries() == []


def test_a_video_without_room_is_kept_where_it_is(counter, tmp_path, monkeypatch, caplog):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))

    class Full(ScriptedEngine):
        def stream(self, request):
            yield Progress(Phase.GENERATING)
            whole = request.work / "whole.mp4"
            whole.write_bytes(b"film")
            raise NotPlaced("The video is made, but cannot be put in its place.", "Make room.", (whole,))

    run = counter(Full()).submit()
    with pytest.raises(AvatarError) as reported:
        follow(run)
    wait_until(run.over.is_set)
    [place] = temporary.rglob("*.mp4")
    assert place.read_bytes() == b"film"
    assert str(place) in caplog.text, "who runs the server reads where it is"
    assert str(tmp_path) not in str(reported.value), "the browser does not"


def test_a_fault_ends_its_run_alone(counter):
    c = counter(ScriptedEngine(fail_at=0, error=ZeroDivisionError("oops")))
    with pytest.raises(ZeroDivisionError):
        follow(c.submit())
    c.engine.fail_at = None
    assert isinstance(follow(c.submit())[-1], KeptVideo)


def test_the_engine_stays_open_for_presets_that_it_serves(counter):
    c = counter()
    follow(c.submit())
    follow(c.submit(PREVIEW.with_settings(seed=5, size="256*256")))
    assert len(c.opened) == 1
    diffusion = Preset(name="big", title="", summary="", engine="diffusion")
    follow(c.submit(diffusion))
    assert c.engine.closed
    follow(c.submit(diffusion.with_settings(seed=9, size="384*256", infer_frames=32, sample_steps=3)))
    assert len(c.opened) == 2
    for same in ({"offload_model": True}, {"enable_online_decode": False}, {"ring_dtype": "fp8"}):
        follow(c.submit(diffusion.with_settings(**same)))
    assert len(c.opened) == 2, "the models are the same; what waits on the host is for the run's plan"
    for other in ({"weight_dtype": "fp8"}, {"text_encoder": "cpu"}, {"lora": "a.safetensors"}):
        follow(c.submit(diffusion.with_settings(**other)))
    assert len(c.opened) == 2, "one process on one GPU loads other models itself, and keeps what both need"
    for other in ({"num_gpus_dit": 2}, {"num_gpus_dit": 2, "weight_dtype": "fp8"}):
        follow(c.submit(diffusion.with_settings(**other)))
    assert len(c.opened) == 4, "ranks that have loaded shares of one model begin anew with another"


def test_a_preset_for_another_card_opens_another_engine(counter):
    c = counter()
    cards = {"bf16": "GPU-a", "fp8": "GPU-b"}
    c.job_queue.place_of = lambda preset: cards[preset.memory.weight_dtype]
    bf16 = Preset(name="big", title="", summary="", engine="diffusion")
    fp8 = bf16.with_settings(weight_dtype="fp8")
    for preset in (bf16, fp8, fp8):
        follow(c.submit(preset))
    assert c.opened == [bf16, fp8]
    cards["fp8"] = "GPU-a"  # as free as the other by now: models that are loaded stay where they are
    follow(c.submit(fp8))
    assert c.opened == [bf16, fp8]


def test_closing_ends_everything(counter):
    c = counter(ScriptedEngine(hold=True))
    first, second = c.submit(), c.submit()
    wait_until(lambda: first.engine is not None)
    c.job_queue.close()
    for run in (first, second):
        with pytest.raises(Cancelled):
            follow(run)
    assert c.engine.closed
    assert not list(c.gallery.folder.glob(".draft-*"))


def test_a_draft_that_cannot_be_removed_ends_its_run_alone(counter, monkeypatch):
    c = counter(ScriptedEngine(fail_at=0, error=AvatarError("The lamp went out.")))
    monkeypatch.setattr(c.gallery, "discard", lambda draft: (_ for _ in ()).throw(OSError(5, "gone")))
    with pytest.raises(AvatarError, match="lamp"):
        follow(c.submit())
    c.engine.fail_at = None
    assert isinstance(follow(c.submit())[-1], KeptVideo)
