"""Texts for several people: whose line is whose, and what is not understood."""

from __future__ import annotations

import pytest

from avatar.errors import BadInput
from avatar.media.dialogue import DialogueLine, parse_dialogue


def test_each_line_is_said_by_whom_it_names() -> None:
    text = """
Anna: Good morning.
  Did you sleep well?

Dr. Ben Miller : At 10:30, see https://example.org: it works.
小明：你好：早。
Anna:
Really?
"""
    assert parse_dialogue(text) == (
        DialogueLine("Anna", "Good morning.\nDid you sleep well?", 2),
        DialogueLine("Dr. Ben Miller", "At 10:30, see https://example.org: it works.", 5),
        DialogueLine("小明", "你好：早。", 6),
        DialogueLine("Anna", "Really?", 7),
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Good morning.\nAnna: Hello.", "talk.txt, line 1: it is not said who speaks"),
        ("He said this, and then: no.", "talk.txt, line 1: it is not said who speaks"),
        ("A name that has far too many words: no.", "talk.txt, line 1"),
        ("\n \n", "talk.txt holds nothing to say"),
        ("Anna: Hello.\nBen:\nAnna: Bye.", "talk.txt, line 2: Ben says nothing"),
    ],
)
def test_a_line_that_is_not_understood_is_named(text: str, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        parse_dialogue(text, "talk.txt")
