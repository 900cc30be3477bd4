"""The child's side of a link: what is sent arrives in order, whoever sends does not wait for its reader."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from multiprocessing import Pipe
from multiprocessing.connection import Connection

import numpy as np

from avatar.runtime.worker_loop import MAX_UNSENT, Service

LARGE = np.zeros(4 * 2**20, np.uint8)  # more than a pipe holds
PATIENCE_S = 10.0


def serve(ours: Connection) -> tuple[Service, list[str]]:
    hung_up: list[str] = []
    service = Service(ours, on_hangup=lambda: hung_up.append("once"))
    service.start(lambda: "beat")
    return service, hung_up


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate()} & {"deliver", "heartbeat", "listen"}


def until(what) -> None:
    end = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_sender_waits_for_its_reader_only_when_it_settles():
    theirs, ours = Pipe()
    service, _ = serve(ours)
    for number in range(MAX_UNSENT - 1):  # a heartbeat may be among them
        service.send((number, LARGE))
    settled = threading.Thread(target=service.settle)
    settled.start()
    received = []
    while len(received) < MAX_UNSENT - 1:
        assert settled.is_alive()
        message = theirs.recv()
        if message != "beat":
            received.append(message[0])
    assert received == list(range(MAX_UNSENT - 1))
    settled.join(PATIENCE_S)
    assert not settled.is_alive()
    theirs.close()
    until(lambda: not threads())


def test_once_the_peer_is_gone_no_thread_waits_or_stays():
    theirs, ours = Pipe()
    service, hung_up = serve(ours)
    theirs.close()
    for _ in range(3 * MAX_UNSENT):
        service.send(LARGE)
    service.settle()
    until(lambda: not threads())
    assert service.gone
    assert hung_up == ["once"]
    assert list(service.asked()) == []


def test_a_message_that_cannot_be_packed_ends_the_process():
    code = (
        "import threading, time\n"
        "from multiprocessing import Pipe\n"
        "from avatar.runtime.worker_loop import Service\n"
        "theirs, ours = Pipe()\n"
        "service = Service(ours)\n"
        "service.start(lambda: 'beat')\n"
        "service.send(threading.Lock())\n"
        "time.sleep(60)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert "a message cannot be packed" in done.stderr
    assert "cannot pickle" in done.stderr
