"""Limits on uploads, segments, host names and visitors' places, each without a server."""

from __future__ import annotations

import os
import shutil
import time
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import pytest
from engines import ScriptedEngine, make_request

from avatar.errors import BadInput
from avatar.media.files import check_file
from avatar.runtime.gallery import Gallery, video_name
from avatar.ui.routes.host_names import local_names
from avatar.ui.routes.request_guard import READ, WRITTEN, path_of, visitor_of
from avatar.ui.state.examples import Examples
from avatar.ui.state.job_queue import JobQueue, QueuedRun, QueueFull, Requester
from avatar.ui.state.stream_segments import BEHIND, StreamSegments
from avatar.ui.state.uploads import IN_USE_S, NotUploaded, TooLarge, Uploads, UploadsFull

MIB = 2**20


@pytest.fixture
def uploads(tmp_path: Path) -> Uploads:
    return Uploads(tmp_path / "uploads", max_file_bytes=MIB, max_bytes=8 * MIB, min_free_bytes=0)


def arrived(uploads: Uploads, num_bytes: int = 1000, unused_s: float = 0.0) -> Path:
    staged = uploads.stage() / "file"
    staged.write_bytes(b"x" * num_bytes)
    path = uploads.place(staged, "me.png")
    os.utime(path, (time.time() - unused_s,) * 2)
    return path


def test_uploads_are_removed_when_the_disk_runs_low(uploads: Uploads, monkeypatch):
    old, new = arrived(uploads, MIB, IN_USE_S + 10), arrived(uploads, MIB)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(0, 0, 10 * MIB))
    uploads.min_free_bytes = 10 * MIB
    uploads.reserve(MIB)
    assert (old.exists(), new.exists()) == (False, True)
    with pytest.raises(UploadsFull):
        uploads.reserve(MIB)


def test_one_visitor_cannot_reserve_all_room(uploads: Uploads):
    uploads.reserve(MIB, "a")
    uploads.reserve(MIB, "a")
    with pytest.raises(UploadsFull):
        uploads.reserve(MIB, "a")
    uploads.reserve(MIB, "b")
    uploads.release(MIB, "a")
    uploads.reserve(MIB, "a")
    with pytest.raises(TooLarge):
        uploads.reserve(2 * MIB, "c")


def test_many_tiny_uploads_make_way_too(uploads: Uploads, monkeypatch):
    monkeypatch.setattr("avatar.ui.state.uploads.MOST_FILES", 3)
    paths = [arrived(uploads, 1, IN_USE_S + 100 - number) for number in range(5)]
    uploads.reserve(1)
    assert [path.exists() for path in paths] == [False, False, False, True, True]
    assert len(list(uploads.folder.iterdir())) == 2, "their folders are gone as well"


def test_a_named_upload_counts_as_used(uploads: Uploads):
    path = arrived(uploads, unused_s=5000)
    uploads.check([None, {"a": {"path": str(path)}}])
    assert time.time() - path.stat().st_mtime < 100
    for wrong in ("/etc/hostname", path.parent, f"{path}x", 7, b"x", "a\0b", uploads.folder / "x"):
        with pytest.raises(NotUploaded):
            uploads.find(wrong)


def test_a_very_deep_payload_is_walked(uploads: Uploads):
    deep: object = {"path": "/etc/hostname"}
    for _ in range(50_000):
        deep = [deep]
    with pytest.raises(NotUploaded):
        uploads.check(deep)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def stream(segments: StreamSegments, count: int, key: str = "s/r/1") -> list[Path]:
    """Segments of a player, as Gradio would keep them."""
    chunk = {"data": b"G", "duration": 2.0, "extension": ".ts"}
    return [segments._kept(f"{key}/playlist.m3u8", chunk)["data"] for _ in range(count)]


def test_a_segment_goes_when_it_lies_well_behind(tmp_path: Path):
    segments = StreamSegments(tmp_path / "live")
    files = stream(segments, 10)
    assert all(segments.play("s/r/1", path) for path in files)
    assert [path.exists() for path in files] == [False] * (9 - BEHIND) + [True] * (BEHIND + 1)
    assert not segments.play("s/r/1", files[0])
    assert segments.play("s/r/1", files[9 - BEHIND]), "a player may go back a little"
    assert not segments.play("s/other/1", files[9])
    assert not segments.play("s/r/1", tmp_path)


def test_a_stream_that_nobody_plays_is_dropped(tmp_path: Path):
    clock = Clock()
    segments = StreamSegments(tmp_path / "live", 600, clock)
    segments.playlists = {"s": {"r": object(), "q": object()}}
    left, played = stream(segments, 3), stream(segments, 3, "s/q/1")
    clock.now = 500
    assert segments.play("s/q/1", played[0])
    clock.now = 700
    segments.tidy()
    assert [path.exists() for path in (left[0], played[2])] == [False, True]
    assert list(segments.playlists["s"]) == ["q"]
    clock.now = 1300
    segments.tidy()
    assert list((tmp_path / "live").iterdir()) == []


def test_a_visitor_has_so_many_places(tmp_path: Path):
    engine = ScriptedEngine(hold=True)
    gallery = Gallery(tmp_path / "outputs")
    job_queue = JobQueue(lambda preset: engine, gallery, 8, per_visitor=2)
    count = iter(range(100))

    def submit(visitor: str) -> QueuedRun:
        draft = gallery.draft()
        request = make_request(draft / video_name(draft.name), tmp_path / f"work-{next(count)}")
        return job_queue.submit(request, draft, {}, Requester(visitor=visitor))

    runs = [submit("a"), submit("a")]
    with pytest.raises(QueueFull) as refused:
        submit("a")
    assert refused.value.yours
    submit("b")
    job_queue.stop(runs[1])
    submit("a")
    engine.go.set()
    job_queue.close()


@pytest.mark.parametrize(
    ("host", "more", "names"),
    [
        ("127.0.0.1", (), {"localhost", "127.0.0.1", "::1"}),
        ("::1", (), {"localhost", "127.0.0.1", "::1"}),
        ("127.0.0.1", ("Home.example",), {"localhost", "127.0.0.1", "::1", "home.example"}),
        ("0.0.0.0", (), None),
        ("192.168.1.5", (), None),
        ("0.0.0.0", ("home.example",), {"localhost", "127.0.0.1", "::1", "0.0.0.0", "home.example"}),
    ],
)
def test_the_names_of_a_server(host: str, more: tuple[str, ...], names: set[str] | None):
    assert local_names(host, more) == names


def test_a_prefix_is_no_part_of_the_path():
    for root, path, bare in (
        ("", "/gradio_api/info", "/gradio_api/info"),
        ("/some/where", "/some/where/gradio_api/info", "/gradio_api/info"),
        ("/some/where", "/gradio_api/info", "/gradio_api/info"),
        ("https://a.example/some/", "/some/config", "/config"),
        ("/some", "/something", "/something"),
    ):
        assert path_of({"root_path": root, "path": path}) == bare


def test_gradios_doors():
    for path in ("info", "queue/data", "call/generate/abc", "stream/s/r/1/playlist.m3u8", "file=/a/b"):
        assert READ.fullmatch(path), path
    for path in ("proxy=http://x", "file/a", "deep_link", "stream/s/r/1/playlist-file", "runs"):
        assert not READ.fullmatch(path), path
    for path in ("queue/join", "upload", "call/generate", "call/v2/generate", "run/plan"):
        assert WRITTEN.fullmatch(path), path
    for path in ("component_server", "process_recording", "vibe-edit/", "stream/x"):
        assert not WRITTEN.fullmatch(path), path


def test_whose_request_it_is():
    assert visitor_of(SimpleNamespace(client=SimpleNamespace(host="203.0.113.7"))) == "203.0.113.7"
    assert visitor_of(SimpleNamespace(client=None)) == ""
    assert visitor_of(None) == ""


def test_only_regular_files_are_read(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(BadInput, match="not a regular file"):
            check_file(path, path.name, 100, "portrait")
        assert Examples().bundled(path) is None
