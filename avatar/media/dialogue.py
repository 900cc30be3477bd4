"""A text for several people: each line begins with who says it, and a colon."""

from __future__ import annotations

import re
from dataclasses import dataclass

from avatar.errors import BadInput
from avatar.media.turns import LONGEST_LABEL

HOW_TO_NAME_LINES = "Begin each line with a name and a colon, for example: Anna: Good morning."
# A colon within a line ("at 10:30", "https://…") begins no speech: after it there is a blank, but in Chinese.
_WORD = r"[^\s:：,;!?。，；！？]+"
_NAMED = re.compile(rf"(?P<who>{_WORD}( {_WORD}){{0,3}})\s*(?::(?=\s|$)|：)\s*(?P<said>.*)")


@dataclass(frozen=True)
class DialogueLine:
    """What one person says until another begins. line: in the text, from 1."""

    speaker: str
    text: str
    line: int


def parse_dialogue(text: str, name: str = "The text") -> tuple[DialogueLine, ...]:
    """The lines of a text in order; one without a name goes on with the speech before it.

    name: the text's, for messages. Raises: BadInput naming the first line that is not understood.
    """
    said: list[DialogueLine] = []
    for number, row in enumerate(text.splitlines(), 1):
        row = row.strip()
        if not row:
            continue
        named = _NAMED.fullmatch(row)
        if named is not None and len(named["who"]) <= LONGEST_LABEL:
            said.append(DialogueLine(named["who"], named["said"], number))
        elif said:
            last = said[-1]
            said[-1] = DialogueLine(last.speaker, f"{last.text}\n{row}".lstrip(), last.line)
        else:
            raise BadInput(f"{name}, line {number}: it is not said who speaks.", HOW_TO_NAME_LINES)
    if not said:
        raise BadInput(f"{name} holds nothing to say.", HOW_TO_NAME_LINES)
    if silent := next((one for one in said if not one.text), None):
        raise BadInput(f"{name}, line {silent.line}: {silent.speaker} says nothing.", HOW_TO_NAME_LINES)
    return tuple(said)
