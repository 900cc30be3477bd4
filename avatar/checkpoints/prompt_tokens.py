"""Clean prompts and tokenize them with the checkpoint's own tokenizer."""

from __future__ import annotations

import html
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from avatar.checkpoints.locations import DOWNLOAD_COMMAND
from avatar.checkpoints.sentencepiece import tokenizer_of
from avatar.errors import BadInput, WeightsMissing
from avatar.paths import is_file

MAX_TOKENS = 512  # the length that the transformer was trained with, including the end token
TOKENIZER_FILE = "tokenizer.json"


def token_ids(prompt: str, folder: Path, max_tokens: int = MAX_TOKENS) -> list[int]:
    """A prompt's token ids, with the end token, by the tokenizer in a folder; no model is loaded.

    Raises: WeightsMissing, or BadInput with the count when the prompt is longer than max_tokens: it is never
    truncated.
    """
    ids: list[int] = open_tokenizer(folder).encode(clean_prompt(prompt)).ids
    if len(ids) > max_tokens:
        raise BadInput(
            f"The prompt is {len(ids)} tokens long; the model reads at most {max_tokens}.",
            "Shorten it: a description of one scene in a few sentences is what the model knows.",
        )
    return ids


def open_tokenizer(folder: Path) -> Any:
    """The `tokenizers.Tokenizer` of a folder, cached. Raises: WeightsMissing.

    folder: the one with tokenizer.json; or a prompt encoder's single file that contains its vocabulary.
    """
    file = folder if is_file(folder) else folder / TOKENIZER_FILE
    try:
        return _tokenizer(file, file.stat().st_mtime_ns)
    except OSError as error:
        raise WeightsMissing(
            f"{folder.name}/{TOKENIZER_FILE} is missing from the checkpoint.", _fetch_again()
        ) from error


def clean_prompt(prompt: str) -> str:
    """Repair broken Unicode and HTML entities, and collapse white space into single spaces.

    Source: Wan2.2 wan/modules/tokenizers.py, "whitespace" cleaning.
    """
    import ftfy

    return re.sub(r"\s+", " ", html.unescape(html.unescape(ftfy.fix_text(prompt)))).strip()


@lru_cache(maxsize=2)
def _tokenizer(file: Path, mtime_ns: int) -> Any:
    """The tokenizer of a file, which takes half a second to read. Raises: OSError, WeightsMissing."""
    from tokenizers import Tokenizer

    try:
        if file.suffix != ".json":
            return tokenizer_of(file)
        tokenizer = Tokenizer.from_str(file.read_text(encoding="utf-8"))
    except OSError:
        raise
    except Exception as error:  # the library raises plain Exception for anything that it cannot parse
        raise WeightsMissing(
            f"{file.parent.name}/{TOKENIZER_FILE} is corrupt ({error}).", _fetch_again()
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _fetch_again() -> str:
    return f"Run `{DOWNLOAD_COMMAND}`, which fetches only what is missing or broken."
