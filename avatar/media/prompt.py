"""Check prompts before any model is loaded, so that none is silently truncated; put motion into words."""

from __future__ import annotations

import unicodedata
from pathlib import Path

from avatar.checkpoints.prompt_tokens import token_ids
from avatar.errors import BadInput
from avatar.request import Request
from avatar.settings import MotionLevel

MAX_CHARACTERS = 20_000  # bounds the tokenizer's work on an untrusted prompt

# What presets' prompts say of motion, and what takes its place. The person is the same for all.
PRESETS_MOTION = "with lively eyes and small movements of the head"
_INSTEAD = {
    "still": "with lively eyes, keeping the head, the shoulders and the hands still",
    "calm": "calmly, with lively eyes and hardly any movements of the head",
    "lively": "vividly, with lively eyes, nods and turns of the head and gestures of the hands",
}
# What is added to other prompts.
_ADDED = {
    "still": "The head, the shoulders and the hands keep still; only the face moves.",
    "calm": "The person moves little, calmly and slowly.",
    "lively": "The person speaks vividly, with nods and turns of the head and gestures of the hands.",
}


def worded(prompt: str, motion: MotionLevel) -> str:
    """The prompt that asks a model for a motion; unchanged for normal."""
    if motion == "normal":
        return prompt
    if PRESETS_MOTION in prompt:
        return prompt.replace(PRESETS_MOTION, _INSTEAD[motion])
    return f"{prompt} {_ADDED[motion]}".strip()


def prompt_for(request: Request) -> str:
    """What the diffusion model reads: the request's prompt, and how much it asks the person to move."""
    return worded(request.prompt, request.preset.generation.motion)


def check_prompt(
    prompt: str, max_tokens: int, tokenizer: Path | None = None, motion: MotionLevel = "normal"
) -> str:
    """Check a prompt; return it without leading and trailing spaces.

    motion: its words are counted as well. tokenizer: the folder of the checkpoint's tokenizer; None where no
    checkpoint is available, and then the engine counts the tokens before it loads anything.
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
        token_ids(worded(prompt, motion), tokenizer, max_tokens)
    return prompt
