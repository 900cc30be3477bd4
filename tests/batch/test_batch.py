"""A batch makes all that it can, tells of the rest, and goes on where it was ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import av
import pytest

from avatar.batch.engines import Engines, gpus_of
from avatar.cli import main
from avatar.commands import batch
from avatar.errors import DoesNotFit
from avatar.hardware.inventory import Inventory, probe
from avatar.preset import load_preset
from avatar.runtime.engine_process import EngineProcess
from tests.fixtures.listener import listening
from tests.long.runs import inputs, packets

NO_GPU = replace(probe(), gpus=(), no_gpu_reason="No NVIDIA driver.")
SOURCE = "tests.fixtures.sources:Coloured"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two jobs in the current folder, one of them in parts."""
    inputs(tmp_path, 3.0)
    (tmp_path / "jobs.toml").write_text(
        '[defaults]\npreset = "cpu-preview"\nimage = "me.png"\naudio = "words.wav"\n'
        '[[job]]\nname = "long"\ncheckpoint_every = 1\n[[job]]\nname = "short"\n'
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(batch, "probe", lambda *_, **__: NO_GPU)
    return tmp_path


@pytest.fixture
def engines(monkeypatch):
    """Real engine processes of plain colours; in the end none may be left."""
    opened: list[EngineProcess] = []

    def become(**options: object) -> list[EngineProcess]:
        def open_engine(preset, **_):
            opened.append(EngineProcess(SOURCE, None, **options))
            return opened[-1]

        monkeypatch.setattr(batch, "open_engine", open_engine)
        return opened

    yield become
    assert [engine.pid for engine in opened if engine.pid] == []


def test_all_are_made_on_one_engine_and_reported_in_a_table(folder, engines, capsys):
    opened = engines()
    assert main(["batch", "jobs.toml", "--output", "out"]) == 0
    assert len(opened) == 1
    table = capsys.readouterr().out
    assert "long.mp4" in table
    assert "short.mp4" in table
    for name in ("long", "short"):
        with av.open(f"out/{name}.mp4") as film:
            assert film.streams.video[0].frames == 75
    assert sorted(path.name for path in Path("out").iterdir()) == [
        f"{name}.{kind}" for name in ("long", "short") for kind in ("mp4", "report.json", "thumb.jpg")
    ]


def test_a_failure_stops_no_other_and_is_the_exit_code(folder, engines, capsys):
    engines(fault="error", at=60)  # frame 60 is in every video; parts before it are made
    with open("jobs.toml", "a") as file:
        file.write('[[job]]\nname = "gone"\naudio = "gone.wav"\n')
    assert main(["batch", "jobs.toml", "--output", "out", "--json"]) == 1
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    outcomes = {event["job"]: event for event in events if event["event"] == "outcome"}
    assert [outcomes[name]["state"] for name in ("long", "short", "gone")] == ["failed"] * 3
    assert outcomes["long"]["error"] == "The lamp went out. Light it."
    assert "gone.wav does not exist" in outcomes["gone"]["error"]
    engines()
    assert main(["batch", "jobs.toml", "--output", "out", "--resume", "--json"]) == 2
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [e["values"]["done"] for e in events if e["event"] == "notice" and e["code"] == "resumed"] == [2]
    assert main(["batch", "jobs.toml", "--output", "out", "--resume", "--json"]) == 2
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    outcomes = {event["job"]: event["state"] for event in events if event["event"] == "outcome"}
    assert outcomes == {"long": "already", "short": "already", "gone": "failed"}


def test_several_at_once_give_the_same(folder, engines):
    opened = engines()
    assert main(["batch", "jobs.toml", "--output", "one"]) == 0
    assert main(["batch", "jobs.toml", "--output", "two", "--jobs", "2"]) == 0
    assert len(opened) >= 2
    for name in ("long", "short"):
        assert packets(Path(f"one/{name}.mp4")) == packets(Path(f"two/{name}.mp4"))


def test_a_lost_engine_is_replaced_for_the_next(folder, engines, capsys):
    engines(fault="kill", at=70)
    assert main(["batch", "jobs.toml", "--output", "out", "--json"]) == 5
    assert capsys.readouterr().out.count('"state": "failed"') == 2


def test_ctrl_c_stops_in_order(folder):
    code = (
        "import sys; from avatar.commands import batch\n"
        "from avatar.runtime.engine_process import EngineProcess\n"
        f"batch.open_engine = lambda preset, **_: EngineProcess({SOURCE!r}, None, frame_s=0.05)\n"
        "from avatar.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "batch", "jobs.toml", "--output", "out", "--json"]
    path = os.pathsep.join(filter(None, sys.path))
    running = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    for line in running.stdout:
        if json.loads(line)["event"] == "partdone":
            break
    running.send_signal(signal.SIGINT)
    events = [json.loads(line) for line in running.stdout]
    assert running.wait(60) == 130
    states = {event["job"]: event["state"] for event in events if event["event"] == "outcome"}
    assert states == {"long": "stopped", "short": "stopped"}
    assert (folder / "out/long.parts").is_dir()
    assert (folder / "out/long.mp4").is_file()


@pytest.mark.parametrize("argument", ["--jobs=0", "--jobs=-2"])
def test_jobs_must_be_some(folder, argument):
    assert main(["batch", "jobs.toml", "--output", "out", argument]) == 2


def test_the_card_is_chosen_for_all_speakers():
    """The newer of two alike, unless the older has the memory that more speakers take."""
    newer, older = (Inventory.imagine(1, gib).gpus[0] for gib in (40.6, 41.9))
    older = replace(older, index=1, uuid="GPU-1")
    both = replace(Inventory.imagine(0, 0), gpus=(replace(newer, compute_capability="9.0"), older))
    preset = load_preset("48gb")
    assert [gpus_of(preset, 0, 1, both, number) for number in (1, 4)] == [["GPU-0"], ["GPU-1"]]


def test_every_place_has_gpus_of_its_own():
    preset, four = load_preset("80gb"), Inventory.imagine(4, 80)
    assert [gpus_of(preset, place, 4, four) for place in range(4)] == [[f"GPU-{n}"] for n in range(4)]
    assert gpus_of(preset, 0, 1, four) == ["GPU-0"]
    assert gpus_of(load_preset("cpu-preview"), 1, 2, four) is None
    with pytest.raises(DoesNotFit, match=r"--jobs 5 needs 5 GPUs .* for 4.*--jobs 4"):
        gpus_of(preset, 4, 5, four)
    unlike = replace(four, gpus=(Inventory.imagine(1, 12).gpus[0], *four.gpus[1:]))
    assert [gpus_of(preset, place, 3, unlike) for place in range(3)] == [[f"GPU-{n}"] for n in (1, 2, 3)]


def test_an_engine_is_kept_for_the_same_preset_alone():
    class Engine:
        closed = False

        def close(self) -> None:
            self.closed = True

    engines = Engines(lambda *_: Engine(), 2)
    preview, real = load_preset("cpu-preview"), load_preset("80gb")
    with engines.borrow(real) as (first,), engines.borrow(real) as (second,):
        assert first is not second
    with engines.borrow(real.with_settings(seed=4)) as (again,):
        assert again is second
    with engines.borrow(preview) as (other,):
        assert other is not first
        assert first.closed
    with engines.borrow(real, all_idle=True) as both:
        assert len(both) == 2
    engines.close()
    assert second.closed
    assert all(engine.closed for engine in both)


def test_whoever_waits_is_told_of_each_job(folder, engines):
    engines()
    command = ["batch", "jobs.toml", "--output", "out", "--resume", "--notify-url"]
    with listening() as listener:
        assert main([*command, listener.url]) == 0
        assert main([*command, listener.url]) == 0
    assert sorted((news["id"], news["state"], news["seconds"]) for news in listener.posted) == [
        ("long", "done", 3.0),
        ("short", "done", 3.0),
    ], "and of those that were there already, once"
