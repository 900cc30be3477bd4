"""The gallery on disk: whole entries or none, bounds, and no way out of the folder."""

from __future__ import annotations

import json
import multiprocessing
import time
from dataclasses import replace
from pathlib import Path

import pytest

from avatar.errors import AvatarError, BadInput
from avatar.media import atomic
from avatar.media.side_files import report_path
from avatar.preset import load_preset
from avatar.runtime.gallery import HALF, About, Gallery, GalleryEntry, owner_hash, video_name
from avatar.runtime.report import RunReport
from avatar.runtime.scratch import writing_in

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


DAY_S = 86_400


@pytest.fixture
def gallery(tmp_path: Path):
    opened = Gallery(tmp_path / "outputs")
    yield opened
    opened.close()


def add(gallery: Gallery, size: int = 1000, age_s: float = 0.0, owner: str = "") -> GalleryEntry:
    draft = gallery.draft()
    video = draft / video_name(draft.name)
    video.write_bytes(b"v" * size)
    video.with_suffix(".thumb.jpg").write_bytes(b"j")
    video.with_suffix(".report.json").write_text("{}")
    (draft / "rest.bin").write_bytes(b"x")
    (draft / "segments").mkdir()
    return gallery.keep(draft, replace(ABOUT, created=time.time() - age_s, owner_hash=owner_hash(owner)))


def test_a_report_is_reported_if_there_is_one_that_can_be_read(gallery: Gallery, caplog):
    entry = add(gallery)
    assert entry.run_report() is None, "{} is no report"
    assert f"{entry.report.name} is not a run report" in caplog.text
    report = REPORT
    report.write(entry.report)
    run_report = entry.run_report()
    assert run_report is not None
    assert run_report.frames_per_s == 99.5
    entry.report.unlink()
    caplog.clear()
    assert entry.run_report() is None
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
    assert [entry.id for entry in gallery.entries(owner_hash("a"))] == [new.id, old.id]
    assert gallery.entries("") == []
    assert not gallery.delete(other.id, owner_hash("a"))
    assert gallery.delete(other.id, owner_hash("b"))


class Clock:
    """Stands where it is put; for time.time in the gallery."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = time.time()
        monkeypatch.setattr(time, "time", lambda: self.now)


def test_what_is_too_old_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    clock = Clock(monkeypatch)
    gallery = Gallery(tmp_path, max_age_s=30 * DAY_S)
    old, new = add(gallery, age_s=29.5 * DAY_S), add(gallery)
    gallery.prune()
    clock.now += 1.1 * DAY_S
    gallery.prune()
    assert [entry.id for entry in gallery.entries()] == [new.id]
    assert not old.folder.exists()


@pytest.mark.parametrize("days", [1, 29, 31, 400, 40_000, -400, -20_000])
def test_a_clock_that_jumped_deletes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, days: int):
    clock, true = Clock(monkeypatch), time.time()
    gallery = Gallery(tmp_path)
    ids = {add(gallery, age_s=age).id for age in (0, 2 * DAY_S, 27 * DAY_S)}
    clock.now = true + days * DAY_S
    gallery.prune()
    gallery.close()
    gallery = Gallery(tmp_path)  # and the server is started again meanwhile
    clock.now += 3600
    gallery.prune()
    clock.now = true + 7200
    gallery.prune()
    clock.now = true + DAY_S
    gallery.prune()
    assert {entry.id for entry in gallery.entries()} == ids
    assert not list(tmp_path.rglob(".aged")), "what was noted meanwhile is forgotten"


def test_an_idle_gallery_prunes_as_it_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    gallery = Gallery(tmp_path)
    add(gallery)
    pruned: list[str] = []
    monkeypatch.setattr(gallery, "prune", lambda: pruned.append("x"))
    gallery.entries()
    assert pruned == []
    monkeypatch.setattr(gallery, "_pruned", time.monotonic() - 3601)
    gallery.entries()
    assert pruned == ["x"]


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


def test_a_restarted_server_leaves_the_others_draft_alone(tmp_path: Path):
    first, second = Gallery(tmp_path), Gallery(tmp_path)
    ours, theirs = first.draft(), second.draft()
    (theirs / "segment.mp4").write_bytes(b"x")
    first.close()
    restarted = Gallery(tmp_path)
    assert not ours.exists(), "nobody works in it any more"
    assert (theirs / "segment.mp4").exists()
    (theirs / video_name(theirs.name)).write_bytes(b"v")
    entry = second.keep(theirs, ABOUT)
    assert [found.id for found in restarted.entries()] == [entry.id]
    second.close()


def half_made(gallery: Gallery) -> Path:
    """A draft of a long video with one part."""
    draft = gallery.draft()
    (draft / HALF).mkdir()
    (draft / HALF / "part_0000.jpg").write_bytes(b"j")
    gallery.describe(draft, replace(ABOUT, owner_hash=owner_hash("a")))
    return draft


def test_one_of_two_servers_goes_on_with_a_video(tmp_path: Path):
    first, second = Gallery(tmp_path), Gallery(tmp_path)
    draft = half_made(first)
    id = draft.name.removeprefix(".draft-")
    assert second.reopen(id) is None, "it is being made"
    first.discard(draft)
    assert second.reopen(id, owner_hash("b")) is None
    assert second.reopen(id, "") is None
    reopened = second.reopen(id, owner_hash("a"))
    assert reopened == draft
    assert first.reopen(id) is None
    assert second.reopen(id) is None
    Gallery(tmp_path).close()
    assert draft.exists(), "and a third lets it be"
    second.close()
    assert [entry.id for entry in Gallery(tmp_path).entries()] == [id], "until its server has ended"


def test_nobodys_video_is_not_everybodys(gallery: Gallery):
    entry = add(gallery, owner="")
    assert gallery.get(entry.id) == entry
    assert gallery.get(entry.id, "") is None
    assert gallery.entries("") == []
    assert not gallery.delete(entry.id, "")
    assert gallery.reopen(entry.id, "") is None
    assert entry.video.exists()


def test_folders_and_files_are_for_one_user(gallery: Gallery):
    entry = add(gallery)
    draft = half_made(gallery)
    gallery.discard(draft)
    modes = {path.stat().st_mode & 0o777 for path in gallery.folder.rglob("*") if path.is_dir()}
    assert modes | {gallery.folder.stat().st_mode & 0o777} == {0o700}
    files = {path.stat().st_mode & 0o777 for path in gallery.folder.rglob("*") if path.is_file()}
    assert files == {0o600}
    assert len(gallery.entries()) == 2
    assert entry.video.exists()


def test_an_owners_secret_is_not_on_disk(gallery: Gallery):
    secret = "0123456789abcdef0123456789abcdef"
    entry = add(gallery, owner=secret)
    draft = gallery.draft()
    gallery.describe(draft, replace(ABOUT, owner_hash=owner_hash(secret)))
    written = [path.read_bytes() for path in gallery.folder.rglob("*") if path.is_file()]
    assert len(written) > 4
    assert not [content for content in written if secret.encode() in content]
    assert [found.id for found in gallery.entries(owner_hash(secret))] == [entry.id]
    assert gallery.entries(entry.about.owner_hash[:32]) == []


def test_an_earlier_versions_secrets_go_at_the_start(gallery: Gallery):
    secret = "0123456789abcdef0123456789abcdef"
    entry = add(gallery)
    about = entry.folder / "about.json"
    data = json.loads(about.read_text())
    del data["owner_hash"]
    about.write_text(json.dumps({**data, "owner": secret}))
    about.chmod(0o644)
    entry.folder.chmod(0o755)
    again = Gallery(gallery.folder)
    assert secret not in about.read_text()
    assert [found.id for found in again.entries(owner_hash(secret))] == [entry.id]
    assert (about.stat().st_mode & 0o777, entry.folder.stat().st_mode & 0o777) == (0o600, 0o700)


def test_keys_are_the_same_for_all_servers_of_a_folder(tmp_path: Path):
    first, second, other = Gallery(tmp_path / "a"), Gallery(tmp_path / "a"), Gallery(tmp_path / "b")
    assert first.key("id", "name") == second.key("id", "name") != other.key("id", "name")
    assert first.key("id", "name") != first.key("id", "other")
    assert (tmp_path / "a" / ".key").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("place", ["file", "file/in", "/proc/nowhere"])
def test_a_place_that_is_no_folder_is_explained_in_words(tmp_path: Path, place: str):
    (tmp_path / "file").write_text("x")
    with pytest.raises(BadInput, match=r"outputs folder .* cannot be used") as caught:
        Gallery(tmp_path / place)
    assert "--outputs" in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_a_folder_that_went_away_is_explained_in_words(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    gallery = Gallery(tmp_path / "outputs")
    entry = add(gallery)
    gallery.folder.rename(tmp_path / "elsewhere")
    with pytest.raises(AvatarError, match="outputs folder cannot be written") as caught:
        gallery.draft()
    assert str(tmp_path) not in str(caught.value)
    assert gallery.entries() == []
    assert "outputs folder cannot be read" in caplog.text
    (tmp_path / "elsewhere").rename(gallery.folder)
    assert [found.id for found in gallery.entries()] == [entry.id]


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
    assert gallery.file(id, video_name(id), gallery.key(id, video_name(id))) is None
    assert not gallery.delete(id)


def test_only_video_thumbnail_and_report_are_served(gallery: Gallery, tmp_path: Path):
    entry = add(gallery)

    def opened(name: str) -> Path | None:
        return gallery.file(entry.id, name, gallery.key(entry.id, name))

    for file in (entry.video, entry.thumbnail, entry.report):
        assert opened(file.name) == file
    for name in ("about.json", "../.key", ".lock", f"../{entry.id}/{entry.video.name}", ""):
        assert opened(name) is None
    secret = tmp_path / "secret"
    secret.write_text("no")
    entry.video.unlink()
    entry.video.symlink_to(secret)
    assert opened(entry.video.name) is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"portrait": 1}', "\xff", "[" * 100_000])
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

    monkeypatch.setattr(atomic, "write", full)
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
    assert gallery.file(entry.id, old.name, gallery.key(entry.id, old.name)) == old


def left_behind(folder: Path, name: str = "") -> Path:
    """A draft with a finished video, as its process left it when it was killed."""
    gallery = Gallery(folder)
    draft = gallery.draft()
    gallery.describe(
        draft, replace(ABOUT, num_frames=0, duration_s=0.0, stopped=True, owner_hash=owner_hash("me"))
    )
    video = draft / video_name(draft.name)
    video.write_bytes(b"video")
    replace(REPORT, num_frames=72, duration_s=2.88, stopped=True).write(report_path(video))
    gallery.close()
    return draft


def test_a_video_that_a_killed_page_left_is_kept(tmp_path: Path):
    left_behind(tmp_path)
    [entry] = Gallery(tmp_path).entries(owner_hash("me"))
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
