"""Voice files from the Hugging Face hub, kept in its cache; HF_HOME and HF_ENDPOINT apply."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from avatar.speech.voices import VoiceUnavailable

log = logging.getLogger(__name__)


def here(repo: str, file: str) -> bool:
    """Whether a file is in the cache."""
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(repo, file), str)


def fetched(repo: str, file: str, digest: str = "") -> Path:
    """The path of a file in the cache, fetched if needed. digest: its SHA-256, "" if unknown.

    Raises: VoiceUnavailable when the hub cannot be reached, or the digest differs.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    cached = try_to_load_from_cache(repo, file)
    try:
        path = Path(cached) if isinstance(cached, str) else Path(hf_hub_download(repo, file))
    except Exception as error:  # error types of the hub's HTTP library, which changes between releases
        log.warning("%s of %s cannot be fetched", file, repo, exc_info=error)
        raise VoiceUnavailable(
            f"{file.rpartition('/')[2]} of {repo} cannot be fetched ({type(error).__name__}).",
            "Check the connection to the hub, then try again; the voice heart needs no download.",
        ) from error
    if digest and _digest(path) != digest:
        path.resolve().unlink()  # the cache's entry is a link to the file itself
        path.unlink(missing_ok=True)
        raise VoiceUnavailable(
            f"{file.rpartition('/')[2]} of {repo} has the wrong checksum; it was removed.",
            "Try again: it is then fetched anew.",
        )
    return path


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
