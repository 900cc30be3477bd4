"""The jobs panel: whose jobs it shows, the order of waiting jobs, failed jobs, several recordings."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import soundfile
from engines import ScriptedEngine
from pages import PORTRAIT, SPEECH, Page, request_of
from PIL import Image

from avatar.errors import BadInput, WorkerLost
from avatar.runtime.gallery import Gallery, owner_hash
from avatar.runtime.webhook import Webhook
from avatar.settings import FORM
from avatar.ui.jobs.jobs_html import JobRow, render_jobs
from avatar.ui.jobs.jobs_panel import JobsPanel
from avatar.ui.state import submission
from avatar.ui.state.job_queue import QueuedRun
from avatar.ui.state.machine_presets import flat
from tests.fixtures.listener import listening

KILLED = WorkerLost("The engine's process was killed.", "Try again.")


class Panel:
    """A page with its jobs panel."""

    def __init__(self, folder: Path, engine: ScriptedEngine, **options: Any) -> None:
        self.page = Page(folder, engine, **options)
        self.queue = self.page.job_queue
        self.jobs = JobsPanel(self.page.generate.parts, self.page.app_state, self.page.generate)

    def submit(self, owner: str = "me", speech: Path = SPEECH) -> QueuedRun:
        run = submission.submit(self.page.app_state, PORTRAIT, speech, "auto", {}, owner=owner)
        run.let_go()
        return run

    def several(self, speeches: list[Path], owner: str = "me", portrait: Path | None = PORTRAIT) -> list[Any]:
        form = flat(self.page.app_state.machine.resolved("auto"))
        typed = ("upload", "", "heart", 1.0, "file", None)
        given = [
            str(portrait) if portrait else None,
            None,
            "",
            "auto",
            None,
            owner,
            *typed,
            *(form[name] for name in FORM),
        ]
        return list(self.jobs.queue_several(request_of("v"), [str(one) for one in speeches], *given))

    def press(self, action: str, id: str, owner: str = "me", **more: Any) -> Any:
        event = SimpleNamespace(_data={"action": action, "id": id, **more})
        return self.jobs.pressed(request_of("v"), event, owner)  # type: ignore[arg-type]

    def rows(self, owner: str = "me") -> str:
        return self.jobs.render(request_of("v"), owner)


@pytest.fixture
def panel(tmp_path: Path):
    made: list[Panel] = []

    def make(engine: ScriptedEngine | None = None, **options: Any) -> Panel:
        made.append(Panel(tmp_path, engine or ScriptedEngine(hold=True), **options))
        return made[-1]

    yield make
    for one in made:
        one.page.engine.go.set()
        one.queue.close()


def wait_until(holds: Callable[[], object]) -> None:
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def order(panel: Panel, owner: str = "me") -> list[QueuedRun]:
    return [run for run in panel.queue.runs(owner_hash(owner)) if run.state == "waiting"]


def test_the_waiting_are_reordered_and_others_keep_their_places(panel):
    p = panel()
    first = p.submit()
    wait_until(lambda: p.queue.running is first)
    mine = [p.submit(), p.submit()]
    theirs = p.submit("you")
    mine.append(p.submit())
    p.press("move", mine[2].id, to=0)
    assert order(p) == [mine[2], mine[0], mine[1]]
    assert [run.place for run in (mine[2], mine[0], theirs, mine[1])] == [1, 2, 3, 4]
    p.press("move", mine[2].id, to=99)
    assert order(p) == [mine[0], mine[1], mine[2]]
    assert theirs.place == 3, "nobody gets ahead of another visitor"
    p.press("move", first.id, to=2)
    assert p.queue.running is first, "its turn has come"


def test_nobody_sees_or_touches_the_jobs_of_another(panel):
    p = panel()
    first = p.submit()
    wait_until(lambda: p.queue.running is first)
    second = p.submit()
    assert first.id in p.rows()
    for owner in ("you", ""):
        assert p.rows(owner) == ""
        for action in ("stop", "dismiss", "move", "nonesuch"):
            with pytest.raises(BadInput, match="no longer here"):
                p.press(action, second.id, owner, to=0)
        event = SimpleNamespace(_data={"action": "watch", "id": first.id})
        with pytest.raises(BadInput, match="no longer here"):
            list(p.jobs.submitted(request_of("w"), event, owner))
    assert not first.cancelled.is_set()
    assert order(p) == [second]


def test_a_place_that_is_none_is_refused(panel):
    p = panel()
    run = p.submit()
    for to in (None, "1", True, [], 1.5):
        with pytest.raises(BadInput, match="wrong type"):
            p.press("move", run.id, to=to)


def test_a_failed_job_says_why_and_is_made_again(panel):
    p = panel(ScriptedEngine(fail_at=0, error=KILLED))
    run = p.submit()
    wait_until(run.over.is_set)
    rows = p.rows()
    assert "was killed" in rows
    assert 'data-action="resume"' in rows
    [entry] = p.page.app_state.gallery.entries(owner_hash("me"))
    assert entry.is_unfinished
    assert entry.thumbnail.is_file()
    assert "was killed" in str(entry.about.error)
    p.page.engine.fail_at = None
    event = SimpleNamespace(_data={"action": "resume", "id": run.id})
    updates = list(p.jobs.submitted(request_of("v"), event, "me"))
    assert 'data-state="done"' in updates[-1]["status"]
    asked, again = p.page.engine.requests
    assert (again.num_frames, again.preset, again.speech_name) == (
        asked.num_frames,
        asked.preset,
        asked.speech_name,
    )
    assert p.rows().count('class="job"') == 1, "one job, though it was made twice"
    assert p.queue.find(run.id, owner_hash("me")).requester.portrait == PORTRAIT, "it is still chosen"
    [entry] = p.page.app_state.gallery.entries(owner_hash("me"))
    assert not entry.is_unfinished
    assert entry.about.error is None


def test_a_short_video_that_failed_midway_is_made_again_whole(panel):
    p = panel(ScriptedEngine(fail_at=2, error=KILLED))
    run = p.submit()
    wait_until(run.over.is_set)
    assert run.state == "failed"
    [entry] = p.page.app_state.gallery.entries()
    assert (entry.about.num_frames, entry.is_unfinished) == (100, True)
    p.page.engine.fail_at = None
    again = submission.resume(p.page.app_state, entry.id, "me")
    again.let_go()
    wait_until(again.over.is_set)
    assert again.outcome.finished.num_frames == 150


def test_what_waits_when_the_server_ends_can_be_resumed(panel, tmp_path):
    p = panel()
    first = p.submit()
    wait_until(lambda: p.queue.running is first)
    second = p.submit()
    p.queue.close()
    p.page.app_state.gallery.close()
    entries = Gallery(tmp_path / "outputs").entries(owner_hash("me"))
    assert {entry.id for entry in entries} == {first.id, second.id}
    assert all(entry.is_unfinished for entry in entries)


def test_what_was_being_made_when_the_server_was_killed_resumes(panel, tmp_path):
    p = panel()
    run = p.submit()
    wait_until(lambda: p.queue.running is run)
    for lock in p.page.app_state.gallery._held.values():  # as being killed would
        lock.release()
    [entry] = Gallery(tmp_path / "outputs").entries(owner_hash("me"))
    assert entry.id == run.id
    assert entry.is_unfinished


def test_what_its_owner_takes_out_of_the_line_is_gone(panel):
    p = panel()
    first = p.submit()
    wait_until(lambda: p.queue.running is first)
    second = p.submit()
    assert second.id not in p.press("stop", second.id)["jobs"]
    wait_until(lambda: not second.draft.exists())
    assert p.page.app_state.gallery.entries() == []


def test_a_finished_job_is_hidden_and_its_video_stays(panel):
    p = panel(ScriptedEngine())
    run = p.submit()
    wait_until(run.over.is_set)
    assert 'data-state="done"' in p.rows()
    assert p.press("dismiss", run.id)["jobs"] == ""
    assert len(p.page.app_state.gallery.entries()) == 1
    other = p.submit()
    wait_until(other.over.is_set)
    p.page.app_state.delete(other.id, "me")
    assert p.rows() == "", "nor is a job shown whose video was deleted"


def test_five_recordings_become_five_jobs_in_their_order(panel, tmp_path):
    p = panel()
    sound, rate = soundfile.read(SPEECH)
    speeches = []
    for number in range(5):
        speeches.append(tmp_path / f"take-{number}.wav")
        soundfile.write(speeches[-1], sound[: 2 * rate], rate)
    p.several(speeches)
    runs = [run for run in p.queue.runs(owner_hash("me")) if run.outcome is None]
    assert [run.request.speech_name for run in runs] == [f"take-{number}.wav" for number in range(5)]
    p.page.engine.go.set()
    wait_until(lambda: all(run.over.is_set() for run in runs))
    names = {entry.download_name for entry in p.page.app_state.gallery.entries()}
    assert names == {f"astronaut-take-{number}.mp4" for number in range(5)}
    wait_until(lambda: not list(p.page.app_state.scratch.glob("run-*")))


def test_a_bad_recording_is_named_and_the_others_are_queued(panel, tmp_path, monkeypatch):
    p, said = panel(), []
    monkeypatch.setattr("gradio.Warning", lambda words, title: said.append((title, words)))
    bad = tmp_path / "notes.txt"
    bad.write_text("no sound at all")
    shutil.copy(SPEECH, tmp_path / "good.flac")
    p.several([bad, tmp_path / "good.flac"])
    assert [run.request.speech_name for run in p.queue.runs(owner_hash("me"))] == ["good.flac"]
    assert [title for title, _ in said] == ["notes.txt"]


def test_more_recordings_than_the_line_takes_are_counted(panel, monkeypatch):
    p, said = panel(max_waiting=2), []
    monkeypatch.setattr("gradio.Warning", lambda words, title: said.append(words))
    first = p.submit()
    wait_until(lambda: p.queue.running is first)
    p.several([SPEECH] * 4)
    assert len(order(p)) == 2
    assert said == [
        "2 of 4 recordings were queued. The queue is full: 2 waiting. Please try again in a few minutes."
    ]


def test_several_recordings_need_a_portrait_that_can_speak(panel, tmp_path):
    p = panel()
    with pytest.raises(BadInput, match="Choose a portrait"):
        p.several([SPEECH], portrait=None)
    blank = tmp_path / "plain.png"
    Image.new("RGB", (300, 200), "grey").save(blank)
    [asked] = [
        update["points"] for update in p.several([SPEECH, SPEECH], portrait=blank) if "points" in update
    ]
    assert asked["value"]["verdict"] == "none"
    assert p.queue.runs(owner_hash("me")) == []


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_kind_of_job_is_worded(language):
    jobs = [
        JobRow("a", "running", "me · one", share=0.42, eta_s=9.4),
        JobRow("b", "waiting", "me · two", place=1),
        JobRow("c", "waiting", "me · three", place=2),
        JobRow("d", "done", "me · four", seconds=12.6, video="/v?key=1", download="me-four.mp4"),
        JobRow("e", "failed", "<b>me</b>", reason="No <memory>.", can_resume=True),
        JobRow("f", "stopped", "me · six", can_resume=True),
    ]
    html = render_jobs(list(reversed(jobs)), language)
    assert [html.index(f'data-id="{job.id}"') for job in jobs[:3]] == sorted(
        html.index(f'data-id="{job.id}"') for job in jobs[:3]
    ), "the running, then the waiting in their order"
    for words in ("42", "12.6", 'download="me-four.mp4"', "&lt;b&gt;me", "No &lt;memory&gt;"):
        assert words in html
    words = {"en": ("Failed", "You are next.", "Resume"), "zh": ("失败", "下一个就是您。", "继续生成")}[
        language
    ]
    assert all(one in html for one in words)
    assert html.count('draggable="true"') == 2
    assert render_jobs([], language) == ""


def test_whoever_runs_the_server_is_told_of_every_end(panel):
    p = panel(ScriptedEngine())
    with listening() as listener:
        p.page.app_state.webhook = Webhook(listener.url)
        made = p.submit()
        wait_until(made.over.is_set)
        p.page.engine.fail_at, p.page.engine.error = 0, KILLED
        failed = p.submit("")
        wait_until(lambda: len(listener.posted) == 2)
        p.page.app_state.webhook.close()
    name = "astronaut.jpg · hello-en.flac"
    assert listener.posted == [
        {"id": made.id, "state": "done", "name": name, "seconds": 6.0},
        {"id": failed.id, "state": "failed", "name": name, "seconds": 0.0},
    ]
