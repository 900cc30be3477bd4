"""Captions: when what is shown, as files and in the picture."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import pytest

from avatar.errors import BadInput
from avatar.media import caption_files
from avatar.media.caption_files import Burner, readable, srt, vtt, wrapped
from avatar.media.side_files import made_here
from avatar.request import Caption

SENTENCE = (
    "This sentence is so long that nobody could read it at once, which is why it comes in several pieces."
)
FPS = 25


def test_a_long_sentence_comes_in_pieces_that_share_its_time():
    shown = readable([Caption(1.0, 9.0, SENTENCE)], 20.0)
    assert len(shown) > 1
    assert (shown[0].start_s, shown[-1].end_s) == (1.0, pytest.approx(9.0))
    assert all(before.end_s == now.start_s for before, now in pairwise(shown))
    assert " ".join(" ".join(one.text.split("\n")) for one in shown) == SENTENCE
    assert max(len(line) for one in shown for line in one.text.split("\n")) <= 42
    assert max(one.text.count("\n") for one in shown) == 1


def test_chinese_lines_are_short_and_do_not_begin_with_a_mark():
    text = "你好，世界！今天是2024年3月5日，气温25度，我们去公园散步，然后回家吃饭，再看一部电影，好不好？"
    lines = wrapped(text)
    assert "".join(lines) == text
    assert max(map(len, lines)) <= 24
    assert not [line for line in lines if line[0] in "，。！？"]
    assert "3月5日" in "".join(line for line in lines if "3月" in line)


def test_what_the_video_does_not_reach_is_left_out():
    shown = readable([Caption(0.0, 2.0, "One."), Caption(2.0, 4.0, "Two."), Caption(4.0, 5.0, "Three.")], 3.0)
    assert [(one.text, one.end_s) for one in shown] == [("One.", 2.0), ("Two.", 3.0)]


def test_srt_and_vtt_are_written_as_players_read_them():
    one = [Caption(0.05, 3661.5, "Fish & <chips>")]
    assert srt(one) == "1\n00:00:00,050 --> 01:01:01,500\nFish & <chips>\n"
    assert vtt(one).startswith("WEBVTT\n\nNOTE Made by Live Avatar\n\n00:00:00.050 --> 01:01:01.500\n")
    assert "Fish &amp; &lt;chips&gt;" in vtt(one)


def test_captions_are_known_as_ours_and_others_are_not(tmp_path):
    caption_files.write(tmp_path / "a.mp4", [Caption(0, 1, "One.")], 5.0)
    assert re.findall(r"a\.\w+", " ".join(sorted(path.name for path in tmp_path.iterdir()))) == [
        "a.srt",
        "a.vtt",
    ]
    assert made_here(tmp_path / "a.srt")
    assert made_here(tmp_path / "a.vtt")
    (tmp_path / "b.srt").write_text("1\n")
    (tmp_path / "b.vtt").write_text("WEBVTT\n\n")
    assert not made_here(tmp_path / "b.srt")
    assert not made_here(tmp_path / "b.vtt")


def test_captions_are_in_the_picture_while_they_are_said():
    frames = np.full((FPS * 4, 128, 128, 3), 90, np.uint8)
    before = frames.copy()
    burner = Burner([Caption(1.0, 2.0, "One."), Caption(2.0, 3.0, "Two.")], FPS)
    burned = np.concatenate([burner.burn(frames[:30], 0), burner.burn(frames[30:], 30)])
    changed = [bool((now != old).any()) for now, old in zip(burned, before)]
    assert changed == [FPS <= index < 3 * FPS for index in range(len(frames))]
    assert (frames == before).all()
    assert (burned[FPS, :64] == 90).all()
    assert (burned[FPS] != burned[2 * FPS]).any()


def test_a_stretch_shows_what_belongs_to_its_place():
    frames = np.full((FPS, 128, 128, 3), 90, np.uint8)
    said = [Caption(0.0, 2.0, "One."), Caption(2.0, 3.0, "Two.")]
    whole = Burner(said, FPS).burn(np.repeat(frames, 3, 0), 0)
    assert (Burner(said, FPS).burn(frames, 2 * FPS) == whole[2 * FPS :]).all()


def test_letters_that_no_font_has_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(caption_files.shutil, "which", lambda name: None)
    caption_files.find_font.cache_clear()
    with pytest.raises(BadInput, match="No font here has the letters"):
        Burner([Caption(0, 1, "你好")], FPS)
    caption_files.find_font.cache_clear()
    assert caption_files.find_font("Hello, Zoë") == ""
