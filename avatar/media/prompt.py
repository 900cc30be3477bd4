"""Prompts are counted before any model is loaded, so that none is cut short in silence."""

from __future__ import annotations

import unicodedata
from pathlib import Path

from avatar.checkpoints.prompt_tokens import token_ids
from avatar.errors import BadInput

MAX_CHARACTERS = 20_000  # a limit of its own: what a stranger may have the tokenizer read


def check_prompt(prompt: str, max_tokens: int, tokenizer: Path | None = None) -> str:
    """The prompt without edge spaces.

    tokenizer: the folder of the checkpoint's tokenizer; None where no checkpoint is at hand: then the engine
    counts, before it loads anything.
    Raises: BadInput when it is not clean text, has more than MAX_CHARACTERS, or more tokens than the text
    model reads; WeightsMissing.
    """
    if not isinstance(prompt, str):
        raise BadInput("The prompt is not text.", "Write it as text, or leave it empty.")
    prompt = prompt.strip()
    if any(unicodedata.category(char) in ("Cc", "Cs") and char not in "\n\r\t" for char in prompt):
        raise BadInput(
            "The prompt holds characters that are no text.", "Type it again instead of pasting it."
        )
    if len(prompt) > MAX_CHARACTERS:
        raise BadInput(
            f"The prompt has {len(prompt)} characters; at most {MAX_CHARACTERS} are read.",
            f"Say what matters in fewer words: the text model reads {max_tokens} tokens.",
        )
    if tokenizer is not None:
        token_ids(prompt, tokenizer, max_tokens)
    return prompt
