"""`--upscale` and `--upscale_with`: the finished file is 1080p, or stays as it was made, and says why."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from PIL import Image

from avatar.batch.jobs import read_jobs
from avatar.cli import main
from avatar.errors import BadInput
from avatar.geometry import Size
from avatar.runtime import external_program
from avatar.runtime.external_program import Program, read_command
from avatar.runtime.report import read_report
from tests.commands.surroundings import NO_GPU

PORTRAIT = Path(__file__).parents[2] / "assets" / "portraits" / "mara.png"
TWICE = """
import sys, av
from fractions import Fraction
with av.open(sys.argv[1]) as seen, av.open(sys.argv[2], "w") as out:
    small = seen.streams.video[0]
    video = out.add_stream("libx264", rate=25)
    video.width, video.height, video.pix_fmt = 2 * small.width, 2 * small.height, "yuv420p"
    for index, frame in enumerate(seen.decode(small)):
        frame = frame.reformat(video.width, video.height)
        frame.pts, frame.time_base = index, Fraction(1, 25)
        out.mux(video.encode(frame))
    out.mux(video.encode())
"""


@pytest.fixture
def asked(tmp_path, monkeypatch, machine) -> list[str]:
    monkeypatch.chdir(tmp_path)
    machine(NO_GPU)
    with Image.open(PORTRAIT) as opened:
        opened.save("p.png")
    soundfile.write("s.wav", np.sin(np.arange(24_000) * 0.05).astype(np.float32) * 0.3, 48_000)
    Path("twice.py").write_text(TWICE)
    return [
        "generate",
        "--image",
        "p.png",
        "--audio",
        "s.wav",
        "--preset",
        "cpu-preview",
        "--size",
        "128*128",
    ]


def shape(video: str) -> tuple[int, int, int, bool]:
    with av.open(video) as container:
        stream = container.streams.video[0]
        return stream.width, stream.height, stream.frames, bool(container.streams.audio)


def test_the_finished_file_is_1080p_and_its_report_says_how(asked):
    assert main([*asked, "--upscale", "1080p", "--output", "o.mp4"]) == 0
    assert shape("o.mp4") == (1080, 1346, 13, True)
    report = read_report(Path("o.report.json"))
    assert (report.width, report.height) == (1080, 1346)
    assert (report.upscaled.by, report.upscaled.width, report.upscaled.height) == ("lanczos", 114, 142)


def test_a_program_of_ones_own_makes_it(asked):
    command = f"{sys.executable} twice.py {{input}} {{output}}"
    assert main([*asked, "--upscale_with", command, "--output", "o.mp4"]) == 0
    assert shape("o.mp4") == (1080, 1346, 13, True)
    assert read_report(Path("o.report.json")).upscaled.by == "command"


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("false {input} {output}", "false ended with code 1"),
        ("true {input} {output}", "true wrote no video"),
        ("cp {input} {output}", "no larger than the one it got"),
        ("cp twice.py {output}{input}", "ended with code 1"),
        ("sh -c 'echo x >$1' sh {output} {input}", "wrote no video that can be read"),
    ],
)
def test_what_fails_leaves_the_finished_video(program, why, asked, capsys):
    assert main([*asked, "--upscale_with", program, "--output", "o.mp4"]) == 1
    said = capsys.readouterr().err.replace("\n", " ")
    assert "o.mp4 is finished at 114*142, and stays so" in said
    assert why in said
    assert shape("o.mp4") == (114, 142, 13, True)
    report = read_report(Path("o.report.json"))
    assert (report.upscaled, report.width, report.stopped) == (None, 114, False)


def test_resuming_upscales_what_was_finished(asked, capsys):
    given = [*asked, "--upscale_with", f"{sys.executable} twice.py {{input}} {{output}}", "--output", "o.mp4"]
    Path("twice.py").write_text("raise SystemExit(3)")
    assert main(given) == 1
    made = read_report(Path("o.report.json")).created
    Path("twice.py").write_text(TWICE)
    assert main([*given, "--resume"]) == 0
    assert shape("o.mp4") == (1080, 1346, 13, True)
    assert read_report(Path("o.report.json")).created == made, "it was not made again"
    capsys.readouterr()
    assert main([*given, "--resume"]) == 0
    assert capsys.readouterr().out.strip() == "o.mp4"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--upscale", "4k"], "off, 1080p, 1080p-arnet"),
        (["--upscale_with", "nosuchprogram {input} {output}"], "There is no program 'nosuchprogram'"),
        (["--upscale_with", "cp {input}"], "has no {output}"),
        (["--upscale_with", "cp '{input} {output}"], "not understood"),
        (["--upscale_with", ""], "has no {input}"),
        (["--upscale", "off", "--upscale_with", "cp {input} {output}"], "Leave one of them out"),
        (["--upscale", "1080p", "--background", "transparent", "--output", "o.webm"], "cannot be upscaled"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_made(flags, words, asked, capsys):
    assert main([*asked, "--output", "o.mp4", *flags]) == 2
    assert words in capsys.readouterr().err.replace("\n", " ")
    assert not list(Path().glob("o.*"))


def test_no_shell_sees_the_command(tmp_path):
    words = read_command("cp {input} {output} ; $(touch x) `touch y`")
    assert words[1:] == ("{input}", "{output}", ";", "$(touch", "x)", "`touch", "y`")
    program = Program(("echo", "{width}x{height}", "$HOME", "{input}", "{output}"))
    filled = program._filled(tmp_path / "a b.mp4", tmp_path / "c.mp4", Size(10, 20))
    assert filled == ["echo", "10x20", "$HOME", str(tmp_path / "a b.mp4"), str(tmp_path / "c.mp4")]


def test_a_program_that_takes_too_long_is_ended_with_its_children(tmp_path, monkeypatch):
    monkeypatch.setattr(external_program, "FIRST_S", 0.3)
    monkeypatch.setattr(external_program, "S_PER_S", 0.0)
    script = f"sleep 600 & echo $! > {tmp_path}/pid; wait"
    running = Program(("sh", "-c", script)).running(tmp_path, tmp_path / "o", Size(2, 2), 1.0, lambda: False)
    from avatar.errors import AvatarError

    with pytest.raises(AvatarError, match="was ended after 0 s"):
        list(running)
    child = int((tmp_path / "pid").read_text())
    for _ in range(100):
        if not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text().split()[2]:
            break
        time.sleep(0.05)
    else:
        os.kill(child, 9)
        pytest.fail("what the program started still runs")


def test_a_batch_upscales_by_its_own_key_and_by_a_flag_alone(asked, tmp_path):
    jobs = tmp_path / "jobs.toml"
    text = (
        '[[job]]\nname = "{}"\nimage = "p.png"\naudio = "s.wav"\npreset = "cpu-preview"\nsize = "128*128"\n'
    )
    jobs.write_text(text.format("a") + 'upscale = "1080p"\n' + text.format("b"))
    assert main(["batch", "jobs.toml", "--output", "out"]) == 0
    assert shape("out/a.mp4")[:2] == (1080, 1346)
    assert shape("out/b.mp4")[:2] == (114, 142)
    command = f"{sys.executable} twice.py {{input}} {{output}}"
    assert main(["batch", "jobs.toml", "--output", "by", "--upscale_with", command]) == 0
    for name in ("a", "b"):
        assert read_report(Path(f"by/{name}.report.json")).upscaled.by == "command"
    jobs.write_text(text.format("a") + 'upscale_with = "cp {input} {output}"\n')
    with pytest.raises(BadInput, match="unknown key 'upscale_with'"):
        read_jobs(jobs)


def test_a_long_video_is_upscaled_whole(asked):
    sound = np.sin(np.arange(3 * 48_000) * 0.05).astype(np.float32) * 0.3
    soundfile.write("s.wav", sound, 48_000)
    given = [*asked, "--checkpoint_every", "1", "--upscale", "1080p", "--output", "o.mp4"]
    assert main(given) == 0
    assert shape("o.mp4") == (1080, 1346, 75, True)
