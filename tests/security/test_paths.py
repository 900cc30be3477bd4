"""No visitor names a file of the server's, whatever it is called and wherever in a payload it stands."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from gradio_client import Client, exceptions
from PIL import Image
from visits import LOST, Stranger, generating

from tests.fixtures.server import ROOT, Server

ARGUMENTS = ("--places", "50")
MARK = "stranger-must-not-see"
Make = Callable[..., Stranger]
FILE = {"_type": "gradio.FileData"}

SHAPES: dict[str, Callable[[str], Any]] = {
    "bare": lambda path: {"path": path},
    "as a file": lambda path: {"path": path, "meta": FILE},
    "other meta": lambda path: {"path": path, "meta": {"_type": "other"}},
    "as a stream": lambda path: {"path": path, "meta": FILE, "is_stream": True},
    "with an address": lambda path: {"path": path, "url": "http://127.0.0.1/x.png", "orig_name": "a.png"},
    "in a list": lambda path: [{"path": path}],
    "deep down": lambda path: {"a": [{"b": {"path": path, "meta": FILE}}]},
    "beside a path of none": lambda path: {"path": None, "value": {"path": path}},
    "in its own meta": lambda path: {"path": None, "meta": {"path": path}},
}

EACH = 4  # one in four events


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture on the server that is nobody's upload."""
    folder = tmp_path_factory.mktemp(MARK)
    pixels = np.random.default_rng(0).integers(0, 255, (128, 128, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "secret.png")
    return folder / "secret.png"


def uploads(server: Server) -> Path:
    return next(server.scratch.glob("live-avatar-*")) / "uploads"


def assert_refused(answer: str) -> None:
    assert LOST in answer, answer
    assert MARK not in answer
    assert "base64" not in answer
    assert "Traceback" not in answer


@pytest.mark.parametrize("shape", SHAPES)
def test_a_path_is_refused_by_every_event(stranger: Make, secret: Path, shape: str):
    """Bare by every one; in each other shape by one event in four, so that all get two of them."""
    visitor, payload = stranger(), SHAPES[shape](str(secret))
    asked, place = 0, list(SHAPES).index(shape)
    events = [event for event in visitor.events if event["inputs"]]
    for event in events[place % EACH :: EACH] if place else events:
        assert_refused(visitor.ask(event["id"], [payload] + [None] * (len(event["inputs"]) - 1)))
        assert_refused(visitor.ask(event["id"], [None] * (len(event["inputs"]) - 1) + [payload]))
        asked += 1
    assert asked > (8 if place else 30)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_path_is_refused_by_the_named_endpoints(stranger: Make, secret: Path, shape: str):
    visitor, payload = stranger(), SHAPES[shape](str(secret))
    for place in range(len(generating())):
        data = generating()
        data[place] = payload
        begun = visitor.http.post("/gradio_api/call/generate", json={"data": data})
        event = begun.json()["event_id"]
        answer = visitor.http.get(f"/gradio_api/call/generate/{event}").text
        assert "event: error" in answer
        assert MARK not in answer
    direct = visitor.http.post("/gradio_api/run/plan", json={"data": [payload, {}]})
    assert_refused(direct.text)


def test_all_paths_get_the_same_answer(stranger: Make, server: Server, secret: Path, tmp_path: Path):
    """Else the answers would tell what is there."""
    visitor = stranger()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "text.txt").write_text("not a picture")
    (tmp_path / "empty.png").touch()
    folder = uploads(server) / "0123456789abcdef"
    folder.mkdir(exist_ok=True)
    link = folder / "link.png"
    link.unlink(missing_ok=True)
    link.symlink_to(secret)
    (folder / "away").unlink(missing_ok=True)
    (folder / "away").symlink_to(secret.parent)
    (folder / "loop.png").unlink(missing_ok=True)
    (folder / "loop.png").symlink_to(folder / "loop.png")
    paths = [
        str(secret),
        str(secret.with_name("absent.png")),
        str(tmp_path),
        str(tmp_path / "text.txt"),
        str(tmp_path / "empty.png"),
        str(tmp_path / "pipe"),
        "/dev/zero",
        "/proc/self/environ",
        str(ROOT / "assets" / "portraits" / "astronaut.jpg"),
        str(link),
        str(folder / "away" / "secret.png"),
        str(folder / "loop.png"),
        str(folder),
        f"{folder}/../../../../../../../../../../{secret}",
        os.path.relpath(secret, ROOT),
        f"file://{secret}",
        "http://127.0.0.1:9/picture.png",
        "https://example.org/picture.png",
        "nul\0byte",
        "x" * 5000,
        "",
        ".",
    ]
    number = visitor.event("portrait", "change")
    answers = {visitor.ask(number, [{"path": path}, None]) for path in paths}
    answers = {answer[answer.index('"output"') : answer.index('"success"')] for answer in answers}
    assert len(answers) == 1
    assert_refused(answers.pop())


@pytest.mark.parametrize("value", [1, "/etc/hostname", ["/etc/hostname"], {"path": 5}, {"path": ["x"]}, True])
def test_a_picker_takes_nothing_but_a_file(stranger: Make, value: Any):
    visitor = stranger()
    for part, trigger in (("portrait", "change"), ("speech-video", "upload")):
        assert_refused(visitor.ask(visitor.event(part, trigger), [value, None]))


def test_an_endless_file_takes_no_memory(stranger: Make, server: Server, tmp_path: Path, speech: Path):
    """/dev/zero was read whole, until the machine had no memory left."""
    visitor = stranger()
    vast = tmp_path / "vast.png"
    with vast.open("wb") as file:
        file.truncate(40 * 2**30)
    before = psutil.Process(server.process.pid).memory_info().rss
    for path in ("/dev/zero", "/dev/urandom", "/dev/stdin", str(vast)):
        visitor.ask(visitor.event("portrait", "change"), [{"path": path}, None])
        visitor.call("generate", generating({"path": path}, visitor.upload(speech)))
    assert server.process.poll() is None
    assert psutil.Process(server.process.pid).memory_info().rss - before < 150 * 2**20


@pytest.mark.parametrize("path", ["/etc/hostname", "/dev/zero", "http://127.0.0.1:9/x", "{secret}"])
def test_gradio_client_names_no_file_either(server: Server, secret: Path, tmp_path: Path, path: str):
    client = Client(server.url, verbose=False, download_files=str(tmp_path))
    path = path.format(secret=secret)
    payload = {"path": path}  # with "meta", the client would upload a file of its own machine
    with pytest.raises(exceptions.AppError, match=LOST) as raised:
        client.predict(payload, payload, "auto", "", {}, None, False, api_name="/generate")
    assert MARK not in str(raised.value)


def test_an_upload_is_taken(stranger: Make, tmp_path: Path):
    Image.fromarray(np.full((128, 128, 3), 90, np.uint8)).save(tmp_path / "grey.png")
    visitor = stranger()
    answer = visitor.ask(visitor.event("portrait", "change"), [visitor.upload(tmp_path / "grey.png"), None])
    assert "No face" in answer or "points" in answer
    assert '"success": true' in answer


def test_what_is_shown_lies_among_the_uploads(stranger: Make, server: Server, secret: Path, speech: Path):
    http = stranger().http
    mine = stranger().upload(speech)["path"]
    assert http.get(f"/gradio_api/file={mine}").content == speech.read_bytes()
    server.outputs.joinpath("about.json").write_text(MARK)
    for path in (
        str(secret),
        "/etc/hostname",
        str(server.outputs / "about.json"),
        str(ROOT / "app.py"),
        f"{mine}/../../../../../../etc/hostname",
        "http://example.org/",
        "https://127.0.0.1:9/",
    ):
        for way in (f"/gradio_api/file={path}", f"/gradio_api/file/{path}", f"/file={path}"):
            answer = http.get(way)
            assert answer.status_code == 404, way
            assert MARK not in answer.text


def test_doors_that_the_page_does_not_use_are_shut(stranger: Make):
    http = stranger().http
    for path in ("proxy=http://127.0.0.1:9/", "deep_link", "custom_component/a/b/c/d", "runs", "token"):
        assert http.get(f"/gradio_api/{path}").status_code == 404, path
    for path in ("component_server", "process_recording", "vibe-edit/", "stream/x", "stream/x/close"):
        answer = http.post(f"/gradio_api/{path}", files={"video": ("x.mp4", b"x")})
        assert answer.status_code == 404, path
    assert httpx.get(f"{http.base_url}/config").status_code == 200
