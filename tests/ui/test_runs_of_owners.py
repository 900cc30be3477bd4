"""Runs that outlive their page: followed from any moment, ended when the host says so, and private."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engines import ScriptedEngine
from pages import PORTRAIT, SPEECH, Page, request_of, updates_of

from avatar.errors import WorkerLost
from avatar.runtime.gallery import owner_hash
from avatar.ui.state import submission
from avatar.ui.state.presence import Presence

ME = owner_hash("me")


@pytest.fixture
def page(tmp_path: Path):
    made: list[Page] = []

    def make(engine: ScriptedEngine | None = None, **options: Any) -> Page:
        made.append(Page(tmp_path, engine or ScriptedEngine(num_segments=100_000), **options))
        return made[-1]

    yield make
    for one in made:
        one.engine.go.set()
        one.job_queue.close()


def wait_until(holds: Callable[[], object]) -> None:
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def begin(p: Page, **given: Any) -> Any:
    """Press Generate, and wait until a segment plays; returns the generator of the page's updates."""
    run = p.press(**given)
    next(update for update in run if isinstance(update.get("live"), str))
    return run


def attach(p: Page, visit: str = "again", owner: str = "me") -> Any:
    return p.generate.run_view.attach(request_of(visit), owner)


def test_a_run_goes_on_without_its_page_and_is_followed_again(page):
    p = page()
    begin(p).close()
    run = p.job_queue.running
    wait_until(lambda: run.progress is not None and run.progress.segments_done > 200)
    again, updates = attach(p), []
    for update in again:
        updates.append(update)
        if len([path for path in updates_of(updates, "live") if isinstance(path, str)]) == 4:
            break
    played = [path for path in updates_of(updates, "live") if isinstance(path, str)]
    numbers = [int(Path(path).stem.partition("-")[2]) for path in played]
    assert numbers[0] > 190, "not from the beginning"
    assert numbers == list(range(numbers[0], numbers[0] + 4)), "and none is left out from there on"
    assert "Only the head moves" in updates_of(updates, "notices")[-1], "what was said before still holds"
    assert updates_of(updates, "stop")[0]["interactive"] is True
    p.visits.stop("again")
    assert 'data-state="stopped"' in list(again)[-1]["status"]


def test_a_page_that_comes_back_has_its_portrait_and_speech(page):
    p = page()
    folder = p.app_state.uploads.folder / "0"
    folder.mkdir()
    portrait, speech = folder / "me.jpg", folder / "hello.flac"
    shutil.copy(PORTRAIT, portrait)
    shutil.copy(SPEECH, speech)
    begin(p, portrait=portrait, speech=speech).close()
    given = p.generate.run_view.inputs_again("me")
    assert given["portrait"] == str(portrait)
    assert given["speech"]["value"] == str(speech)
    assert p.generate.run_view.inputs_again("you") == {}
    portrait.unlink()
    assert p.generate.run_view.inputs_again("me") == {}, "an upload that has made way is not named"


def test_two_pages_of_one_owner_follow_one_run(page):
    p = page(ScriptedEngine(hold=True))
    first = p.press()
    next(first)
    second = attach(p)
    assert updates_of([next(second), next(second)], "stop")[0]["interactive"] is True
    p.engine.go.set()
    for followed in (first, second):
        assert 'data-state="done"' in list(followed)[-1]["status"]
    wait_until(lambda: not list(p.app_state.scratch.glob("run-*")))


def test_another_owner_sees_nothing_of_a_run(page):
    p = page()
    mine = begin(p)
    for owner in ("you", ""):
        assert [set(update) for update in attach(p, "other", owner)] == [{"status"}]
    p.visits.stop("other")
    assert not p.job_queue.running.cancelled.is_set(), "nor can they stop it"
    next(mine)


def test_after_the_end_a_page_shows_the_finished_video(page):
    p = page(ScriptedEngine(num_segments=3))
    list(p.press())
    [last] = list(attach(p))
    assert 'data-state="done"' in last["status"]
    assert last["final"]["visible"] is True
    assert last["live"]["visible"] is False
    [entry] = p.app_state.gallery.entries(ME)
    assert Path(last["final"]["value"]).samefile(entry.video)
    p.app_state.delete(entry.id, "me")
    assert [set(update) for update in attach(p)] == [{"status"}], "but not one that was deleted"


def test_a_failure_is_told_to_a_page_that_comes_later(page):
    p = page(ScriptedEngine(fail_at=0, error=WorkerLost("The engine's process was killed.", "Try again.")))
    with pytest.raises(WorkerLost):
        list(p.press())
    [last] = list(attach(p))
    assert 'data-state="failed"' in last["status"]
    assert "was killed" in last["status"]


def test_a_run_ends_when_its_owner_stays_away(page):
    p = page(keep_running_s=600.0)
    now = [0.0]
    p.app_state.owners.presence = Presence(lambda: now[0])
    p.app_state.owners.presence.opened("v", ME)
    begin(p).close()
    p.app_state.owners.page_closed("v")
    run = p.job_queue.running
    now[0] = 500.0
    p.app_state.owners.end_abandoned()
    assert not run.cancelled.is_set()
    p.app_state.owners.presence.seen(ME)  # a page whose network is back
    now[0] = 1000.0
    p.app_state.owners.end_abandoned()
    assert not run.cancelled.is_set()
    now[0] = 1101.0
    p.app_state.owners.end_abandoned()
    wait_until(run.over.is_set)
    [entry] = p.app_state.gallery.entries(ME)
    assert entry.about.stopped
    assert entry.is_unfinished, "it can be resumed"


def test_an_open_page_keeps_its_run_whatever_the_time(page):
    p = page(keep_running_s=600.0)
    now = [0.0]
    p.app_state.owners.presence = Presence(lambda: now[0])
    p.app_state.owners.presence.opened("v", ME)
    begin(p).close()
    now[0] = 1e6
    p.app_state.owners.end_abandoned()
    assert not p.job_queue.running.cancelled.is_set()


@pytest.mark.parametrize("leaves", ["stream", "page"])
def test_without_keeping_a_run_ends_with_its_page(page, leaves):
    p = page(keep_running_s=0)
    run = begin(p)
    if leaves == "stream":
        run.close()
    else:
        p.app_state.owners.page_closed("v")
    wait_until(lambda: p.job_queue.running is None)
    run.close()
    [entry] = p.app_state.gallery.entries()
    assert entry.about.stopped
    wait_until(lambda: not list(p.app_state.scratch.iterdir()))


def test_without_keeping_a_page_may_look_at_another_of_its_runs(page):
    p = page(keep_running_s=0)
    first = begin(p)
    other = submission.submit(p.app_state, PORTRAIT, SPEECH, "auto", {}, owner="me", visit="v")
    watched = p.generate.run_view.watch(request_of("v"), other, "me")
    next(watched)
    assert not updates_of(list(first), "generate"), "it says nothing more of the buttons"
    run = p.job_queue.running
    assert not run.cancelled.is_set()
    assert [set(update) for update in p.generate.run_view.watch(request_of("v"), other, "me")] == [{"status"}]
    watched.close()


def test_without_keeping_a_second_page_may_go(page):
    p = page(keep_running_s=0)
    first, second = begin(p), attach(p)
    next(second), next(second)
    second.close()
    p.app_state.owners.page_closed("again")
    next(first)
    assert not p.job_queue.running.cancelled.is_set()
