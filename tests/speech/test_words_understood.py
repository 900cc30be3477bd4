"""What the embedded voice says is understood: by a recogniser that heard nothing of it before."""

from __future__ import annotations

import re

import numpy as np
import pytest
import soxr

from avatar.speech.catalogue import Catalogue
from avatar.speech.narration import Narrator, Script

# As written, and as a recogniser writes what it hears, where that is not the same.
SENTENCES = {
    "The birch canoe slid on the smooth planks.": "",
    "Glue the sheet to the dark blue background.": "",
    "It's easy to tell the depth of a well.": "",
    "These days a chicken leg is a rare dish.": "",
    "Rice is often served in round bowls.": "",
    "The juice of lemons makes fine punch.": "",
    "The box was thrown beside the parked truck.": "",
    "The hogs were fed chopped corn and garbage.": "",
    "Four hours of steady work faced us.": "",
    "A large size in stockings is hard to sell.": "",
    "The boy was there when the sun rose.": "",
    "A rod is used to catch pink salmon.": "",
    "The source of the huge river is the clear spring.": "",
    "Kick the ball straight and follow through.": "",
    "Help the woman get back to her feet.": "",
    "A pot of tea helps to pass the evening.": "",
    "Smoky fires lack flame and heat.": "",
    "Dr. Jones lives at 12 Main St. with his wife.": "doctor jones lives at 12 main street with his wife",
    "The meeting on March 3rd begins at 9:30 a.m.": "the meeting on march 3rd begins at 9 30 am",
    "We sold 1,250 tickets for $40 each.": "we sold 1250 tickets for 40 dollars each",
}
MOST_ERRORS = 0.05


def words(text: str) -> list[str]:
    """Its words as they are compared: without case, marks, or two ways of writing the same."""
    plain = text.lower().replace("a.m.", "am").replace(",", "").replace(":", " ").replace("’", "'")
    plain = re.sub(r"\$(\d+)", r"\1 dollars", plain)
    for long, short in (("dr.", "doctor"), ("st.", "street"), ("third", "3rd"), ("four ", "4 ")):
        plain = plain.replace(long, short)
    return re.findall(r"[a-z0-9']+", plain)


def errors(expected: list[str], heard: list[str]) -> int:
    """Words to insert, remove or replace."""
    row = list(range(len(heard) + 1))
    for number, word in enumerate(expected, 1):
        before, row[0] = row[0], number
        for place, other in enumerate(heard, 1):
            before, row[place] = (
                row[place],
                min(row[place] + 1, row[place - 1] + 1, before + (word != other)),
            )
    return row[-1]


@pytest.mark.slow
def test_twenty_english_sentences_are_understood(recogniser):
    catalogue, wrong, total = Catalogue(), 0, 0
    reported = []
    for sentence, written in SENTENCES.items():
        spoken = [said.samples for said in Narrator.of(Script(sentence), catalogue).sentences()]
        heard = recogniser(soxr.resample(np.concatenate(spoken), 24_000, 16_000))
        expected = words(written or sentence)
        faults = errors(expected, words(heard))
        wrong, total = wrong + faults, total + len(expected)
        if faults:
            reported.append(f"{sentence} → {heard}")
    assert wrong <= MOST_ERRORS * total, f"{wrong} of {total} words: {reported}"


def test_word_errors_are_counted():
    assert errors(["a", "b", "c"], ["a", "x", "c", "d"]) == 2
    assert errors(["a"], []) == 1
    assert errors(["a", "b"], ["a", "b"]) == 0
