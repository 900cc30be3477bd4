"""Flags, presets, lists of jobs, reports and points that cannot be used, through the command line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.robustness.conftest import LEAKS, PATIENCE_S, ROOT

Command = Callable[..., Any]
HUGE = "1" + "0" * 30
GIVEN = ("--image", "good.png", "--audio", "good.wav", "--output", "out.mp4")
HEAD = 'title = "T"\nsummary = "S"\nengine = "diffusion"\n'


def made(*flags: str) -> list[str]:
    return ["generate", *GIVEN, *flags]


FLAGS: list[tuple[list[str], str]] = [
    ([], "COMMAND"),
    (["nonsense"], "invalid choice"),
    (["generate"], "required"),
    (["--nonsense", "generate"], "unrecognized|required|invalid"),
    (made("--nonsense"), "unrecognized"),
    (made("more"), "unrecognized"),
    (made("--seed", "x"), "invalid int"),
    (made("--seed", "1.5"), "invalid int"),
    (made("--seed", ""), "invalid int"),
    (made("--seed", "-1"), "seed is -1"),
    (made("--seed", HUGE), "seed is 1000"),
    (made("--seed", "9" * 5000), "invalid int|seed"),
    (made("--seed"), "expected one argument"),
    (made("--size", ""), "size '' is not understood"),
    (made("--size", "0*0"), "size '0\\*0' is not understood"),
    (made("--size", "-4*4"), "size '-4\\*4' is not|expected one"),
    (made("--size", "704"), "size '704' is not understood"),
    (made("--size", "704*384*3"), "is not understood"),
    (made("--size", "1e3*1e3"), "is not understood"),
    (made("--size", "nan*nan"), "is not understood"),
    (made("--size", "9" * 400 + "*9"), "is not understood"),
    (made("--size", "[/]"), "is not understood"),
    (made("--size", "٣*٤"), "is not understood|too small"),
    (made("--infer_frames", HUGE), "infer_frames"),
    (made("--infer_frames", "-4"), "infer_frames"),
    (made("--num_clip", "-1"), "num_clip"),
    (made("--shift", "nan"), "shift"),
    (made("--shift", "inf"), "shift"),
    (made("--shift", "1e999"), "shift"),
    (made("--sample_steps", "0"), "sample_steps"),
    (made("--sample_guide_scale", "7"), "sample_guide_scale"),
    (made("--weight_dtype", "int3"), "weight_dtype"),
    (made("--ring_dtype", ""), "ring_dtype"),
    (made("--text_encoder", "moon"), "text_encoder"),
    (made("--offload_model", "maybe"), "neither True nor False"),
    (made("--num_gpus_dit", "0"), "num_gpus_dit"),
    (made("--num_gpus_dit", HUGE), "num_gpus_dit"),
    (made("--ulysses_size", "-3"), "ulysses_size"),
    (made("--parallel", "rows"), "rows"),
    (made("--max_duration", "0"), "max_duration is 0"),
    (made("--max_duration", "-1"), "max_duration is -1"),
    (made("--max_duration", "nan"), "max_duration is nan"),
    (made("--jobs", "0"), "jobs is 0"),
    (made("--jobs", "-5"), "jobs is -5|jobs"),
    (made("--jobs", HUGE), "jobs"),
    (made("--jobs", "2"), "jobs 2"),
    (made("--checkpoint_every", "0"), "checkpoint_every|parts"),
    (made("--checkpoint_every", "-1"), "checkpoint_every|parts"),
    (made("--independent"), "checkpoint_every"),
    (made("--keep_parts"), "checkpoint_every"),
    (made("--head_only", "--points", "points.json"), "points"),
    (made("--points", "none.json"), "none.json"),
    (made("--points", "good.png"), "good.png"),
    (made("--points", "x" * 300 + ".json"), "points file"),
    (made("--points", ""), "points file"),
    (made("--points", "."), "points file"),
    (made("--points", "a\0.json"), "points file"),
    (made("--attach", "nowhere"), "HOST:PORT|attach|nowhere"),
    (made("--attach", "host:99999999"), "port|attach|99999999"),
    (made("--attach", ":"), "HOST:PORT|attach|:"),
    (made("--prompt", "x"), "prompt"),
    (made("--prompt", "\udcff"), "prompt"),
    (made("--ckpt_dir", "nowhere"), "ckpt_dir"),
    (made("--ckpt_dir", "x" * 300), "ckpt_dir"),
    (made("--preset", "nonesuch"), "nonesuch"),
    (made("--preset", ""), "There is no preset"),
    (made("--preset", "."), "There is no preset"),
    (made("--preset", "/etc/passwd"), "There is no preset"),
    (made("--preset", "x" * 300), "There is no preset"),
    (made("--preset", "x" * 300 + ".toml"), "There is no preset"),
    (made("--preset", "a\0b"), "There is no preset"),
    (made("--preset", "[/]"), "There is no preset"),
    (made("--preset", "\udcff"), "There is no preset"),
    (made("--preset", "good.png"), "There is no preset"),
    (["generate", *GIVEN[:4], "--output", "out.avi"], "ends in .mp4"),
    (["generate", *GIVEN[:4], "--output", ""], "output"),
    (["generate", *GIVEN[:4], "--output", "."], "output"),
    (["generate", *GIVEN[:4], "--output", "/"], "output"),
    (["generate", *GIVEN[:4], "--output", ".mp4"], "ends in .mp4|output"),
    (["generate", *GIVEN[:4], "--output", "x" * 300 + ".mp4"], "shorter|output"),
    (["generate", *GIVEN[:4], "--output", "y" * 300 + "/o.mp4"], "output folder"),
    (["generate", *GIVEN[:4], "--output", "a\0b.mp4"], "name for the output|plain name|output"),
    (["generate", *GIVEN[:4], "--output", "/proc/x/o.mp4"], "output folder"),
    (["generate", *GIVEN[:4], "--output", "/dev/null/o.mp4"], "output folder"),
    (["generate", *GIVEN[:4], "--output", "good.wav/o.mp4"], "output folder"),
    (["generate", "--image", "good.png", "--audio", "good.png", "--output", "o.mp4"], "good.png"),
    (["generate", "--image", "good.wav", "--audio", "good.wav", "--output", "o.mp4"], "good.wav"),
    (["batch", "none.toml", "--output", "o"], "none.toml"),
    (["batch", "good.png", "--output", "o"], "not a job list"),
    (["batch", "x" * 300 + ".toml", "--output", "o"], "cannot be read"),
    (["batch", "a\0.toml", "--output", "o"], "cannot be read"),
    (["batch", ".", "--output", "o", "--jobs", "0"], "jobs is 0"),
    (["join", "good.wav", "-o", "o.mp4"], "good.wav|part"),
    (["join", "none.mp4", "-o", "o.mp4"], "none.mp4"),
    (["join", ".", "-o", "o.mp4"], "."),
    (["join", "x" * 300, "-o", "o.mp4"], ""),
    (["join", "a\0.mp4", "-o", "o.mp4"], ""),
    (["join", "good.png", "-o", ""], ""),
    (["join", "good.png", "-o", "/proc/x/o.mp4"], ""),
    (["report", "none.json"], "nothing to read|no run report"),
    (["report", "good.png"], "good.png"),
    (["report", ""], ""),
    (["report", "x" * 300], "nothing to read"),
    (["report", "a\0"], "nothing to read"),
    (["report", "["], "nothing to read"),
    (["plan", "--gpus", "-1", "--vram", "24"], "imagined machine"),
    (["plan", "--gpus", "1"], "imagined machine"),
    (["plan", "--gpus", "1", "--vram", "nan"], "imagined machine"),
    (["plan", "--gpus", "1", "--vram", "1e300"], ""),
    (["plan", "--gpus", "1", "--vram", "24", "--ram", "inf"], "--ram"),
    (["plan", "--gpus", "1", "--vram", "24", "--ram", "1e300"], ""),
    (["plan", "--gpus", "1", "--vram", "24", "--compute_capability", "x"], "compute_capability"),
    (
        ["plan", "--gpus", "1", "--vram", "24", "--compute_capability", "1" * 5000 + ".0"],
        "compute_capability",
    ),
    (["plan", "--preset", "80gb", "--gpus", "1", "--vram", "80", "--size", "99999*99999"], ""),
    (["plan", "--preset", "80gb", "--gpus", "1", "--vram", "80", "--size", "1*1"], "too small"),
    (["doctor", "--preset", "nonesuch"], "nonesuch"),
    (["doctor", "--preset", "x" * 300], "There is no preset"),
    (["bench", "--preset", "nonesuch"], "nonesuch"),
    (["bench", "--random_weights", "--vram", "nan"], "vram|model to time"),
    (["bench", "--random_weights", "--blocks", "x"], "invalid int"),
    (["bench", "--output", "nowhere/x.json"], "no folder"),
    (["bench", "--output", "x" * 300 + "/x.json"], "no folder"),
    (["worker"], "preset"),
    (["worker", "--preset", "nonesuch"], "nonesuch"),
    (["download", "--revision", "who/what=main"], "is not fetched"),
    (["presets", "--ckpt_dir"], "expected one argument"),
]


@pytest.mark.parametrize(("argv", "words"), FLAGS, ids=lambda value: " ".join(value)[-60:].replace("\0", "0"))
def test_flags(command: Command, argv: list[str], words: str) -> None:
    answer = command(*argv)
    assert answer.code in (2, 4), answer.reported
    assert re.search(words, answer.reported), answer.reported
    assert answer.left == set()
    assert not answer.opened
    assert len(answer.reported) < 12_000, "no endless message"


PRESETS = [
    ("", "'title' is missing"),
    ("\0", "cannot be read"),
    ("[", "cannot be read"),
    ("x = " + "[" * 5000, "cannot be read"),
    ("x = " + "9" * 5000, "cannot be read"),
    ("title = 3", "missing|text"),
    (HEAD + "titel = 3", "'title'"),
    (HEAD + "rank = 1.5", "whole number"),
    (HEAD + "rank = true", "whole number"),
    (HEAD + "generation = 3", "must be a table"),
    (HEAD + "[[generation]]\nseed = 1", "must be a table"),
    (HEAD + "[generation]\nseed = '1'", "whole number"),
    (HEAD + "[generation]\nseed = -1", "seed is -1"),
    (HEAD + "[generation]\nseed = [1]", "whole number"),
    (HEAD + "[generation]\nsize = 704", "text in quotes"),
    (HEAD + "[generation]\nsize = 'x'", "not understood"),
    (HEAD + f"[generation]\ninfer_frames = {HUGE}", "infer_frames"),
    (HEAD + "[generation]\nshift = nan", "shift"),
    (HEAD + f"[generation]\nshift = {'9' * 400}", "smaller number"),
    (HEAD + "[generation]\nshift = -inf", "shift"),
    (HEAD + "[generation]\nfps = 30", "fps"),
    (HEAD + "[generation]\nprompt = 3", "text"),
    (HEAD + "[memory]\nweight_dtype = 3", "weight_dtype"),
    (HEAD + "[memory]\nweight_dtype = ['fp8']", "weight_dtype"),
    (HEAD + "[memory]\noffload_model = 1", "true or false"),
    (HEAD + "[parallel]\nlayout = {}", "layout"),
    (HEAD + f"[parallel]\nnum_gpus_dit = {HUGE}", "num_gpus_dit"),
    (HEAD + "[requires]\nnum_gpus = -1", "num_gpus"),
    (HEAD + f"[requires]\nnum_gpus = {HUGE}", "num_gpus"),
    (HEAD + "[requires]\nvram_gib = inf", "vram_gib"),
    (HEAD + "[requires]\nvram_gib = nan", "vram_gib"),
    (HEAD + "[requires]\nhost_ram_gib = -5", "host_ram_gib"),
    (HEAD + "[requires]\ncompute_capability = 'x.y'", "compute_capability"),
    (HEAD + "[fallback]\norder = 'size'", "list"),
    (HEAD + "[fallback]\norder = [['size']]", "order"),
    (HEAD + "self = 1", "unknown key"),
    (HEAD + "name = 'x'", "unknown key"),
    (HEAD + "[generation]\nself = 1", "unknown key"),
    (HEAD + f"{'k' * 5000} = 1", "unknown key"),
    (HEAD.replace("diffusion", "steam"), "engine"),
    (HEAD.replace("diffusion", "preview") + "[generation]\nshift = 3.0", "cannot honour"),
    ("\ufeff" + HEAD, "cannot be read"),
]


@pytest.mark.parametrize(("content", "words"), PRESETS, ids=lambda value: value[-40:].replace("\0", "0"))
def test_presets(command: Command, content: str, words: str) -> None:
    Path("mine.toml").write_text(content, encoding="utf-8")
    answer = command(*made("--preset", "mine.toml"))
    assert answer.code == 2, answer.reported
    assert re.search(words, answer.reported), answer.reported
    assert "mine.toml" in answer.reported
    assert answer.left == set()
    assert len(answer.reported) < 2000, "no endless message"


JOB = "[[job]]\nimage = 'good.png'\naudio = 'good.wav'\n"
JOBS = [
    ("toml", "", "contains no jobs"),
    ("toml", "\0", "cannot be read"),
    ("toml", "x = " + "[" * 5000, "cannot be read"),
    ("toml", "job = 3", "not a job list"),
    ("toml", "job = [3]", "not a job list"),
    ("toml", "job = [[3]]", "not a job list"),
    ("toml", "defaults = 3", "not a job list"),
    ("toml", "[job]\nimage = 'good.png'", "not a job list"),
    ("toml", "[[job]]", "image names no file"),
    ("toml", "[[job]]\nimage = 3\naudio = 'good.wav'", "image is 3"),
    ("toml", "[[job]]\nimage = [3]\naudio = 'good.wav'", "image is"),
    ("toml", "[[job]]\nimage = []\naudio = 'good.wav'", "image names no file"),
    ("toml", "[[job]]\nimage = '***'\naudio = 'good.wav'", "image"),
    ("toml", "[[job]]\nimage = '/*/*nothing*'\naudio = 'good.wav'", "image names no file"),
    ("toml", "[[job]]\nimage = '*/'\naudio = 'good.wav'", "image"),
    ("toml", "[[job]]\nimage = '[/]'\naudio = 'good.wav'", "image"),
    ("toml", JOB + "seed = 'x'", "seed is 'x'"),
    ("toml", JOB + "sead = 1", "'seed'"),
    ("toml", JOB + "name = 3", "name is 3"),
    ("toml", JOB + "name = '../x'", "cannot name a file"),
    ("toml", JOB + "name = '.x'", "cannot name a file"),
    ("toml", JOB + 'name = "a\\u0000b"', "cannot name a file"),
    ("toml", JOB + f"name = '{'x' * 300}'", "name"),
    ("toml", JOB + "name = 'x'\n" + JOB + "name = 'x'", "Two jobs would both make"),
    ("toml", JOB + "checkpoint_every = true", "checkpoint_every is True"),
    ("toml", JOB + "max_duration = nan", "max_duration"),
    ("toml", JOB + "preset = 'nonesuch'", "nonesuch"),
    ("toml", JOB + f"preset = '{'x' * 300}'", "There is no preset"),
    ("toml", JOB + "points = 'none.json'", "none.json"),
    ("toml", JOB + f"infer_frames = {HUGE}", "infer_frames"),
    ("csv", "", "contains no jobs"),
    ("csv", "image,audio\n", "contains no jobs"),
    ("csv", "image,audio\ngood.png\n", "a different number of cells"),
    ("csv", "image,audio\ngood.png,good.wav,more\n", "a different number of cells"),
    ("csv", "image,audio,nonsense\ngood.png,good.wav,1\n", "unknown key"),
    ("csv", "image,audio,seed\ngood.png,good.wav,x\n", "seed is 'x'"),
    ("csv", f"image,audio,seed\ngood.png,good.wav,{'9' * 5000}\n", "seed"),
    ("csv", "image,audio,head_only\ngood.png,good.wav,maybe\n", "head_only is 'maybe'"),
    ("csv", 'image,audio\n"good.png,good.wav', "cannot be read"),
    ("csv", "image,audio\n\0,good.wav\n", ""),
    ("csv", "image,image\ngood.png,good.wav\n", "audio names no file"),
    ("csv", ",\ngood.png,good.wav\n", "unknown key"),
]


@pytest.mark.parametrize(("kind", "content", "words"), JOBS, ids=lambda value: value[-40:].replace("\0", "0"))
def test_lists_of_jobs(command: Command, kind: str, content: str, words: str) -> None:
    Path(f"jobs.{kind}").write_text(content, encoding="utf-8")
    answer = command("batch", f"jobs.{kind}", "--output", "made", "--json")
    assert answer.code == 2, answer.reported
    assert re.search(words, answer.reported), answer.reported
    assert answer.left <= {"made"}
    assert not answer.opened


PLAIN = {
    "video": "v.mp4",
    "thumbnail": "v.jpg",
    "portrait": "p.png",
    "speech": "s.wav",
    "prompt": "",
    "engine": "preview",
    "preset": {"name": "x", "engine": "preview", "generation": {"size": "1*1"}, "memory": {}},
    "created": "2026-01-01T00:00:00+00:00",
    "frames_asked": 50,
    "fps": 25,
    "frames_per_s": 9.0,
}
REPORTS = [
    "",
    "[]",
    "3",
    "null",
    "{}",
    "[" * 100_000,
    "\0",
    '{"video": 1}',
    *(
        json.dumps({**PLAIN, **change})
        for change in (
            {"preset": 3},
            {"preset": {}},
            {"preset": {**PLAIN["preset"], "generation": {}}},
            {"num_frames": "many"},
            {"frames_per_s": []},
            {"rungs": 3},
            {"rungs": [{"x": 1}]},
            {"rungs": [3]},
            {"memory": 3},
            {"memory": {"gpus": [3]}},
            {"plan": 3},
            {"plan": {}},
            {"plan": {"gpus": [{}]}},
            {"plan": {"gpus": 3, "host": {}}},
            {"error": {"x": 1}, "preset": 1},
        )
    ),
]


@pytest.mark.parametrize("content", REPORTS, ids=lambda value: value[-50:].replace("\0", "0"))
def test_reports(command: Command, content: str) -> None:
    Path("x.json").write_text(content)
    answer = command("report", "x.json")
    assert answer.code == 2, answer.reported
    assert "x.json" in answer.reported
    assert answer.left == set()


SAMPLE = [
    made("--preset", "x" * 300),
    made("--seed", HUGE),
    ["report", "["],
    ["generate", *GIVEN[:4], "--output", ""],
]


@pytest.mark.parametrize("argv", SAMPLE, ids=lambda value: " ".join(value)[-30:])
def test_a_sample_as_processes(command: Command, tmp_path: Path, argv: list[str]) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "avatar", *argv],
        env={"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path / "scratch"), "PATH": "/usr/bin:/bin"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=3 * PATIENCE_S,
    )
    assert ended.returncode == 2, ended.stderr
    assert not LEAKS.search(ended.stdout + ended.stderr)
    assert {path.name for path in Path.cwd().iterdir()} == {"good.png", "good.wav"}
