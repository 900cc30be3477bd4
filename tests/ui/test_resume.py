"""A long video survives its page and its server: unfinished, it is in the gallery and can be resumed."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from avatar.errors import AvatarError, BadInput
from avatar.events import PartDone, Progress
from avatar.long import unfinished
from avatar.preset import load_presets
from avatar.request import Caption
from avatar.runtime.gallery import HALF, Gallery, owner_hash
from avatar.ui.components import PageComponents
from avatar.ui.gallery.gallery_html import render_gallery
from avatar.ui.generate.generate import Generate
from avatar.ui.generate.status_html import Status, render_status
from avatar.ui.state import submission
from avatar.ui.state.app_state import AppState
from avatar.ui.state.job_queue import JobQueue, KeptVideo, QueuedRun
from avatar.ui.state.page_runs import PageRuns
from tests.fixtures.sources import Coloured
from tests.long.runs import Here, inputs, packets

SETTINGS = {"size": "64*64", "seed": 5}


class WholePage:
    """The whole page except Gradio, on engines in this process; parts are one second long."""

    def __init__(self, folder: Path, source: Any = None, shared: bool = True) -> None:
        submission.LONG_S, unfinished._PART_S = 2.0, 1.0
        scratch = folder / "scratch"
        scratch.mkdir(exist_ok=True)
        self.gallery = Gallery(folder / "outputs")
        self.engine = Here(source or Coloured())
        self.job_queue = JobQueue(lambda preset: self.engine, self.gallery)
        self.app_state = AppState(
            self.job_queue, self.gallery, load_presets(), "auto", scratch, shared=shared
        )

    def submit(self, folder: Path, seconds: float = 6.0, owner: str = "me") -> QueuedRun:
        portrait, speech = inputs(folder, seconds)
        return submission.submit(
            self.app_state, portrait, speech, "cpu-preview", SETTINGS, head_only=True, owner=owner
        )

    def close(self) -> None:
        self.job_queue.close()
        self.gallery.close()


@pytest.fixture
def whole_page(tmp_path, monkeypatch) -> Iterator[Any]:
    monkeypatch.setattr(submission, "LONG_S", 2.0)
    monkeypatch.setattr(unfinished, "_PART_S", 1.0)
    built: list[WholePage] = []

    def build(source: Any = None, **more: Any) -> WholePage:
        for one in built:
            one.close()
        built.append(WholePage(tmp_path, source, **more))
        return built[-1]

    yield build
    for one in built:
        one.close()


def follow(run: QueuedRun) -> list[Any]:
    said = [said for said in run.follow() if said is not None]
    run.let_go()
    return said


def test_a_long_video_is_made_in_parts_and_leaves_nothing_half(whole_page, tmp_path):
    said = follow(whole_page().submit(tmp_path))
    assert [event.index for event in said if isinstance(event, PartDone)] == list(range(6))
    entry = said[-1].entry
    assert (entry.about.num_frames, entry.about.stopped, entry.is_unfinished) == (150, False, False)
    assert entry.about.settings["seed"] == 5
    assert {path.suffix for path in entry.folder.iterdir()} == {".mp4", ".jpg", ".json"}


def test_a_short_video_is_made_in_one_piece(whole_page, tmp_path):
    said = follow(whole_page().submit(tmp_path, seconds=1.5))
    assert not [event for event in said if isinstance(event, PartDone)]
    assert isinstance(said[-1], KeptVideo)


def whole(whole_page: Any, folder: Path) -> list[Any]:
    return packets(follow(whole_page().submit(folder))[-1].entry.video)


def test_a_stopped_one_can_be_watched_and_gone_on_with(whole_page, tmp_path):
    expected = whole(whole_page, tmp_path)
    one = whole_page(Coloured(frame_s=0.004))
    run = one.submit(tmp_path)
    for said in run.follow():
        if isinstance(said, PartDone) and said.index == 1:
            one.job_queue.stop(run)
    run.let_go()
    entry = one.gallery.entries()[0]
    assert entry.is_unfinished
    assert entry.video.is_file()
    assert 50 <= entry.about.num_frames < 150
    one = whole_page()  # the server is started again
    said = follow(submission.resume(one.app_state, entry.id, "me"))
    assert sum(isinstance(event, PartDone) for event in said) == 6 - 2
    assert said[-1].entry.id == entry.id
    assert not said[-1].entry.is_unfinished
    assert packets(said[-1].entry.video) == expected
    one.close()
    assert not list((tmp_path / "scratch").iterdir())


def serve_until_killed(folder: Path, reported: Any) -> None:
    one = WholePage(folder, Coloured(frame_s=0.004))
    for said in one.submit(folder).follow():
        if isinstance(said, PartDone):
            reported.send(said.index)


@pytest.mark.slow
def test_after_the_server_was_killed_it_is_gone_on_with(whole_page, tmp_path):
    expected = whole(whole_page, tmp_path)
    whole_page().close()
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe()
    server = context.Process(target=serve_until_killed, args=(tmp_path, theirs))
    server.start()
    while ours.recv() < 2:
        pass
    server.kill()
    server.join()
    one = whole_page()
    entry = next(entry for entry in one.gallery.entries() if entry.is_unfinished)
    assert entry.thumbnail.is_file()
    assert not entry.video.exists()
    assert (entry.about.owner_hash, entry.about.portrait) == (owner_hash("me"), "me.png")
    page = render_gallery(one.gallery.entries(), "en", one.app_state.url, 86_400.0)
    assert "unfinished" in page
    assert 'data-action="resume"' in page
    said = follow(submission.resume(one.app_state, entry.id, "me"))
    assert [event.index for event in said if isinstance(event, PartDone)] == [3, 4, 5]
    assert packets(said[-1].entry.video) == expected


def test_a_failure_keeps_the_parts_for_another_try(whole_page, tmp_path):
    one = whole_page(Coloured(fault="error", at=60))
    said = list(one.submit(tmp_path).follow())
    assert said[-1].error is not None
    entry = said[-1].entry
    assert entry.is_unfinished
    again = list(submission.resume(one.app_state, entry.id, "me").follow())
    assert again[-1].error is not None
    one = whole_page()
    assert not follow(submission.resume(one.app_state, entry.id, "me"))[-1].entry.is_unfinished


def test_damage_is_reported_and_the_entry_stays(whole_page, tmp_path):
    one = whole_page(Coloured(fault="error", at=60))
    entry = list(one.submit(tmp_path).follow())[-1].entry
    (entry.folder / HALF / "request.json").write_text("rust")
    with pytest.raises(BadInput, match="damaged"):
        submission.resume(one.app_state, entry.id, "me")
    assert [kept.id for kept in one.gallery.entries()] == [entry.id]
    assert one.gallery.delete(entry.id)


def test_only_its_owner_resumes_it_in_a_private_gallery(whole_page, tmp_path):
    one = whole_page(Coloured(fault="error", at=60), shared=False)
    entry = list(one.submit(tmp_path).follow())[-1].entry
    for owner, id in (
        ("you", entry.id),
        ("", entry.id),
        ("me", "20260101-000000-0123456789"),
        ("me", "../x"),
    ):
        with pytest.raises(BadInput, match="cannot be resumed"):
            submission.resume(one.app_state, id, owner)
    assert isinstance(submission.resume(one.app_state, entry.id, "me"), QueuedRun)


def test_the_page_goes_on_at_a_press(whole_page, tmp_path):
    one = whole_page(Coloured(fault="error", at=60))
    entry = list(one.submit(tmp_path).follow())[-1].entry
    one = whole_page()
    names = dict.fromkeys(PageComponents.__dataclass_fields__, "")
    parts = SimpleNamespace(**{name: name for name in names} | {"form": {}})
    generate = Generate(parts, one.app_state, PageRuns(one.app_state))  # type: ignore[arg-type]
    request = gr.Request()
    request.kwargs, request.session_hash = {"headers": {}}, "v"
    updates = list(generate.run_view.resume(request, SimpleNamespace(_data={"id": entry.id}), "me"))
    assert "Resumed: 2 of 6 parts" in "".join(str(update.get("notices", "")) for update in updates)
    assert 'data-state="done"' in updates[-1]["status"]
    with pytest.raises(AvatarError, match="cannot be resumed"):
        list(generate.run_view.resume(request, SimpleNamespace(_data={"id": entry.id}), "me"))


def test_the_status_tells_of_parts_and_time():
    progress = Progress(
        "generating", 5000, 90_000, elapsed_s=200.0, fps=25.0, eta_s=3725.0, parts_done=6, num_parts=120
    )
    shown = render_status(Status("running", progress), "en")
    for words in ("Part 7 of 120", "6 kept", "3:20 so far", "1:02:05 left"):
        assert words in shown
    shown = render_status(Status("running", replace(progress, num_parts=0, eta_s=12.0)), "en")
    assert "12 s left" in shown


def test_every_preset_survives_its_keeping():
    for preset in load_presets():
        assert type(preset).from_dict(preset.as_dict()) == preset


def test_captions_survive_in_a_half_made_video(whole_page, tmp_path):
    job_queue = whole_page()
    portrait, speech = inputs(tmp_path, 6.0)
    said = (Caption(0.1, 2.0, "One."), Caption(2.0, 5.5, "Two."))
    given = (portrait, speech, "cpu-preview", SETTINGS)
    run = submission.submit(
        job_queue.app_state,
        *given, head_only=True, owner="me", captions=said, burn_captions=True, spoken="a digest"
    )
    kept = [event for event in run.follow() if isinstance(event, KeptVideo)][-1]
    assert kept.entry.captions is not None
    assert "Two." in kept.entry.captions.read_text(encoding="utf-8")
    given_back = replace(run.request, portrait=portrait, speech=speech)
    request = unfinished.keep(tmp_path / "half", given_back)
    again, ledger = unfinished.resume(tmp_path / "half", work=tmp_path, output=tmp_path / "out.mp4")
    assert ledger is None
    assert (again.captions, again.burn_captions, again.spoken) == (said, True, "a digest")
    assert request.captions == said
