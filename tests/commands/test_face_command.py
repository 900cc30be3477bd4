"""`generate --face`: the one that is meant is taken and named; one that is not there is refused at once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from PIL import Image

from avatar.batch.jobs import read_jobs
from avatar.cli import main
from avatar.errors import BadInput
from avatar.runtime.report import read_report
from avatar.settings import Picture
from tests.commands.surroundings import H200

sys.path.insert(0, str(Path(__file__).parents[1] / "preview"))
from pictures import bystander

FAST = ("--preset", "cpu-preview", "--size", "256*256")


@pytest.fixture
def two(inputs: list[str]) -> list[str]:
    """A portrait of two people."""
    Image.fromarray(bystander()).save("p.png")
    return [*inputs, "--output", "o.mp4"]


def test_the_face_that_was_taken_is_named(two, machine, engine, capsys):
    engine()
    assert main([*two, *FAST, "--face", "2"]) == 0
    assert "Of 2 faces in p.png, number 2 from the left speaks" in capsys.readouterr().err.replace("\n", " ")
    left, _, right, _ = read_report(Path("o.report.json")).face
    assert (left + right) / 2 == pytest.approx(443 / 512, abs=0.02)


def test_a_face_that_is_not_there_is_refused(two, machine, engine, capsys):
    opened = engine()
    assert main([*two, *FAST, "--face", "3"]) == 2
    assert "There is no face 3 in p.png: 2 faces can be seen." in capsys.readouterr().err
    assert main([*two, *FAST, "--face", "0.1,0.1"]) == 2
    assert "There is no face at 0.1,0.1 in p.png." in capsys.readouterr().err
    assert (opened, Path("o.mp4").exists()) == ([], False)


def test_another_engine_takes_a_face_only_to_crop(two, machine, engine, capsys):
    machine(H200)
    opened = engine()
    assert main([*two, "--face", "2"]) == 2
    assert "cannot honour face: its model moves whoever is seen" in capsys.readouterr().err
    assert opened == []
    assert main([*two, "--face", "2", "--framing", "shoulders"]) == 0
    assert len(opened) == 1


def test_a_video_is_resumed_with_the_same_face_alone(two, machine, engine, capsys):
    engine()
    assert main([*two, *FAST, "--face", "2"]) == 0
    assert main([*two, *FAST, "--face", "0.86,0.63", "--resume"]) == 0
    assert main([*two, *FAST, "--face", "1", "--resume"]) == 2
    assert "the face" in capsys.readouterr().err


def test_batches_and_lists_name_faces(tmp_path):
    for name in ("a.png", "s.wav"):
        (tmp_path / name).write_bytes(b"x")
    jobs = tmp_path / "jobs.toml"
    row = '[[job]]\nimage = "a.png"\naudio = "s.wav"\nframing = "head"\nface = '

    def asked(face: str) -> Picture:
        jobs.write_text(row + face)
        (entry,) = read_jobs(jobs).entries
        return entry.picture

    assert asked("2") == asked('"2"') == Picture(face="2", framing="head")
    assert asked("[0.5, 0.25]").face == "0.500000,0.250000"
    with pytest.raises(BadInput, match=r"jobs.toml, job 1: face is 'left'"):
        asked('"left"')
    listed = tmp_path / "jobs.csv"
    listed.write_text('image,audio,face\na.png,s.wav,"0.5,0.25"\n')
    assert read_jobs(listed).entries[0].picture == Picture(face="0.5,0.25")
