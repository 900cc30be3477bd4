"""`generate` from a text, `speak` and `voices`."""

from __future__ import annotations

import json
from pathlib import Path

import av
import pytest
import soundfile

from avatar.cli import main
from avatar.long import job_speech
from avatar.runtime.report import read_report
from tests.commands.surroundings import lines

TEXT = "Hello there. This is the second sentence of it."


@pytest.fixture
def typed(inputs: list[str]) -> list[str]:
    return [*inputs[:3], "--text", TEXT]


def test_a_text_becomes_a_video_with_captions(typed, machine, engine, capsys):
    engine()
    assert main([*typed, "--output", "out.mp4"]) == 0
    report = read_report(Path("out.report.json"))
    shown = Path("out.srt").read_text(encoding="utf-8")
    assert "Hello there." in shown
    assert "sentence of it." in shown
    assert Path("out.vtt").read_text(encoding="utf-8").startswith("WEBVTT")
    assert report.speech == "“Hello there. This is the second…”"
    with av.open("out.mp4") as video:
        assert video.streams.video[0].frames == report.num_frames > 60
        assert video.streams.audio[0].codec_context.name == "aac"


def test_captions_can_be_left_out(typed, machine, engine):
    engine()
    assert main([*typed, "--output", "out.mp4", "--captions", "off"]) == 0
    assert not Path("out.srt").exists()


def test_captions_can_be_burned_in(typed, machine, engine):
    engine()
    assert main([*typed, "--output", "plain.mp4"]) == 0
    assert main([*typed, "--output", "burned.mp4", "--captions", "burned"]) == 0
    with av.open("plain.mp4") as plain, av.open("burned.mp4") as burned:
        pairs = zip(plain.decode(video=0), burned.decode(video=0))
        changed = [bool((a.to_ndarray() != b.to_ndarray()).any()) for a, b in pairs]
    assert sum(changed) > 0.7 * len(changed)


def test_a_text_file_is_read(inputs, machine, engine):
    engine()
    Path("words.txt").write_text(f"\ufeff{TEXT}", encoding="utf-8")
    assert main([*inputs[:3], "--text-file", "words.txt", "--output", "out.mp4", "--speed", "1.5"]) == 0
    assert "Hello there." in Path("out.vtt").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "neither speech nor a text"),
        (["--audio", "s.wav", "--text", "Hi."], "Both speech and a text"),
        (["--audio", "s.wav", "--voice", "heart"], "voice is for a text"),
        (["--text", "你好。"], "does not read Han"),
        (["--text", "Hi.", "--voice", "hart"], "Did you mean 'heart'?"),
        (["--text", "Hi.", "--speed", "9"], "from 0.5 to 2"),
        (["--text", " "], "nothing to say"),
        (["--text-file", "p.png"], "not in UTF-8"),
        (["--text-file", "none.txt"], "does not exist"),
    ],
)
def test_what_cannot_be_said_is_refused_at_once(inputs, machine, engine, capsys, flags, words):
    opened = engine()
    assert main([*inputs[:3], *flags, "--output", "out.mp4"]) == 2
    assert words in capsys.readouterr().err
    assert opened == []
    assert not Path("out.mp4").exists()


def test_captions_of_others_are_not_replaced(typed, machine, engine, capsys):
    engine()
    Path("out.srt").write_text("mine")
    assert main([*typed, "--output", "out.mp4"]) == 2
    assert "out.srt is there already" in capsys.readouterr().err
    assert Path("out.srt").read_text() == "mine"


def test_a_text_in_parts_goes_on_with_the_sound_it_had(typed, machine, engine, monkeypatch):
    engine(fault="error", at=45)
    assert main([*typed, "--output", "out.mp4", "--checkpoint-every", "1"]) == 1
    spoken = Path("out.parts/spoken.wav").read_bytes()
    engine()
    # a voice that cannot speak again, or says it in another way
    monkeypatch.setattr(job_speech.Narrator, "write", lambda *_: pytest.fail("it was spoken again"))
    assert main([*typed, "--output", "out.mp4", "--resume"]) == 0
    assert not Path("out.parts").exists()
    assert "second" in Path("out.srt").read_text(encoding="utf-8")
    assert len(spoken) > 100_000


def test_another_text_does_not_go_on_with_the_parts(typed, machine, engine, capsys):
    engine(fault="error", at=45)
    assert main([*typed, "--output", "out.mp4", "--checkpoint-every", "1"]) == 1
    engine()
    assert main([*typed[:3], "--text", "Another one.", "--output", "out.mp4", "--resume"]) == 2
    assert "the speech is another" in capsys.readouterr().err


def test_speak_writes_a_sound_file_and_replaces_none(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["speak", "--text", TEXT, "--output", "out.wav", "--json"]) == 0
    said = lines(capsys)
    assert [one["text"] for one in said] == ["Hello there.", "This is the second sentence of it."]
    assert soundfile.info("out.wav").duration > 2
    assert main(["speak", "--text", TEXT, "--output", "out.wav"]) == 2
    assert main(["speak", "--output", "other.wav"]) == 2
    assert list(tmp_path.iterdir()) == [tmp_path / "out.wav"]


def test_voices_are_listed_with_what_they_need(capsys):
    assert main(["voices", "--json"]) == 0
    listed = {one["name"]: one for one in json.loads(capsys.readouterr().out)}
    assert listed["heart"]["fetch_mb"] == 0
    assert listed["kokoro/zf_xiaobei"]["scripts"] == ["Han", "Latin"]
    assert main(["voices"]) == 0
    assert "heart" in capsys.readouterr().out
