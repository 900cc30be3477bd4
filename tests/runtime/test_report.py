"""The run report: what is written is read again, older ones too, and what is none is refused."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from avatar.errors import BadInput
from avatar.preset import Preset
from avatar.runtime.report import (
    RUNG_OOM,
    RUNG_PLANNED,
    GpuUse,
    MemoryUse,
    RungTaken,
    RunReport,
    read_report,
    together,
)

GIB = 2**30
USE = MemoryUse((GpuUse(1, "RTX 4090", 20 * GIB, 21 * GIB, 24 * GIB),), 9 * GIB, 3 * GIB, 5 * GIB)
PLAN = {
    "gpus": [{"index": 1, "peak_bytes": 19 * GIB, "total_bytes": 24 * GIB}],
    "host": {"peak_bytes": 8 * GIB},
}


def report(**changes: object) -> RunReport:
    """Of a run that went well."""
    plain = RunReport(
        video="film.mp4",
        thumbnail="film.jpg",
        portrait="me.png",
        speech="hi.wav",
        prompt="",
        engine="",
        preset=json.loads(json.dumps(Preset("24gb", "", "", "diffusion").as_dict())),
        created="2026-01-01T00:00:00+00:00",
        frames_asked=100,
        fps=25,
        num_frames=100,
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    reported = report(
        memory=USE, plan=PLAN, rungs=[RungTaken("size", RUNG_OOM, "Full.", 48, {"now": "384*256"})]
    )
    reported.write(tmp_path / "film.json")
    assert read_report(tmp_path / "film.json") == reported


def test_a_report_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    data = asdict(report(error="It broke.")) | {"rungs": ["size", "sample_steps"], "gone": 1}
    for key in ("plan", "memory", "error_kind"):
        del data[key]
    (tmp_path / "film.json").write_text(json.dumps(data))
    reported = read_report(tmp_path / "film.json")
    assert reported.rungs == [RungTaken("size"), RungTaken("sample_steps")]
    assert (reported.plan, reported.memory, reported.gpus, reported.host_planned_bytes) == (
        None,
        None,
        [],
        None,
    )
    assert reported.out_of_memory is None, "nobody noted why it broke"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "7",
        '{"portrait": "me.jpg", "settings": {}}',
        json.dumps(asdict(report()) | {"frames_per_s": "fast"}),
        json.dumps(asdict(report()) | {"plan": {"gpus": [{"index": 0}], "host": {"peak_bytes": 1}}}),
        json.dumps(asdict(report()) | {"plan": [1]}),
        json.dumps(asdict(report()) | {"memory": {"cpus": 1}}),
        json.dumps(asdict(report()) | {"rungs": [3]}),
        json.dumps(asdict(report()) | {"preset": {"name": "x"}}),
    ],
)
def test_what_is_no_report_is_refused_by_its_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(BadInput, match=r"^other\.json is not a run report\."):
        read_report(tmp_path / "other.json")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, False),
        ({"stopped": True}, False),
        ({"rungs": [RungTaken("offload", RUNG_PLANNED)]}, False),
        ({"rungs": [RungTaken("size", RUNG_OOM)]}, True),
        ({"error": "The GPU ran out of memory.", "error_kind": "DoesNotFit"}, True),
        ({"error": "The disk is full.", "error_kind": "BadInput"}, False),
        ({"error": "Killed.", "error_kind": "WorkerLost"}, None),
    ],
)
def test_whether_memory_ran_out(changes: dict[str, object], expected: bool | None) -> None:
    assert report(**changes).out_of_memory is expected


def test_gpus_are_those_planned_or_used() -> None:
    idle = GpuUse(0, "RTX 4090", 0, 2 * GIB, 24 * GIB)
    hidden = GpuUse(2, "RTX 4090", None, 3 * GIB, 24 * GIB)
    one = report(plan=PLAN, memory=replace(USE, gpus=(idle, *USE.gpus, hidden)))
    assert one.gpus == [replace(USE.gpus[0], planned_bytes=19 * GIB)]
    assert report(plan=PLAN).gpus == [GpuUse(1, None, None, None, 24 * GIB, 19 * GIB)], (
        "planned, not measured"
    )
    assert report(memory=USE).gpus == list(USE.gpus), "measured, not planned"
    assert report(memory=replace(USE, gpus=(idle, hidden))).gpus == [hidden], "may have been used"


def test_several_runs_together_have_the_most_of_each() -> None:
    other = MemoryUse(
        (GpuUse(0, "A", 7, 8, 9), GpuUse(1, "RTX 4090", 22 * GIB, None, 24 * GIB)), 4 * GIB, None, None
    )
    both = together([None, USE, other])
    assert both == MemoryUse(
        (GpuUse(0, "A", 7, 8, 9), GpuUse(1, "RTX 4090", 22 * GIB, 21 * GIB, 24 * GIB)), 9 * GIB, None, 5 * GIB
    )
    assert together([None, None]) is None
    assert together([]) is None
