"""Names that no terminal, no encoding and no file system of the time likes are no reason to fail."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import av
import pytest

from avatar.cli import main
from avatar.media.files import LONGEST_NAME_BYTES, joined_name
from tests.commands.test_signals import PROGRAM, ROOT

TITLE = "人工智能如何改变我们的生活与工作方式以及未来社会的发展趋势深度解析完整版" * 2
CHINESE = "你好.mp4"


def test_the_default_name_of_two_long_titles_is_usable(inputs, machine, engine, capsys):
    engine()
    shutil.move("p.png", f"{TITLE}.png")
    shutil.move("s.wav", f"{TITLE}声.wav")
    assert main(["generate", "--image", f"{TITLE}.png", "--audio", f"{TITLE}声.wav"]) == 0
    path = Path(capsys.readouterr().out.strip())
    assert path.is_file()
    assert path.name.startswith(TITLE[:10])
    assert len(path.name.encode()) <= LONGEST_NAME_BYTES


def test_short_names_are_joined_as_they_are():
    assert joined_name("me", "", "speech") == "me-speech"
    assert joined_name("a" * 160) == "a" * 160


@pytest.mark.parametrize("letter", ["a", "é", "人", "🙂", "\udcff"])
def test_long_names_are_cut_between_letters(letter):
    one, other = (joined_name(letter * 300, "speech", f"2026{end}") for end in "ab")
    assert one != other
    assert one.split("-")[1] == "speech", "what is short stays whole"
    assert max(len(os.fsencode(name)) for name in (one, other)) <= 160
    assert set(one.split("-")[0]) == {letter}


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_name_is_printed_in_any_encoding(inputs, encoding, as_json):
    command = [sys.executable, "-c", PROGRAM.replace("0.05", "0.0"), *inputs, "--preset", "cpu-preview"]
    command += ["--output", CHINESE, *(["--json"] if as_json else [])]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": encoding}
    reported = subprocess.run(command, env=env, capture_output=True, check=False)
    assert reported.returncode == 0, reported.stderr
    assert b"Traceback" not in reported.stderr
    last = reported.stdout.splitlines()[-1]
    path = Path(json.loads(last)["video"] if as_json else os.fsdecode(last))
    assert path.name == CHINESE
    assert path.is_file(), "a script can use what was printed"


def test_a_name_that_is_no_unicode_is_no_fault(inputs, machine, engine, capsys):
    engine()
    name = os.fsdecode(b"caf\xe9.mp4")
    assert main([*inputs, "--output", name, "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["video"] == name
    report = json.loads(Path(os.fsdecode(b"caf\xe9.report.json")).read_text(encoding="utf-8"))
    assert report["video"] == name
    with av.open(os.fsencode(name).decode(errors="surrogateescape")) as video:
        assert video.streams.video[0].frames == 75
