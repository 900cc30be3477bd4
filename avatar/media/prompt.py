"""Prompts are counted before any text model is loaded, so that none is cut short in silence."""

from __future__ import annotations

import math
import re
import unicodedata

from avatar.errors import BadInput

_NO_SPACES = re.compile(
    r"[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff\u0e00-\u0eff]"
)  # Chinese, Japanese, Korean, Thai, Lao
_LETTERS_PER_TOKEN = (
    3  # of a word in an alphabet, in a rare language; few words in common ones are cut at all
)
_SIGNS_A_TOKEN = 4  # of Chinese or Japanese, in a text of nothing but set phrases
_MOST_CHARACTERS = 20_000


def check_prompt(prompt: str, max_tokens: int) -> tuple[str, tuple[str, ...]]:
    """The prompt without edge spaces, and what the user should know about its length.

    Raises: BadInput when it is no clean text, or surely longer than the text model reads.
    """
    if not isinstance(prompt, str):
        raise BadInput("The prompt is not text.", "Write it as text, or leave it empty.")
    prompt = prompt.strip()
    if any(unicodedata.category(char) in ("Cc", "Cs") and char not in "\n\r\t" for char in prompt):
        raise BadInput(
            "The prompt holds characters that are no text.", "Type it again instead of pasting it."
        )
    fewest, most = count_tokens(prompt[:_MOST_CHARACTERS])
    if fewest > max_tokens or len(prompt) > _MOST_CHARACTERS:
        raise BadInput(
            f"The prompt is too long: {len(prompt)} characters, at least {fewest} tokens.",
            f"The text model reads {max_tokens} tokens; say what matters in fewer words.",
        )
    if most > max_tokens:
        return prompt, (
            f"The prompt is long: {fewest} to {most} tokens by estimate. "
            f"The text model reads {max_tokens}; the engine counts exactly and refuses more.",
        )
    return prompt, ()


def count_tokens(prompt: str) -> tuple[int, int]:
    """The fewest and the most tokens that a SentencePiece model may make of a prompt, by rule of thumb."""
    signs = len(_NO_SPACES.findall(prompt))
    words = _NO_SPACES.sub(" ", prompt).split()
    most = signs
    for word in words:
        letters = sum(char.isalnum() for char in word)
        others = "".join(char for char in word if not char.isalnum())
        most += math.ceil(letters / _LETTERS_PER_TOKEN) + len(others.encode())
    return len(words) + math.ceil(signs / _SIGNS_A_TOKEN) + 1, most + 1  # one ends the text
