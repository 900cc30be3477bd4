"""No file of the user's is replaced: not inputs, not what lies where an output or side file would go."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from PIL import Image

from avatar.cli import main
from avatar.commands import batch
from avatar.commands import generate as generate_command
from avatar.media.side_files import made_here
from tests.commands.surroundings import NO_GPU

ASSETS = Path(__file__).parents[2] / "assets"
POINTS = ASSETS / "portraits" / "cactus.json"


def hashes(folder: Path) -> dict[str, str]:
    """Every file of a folder and what is in it."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture
def folder(inputs, machine, engine, monkeypatch, tmp_path):
    """Portrait, points and speech of one stem, and an engine of plain colours for every command."""
    engine()
    monkeypatch.setattr(batch, "probe", lambda *_, **__: NO_GPU)
    monkeypatch.setattr(batch, "open_engine", lambda *_, **__: generate_command.open_engine(*_, **__))
    mine = tmp_path / "mine"
    mine.mkdir()
    Image.open("p.png").save(mine / "me.jpg")
    shutil.copyfile(POINTS, mine / "me.json")
    shutil.copyfile("s.wav", mine / "me.wav")
    return mine


def generate(folder: Path, output: str = "me.mp4", *more: str) -> int:
    image, audio = str(folder / "me.jpg"), str(folder / "me.wav")
    command = ["generate", "--image", image, "--audio", audio, "--output", str(folder / output)]
    return main([*command, "--preset", "cpu-preview", *more])


@pytest.mark.parametrize("more", [[], ["--checkpoint_every", "1"]], ids=["whole", "in-parts"])
def test_inputs_of_the_outputs_stem_stay(folder, more):
    before = hashes(folder)
    for _ in range(2):  # an output of the same command is replaced
        assert generate(folder, "me.mp4", *more) == 0
    after = hashes(folder)
    assert {name: after[name] for name in before} == before
    assert sorted(after.keys() - before.keys()) == ["me.mp4", "me.report.json", "me.thumb.jpg"]


def test_a_cartoon_with_points_beside_it_runs_twice(folder, capsys):
    picture = ASSETS / "portraits" / "cactus.png"
    shutil.copyfile(picture, folder / "cactus.png")
    shutil.copyfile(POINTS, folder / "cactus.json")
    before = hashes(folder)
    image, output = str(folder / "cactus.png"), str(folder / "cactus.mp4")
    command = ["generate", "--image", image, "--audio", str(folder / "me.wav"), "--output", output]
    assert main(command) == main(command) == 0
    assert hashes(folder).items() >= before.items()


@pytest.mark.parametrize("name", ["me.mp4", "me.report.json", "me.thumb.jpg"])
@pytest.mark.parametrize("more", [[], ["--checkpoint_every", "1"]], ids=["whole", "in-parts"])
def test_a_file_of_somebody_elses_is_refused_at_once(folder, capsys, name, more):
    (folder / name).write_bytes(b"holiday 2019")
    before = hashes(folder)
    assert generate(folder, "me.mp4", *more) == 2
    reported = capsys.readouterr().err
    assert f"{name} is there already, and was not made by Live Avatar." in reported
    assert hashes(folder) == before


def test_another_programs_video_is_not_replaced(folder, capsys):
    with av.open(str(folder / "me.mp4"), "w", options={"movflags": "use_metadata_tags"}) as out:
        out.metadata["comment"] = '{"made_by": "somebody"}'
        stream = out.add_stream("libx264", rate=25)
        stream.width = stream.height = 64
        for _ in range(5):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), "rgb24")))
        out.mux(stream.encode(None))
    before = hashes(folder)
    assert generate(folder) == 2
    assert hashes(folder) == before


def test_an_empty_file_may_be_replaced(folder):
    (folder / "me.mp4").touch()  # as a script's temporary file
    assert generate(folder) == 0
    assert made_here(folder / "me.mp4")


def test_every_file_that_is_made_carries_the_mark(folder):
    assert generate(folder) == 0
    assert all(made_here(folder / name) for name in ("me.mp4", "me.report.json", "me.thumb.jpg"))
    assert not any(made_here(folder / name) for name in ("me.jpg", "me.json", "me.wav", "none.mp4"))


def test_parts_of_somebody_elses_stay(folder, capsys):
    parts = folder / "me.parts"
    parts.mkdir()
    (parts / "part_00001.mp4").write_bytes(b"my own film")
    (parts / "notes.txt").write_text("mine")
    before = hashes(folder)
    assert generate(folder, "me.mp4", "--checkpoint_every", "1") == 2
    assert "part_00001.mp4 in me.parts was not made by Live Avatar" in capsys.readouterr().err
    after = hashes(folder)
    assert {name: after.get(name) for name in before} == before
    assert not (folder / "me.mp4").exists()


def test_kept_parts_are_made_again_by_the_same_command(folder):
    for _ in range(2):
        assert generate(folder, "me.mp4", "--checkpoint_every", "1", "--keep_parts") == 0
    names = sorted(path.name for path in (folder / "me.parts").iterdir())
    assert names[:3] == ["part_00000.mp4", "part_00000.report.json", "part_00000.thumb.jpg"]


def test_join_does_not_replace_a_users_file(folder, capsys):
    assert generate(folder, "me.mp4", "--checkpoint_every", "1", "--keep_parts") == 0
    parts = sorted(str(path) for path in (folder / "me.parts").glob("part_*.mp4"))
    (folder / "film.mp4").write_bytes(b"holiday 2019")
    assert main(["join", *parts, "-o", str(folder / "film.mp4")]) == 2
    assert (folder / "film.mp4").read_bytes() == b"holiday 2019"
    assert main(["join", *parts, "-o", str(folder / "me.mp4")]) == 0
    assert main(["join", *parts, "-o", str(folder / "new.mp4")]) == 0
    assert main(["join", *parts, "-o", str(folder / "new.mp4")]) == 0


def test_a_batch_into_its_own_folder_runs_again(folder, capsys):
    for path in folder.iterdir():
        path.unlink()
    for number in range(5):
        name = f"friend {number}"
        Image.new("RGB", (96, 96), (40 * number, 90, 90)).save(folder / f"{name}.jpg")
        soundfile.write(folder / f"{name}.wav", np.sin(np.arange(16_000) * 0.1) * 0.3, 16_000)
        shutil.copyfile(POINTS, folder / f"{name}.json")
    before = hashes(folder)
    for more in ([], [], ["--resume"]):
        assert main(["batch", str(folder), "--output", str(folder), *more]) == 0
    assert "left out" not in capsys.readouterr().err
    after = hashes(folder)
    assert after.items() >= before.items()
    assert len([name for name in after if name.endswith(".mp4")]) == 5


def test_a_report_is_no_points_file(folder, capsys):
    assert generate(folder) == 0
    report = folder / "me.report.json"
    assert generate(folder, "me.mp4", "--points", str(report)) == 2
    assert "me.report.json" in capsys.readouterr().err
    shutil.copyfile(report, folder / "me.json")  # as earlier versions named it
    assert generate(folder, "other.mp4") == 0


def test_bench_does_not_replace_a_users_file(folder, capsys):
    mine = folder / "figures.json"
    mine.write_text('{"seed": 3}')
    command = ["bench", "--preset", "self-test", "--blocks", "9", "--output", str(mine)]
    assert main(command) == 2
    assert json.loads(mine.read_text()) == {"seed": 3}
