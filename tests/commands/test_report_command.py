"""`report`: runs side by side, from files, patterns and folders; what is no report is reported."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from avatar.cli import main
from avatar.preset import load_preset
from avatar.runtime.report import RUNG_OOM, GpuUse, MemoryUse, RungTaken, RunReport

GIB = 2**30


def a_report(name: str, preset: str = "24gb", **changes: object) -> RunReport:
    plain = RunReport(
        video=f"{name}.mp4",
        thumbnail=f"{name}.jpg",
        portrait="me.png",
        speech="hi.wav",
        prompt="",
        engine="",
        preset=load_preset(preset).as_dict(),
        created="2026-01-01T00:00:00+00:00",
        frames_asked=480,
        fps=25,
        num_frames=480,
        first_frame_s=12.34,
        frames_per_s=6.78,
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def gpu(index: int, peak: float | None, card: float | None = None) -> GpuUse:
    peaks = (None if size is None else round(size * GIB) for size in (peak, card))
    return GpuUse(index, "RTX 4090", *peaks, 24 * GIB)


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder `out` with three reports and a file that is none; the current folder is above it."""
    monkeypatch.chdir(tmp_path)
    folder = Path("out")
    folder.mkdir()
    plan = {
        "gpus": [{"index": 0, "peak_bytes": 21 * GIB, "total_bytes": 24 * GIB}],
        "host": {"peak_bytes": 40 * GIB},
    }
    memory = MemoryUse((gpu(0, 20.5), gpu(1, 3.25)), 31 * GIB, 28 * GIB, 29 * GIB)
    rungs = [RungTaken("size", RUNG_OOM, "GPU 0 ran out of memory.", 96)]
    a_report("good", plan=plan, memory=memory).write(folder / "good.json")
    a_report("lower", memory=MemoryUse((gpu(0, None, 23.4),)), rungs=rungs).write(folder / "lower.json")
    a_report("quick", "cpu-preview", frames_per_s=101.5, first_frame_s=0.3).write(folder / "quick.json")
    return folder


def test_the_table_compares_runs(out, capsys):
    assert main(["report", "out/good.json", "out/lower.json", "out/quick.json"]) == 0
    text = capsys.readouterr().out
    squeezed = " ".join(text.replace("│", " ").split())
    for words in (
        "8bit weights",
        "0: 20.5 / 21.0",
        "1: 3.2 / –",
        "31.0 / 40.0",
        "pinned 29.0",
        "0: ≤ 23.4 / –",
        "yes, went on",
        "6.8",
        "12.3 s",
        "cpu-preview",
        "101.5",
        "0.3 s",
    ):
        assert words in squeezed, words
    assert "lower: rung size at frame 96. GPU 0 ran out of memory." in text
    assert squeezed.count(" no ") == 2


def test_json_has_what_the_table_has_in_bytes(out, capsys):
    assert main(["report", "out/*.json", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["no_reports"] == []
    good, lower, quick = found["reports"]
    assert [one["file"] for one in (good, lower, quick)] == [
        "out/good.json",
        "out/lower.json",
        "out/quick.json",
    ]
    assert [(one["index"], one["peak_bytes"], one["planned_bytes"]) for one in good["gpus"]] == [
        (0, 20.5 * GIB, 21 * GIB),
        (1, 3.25 * GIB, None),
    ]
    assert (good["host_peak_bytes"], good["pinned_peak_bytes"]) == (31 * GIB, 29 * GIB)
    assert (good["out_of_memory"], lower["out_of_memory"], quick["out_of_memory"]) == (False, True, False)
    assert (good["average_fps"], good["first_frame_s"]) == (6.78, 12.34)
    assert (quick["gpus"], quick["host_peak_bytes"]) == ([], None)
    assert [(one["rung"], one["frame"]) for one in lower["rungs"]] == [("size", 96)]


def test_a_failure_and_a_lost_run_are_reported(out, capsys):
    a_report("full", stopped=True, num_frames=96, error="Memory ran out.", error_kind="DoesNotFit").write(
        out / "full.json"
    )
    a_report("lost", stopped=True, error="Killed.", error_kind="WorkerLost").write(out / "lost.json")
    assert main(["report", "out/full.json", "out/lost.json"]) == 0
    text = capsys.readouterr().out
    assert "yes, failed" in text
    assert "96 of 480" in text
    assert "│ ?" in text
    assert "full: Memory ran out." in text


def test_what_is_no_report_is_named_and_the_rest_still_shown(out, capsys):
    (out / "about.json").write_text("{}")
    assert main(["report", "out/*.json", "out/good.json"]) == 2
    printed = capsys.readouterr()
    assert "good" in printed.out
    assert printed.err.split() == ["No", "run", "reports:", "out/about.json"]
    assert main(["report", "out/about.json"]) == 2
    assert "No run report among them: about.json." in capsys.readouterr().err


def test_a_folder_gives_every_whole_video_below_it_once(out, capsys):
    for inner in ("day/one", "film.parts", "entry/half/parts"):
        (out / inner).mkdir(parents=True)
        a_report(inner.split("/")[0]).write(out / inner / "made.json")
    (out / "entry" / "about.json").write_text("{}")
    assert main(["report", "out", "out/good.json", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    files = [one["file"] for one in found["reports"]]
    assert sorted(files) == ["out/day/one/made.json", "out/good.json", "out/lower.json", "out/quick.json"]
    assert main(["report", "out/film.parts", "--json"]) == 0, "asked for by name, parts are shown"


@pytest.mark.parametrize("path", ["gone.json", "out/*.toml", "gone"])
def test_what_is_not_there_is_an_error(out, capsys, path):
    assert main(["report", path]) == 2
    assert f"There is nothing to read at {path}." in capsys.readouterr().err


def test_a_folder_without_reports_is_an_error(out, capsys):
    (out / "empty").mkdir()
    (out / "other").mkdir()
    (out / "other" / "about.json").write_text("{}")
    assert main(["report", "out/empty"]) == 2
    assert "nothing to read" in capsys.readouterr().err
    assert main(["report", "out/other"]) == 2
    assert "no run report there" in capsys.readouterr().err
