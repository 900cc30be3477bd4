"""What comes back from a cluster is put in its place whole, or kept; no cluster is needed to see it."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path

import pytest

from avatar.batch.ray_engine import RayEngine, RayResult
from avatar.errors import NotPlaced
from avatar.events import Finished
from avatar.media import atomic
from avatar.media.side_files import report_path, thumbnail_path
from avatar.request import Caption
from avatar.runtime.finished_files import Unreported
from tests.long.runs import job


@pytest.fixture
def arrived(tmp_path):
    """A request, and what a node sends back."""
    (tmp_path / "w").mkdir()
    with job(tmp_path, 2.0, checkpoint_every=None).opened(tmp_path / "w") as opened:
        finished = Finished(Path("/node/film.mp4"), Path("/node/film.report.json"), 50, 2.0)
        delivery = RayResult(finished, (), "preview", b"film", b"picture", b"{}", None)
        engine = RayEngine(opened.request.preset)
        yield opened.request, lambda: list(engine._receive(opened.request, delivery))


def test_a_delivery_is_put_where_the_request_says(arrived):
    request, receive = arrived
    *_, finished = receive()
    assert (finished.video, finished.report) == (request.output, report_path(request.output))
    assert request.output.read_bytes() == b"film"
    assert thumbnail_path(request.output).read_bytes() == b"picture"
    assert finished.report.read_bytes() == b"{}"


def test_captions_are_put_beside_a_delivery(tmp_path):
    (tmp_path / "w").mkdir()
    with job(tmp_path, 2.0, checkpoint_every=None).opened(tmp_path / "w") as opened:
        request = replace(opened.request, captions=(Caption(0.0, 3.0, "Hello."),))
        finished = Finished(Path("/node/film.mp4"), Path("/node/film.report.json"), 50, 2.0)
        delivery = RayResult(finished, (), "preview", b"film", b"picture", b"{}", None)
        list(RayEngine(request.preset)._receive(request, delivery))
    assert "00:00:02,000\nHello." in request.output.with_suffix(".srt").read_text(encoding="utf-8")


def test_a_delivery_without_room_is_kept(arrived, monkeypatch):
    request, receive = arrived

    def full(path: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(atomic, "move", full)
    with pytest.raises(NotPlaced, match="No space left on device") as reported:
        receive()
    assert [path.read_bytes() for path in reported.value.kept] == [b"film"]
    assert not request.output.exists()


def test_a_report_without_room_costs_no_delivery(arrived, monkeypatch):
    request, receive = arrived

    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(atomic, "write", full)
    with pytest.raises(Unreported):
        receive()
    assert request.output.read_bytes() == b"film"
