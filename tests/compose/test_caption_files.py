"""Captions: SubRip and WebVTT as programs write them, and text spread over speech."""

from __future__ import annotations

from itertools import pairwise

import pytest

from avatar.compose.captions import LONGEST_CUE, Cue, parse, read_captions, spread, write_srt
from avatar.errors import BadInput

SRT = """1
00:00:01,000 --> 00:00:02,500
Hello, <i>you</i>!
Second line

2
00:01:02,25 --> 01:00:03,000 X1:10 Y1:20
{\\an8}Later &amp; longer
"""
VTT = """WEBVTT - a title

STYLE
::cue { color: red }

NOTE this is no cue

intro
00:01.000 --> 00:02.000 align:start
<v Anna>Hi <00:01.500>there</v>

00:05.000 --> 00:04.000
ends before it begins
"""


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_subrip_is_read_as_programs_write_it(ending):
    assert parse(SRT.replace("\n", ending)) == [
        Cue(1.0, 2.5, "Hello, you!\nSecond line"),
        Cue(62.25, 3603.0, "Later & longer"),
    ]


def test_webvtt_is_read_without_its_headers_and_styles():
    assert parse(VTT) == [Cue(1.0, 2.0, "Hi there")]


def test_what_is_written_is_read_back():
    cues = [Cue(0.04, 1.9996, "a"), Cue(3661.5, 3662.0, "b\nc")]
    assert parse(write_srt(cues)) == [Cue(0.04, 2.0, "a"), Cue(3661.5, 3662.0, "b\nc")]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_files_of_several_encodings_are_read(tmp_path, encoding):
    path = tmp_path / "a.srt"
    path.write_text("1\n00:00:00,000 --> 00:00:01,000\n你好 é\n", encoding=encoding)
    assert read_captions(path) == [Cue(0, 1, "你好 é")]


@pytest.mark.parametrize(
    ("data", "words"), [(b"", "empty"), (b"no cue here", "holds no captions"), (b"caf\xe9", "not in UTF-8")]
)
def test_what_is_no_caption_file_is_refused(tmp_path, data, words):
    path = tmp_path / "a.srt"
    path.write_bytes(data)
    with pytest.raises(BadInput, match=words):
        read_captions(path)


def test_text_is_spread_over_speech_and_skips_pauses():
    cues = spread("Ten letters. Ten letters.", [(1.0, 2.0), (5.0, 6.0)])
    assert [cue.text for cue in cues] == ["Ten letters.", "Ten letters."]
    assert [(cue.start_s, cue.end_s) for cue in cues] == [(1.0, 2.0), (5.0, 6.0)]


@pytest.mark.parametrize("text", ["word " * 60, "很长的句子没有标点" * 12, "unbreakable" * 20])
def test_long_sentences_are_cut_in_order_and_whole(text):
    cues = spread(text, [(0.0, 30.0)])
    assert "".join("".join(cue.text.split()) for cue in cues) == "".join(text.split())
    assert all(cue.end_s <= after.start_s + 1e-9 for cue, after in pairwise(cues))
    if " " in text or "很" in text:
        assert max(len(cue.text) for cue in cues) <= LONGEST_CUE
