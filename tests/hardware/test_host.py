"""RAM and cores within control groups of both kinds, on a made-up file system."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import psutil
import pytest

from avatar.hardware.host import held_bytes, num_cores, ram

MIB = 2**20


def write(top: Path, files: dict[str, object]) -> None:
    for name, text in files.items():
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")


@pytest.fixture
def tree(tmp_path):
    def make(own: str, **files: object):
        write(tmp_path, {"own": own, **{f"cg/{name}": text for name, text in files.items()}})
        return tmp_path / "cg", tmp_path / "own"

    return make


def test_version_2_takes_the_tightest_group_above(tree):
    places = tree(
        "0::/a/b",
        **{
            "a/b/memory.max": "max",
            "a/b/memory.current": 5 * MIB,
            "a/memory.max": 100 * MIB,
            "a/memory.current": 70 * MIB,
            "a/memory.stat": f"anon 1\ninactive_file {20 * MIB}",
        },
    )
    found = ram(*places)
    assert found.total_bytes == 100 * MIB
    assert found.available_bytes == 50 * MIB  # the limit, less what is used, and the page cache can go
    assert found.used_bytes == 50 * MIB


def test_version_1(tree):
    places = tree(
        "4:memory:/box",
        **{
            "memory/box/memory.limit_in_bytes": 200 * MIB,
            "memory/box/memory.usage_in_bytes": 50 * MIB,
            "memory/memory.limit_in_bytes": 2**63 - 4096,
            "memory/memory.usage_in_bytes": 900 * MIB,
        },
    )
    assert ram(*places).total_bytes == 200 * MIB
    assert ram(*places).available_bytes == 150 * MIB


@pytest.mark.parametrize("own", ["0::/", "1:cpu:/x"])
def test_no_limit_is_the_machine(tree, own):
    assert ram(*tree(own)).total_bytes == psutil.virtual_memory().total


def test_no_control_groups_at_all(tmp_path):
    assert ram(tmp_path, tmp_path / "none").total_bytes == psutil.virtual_memory().total


@pytest.mark.parametrize(
    ("quota", "cores"), [("150000 100000", 2), ("50000 100000", 1), ("100000 100000", 1)]
)
def test_a_cpu_quota_bounds_the_cores(tree, quota, cores, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: set(range(8)), raising=False)
    assert num_cores(*tree("0::/a", **{"a/cpu.max": quota})) == cores


def test_without_quota_the_affinity_counts(tree, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: set(range(8)), raising=False)
    assert num_cores(*tree("0::/a", **{"a/cpu.max": "max 100000"})) == 8
    old = tree("2:cpu,cpuacct:/a", **{"cpu/a/cpu.cfs_quota_us": -1, "cpu/a/cpu.cfs_period_us": 100000})
    assert num_cores(*old) == 8
    limited = tree(
        "2:cpu,cpuacct:/a", **{"cpu/a/cpu.cfs_quota_us": 300000, "cpu/a/cpu.cfs_period_us": 100000}
    )
    assert num_cores(*limited) == 3


def test_a_process_holds_its_own_and_shared_memory_not_files(tmp_path):
    before = held_bytes(os.getpid())
    own = mmap.mmap(-1, 64 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # never pages held already
    shared = mmap.mmap(-1, 64 * MIB)
    for memory in (own, shared):
        memory.write(b"x" * 64 * MIB)
    assert held_bytes(os.getpid()) - before > 120 * MIB
    (tmp_path / "file").write_bytes(own)
    between = held_bytes(os.getpid())
    with (
        (tmp_path / "file").open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
    ):
        assert sum(mapped[:: mmap.PAGESIZE]) == 64 * MIB // mmap.PAGESIZE * ord("x")
        assert held_bytes(os.getpid()) - between < 8 * MIB
    assert held_bytes(2**22 + 1) == 0
