"""`generate` in parts, and `join`."""

from __future__ import annotations

from pathlib import Path

import av

from avatar.cli import main
from tests.commands.surroundings import lines


def test_a_long_speech_in_parts_is_resumed(inputs, machine, engine, capsys):
    engine(fault="error", at=60)
    long = [*inputs, "--output", "out.mp4", "--checkpoint-every", "1", "--json"]
    assert main(long) == 1
    events = lines(capsys)
    assert [event["index"] for event in events if event["event"] == "partdone"] == [0, 1]
    assert events[-1]["message"] == "The lamp went out."
    assert Path("out.parts/ledger.jsonl").is_file()
    engine()
    assert main([*inputs, "--output", "out.mp4"]) == 2
    assert "--resume" in capsys.readouterr().err
    assert main([*inputs, "--output", "out.mp4", "--resume", "--seed", "4"]) == 2
    assert "settings are others" in capsys.readouterr().err
    assert main([*inputs, "--output", "out.mp4", "--resume"]) == 0
    assert capsys.readouterr().out == "out.mp4\n"
    assert not Path("out.parts").exists()
    with av.open("out.mp4") as video:
        assert video.streams.video[0].frames == 75
    assert main([*inputs, "--output", "out.mp4", "--resume"]) == 0
    assert capsys.readouterr().out == "out.mp4\n"


def test_kept_parts_can_be_joined_by_hand(inputs, machine, engine, capsys):
    engine()
    assert main([*inputs, "--output", "out.mp4", "--checkpoint_every", "1", "--keep_parts"]) == 0
    parts = sorted(map(str, Path("out.parts").glob("*.mp4")))
    assert len(parts) == 3
    assert main(["join", *parts, "-o", "again.mp4"]) == 0
    with av.open("again.mp4") as video:
        assert video.streams.video[0].frames == 75


def test_parts_on_several_engines_are_the_same(inputs, machine, engine):
    opened = engine()
    parts = ["--checkpoint_every", "1", "--output"]
    assert main([*inputs, *parts, "one.mp4"]) == 0
    assert main([*inputs, *parts, "two.mp4", "--jobs", "2"]) == 0
    assert len(opened) == 3
    with av.open("one.mp4") as one, av.open("two.mp4") as two:
        assert [bytes(p) for p in one.demux(video=0)] == [bytes(p) for p in two.demux(video=0)]
