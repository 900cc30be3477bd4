"""Prompts are counted before any model is loaded, so that none is cut short in silence."""

from __future__ import annotations

import unicodedata
from pathlib import Path

from avatar.errors import BadInput
from avatar.planning.prompt_tokens import token_ids

_MOST_CHARACTERS = 20_000  # surely more than any text model reads; not worth counting exactly


def check_prompt(prompt: str, max_tokens: int, tokenizer: Path | None = None) -> str:
    """The prompt without edge spaces.

    tokenizer: the folder of the checkpoint's tokenizer; None where no checkpoint is at hand: then the engine
    counts, before it loads anything.
    Raises: BadInput when it is no clean text, or longer than the text model reads; WeightsMissing.
    """
    if not isinstance(prompt, str):
        raise BadInput("The prompt is not text.", "Write it as text, or leave it empty.")
    prompt = prompt.strip()
    if any(unicodedata.category(char) in ("Cc", "Cs") and char not in "\n\r\t" for char in prompt):
        raise BadInput(
            "The prompt holds characters that are no text.", "Type it again instead of pasting it."
        )
    if len(prompt) > _MOST_CHARACTERS:
        raise BadInput(
            f"The prompt is too long: {len(prompt)} characters.",
            f"The text model reads {max_tokens} tokens; say what matters in fewer words.",
        )
    if tokenizer is not None:
        token_ids(prompt, tokenizer, max_tokens)
    return prompt
