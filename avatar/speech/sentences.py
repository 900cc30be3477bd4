"""Split text into sentences short enough for a voice: European languages, Chinese and Japanese.

Each voice decides how to read numbers and abbreviations; this module only avoids taking a full stop in them
for the end of a sentence.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from avatar.speech.writing_systems import is_dense, is_spoken

# Most letters passed to a voice at once; fewer in Chinese, where each is a syllable.
_MOST, _MOST_DENSE = 320, 100

_CLOSING = "\"'”’»)]}」』】）》〉"
_ENDS = re.compile(
    rf"(?:[。！？｡]+|…{{2,}}|\.{{6}})[{re.escape(_CLOSING)}]*"  # Chinese: no space follows
    rf"|[.!?…]+[{re.escape(_CLOSING)}]*(?=\s|$|[\u3040-\u30ff\u4e00-\u9fff])"
)
_CLAUSES = re.compile(r"(?<=[,;:—–，、；：])\s*")
_PARAGRAPHS = re.compile(r"\n[ \t]*\n\s*")
_LINES = re.compile(r"[ \t]*\n[ \t]*")

# After these words a full stop rarely ends a sentence; after those in _MAY_END, it does before a capital.
_TITLES = frozenset(
    (
        "mr",
        "mrs",
        "ms",
        "mx",
        "dr",
        "prof",
        "rev",
        "fr",
        "sr",
        "jr",
        "st",
        "mt",
        "ft",
        "gen",
        "col",
        "maj",
        "capt",
        "cmdr",
        "lt",
        "sgt",
        "sen",
        "rep",
        "gov",
        "pres",
        "hon",
        "messrs",
    )
)
_WITHIN = frozenset(
    (
        "e.g",
        "i.e",
        "cf",
        "vs",
        "viz",
        "approx",
        "ca",
        "al",
        "fig",
        "figs",
        "eq",
        "eqs",
        "sec",
        "vol",
        "vols",
        "ch",
        "pp",
        "ed",
        "eds",
        "no",
        "nos",
        "dept",
        "est",
    )
)
_MAY_END = frozenset(
    (
        "etc",
        "inc",
        "ltd",
        "co",
        "corp",
        "bros",
        "a.m",
        "p.m",
        "u.s",
        "u.k",
        "u.n",
        "e.u",
        "ph.d",
        "b.a",
        "m.a",
        "d.c",
    )
)


@dataclass(frozen=True)
class TextSentence:
    """A sentence, or a piece of a long one. ends_paragraph: a longer pause follows."""

    text: str
    ends_paragraph: bool = False


def sentences(text: str) -> list[TextSentence]:
    """The sentences of a text, in order; those without a letter or digit are left out.

    A single line break only wraps the text and ends no sentence; an empty line ends a paragraph.
    """
    found: list[TextSentence] = []
    for paragraph in _PARAGRAPHS.split(text.replace("\r\n", "\n").replace("\r", "\n").strip()):
        spoken = [part for whole in _cut(_joined(paragraph)) for part in _short(whole) if is_spoken(part)]
        found += [TextSentence(part) for part in spoken[:-1]]
        found += [TextSentence(part, ends_paragraph=True) for part in spoken[-1:]]
    return found


def _joined(paragraph: str) -> str:
    """Join a paragraph's lines into one, in Chinese and Japanese without a space."""
    lines = [line for line in _LINES.split(paragraph) if line]
    out = ""
    for line in lines:
        dense = bool(out) and is_dense(out[-1]) and is_dense(line[0])
        out += line if not out or dense else f" {line}"
    return re.sub(r"\s+", " ", out)


def _cut(line: str) -> list[str]:
    """Split a line at the ends of its sentences."""
    out, start = [], 0
    for match in _ENDS.finditer(line):
        if _is_end(line, match):
            out.append(line[start : match.end()].strip())
            start = match.end()
    return [part for part in (*out, line[start:].strip()) if part]


def _is_end(line: str, match: re.Match[str]) -> bool:
    """Whether the matched punctuation ends a sentence."""
    rest = line[match.end() :].lstrip().lstrip("\"'“‘«([{")
    if not rest:
        return True
    quoted = match[0][-1] in _CLOSING  # "Really?" she said.
    if rest[0].islower() and (quoted or match[0][0] in ".…"):
        return False  # "etc. and so on", "well… perhaps"
    if match[0][0] not in ".…":
        return True
    if match[0][0] == "…" or len(match[0].rstrip(_CLOSING)) > 1:
        return True
    word = re.split(r"[\s(\[{\"“‘]", line[: match.start()])[-1]
    plain = word.lower()
    if plain in _TITLES or plain in _WITHIN:
        return False
    if plain in _MAY_END:
        return rest[0].isupper() or is_dense(rest[0])
    # "J. K. Rowling" goes on, "Plan B. Then" does not: an initial stands before a name or another initial.
    return not (len(word) == 1 and word.isupper() and word != "I" and _begins_name(line, match.start()))


def _begins_name(line: str, stop: int) -> bool:
    """Whether the capital before a full stop starts a sentence or follows another part of a name."""
    before = line[: stop - 1].rstrip()
    return not before or before[-1] in ".!?" or before.split()[-1][:1].isupper()


def _short(sentence: str) -> list[str]:
    """Split a sentence to a voice's limit: between clauses, else between words, else anywhere."""
    most = _MOST_DENSE if is_dense(sentence) else _MOST
    if len(sentence) <= most:
        return [sentence]
    pieces: list[str] = []
    for clause in _CLAUSES.split(sentence):
        for word in _words(clause, most):
            if pieces and len(pieces[-1]) + len(word) + 1 <= most:
                pieces[-1] += word if is_dense(word[0]) or not word[0].isalnum() else f" {word}"
            else:
                pieces.append(word)
    return pieces


def _words(clause: str, most: int) -> list[str]:
    """A clause whole if it is short enough; else its words, with overlong ones split."""
    if len(clause) <= most:
        return [clause] if clause else []
    return [word[at : at + most] for word in clause.split() for at in range(0, len(word), most)]
