"""The gallery on disk: whole entries or none, bounds, and no way out of the folder."""

from __future__ import annotations

import json
import multiprocessing
import time
from dataclasses import replace
from pathlib import Path

import pytest

from avatar.gallery import About, Entry, Gallery, video_name
from avatar.media import durable
from avatar.media.beside import report_path
from avatar.media.report import RunReport
from avatar.preset import load_preset
from avatar.scratch import writing_in

ABOUT = About(
    portrait="me.jpg",
    speech="hello.wav",
    prompt="",
    preset="cpu-preview",
    label="preview",
    settings={"seed": 3},
    num_frames=50,
    duration_s=2.0,
)


REPORT = RunReport(
    video="v.mp4",
    thumbnail="v.jpg",
    portrait="p.png",
    speech="s.wav",
    prompt="",
    engine="preview",
    preset=load_preset("cpu-preview").as_dict(),
    created="2026-01-01T00:00:00+00:00",
    frames_asked=50,
    fps=25,
    frames_per_s=99.5,
)


@pytest.fixture
def gallery(tmp_path: Path):
    opened = Gallery(tmp_path / "outputs")
    yield opened
    opened.close()


def add(gallery: Gallery, size: int = 1000, age_s: float = 0.0, owner: str = "") -> Entry:
    draft = gallery.draft()
    video = draft / video_name(draft.name)
    video.write_bytes(b"v" * size)
    video.with_suffix(".thumb.jpg").write_bytes(b"j")
    video.with_suffix(".report.json").write_text("{}")
    (draft / "rest.bin").write_bytes(b"x")
    (draft / "segments").mkdir()
    return gallery.keep(draft, replace(ABOUT, created=time.time() - age_s, owner=owner))


def test_a_report_is_told_if_there_is_one_that_can_be_read(gallery: Gallery, caplog):
    entry = add(gallery)
    assert entry.told() is None, "{} is no report"
    assert f"{entry.report.name} is no run report" in caplog.text
    report = REPORT
    report.write(entry.report)
    told = entry.told()
    assert told is not None
    assert told.frames_per_s == 99.5
    entry.report.unlink()
    caplog.clear()
    assert entry.told() is None
    assert caplog.text == ""


def test_a_kept_draft_is_an_entry_and_no_more(gallery: Gallery):
    entry = add(gallery)
    assert entry.video.read_bytes() == b"v" * 1000
    assert entry.thumbnail.is_file()
    assert entry.report.is_file()
    names = {path.name for path in entry.folder.iterdir()}
    assert names == {entry.video.name, entry.thumbnail.name, entry.report.name, "about.json"}
    [found] = gallery.entries()
    assert found == entry
    assert gallery.get(entry.id) == entry
    assert not list(gallery.folder.glob(".draft-*"))


def test_a_draft_without_a_video_is_no_entry(gallery: Gallery):
    draft = gallery.draft()
    with pytest.raises(FileNotFoundError):
        gallery.keep(draft, ABOUT)
    gallery.discard(draft)
    assert not draft.exists()
    assert gallery.entries() == []


def test_discard_leaves_all_else_alone(gallery: Gallery, tmp_path: Path):
    entry = add(gallery)
    other = tmp_path / ".draft-elsewhere"
    other.mkdir()
    for folder in (entry.folder, other, gallery.folder):
        gallery.discard(folder)
        assert folder.exists()


def test_newest_first_and_each_owner_theirs(gallery: Gallery):
    old, new, other = (
        add(gallery, age_s=60, owner="a"),
        add(gallery, owner="a"),
        add(gallery, age_s=30, owner="b"),
    )
    assert [entry.id for entry in gallery.entries()] == [new.id, other.id, old.id]
    assert [entry.id for entry in gallery.entries("a")] == [new.id, old.id]
    assert gallery.entries("") == []
    assert not gallery.delete(other.id, "a")
    assert gallery.delete(other.id, "b")


def test_what_is_too_old_goes(tmp_path: Path):
    gallery = Gallery(tmp_path, max_age_s=100)
    old, new = add(gallery, age_s=200), add(gallery)
    gallery.prune()
    assert [entry.id for entry in gallery.entries()] == [new.id]
    assert not old.folder.exists()


def test_the_oldest_go_until_the_rest_fits(tmp_path: Path):
    gallery = Gallery(tmp_path, max_bytes=6000)
    entries = [add(gallery, size=2000, age_s=100 - number) for number in range(4)]
    left = [entry.id for entry in gallery.entries()]
    assert left == [entries[3].id, entries[2].id]
    huge = add(gallery, size=50_000)
    assert [entry.id for entry in gallery.entries()] == [huge.id], "what was just made stays"


def test_entries_survive_a_restart(tmp_path: Path):
    first = Gallery(tmp_path)
    entry = add(first)
    left_behind = first.draft()
    first.close()
    second = Gallery(tmp_path)
    assert [found.about for found in second.entries()] == [entry.about]
    assert not left_behind.exists()


def _open_and_sweep(folder: Path) -> None:
    Gallery(folder)


def test_another_process_leaves_our_drafts_alone(gallery: Gallery):
    draft = gallery.draft()
    process = multiprocessing.get_context("spawn").Process(target=_open_and_sweep, args=(gallery.folder,))
    process.start()
    process.join(30)
    assert process.exitcode == 0
    assert draft.exists()


@pytest.mark.parametrize(
    "id",
    ["..", "", ".", "../../etc", "20260101-000000-0123456789/..", ".lock", "20260101-000000-012345678Z"],
)
def test_no_id_leads_out(gallery: Gallery, id: str):
    assert gallery.get(id) is None
    assert gallery.file(id, video_name(id)) is None
    assert not gallery.delete(id)


def test_only_video_thumbnail_and_report_are_served(gallery: Gallery, tmp_path: Path):
    entry = add(gallery)
    assert gallery.file(entry.id, entry.video.name) == entry.video
    assert gallery.file(entry.id, entry.thumbnail.name) == entry.thumbnail
    assert gallery.file(entry.id, entry.report.name) == entry.report
    for name in ("about.json", "../.lock", f"../{entry.id}/{entry.video.name}", ""):
        assert gallery.file(entry.id, name) is None
    secret = tmp_path / "secret"
    secret.write_text("no")
    entry.video.unlink()
    entry.video.symlink_to(secret)
    assert gallery.file(entry.id, entry.video.name) is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"portrait": 1}'])
def test_a_broken_entry_is_left_out(gallery: Gallery, content: str, caplog: pytest.LogCaptureFixture):
    broken, whole = add(gallery), add(gallery)
    (broken.folder / "about.json").write_text(content)
    assert [entry.id for entry in gallery.entries()] == [whole.id]
    assert "cannot be read" in caplog.text


def test_about_is_plain_json(gallery: Gallery):
    entry = add(gallery)
    data = json.loads((entry.folder / "about.json").read_text())
    assert data["settings"] == {"seed": 3}
    assert str(gallery.folder) not in json.dumps(data)


def test_a_whole_video_of_an_ended_process_is_kept(tmp_path: Path):
    gallery = Gallery(tmp_path)
    whole, none = gallery.draft(), gallery.draft()
    for draft in (whole, none):
        gallery.describe(draft, ABOUT)
    (whole / video_name(whole.name)).write_bytes(b"film")
    gallery.close()  # as when the process is killed between the video's last move and keep
    again = Gallery(tmp_path)
    [entry] = again.entries()
    assert entry.video.read_bytes() == b"film"
    assert not none.exists()
    again.close()


def test_a_full_disk_at_the_last_step_keeps_the_video(gallery: Gallery, monkeypatch: pytest.MonkeyPatch):
    draft = gallery.draft()
    gallery.describe(draft, ABOUT)
    (draft / video_name(draft.name)).write_bytes(b"film")

    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(durable, "write", full)
    entry = gallery.keep(draft, replace(ABOUT, num_frames=75))
    assert entry.video.read_bytes() == b"film"
    [found] = gallery.entries()
    assert (found.id, found.about) == (entry.id, ABOUT)


def test_folders_of_somebody_elses_are_not_swept(tmp_path: Path):
    names = (".draft-letters", ".gone-fishing", "20260101-holiday", "photos")
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.txt").write_text("mine")
    (tmp_path / ".lock").write_text("mine")
    gallery = Gallery(tmp_path)
    for name in names:
        gallery.discard(tmp_path / name)
        assert (tmp_path / name / "mine.txt").read_text() == "mine"
    assert (tmp_path / ".lock").read_text() == "mine"
    gallery.close()


def test_names_of_earlier_versions_are_found(gallery: Gallery):
    entry = add(gallery)
    old = entry.video.with_suffix(".jpg")
    entry.thumbnail.rename(old)
    report = entry.video.with_suffix(".json")
    report.write_text(json.dumps({"video": "v.mp4", "frames_asked": 3, "preset": {}, "made_from": {}}))
    entry.report.unlink()
    assert (entry.thumbnail, entry.report) == (old, report)
    assert gallery.file(entry.id, old.name) == old


def left_behind(folder: Path, name: str = "") -> Path:
    """A draft with a finished video, as its process left it when it was killed."""
    gallery = Gallery(folder)
    draft = gallery.draft()
    gallery.describe(draft, replace(ABOUT, num_frames=0, duration_s=0.0, stopped=True, owner="me"))
    video = draft / video_name(draft.name)
    video.write_bytes(b"video")
    replace(REPORT, num_frames=72, duration_s=2.88, stopped=True).write(report_path(video))
    gallery.close()
    return draft


def test_a_video_that_a_killed_page_left_is_kept(tmp_path: Path):
    left_behind(tmp_path)
    [entry] = Gallery(tmp_path).entries("me")
    assert entry.video.read_bytes() == b"video"
    assert (entry.about.num_frames, entry.about.duration_s, entry.about.stopped) == (72, 2.88, True)
    assert entry.about.label == "preview"


def test_a_video_that_is_still_being_closed_is_waited_for(tmp_path: Path):
    draft = left_behind(tmp_path)
    with writing_in(draft):
        gallery = Gallery(tmp_path)
        assert gallery.entries() == []
        assert draft.is_dir()
    assert len(gallery.entries()) == 1
    assert not draft.exists()


def test_a_damaged_draft_keeps_no_page_from_starting(tmp_path: Path):
    for damaged in ("about.json", "report"):
        draft = left_behind(tmp_path)
        video = draft / video_name(draft.name)
        (report_path(video) if damaged == "report" else draft / damaged).write_text("{")
        assert Gallery(tmp_path).entries() == []
