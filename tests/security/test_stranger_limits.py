"""What strangers may take of a running server: disk, places, memory, names; and what answers carry."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from gradio_client import Client, exceptions, handle_file
from visits import Stranger, generating

from tests.fixtures.server import ROOT, Server, wait_until

ARGUMENTS = ("--places", "2", "--max-upload", "1", "--upload-quota", "0.004")  # 4.3 MB
PORTRAIT = ROOT / "assets" / "portraits" / "astronaut.jpg"
Make = Callable[..., Stranger]


def scratch(server: Server) -> Path:
    return next(server.scratch.glob("live-avatar-*"))


def age(path: str | Path, seconds: float) -> None:
    """As if it had been used that long ago."""
    os.utime(path, (time.time() - seconds, time.time() - seconds))


def block(folder: Path, number: int, num_bytes: int = 900_000) -> Path:
    path = folder / f"{number}.bin"
    path.write_bytes(bytes([number]) * num_bytes)
    return path


def send(visitor: Stranger, path: Path) -> httpx.Response:
    return visitor.http.post("/gradio_api/upload", files={"files": (path.name, path.read_bytes())})


@pytest.fixture
def no_uploads(server: Server):
    """Nothing lies there that counts."""
    for path in (scratch(server) / "uploads").glob("*/*"):
        path.unlink()


def test_the_oldest_unused_upload_makes_way(stranger: Make, no_uploads, tmp_path: Path):
    visitor = stranger()
    paths = [visitor.upload(block(tmp_path, number))["path"] for number in range(4)]
    for number, path in enumerate(paths):
        age(path, 1000 - number)
    assert visitor.http.get(f"/gradio_api/file={paths[0]}").status_code == 200  # used just now
    visitor.upload(block(tmp_path, 4))
    assert [Path(path).exists() for path in paths] == [True, False, True, True]


def test_uploads_in_use_do_not_make_way(stranger: Make, no_uploads, server: Server, tmp_path: Path):
    visitor = stranger()
    paths = [visitor.upload(block(tmp_path, number))["path"] for number in range(4)]
    refused = send(visitor, block(tmp_path, 5))
    assert refused.status_code == 507
    assert "no space for uploads" in refused.text
    assert all(Path(path).exists() for path in paths)
    assert list((scratch(server) / "uploads-arriving").iterdir()) == []


def test_a_flood_never_exceeds_the_quota(stranger: Make, no_uploads, server: Server, tmp_path: Path):
    visitor = stranger()
    for number in range(12):
        sent = send(visitor, block(tmp_path, number, 1000 * 900))
        assert sent.status_code in (200, 507)
        for path in (scratch(server) / "uploads").glob("*/*"):
            age(path, 61)
        total = sum(path.stat().st_size for path in (scratch(server) / "uploads").glob("*/*"))
        assert total <= 0.004 * 2**30


def test_a_large_upload_is_refused_before_it_is_read(stranger: Make, tmp_path: Path):
    visitor = stranger()
    sent = send(visitor, block(tmp_path, 1, 2_000_000))
    assert (sent.status_code, "1 MiB" in sent.text) == (413, True)
    language = {"Accept-Language": "zh"}
    sent = visitor.http.post("/gradio_api/upload", files={"files": b"x" * 2_000_000}, headers=language)
    assert "文件超过" in sent.text


def test_forms_that_are_no_upload_are_refused(stranger: Make, server: Server):
    http = stranger().http
    assert http.post("/gradio_api/upload", data={"field": "x" * 1000}).status_code == 400
    fields = http.post("/gradio_api/upload", data={"field": "x" * 1000}, files={"files": b"x"})
    assert fields.status_code == 400
    assert http.post("/gradio_api/upload", content=iter([b"x"])).status_code == 411
    many = http.post("/gradio_api/upload", files=[("files", b"x")] * 20)
    assert many.status_code == 400
    broken = {"Content-Type": "multipart/form-data; boundary=x"}
    assert http.post("/gradio_api/upload", content=b"--y", headers=broken).status_code < 500
    assert list((scratch(server) / "uploads-arriving").iterdir()) == []


@pytest.mark.parametrize("name", ["../../x.png", "..", ".", "", "/etc/x.png", "a\nb.png", "x" * 255 + ".png"])
def test_no_name_leads_out_of_the_folder(stranger: Make, server: Server, no_uploads, name: str):
    sent = stranger().http.post("/gradio_api/upload", files={"files": (name, b"x")})
    if sent.status_code == 200 and sent.json():
        path = Path(sent.json()[0])
        assert path.parent.parent == scratch(server) / "uploads"
        assert path.read_bytes() == b"x"


def test_a_long_body_is_refused(stranger: Make):
    http = stranger().http
    data = {"data": ["x" * 1_100_000], "session_hash": "a", "fn_index": 0}
    for path in ("queue/join", "call/generate", "run/plan", "cancel"):
        assert http.post(f"/gradio_api/{path}", json=data).status_code == 413, path


def test_a_visitor_has_two_places_in_the_queue(stranger: Make, ten_seconds: Path):
    """The third is refused; another visitor is not."""
    one, two = stranger("203.0.113.1"), stranger("203.0.113.2")
    begun = []
    for visitor in (one, one, one, two):
        files = [visitor.upload(PORTRAIT), visitor.upload(ten_seconds)]
        data = generating(*files, size="256*256")
        event = visitor.http.post("/gradio_api/call/generate", json={"data": data}).json()["event_id"]
        begun.append((visitor, event))
        time.sleep(0.1)  # in this order
    answers = []
    for visitor, event in begun:
        answers.append(visitor.http.get(f"/gradio_api/call/generate/{event}").text)
    assert sum("You have 2 videos in the queue" in answer for answer in answers[:3]) == 1
    assert sum("event: complete" in answer for answer in answers[:3]) == 2
    assert "event: complete" in answers[3], answers[3]


def test_segments_that_were_played_are_dropped(stranger: Make, server: Server, twenty_seconds: Path):
    """For a client that never opens a heartbeat, too; none of them is held in memory."""
    visitor = stranger("203.0.113.9")
    number = visitor.event("generate", "click")
    data = visitor.defaults(number)
    data[:2] = [visitor.upload(PORTRAIT), visitor.upload(twenty_seconds)]
    data[visitor.place(number, "384*256")] = "256*256"
    assert visitor.begin(number, data).status_code == 200
    said = "\n".join(json.dumps(message) for message in visitor.heard())
    found = re.search(r"gradio_api/stream/[^\"]+?/playlist\.m3u8", said)
    assert found, said[-2000:]
    playlist = found[0]
    listed = [
        line
        for line in visitor.http.get(f"/{playlist}").text.splitlines()
        if line and not line.startswith("#")
    ]
    assert len(listed) >= 8
    live = scratch(server) / "live"
    assert len(list(live.glob("*/*"))) == len(listed)
    base = playlist.rpartition("/")[0]
    for name in listed:
        part = visitor.http.get(f"/{base}/{name}")
        assert part.status_code == 200
        assert part.content[:1] == b"\x47"  # MPEG-TS
    assert len(list(live.glob("*/*"))) <= 5
    assert visitor.http.get(f"/{base}/{listed[0]}").status_code == 404
    assert visitor.http.get(f"/{base}/{listed[-1]}").status_code == 200


@pytest.mark.parametrize(
    "path", ["/", "/config", "/gradio_api/info", "/nothing", "/gradio_api/proxy=x", "/theme.css"]
)
def test_every_answer_says_what_a_browser_may_do(stranger: Make, path: str):
    headers = stranger().http.get(path).headers
    assert headers["x-content-type-options"] == "nosniff"
    policy = headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "object-src 'none'" in policy
    assert "frame-ancestors 'self'" in policy
    assert "http" not in policy, "nothing comes from elsewhere"


@pytest.mark.parametrize("path", ["/monitoring", "/monitoring/", "/monitoring/summary", "/login", "/logout"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_routes_that_the_page_does_not_use_are_closed(server: Server, stranger: Make, method: str, path: str):
    assert stranger().http.request(method, path, data={"username": "a", "password": "b"}).status_code == 404
    assert "Monitoring" not in server.log.read_text(), "nobody can write into the log"


def test_no_object_of_the_server_is_sent(stranger: Make):
    """Gradio sends a component's attribute of the name of each updated property."""
    visitor = stranger()
    answer = visitor.ask(visitor.event("portrait", "change"), [None])
    assert '"image"' in answer
    assert "object at 0x" not in answer
    assert "<function" not in answer


def test_a_file_of_a_visitor_runs_nothing(stranger: Make, tmp_path: Path):
    visitor = stranger()
    (tmp_path / "page.svg").write_text(
        "<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>"
    )
    path = visitor.upload(tmp_path / "page.svg")["path"]
    headers = visitor.http.get(f"/gradio_api/file={path}").headers
    assert "sandbox" in headers["content-security-policy"]
    assert "script-src" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:7860", "127.0.0.1.evil.example", "", "[::", "10.0.0.1"]
)
def test_a_local_page_is_not_served_under_other_names(stranger: Make, host: str):
    """A page elsewhere could otherwise read this one, by a name that it lets point here."""
    http = stranger().http
    for path in ("/", "/config", "/gradio_api/info", "/outputs/x/y"):
        assert http.get(path, headers={"Host": host}).status_code in (400, 421), path


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:1234", "[::1]:80", "LOCALHOST"])
def test_a_local_page_is_served_under_its_own_names(stranger: Make, host: str):
    assert stranger().http.get("/config", headers={"Host": host}).status_code == 200


def test_another_page_sends_nothing_in(stranger: Make):
    http = stranger().http
    for origin, code in (("http://evil.example", 421), ("null", 421), ("http://localhost:9", 200)):
        sent = http.post("/gradio_api/upload", files={"files": b"x"}, headers={"Origin": origin})
        assert sent.status_code == code, origin


def test_gradio_client_is_reported_of_the_limits(server: Server, tmp_path: Path):
    client = Client(server.url, verbose=False, download_files=str(tmp_path / "down"))
    large, text = (handle_file(str(block(tmp_path, size, size))) for size in (200, 100))
    block(tmp_path, 200, 2_000_000)
    with pytest.raises(Exception, match=r"1 MiB|413|maximum"):
        client.predict(large, large, "auto", "", {}, None, False, api_name="/generate")
    with pytest.raises(exceptions.AppError, match="not a picture"):
        client.predict(text, text, "auto", "", {"size": "256*256"}, None, False, api_name="/generate")


def test_nothing_is_left_in_the_log_but_words(server: Server):
    wait_until(lambda: not server.leftovers(), "runs are over")
    assert "Traceback" not in server.log.read_text()
