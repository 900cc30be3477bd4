"""A private gallery: two visitors try to reach each other's videos by every route there is."""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Callable
from pathlib import Path

import httpx
from gradio_client import Client, handle_file
from visiting import PORTRAIT, Server, Visitor, wait_until
from wire import Wire

Visit = Callable[..., Visitor]


def make_video(visitor: Visitor) -> None:
    visitor.page.locator(".example").first.click()
    visitor.page.wait_for_function(
        "document.querySelector('#live video')?.currentTime > 0.2", timeout=120_000
    )
    visitor.page.click("#stop:enabled")
    visitor.wait_state("stopped", "done")


def press(wire: Wire, event: str, action: str, id: object) -> dict:
    handler = wire.handler("gallery", event)
    return wire.call(handler, [None] * len(handler["inputs"]), {"action": action, "id": id})


def routes_to(server: Server, id: str) -> list[str]:
    """URLs of all of an entry's files, without their keys."""
    folder, found = server.outputs / id, []
    for path in [*folder.iterdir(), server.outputs / ".key", folder / "half" / "request.json"]:
        found += [f"/outputs/{id}/{path.name}", f"/outputs/{id}/{path.name}?key={'0' * 40}"]
        found += [
            f"/gradio_api/file={path}",
            f"/file={path}",
            f"/gradio_api/file={server.outputs}/x/../{id}/{path.name}",
        ]
        found += [f"/outputs/{id}/..%2f{id}%2f{path.name}", f"/outputs/{id}/%2e%2e/{path.name}"]
        found += [f"/static{path}", f"/assets{path}", f"/gradio_api/stream/{path}"]
    return found


def assert_closed(server: Server, id: str) -> None:
    secrets_of = [(server.outputs / id / name).read_bytes() for name in ("about.json",)]
    with httpx.Client(base_url=server.url) as http:
        for address in routes_to(server, id):
            answer = http.get(address)
            assert answer.status_code >= 400, address
            assert answer.content not in secrets_of


def test_an_api_visitors_video_is_nobodys(private: Server, short_speech: Path, tmp_path: Path) -> None:
    before = private.videos()
    client = Client(private.url, verbose=False, download_files=str(tmp_path))
    video = client.predict(
        handle_file(str(PORTRAIT)), handle_file(str(short_speech)), "auto", api_name="/generate"
    )
    assert Path(video).stat().st_size > 1000, "but its maker gets it"
    [kept] = [video for video in private.videos() if video not in before]
    id = kept.parent.name
    assert Path(video).read_bytes() == kept.read_bytes()
    stranger = Wire(private.url, "never-loaded-the-page")
    press(stranger, "select", "delete", id)
    assert kept.exists()
    answer_text = press(stranger, "select", "use", id)
    assert "no longer here" in json.dumps(answer_text)
    answer_text = press(stranger, "submit", "resume", id)
    assert "cannot be resumed" in json.dumps(answer_text)
    assert kept.exists()
    assert_closed(private, id)


def test_two_visitors_do_not_reach_each_others_videos(private: Server, visit: Visit) -> None:
    alice, bob = visit(private.url), visit(private.url)
    sessions: list[str] = []
    bob.page.on("request", lambda asked: sessions.extend(re.findall(r"session_hash=(\w+)", asked.url)))
    before = private.videos()
    make_video(alice)
    [mine] = [path for path in private.videos() if path not in before]
    id = mine.parent.name
    alice.page.wait_for_selector(f'.video [data-id="{id}"]')
    link = alice.page.get_attribute(".video-buttons a[download]", "href")
    alice.show_finished()
    shown = alice.page.evaluate("document.querySelector('#final video').currentSrc")
    key = link.split("key=")[1]

    bob.page.reload()
    bob.page.wait_for_selector("#gallery .gallery")
    assert bob.page.locator(".video").count() == 0, "list"
    # A link to the video gives the video, and nothing else.
    fetched = "async (address) => (await fetch(address, {cache: 'no-store'})).status"
    assert bob.page.evaluate(fetched, link) == 200
    assert "/file=" in shown
    assert bob.page.evaluate(fetched, shown) == 200
    for other in (mine.with_suffix(".jpg").name, mine.with_suffix(".json").name, "about.json", "../.key"):
        assert bob.page.evaluate(fetched, f"/outputs/{id}/{other}?key={key}") == 404, other
    assert_closed(private, id)
    for path in before:
        assert bob.page.evaluate(fetched, f"/outputs/{path.parent.name}/{path.name}?key={key}") == 404
    # Every handler, in a session of Bob's own and in his page's session.
    make_video(bob)
    about = json.loads((mine.parent / "about.json").read_text())
    for session in ("bob-by-hand", sessions[-1]):
        wire = Wire(private.url, session)
        press(wire, "select", "delete", id)
        for wrong in (None, [], {}, 3, [id], {"id": id}, f"../{mine.parent.parent.name}/{id}", f"{id}\0", ""):
            answer_text = json.dumps(press(wire, "select", "delete", wrong))
            assert "administrator this code" not in answer_text, answer_text
        assert "no longer here" in json.dumps(press(wire, "select", "use", id))
        assert "cannot be resumed" in json.dumps(press(wire, "submit", "resume", id))
    # Reading the hash from the disk, or guessing, makes nobody an owner either.
    for guess in (about["owner_hash"], about["owner_hash"][:32], "", None, [], {}, secrets.token_hex(16)):
        wire = Wire(private.url, f"guess-{time.monotonic_ns()}")
        answer_text = json.dumps(wire.call(wire.handler("", "load"), [{"owner": guess}]))
        assert "administrator this code" not in answer_text
        assert id not in answer_text, guess
        press(wire, "select", "delete", id)
    assert mine.exists()
    # Alice still has the video, and once she deletes it, it is gone from everywhere it was shown.
    alice.page.reload()
    delete = alice.page.locator(f'.video [data-action="delete"][data-id="{id}"]')
    delete.click()
    delete.click()
    wait_until(lambda: not mine.exists(), "it is deleted")
    assert bob.page.evaluate(fetched, link) == 404
    assert bob.page.evaluate(fetched, shown) >= 400
    assert bob.page.locator(".video").count() == 1, "his own stays"


def test_nothing_on_disk_is_for_others(private: Server) -> None:
    paths = [private.outputs, *private.outputs.rglob("*"), *private.scratch.glob("live-avatar-*")]
    assert len(paths) > 5
    open_to_others = [path for path in paths if path.stat().st_mode & 0o077 and not path.is_symlink()]
    assert open_to_others == []
    log = private.log.read_text()
    assert "Traceback" not in log, log
