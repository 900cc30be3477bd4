"""Check prompts and count their tokens before any model is loaded, so that none is silently truncated."""

from __future__ import annotations

import unicodedata
from pathlib import Path

from avatar.checkpoints.prompt_tokens import token_ids
from avatar.errors import BadInput

MAX_CHARACTERS = 20_000  # bounds the tokenizer's work on an untrusted prompt


def check_prompt(prompt: str, max_tokens: int, tokenizer: Path | None = None) -> str:
    """Check a prompt; return it without leading and trailing spaces.

    tokenizer: the folder of the checkpoint's tokenizer; None where no checkpoint is available, and then the
    engine counts the tokens before it loads anything.
    Raises: BadInput when it is not clean text, has more than MAX_CHARACTERS, or more tokens than the text
    model reads; WeightsMissing.
    """
    if not isinstance(prompt, str):
        raise BadInput("The prompt is not text.", "Write it as text, or leave it empty.")
    prompt = prompt.strip()
    if any(unicodedata.category(char) in ("Cc", "Cs") and char not in "\n\r\t" for char in prompt):
        raise BadInput("The prompt holds control characters.", "Type it again instead of pasting it.")
    if len(prompt) > MAX_CHARACTERS:
        raise BadInput(
            f"The prompt has {len(prompt)} characters; at most {MAX_CHARACTERS} are read.",
            f"Say what matters in fewer words: the text model reads {max_tokens} tokens.",
        )
    if tokenizer is not None:
        token_ids(prompt, tokenizer, max_tokens)
    return prompt
