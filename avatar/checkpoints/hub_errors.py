"""What went wrong between the hub and the disk, in words for a user."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import get_token
from huggingface_hub.errors import (
    DryRunError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from avatar.errors import AvatarError, BadInput, DoesNotFit, WeightsMissing

GO_ON = "Start it again: what has been fetched is kept."


@contextmanager
def explaining(repo: str, revision: str | None) -> Iterator[None]:
    """Turn exceptions of huggingface_hub, and of the disk, into errors for the user. repo: its name."""
    try:
        yield
    except AvatarError:
        raise
    except Exception as error:  # the HTTP library below raises its own types, and releases replace it
        raise _explained(repo, revision, error) from error


def _explained(repo: str, revision: str | None, error: Exception) -> AvatarError:
    """The error for the user that corresponds to an exception of huggingface_hub."""
    offline = isinstance(error, LocalEntryNotFoundError | DryRunError)
    match error.__cause__ if offline and error.__cause__ else error:
        case RevisionNotFoundError() | HFValidationError():
            return BadInput(f"{repo} has no revision {revision!r}.", "Leave --revision out, or check it.")
        case GatedRepoError():
            remedy = "Accept them on its page on the hub, then run `hf auth login`."
            return WeightsMissing(f"{repo} asks for its terms to be accepted.", remedy)
        case RepositoryNotFoundError() as unknown if unknown.response.status_code == 401:
            if get_token() is not None:
                text = f"The hub does not accept your token for {repo}."
                return WeightsMissing(text, "Set HF_TOKEN to one that is valid, or run `hf auth login`.")
            remedy = "Set HF_TOKEN to a token of yours, or run `hf auth login`."
            return WeightsMissing(f"The hub requires a login for {repo}.", remedy)
        case RepositoryNotFoundError():
            remedy = "Check HF_ENDPOINT, and HF_TOKEN if it is private."
            return WeightsMissing(f"{repo} is not on the hub, or you have no access.", remedy)
        case _ if offline:
            return WeightsMissing(f"The hub cannot be reached for {repo}.", f"Check the connection. {GO_ON}")
        case OSError() as full if full.errno in (errno.ENOSPC, errno.EDQUOT):
            return DoesNotFit(f"The disk became full while {repo} was fetched.", f"Free some space. {GO_ON}")
        case OSError() as refused if refused.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO):
            text = f"{repo} cannot be written to the disk: {refused.strerror}."
            return WeightsMissing(text, "Check the folder, or choose another one with --ckpt_dir or HF_HOME.")
        case other:
            text = f"The connection broke while {repo} was fetched ({type(other).__name__})."
            return WeightsMissing(text, GO_ON)
