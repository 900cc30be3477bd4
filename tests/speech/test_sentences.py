"""Text → sentences, and the scripts that they are written in."""

from __future__ import annotations

import pytest

from avatar.speech.sentences import sentences
from avatar.speech.writing_systems import is_spoken, scripts_in


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello there. How are you? Fine!", ["Hello there.", "How are you?", "Fine!"]),
        ("Dr. Smith met Mr. Jones vs. Mrs. Lee.", ["Dr. Smith met Mr. Jones vs. Mrs. Lee."]),
        ("It cost $3.5 million. Then it fell.", ["It cost $3.5 million.", "Then it fell."]),
        ("J. K. Rowling wrote it. I did, too.", ["J. K. Rowling wrote it.", "I did, too."]),
        ("So did I. Yes.", ["So did I.", "Yes."]),
        ("A house etc. and more. He left at 5 p.m. yesterday.", 2),
        ('"Really?" she asked. "Yes."', ['"Really?" she asked.', '"Yes."']),
        ("Well… perhaps. Wait… Who is it?", ["Well… perhaps.", "Wait…", "Who is it?"]),
        ("Visit example.com now, e.g. today.", 1),
        ("你好，世界！今天是2024年3月5日。", ["你好，世界！", "今天是2024年3月5日。"]),
        ("他说：“好的。”然后走了……真的吗？是", ["他说：“好的。”", "然后走了……", "真的吗？", "是"]),
        ("Hello. 你好。Goodbye.", ["Hello.", "你好。", "Goodbye."]),
        ("A line\ngoes on. Next\n\nNew paragraph", ["A line goes on.", "Next", "New paragraph"]),
        ("我喜欢\n你。", ["我喜欢你。"]),
        ("One. 🙂 ... !!! Two.", 2),
        ("", []),
        (" \n\n … ", []),
    ],
)
def test_text_is_cut_where_sentences_end(text: str, expected: list[str] | int):
    found = [sentence.text for sentence in sentences(text)]
    if isinstance(expected, int):
        assert len([one for one in found if is_spoken(one)]) == len(found) == expected, found
    else:
        assert found == expected


@pytest.mark.parametrize(
    "text", ["word " * 400, "字" * 900, "clause, " * 200, "x" * 2000, "一句话，" * 300, "I said: 好" * 300]
)
def test_long_sentences_come_in_pieces_and_nothing_is_lost(text: str):
    pieces = [sentence.text for sentence in sentences(text)]
    assert max(map(len, pieces)) <= 320
    assert "".join("".join(pieces).split()) == "".join(text.split())


def test_only_an_empty_line_ends_a_paragraph():
    found = sentences("One. Two.\r\nThree.\r\n\r\nFour.")
    assert [sentence.ends_paragraph for sentence in found] == [False, False, True, True]


@pytest.mark.parametrize(
    ("text", "scripts"),
    [
        ("Hello, café 42 ½ №!", ["Latin"]),
        ("Привет", ["Cyrillic"]),
        ("你好 hi", ["Han", "Latin"]),
        ("こんにちは、カナ", ["Hiragana", "Katakana"]),
        ("नमस्ते", ["Devanagari"]),
        ("1 + 1 = 2 🙂", []),
    ],
)
def test_scripts_are_known_by_their_letters(text: str, scripts: list[str]):
    assert scripts_in(text) == scripts
