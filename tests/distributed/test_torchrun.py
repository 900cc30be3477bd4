"""Real torchrun with two ranks, and an engine attached to rank 0: frames, secrets, losses, a fresh start."""

from __future__ import annotations

import os
import pickle
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing import AuthenticationError, Pipe
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from torch.distributed import HashStore

from avatar.distributed import torchrun
from avatar.distributed.rank_process import Reporter
from avatar.distributed.torchrun import Acceptor, SignedStore
from avatar.errors import BadInput, Cancelled, DoesNotFit, WorkerLost
from avatar.events import Notice
from avatar.geometry import Size
from avatar.media.intake import open_request
from avatar.media.sample_inputs import write_sample
from avatar.preset import Fallback, load_preset
from avatar.request import Part, Request
from avatar.runtime import torchrun_client
from avatar.runtime.local_ranks import Limits
from avatar.runtime.protocol import Link, Pulse, RequestFiles, to_json
from avatar.runtime.ranked_source import RankedSource
from avatar.runtime.request_bundle import RequestBundle
from avatar.runtime.torchrun_client import SECRET, Address
from avatar.runtime.worker_loop import Service

PRESET = load_preset("self-test").with_settings(layout="ulysses", num_gpus_dit=2)
LIMITS = Limits(silence_s=6.0, start_s=90.0, stall_s=10.0, first_factor=1.0)
WORD = "a secret of some letters"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def their_folder(tmp_path_factory) -> Path:
    """Where the ranks keep what they need for a while."""
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def address(their_folder: Path) -> Iterator[str]:
    """Where rank 0 listens; torchrun starts lost ranks anew."""
    address = f"127.0.0.1:{free_port()}"
    worker = ["worker", "--preset", "self-test", "--parallel", "ulysses", "--num_gpus_dit", "2"]
    launcher = ["--nproc-per-node", "2", "--max-restarts", "20", "--monitor-interval", "0.1"]
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "torch.distributed.run", *launcher, "--master-port", str(free_port())),
            *("-m", "avatar", *worker, "--listen", address, "--roles", "tests.fixtures.roles"),
        ],
        env={
            **os.environ,
            SECRET: WORD,
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "lo",
            "TMPDIR": str(their_folder),
        },
        start_new_session=True,
    )
    yield address
    ranks = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    process.wait(60)
    _, alive = psutil.wait_procs(ranks, timeout=20)
    for rank in alive:
        rank.kill()


@pytest.fixture
def source(address: str, monkeypatch) -> Iterator[RankedSource]:
    monkeypatch.setenv(SECRET, WORD)
    monkeypatch.setattr(torchrun_client, "REACH_S", 90.0)
    attached = RankedSource(PRESET, attach=address, limits=LIMITS)
    yield attached
    attached.close()


@pytest.fixture
def ask(tmp_path: Path) -> Callable[..., Request]:
    def build(prompt: str = "", seconds: float = 2.0) -> Request:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        sample = write_sample(folder, Size(96, 96), seconds)
        return open_request(*sample, PRESET, output=folder / "out.mp4", work=folder / "work", prompt=prompt)

    return build


def make(source: RankedSource, request: Request, cancelled=lambda: False) -> list[np.ndarray]:
    return [item for item in source.frames(request, cancelled) if isinstance(item, np.ndarray)]


@pytest.mark.slow
def test_frames_come_and_the_ranks_stay_for_the_next_page(source, address, ask):
    first = make(source, ask())
    assert [int(batch[0, 0, 0, 0]) for batch in first] == [30 + number for number in range(10)]
    assert source.plan_for(ask()).preset == "self-test"
    with pytest.raises(BadInput, match="are serving another client"):
        make(RankedSource(PRESET, attach=address, limits=LIMITS), ask())
    source.close()
    time.sleep(1.0)  # until rank 0 has seen it
    again = RankedSource(PRESET, attach=address, limits=LIMITS)
    assert np.array_equal(np.concatenate(make(again, ask())), np.concatenate(first))
    again.close()


def test_ranks_listen_where_they_were_asked_to_and_nowhere_else(source, address, ask):
    make(source, ask())
    ranks = [process for process in psutil.process_iter() if is_rank(process, address)]
    assert len(ranks) == 2
    open_at = [line.laddr.ip for rank in ranks for line in rank.net_connections() if line.status == "LISTEN"]
    assert len(open_at) >= 2
    assert set(open_at) == {"127.0.0.1"}


def is_rank(process: psutil.Process, address: str) -> bool:
    try:
        command = process.cmdline()
    except psutil.Error:
        return False
    return (
        "-m" in command
        and "avatar" in command
        and address in command
        and "torch.distributed.run" not in command
    )


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[Path]]:
        return Path.touch, (self.path,)


def test_nothing_of_a_stranger_in_the_store_is_unpickled_or_believed(tmp_path, monkeypatch):
    store, passed = HashStore(), []
    store.set("pulse-1", pickle.dumps(Bomb(tmp_path / "bomb")).hex())
    store.set("failed-1", pickle.dumps(Bomb(tmp_path / "bomb")))
    SignedStore(store, b"another secret of some letters").set("pulse-2", to_json(Pulse(2)))
    ours = SignedStore(store, WORD.encode())
    store.set("failed-2", store.get("pulse-2"))  # under another name, too
    ours.set("pulse-3", to_json(Pulse(3, "role", "place", 4, 0.5, 6, None, 8)))
    ours.set("failed-3", "[]")

    def stop(seconds: float) -> None:
        raise StopIteration

    monkeypatch.setattr(torchrun.time, "sleep", stop)
    with pytest.raises(StopIteration):
        torchrun._relay(ours, 4, passed.append)
    assert not (tmp_path / "bomb").exists()
    assert [(report.rank, report.role, report.pinned_bytes) for report in passed] == [(3, "role", 8)]


def test_a_rank_with_another_secret_is_refused():
    store = HashStore()
    SignedStore(store, b"another secret of some letters").set("meeting-0", "127.0.0.1 1")
    with pytest.raises(AuthenticationError):
        SignedStore(store, WORD.encode()).get("meeting-0")
    SignedStore(store, WORD.encode()).set("meeting-0", "127.0.0.1 1")
    store.set("meeting-1", store.get("meeting-0"))
    assert SignedStore(store, WORD.encode()).get("meeting-0") == "127.0.0.1 1"
    with pytest.raises(AuthenticationError):  # nor may a proof be moved
        SignedStore(store, WORD.encode()).get("meeting-1")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "127.1.2.3"])
def test_a_loopback_address_is_known(host):
    assert Address.parse(f"{host}:80").is_loopback
    assert not Address.parse("0.0.0.0:80").is_loopback


@pytest.mark.slow
def test_cancel_leaves_them_ready(source, ask):
    made: list[np.ndarray] = []
    with pytest.raises(Cancelled):
        made.extend(make(source, ask(seconds=60.0), lambda: True))
    assert len(make(source, ask())) == 10


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("bug 1 at 3", "Rank 1 failed|Rank 0 failed|closed its connection"),
        ("kill 1 at 0", "Rank 0 failed|closed its connection"),
        ("kill 0 at 0", "Rank 0 .*closed its connection"),
    ],
)
def test_a_lost_rank_ends_the_run_and_torchrun_starts_fresh_ones(source, ask, fault, words, their_folder):
    """Nor does the portrait stay there that it had been sent."""
    with pytest.raises(Exception) as caught:
        make(source, ask(fault))
    assert re.search(words, str(caught.value)), caught.value
    assert len(make(source, ask())) == 10
    assert not list(their_folder.rglob("portrait.png"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "words"),
    [("kill 0 at 8", "closed its connection"), ("stop 1 at 8", "gave no sign of life|no progress")],
)
def test_a_rank_is_lost_and_those_that_torchrun_starts_go_on(source, ask, fault, words):
    items = list(source.frames(ask(fault), lambda: False))
    shown = [int(item[0, 0, 0, 0]) for item in items if isinstance(item, np.ndarray)]
    first = shown.index(30, 1)  # where fresh ones went on: what a killed process had not sent is made again
    assert 5 <= first <= 8
    assert shown == [*range(30, 30 + first), *range(30, 40 - first)]
    (notice,) = [item for item in items if isinstance(item, Notice)]
    assert notice.code == "restarted"
    assert re.search(words, notice.text)


@pytest.mark.slow
def test_full_ranks_are_started_anew_and_go_on_a_rung_lower(source, ask):
    preset = replace(PRESET.with_settings(infer_frames=36), fallback=Fallback(("infer_frames",)))
    items: list[object] = []  # it happens in each group
    with pytest.raises(
        DoesNotFit, match=r"^CPU \(rank 1\) ran out of memory, and the preset allows no further"
    ):
        items.extend(
            source.frames(replace(ask("full 1 at 3"), preset=preset), lambda: False)
        )  # in each group
    batches = [item for item in items if isinstance(item, np.ndarray)]
    assert [int(batch[0, 0, 0, 0]) for batch in batches] == 2 * [30, 31, 32]
    (notice,) = [item for item in items if isinstance(item, Notice)]
    assert notice.values == {"was": "36", "now": "32", "device": "CPU (rank 1)", "block": 2}
    assert len(make(source, ask())) == 10


def test_another_secret_or_preset_is_refused(address, source, ask, monkeypatch):
    request = replace(ask(), preset=PRESET.with_settings(layout="layers"))
    with pytest.raises(BadInput, match="hold the preset self-test"):
        make(source, request)
    monkeypatch.setenv(SECRET, WORD + "!")
    with pytest.raises(BadInput, match=f"another .{SECRET}"):
        make(RankedSource(PRESET, attach=address, limits=LIMITS), ask())
    for word in ("", "short"):
        monkeypatch.setenv(SECRET, word)
        with pytest.raises(BadInput, match=SECRET):
            make(RankedSource(PRESET, attach=address, limits=LIMITS), ask())


def test_nobody_there_is_reported(ask, monkeypatch):
    monkeypatch.setenv(SECRET, WORD)
    monkeypatch.setattr(torchrun_client, "REACH_S", 0.5)
    with pytest.raises(WorkerLost, match="No ranks answer"):
        make(RankedSource(PRESET, attach=f"127.0.0.1:{free_port()}", limits=LIMITS), ask())


class Reading:
    """A FrameSource that tells what the portrait's file holds."""

    label = ""

    def frames(self, request: Request, cancelled: Callable[[], bool]) -> Iterator[Notice]:
        yield Notice("read", request.portrait.read_text())

    def close(self) -> None:
        raise AssertionError("not asked for")


def call(address: Address) -> Link:
    """A link to whoever listens."""
    line = socket.create_connection((address.host, address.port), 10)
    line.settimeout(None)
    return Link(line.detach())


def test_who_leaves_at_once_leaves_the_door_open_and_nothing_behind(monkeypatch, ask):
    """Hanging up may be noticed before rank 0 has put the visitor in the queue."""
    started = Service.start

    def start_and_lose(service: Service, heartbeat: Callable[[], object]) -> None:
        started(service, heartbeat)
        deadline = time.monotonic() + 10
        while not service.gone and time.monotonic() < deadline:
            time.sleep(0.01)

    monkeypatch.setattr(Service, "start", start_and_lose)
    address = Address("127.0.0.1", free_port())
    acceptor = Acceptor(PRESET, address, WORD.encode())
    acceptor.open(Reporter(0, acceptor.send))
    services = acceptor.services()
    for number in range(2):  # their files came, but no run
        link = call(address)
        torchrun_client.prove(link, WORD.encode(), first=False)
        assert not link.recv().is_taken
        link.send(RequestFiles(RequestBundle(b"%d" % number, b"", None)))
        link.close()
        assert not list(next(services).asked())
    (reported,) = acceptor.unpacking(Reading()).frames(ask(), lambda: False)
    assert reported.text == "1"  # nothing of the first visitor's


def test_who_says_nothing_is_hung_up_on_and_others_are_let_in(monkeypatch):
    monkeypatch.setattr(torchrun_client, "GREET_S", 0.2)
    address = Address("127.0.0.1", free_port())
    acceptor = Acceptor(PRESET, address, WORD.encode())
    acceptor.open(Reporter(0, acceptor.send))
    with socket.create_connection((address.host, address.port), 10) as silent:
        silent.settimeout(10)
        while silent.recv(1024):  # its challenge, and then the end
            pass
    ours, theirs = Pipe()
    with pytest.raises(EOFError):  # the same on the other side
        torchrun_client.prove(ours, WORD.encode(), first=False)
    theirs.close()
    monkeypatch.setattr(torchrun_client, "GREET_S", 10.0)
    link = call(address)
    torchrun_client.prove(link, WORD.encode(), first=False)
    assert not link.recv().is_taken
    link.close()


def test_a_door_that_cannot_open_is_tried_again_after_a_while(monkeypatch):
    monkeypatch.setattr(torchrun, "ACCEPT_AGAIN_S", 0.05)
    address = Address("127.0.0.1", free_port())
    acceptor = Acceptor(PRESET, address, WORD.encode())
    listener, calls = acceptor._listener, []

    def full() -> tuple[socket.socket, object]:
        calls.append(time.monotonic())
        if len(calls) <= 3:
            raise OSError(24, "Too many open files")
        return listener.accept()

    monkeypatch.setattr(acceptor, "_listener", SimpleNamespace(accept=full))
    acceptor.open(Reporter(0, acceptor.send))
    link = call(address)
    torchrun_client.prove(link, WORD.encode(), first=False)
    assert not link.recv().is_taken
    assert calls[3] - calls[0] >= 0.1  # three pauses
    link.close()


@pytest.mark.parametrize("text", ["", "host", ":80", "host:", "host:x", "host:0", "host:70000"])
def test_what_is_no_address_is_refused(text):
    with pytest.raises(BadInput, match="is not a valid address"):
        Address.parse(text)
    assert Address.parse("[::1]:80") == Address("::1", 80)


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({}, "its environment is missing"),
        ({"RANK": "0", "WORLD_SIZE": "3", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "3"}, "takes 2 ranks"),
        (
            {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"},
            "Ranks on other machines cannot reach 127.0.0.1:7861",
        ),
    ],
)
def test_a_worker_outside_torchrun_or_of_wrong_number_is_refused(env, words):
    command = [
        "-m",
        "avatar",
        "worker",
        "--preset",
        "self-test",
        "--parallel",
        "layers",
        "--num_gpus_dit",
        "2",
    ]
    done = subprocess.run(
        [sys.executable, *command], env={**os.environ, SECRET: WORD, **env}, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert words in done.stderr


def test_parts_carry_over(source, ask, tmp_path):
    request = ask()
    part = Part(run="r", first_frame=0, speech_frames=50, leave=tmp_path / "leave")
    assert len(make(source, replace(request, part=part))) == 10
