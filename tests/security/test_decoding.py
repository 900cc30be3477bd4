"""Portraits that take memory or time are decoded outside the server, and in nobody else's way."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from gradio_client import Client, exceptions, handle_file
from visits import Stranger

from tests.fixtures.scans import many_scans
from tests.fixtures.server import ROOT, Server, wait_until

ARGUMENTS = ("--places", "3")
PORTRAIT = ROOT / "assets" / "portraits" / "astronaut.jpg"
WIDE = ROOT / "tests" / "data" / "security" / "wide.avif"
Make = Callable[..., Stranger]


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture that takes longer to decode than any may."""
    return many_scans(tmp_path_factory.mktemp("slow") / "slow.jpg", 3000, 3000)


def ask(visitor: Stranger, portrait: Path, name: str | None = None) -> str:
    """What the page says of a portrait that was just chosen."""
    return visitor.ask(visitor.event("portrait", "change"), [visitor.upload(portrait, name), None])


def decoders(server: Server) -> list[psutil.Process]:
    """The processes that decode."""
    found = []
    for child in psutil.Process(server.process.pid).children():
        try:
            if "avatar.runtime.bounded_process" in child.cmdline():
                found.append(child)
        except psutil.NoSuchProcess:  # it has just been replaced
            continue
    return found


@pytest.mark.slow
def test_wide_pictures_take_no_memory_of_the_server(stranger: Make, server: Server):
    """1064 bytes each, and 720 MiB to decode; eight at once."""
    ask(stranger(), PORTRAIT)
    before = psutil.Process(server.process.pid).memory_info().rss
    visitors = [stranger(f"203.0.113.{number}") for number in range(8)]
    answers: list[str] = []
    threads = [
        threading.Thread(target=lambda v=visitor, n=n: answers.append(ask(v, WIDE, f"{n}.avif")))
        for n, visitor in enumerate(visitors)
    ]
    most = 0
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        most = max(most, len(decoders(server)))
        time.sleep(0.05)
    assert 1 <= most <= 2
    assert len(answers) == 8
    assert all('"success": true' in answer for answer in answers)
    assert psutil.Process(server.process.pid).memory_info().rss - before < 200 * 2**20
    kept = [child.memory_info().rss for child in decoders(server)]
    assert all(rss < 400 * 2**20 for rss in kept), "a process that has grown is replaced"


@pytest.mark.slow
def test_one_visitors_slow_pictures_are_in_nobodys_way(stranger: Make, slow: Path):
    one, other = stranger("203.0.113.1"), stranger("203.0.113.2")
    payloads = [one.upload(slow, f"{number}.jpg") for number in range(6)]
    number = one.event("portrait", "change")
    reported: list[str] = []

    def send(payload: dict) -> None:
        visitor = Stranger(one.url, one.address)
        reported.append(visitor.ask(number, [payload, None]))
        visitor.close()

    threads = [threading.Thread(target=send, args=(payload,)) for payload in payloads]
    for thread in threads:
        thread.start()
    assert '"success": true' in ask(other, PORTRAIT)
    assert len(reported) < len(threads), "the other was not made to wait for all of them"
    for thread in threads:
        thread.join()
    assert any("takes too long" in answer for answer in reported)
    assert any("Too many files" in answer for answer in reported)


def test_who_goes_away_gives_the_place_up(stranger: Make, server: Server, slow: Path):
    refused = server.log.read_text().count("SIGXCPU")
    visitor = stranger("203.0.113.3")
    begun = visitor.begin(
        visitor.event("portrait", "change"), [visitor.upload(slow, f"{time.time_ns()}.jpg"), "auto"]
    )
    busy: list[int] = []

    def is_busy() -> bool:
        busy[:] = [child.pid for child in decoders(server) if child.cpu_percent(0.2) > 20]
        return bool(busy)

    url = f"/gradio_api/queue/data?session_hash={visitor.session}"
    with visitor.http.stream("GET", url) as said:
        assert begun.status_code == 200
        next(said.iter_lines())
        wait_until(is_busy, "it is being decoded")
    wait_until(lambda: not set(busy) & {child.pid for child in decoders(server)}, "its place is free")
    assert server.log.read_text().count("SIGXCPU") == refused, "it was not its time that ended it"


@pytest.mark.slow
def test_gradio_client_is_reported_as_well(server: Server, slow: Path, speech: Path, tmp_path: Path):
    client = Client(server.url, verbose=False, download_files=str(tmp_path / "down"))
    path = Path(shutil.copy(slow, tmp_path / "client.jpg"))
    with pytest.raises(exceptions.AppError, match=r"client\.jpg takes too long"):
        client.predict(
            handle_file(str(path)),
            handle_file(str(speech)),
            "auto",
            "",
            {},
            None,
            False,
            api_name="/generate",
        )
    assert server.process.poll() is None
