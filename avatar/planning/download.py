"""Fetching the checkpoint from the Hugging Face hub: what is needed and missing, if the disk has room for it.

huggingface_hub does the work and reads HF_HOME and HF_ENDPOINT. A run that stopped goes on with the files
that it had not finished; within a run a broken connection goes on where it broke.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    DryRunError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import tqdm

from avatar.errors import AvatarError, BadInput, DoesNotFit, WeightsMissing
from avatar.planning.checkpoint_places import (
    DIFFUSERS,
    LORA_FILE,
    LORA_REPO,
    OFFICIAL,
    SHARD_STEM,
    CheckpointLayout,
    hub_cache,
)

logger = logging.getLogger(__name__)

GB = 10**9
SPARE_BYTES = GB  # left free on the disk, for the videos
GO_ON = "Run the command again: what has been fetched is kept."

Progress = Callable[[int, int], None]
"""Called with the bytes fetched so far and the bytes to fetch, from any thread."""


@dataclass(frozen=True)
class Repo:
    """A repository on the hub, the files of it that are needed, and the folder that holds it in a target."""

    name: str
    patterns: tuple[str, ...]
    folder: str


def base_repo(layout: CheckpointLayout = OFFICIAL) -> Repo:
    """The base model in one of its layouts, without what only other programs need."""
    folder = "" if layout.transformer == "." else f"{layout.transformer}/"
    parts = [part if part.endswith(".pth") else f"{part}/*" for part in (layout.text_encoder, layout.vae)]
    speech = [f"{layout.speech_encoder}/{name}" for name in ("*config.json", "model.safetensors")]
    shards = [f"{folder}config.json", f"{folder}{SHARD_STEM}*"]
    return Repo(layout.repo, (*shards, *parts, f"{layout.tokenizer}/*", *speech), layout.repo.split("/")[1])


LORA = Repo(LORA_REPO, (LORA_FILE,), "LiveAvatar")
REPOS = (base_repo(OFFICIAL), LORA)
DIFFUSERS_REPOS = (base_repo(DIFFUSERS), LORA)


def download(
    repos: Sequence[Repo] = REPOS,
    revision: str | Mapping[str, str] | None = None,
    target: Path | None = None,
    progress: Progress | None = None,
) -> list[Path]:
    """Fetch the files that are not there yet, and return each repository's folder.

    revision: a branch, tag or commit; of every repository, or by repository name. target: the folder for
    --ckpt_dir; None: the hub's cache. progress: None shows huggingface_hub's bars on a terminal.
    Raises: BadInput for an unknown revision; DoesNotFit, before anything is fetched, for a disk that is too
    small; WeightsMissing when the hub cannot be reached or the connection breaks for good.
    """
    revisions = {repo.name: _revision(repo, revision) for repo in repos}
    to_fetch = sum(_bytes_to_fetch(repo, revisions[repo.name], target) for repo in repos)
    _require_room(to_fetch, target or hub_cache())
    logger.info("to fetch: %.1f GB", to_fetch / GB)
    bars = {} if progress is None else {"tqdm_class": _reporting(progress, to_fetch)}
    return [Path(_snapshot(repo, revisions[repo.name], target, **bars)) for repo in repos]


def _bytes_to_fetch(repo: Repo, revision: str | None, target: Path | None) -> int:
    """What a repository still needs. Files of another size than the hub's are removed first."""
    silent = _reporting(lambda done, total: None, 0)
    files = _snapshot(repo, revision, target, dry_run=True, tqdm_class=silent)
    here = {file.filename: Path(file.local_path) for file in files if not file.will_download}
    to_fetch = sum(file.file_size or 0 for file in files if file.will_download)
    if here:
        with _explaining(repo, revision):
            tree = list(HfApi().list_repo_tree(repo.name, recursive=True, revision=files[0].commit_hash))
        for entry in tree:
            path = here.get(entry.path)
            if not path or not path.is_file() or not isinstance(entry, RepoFile):
                continue
            if path.stat().st_size != entry.size:
                logger.warning("%s is broken and will be fetched again", entry.path)
                path.resolve().unlink()  # in the cache the file itself lies elsewhere
                path.unlink(missing_ok=True)
                to_fetch += entry.size
    return to_fetch


def _revision(repo: Repo, revision: str | Mapping[str, str] | None) -> str | None:
    return revision.get(repo.name) if isinstance(revision, Mapping) else revision


def _snapshot(repo: Repo, revision: str | None, target: Path | None, **options: Any) -> Any:
    """huggingface_hub's snapshot_download of what is needed of one repository."""
    folder = None if target is None else target / repo.folder
    with _explaining(repo, revision):
        return snapshot_download(
            repo.name, revision=revision, allow_patterns=list(repo.patterns), local_dir=folder, **options
        )


@contextmanager
def _explaining(repo: Repo, revision: str | None) -> Iterator[None]:
    """Turn what huggingface_hub raises into what a user should know."""
    try:
        yield
    except AvatarError:
        raise
    except Exception as error:  # the transport below raises types of its own library, which releases exchange
        raise _explained(repo, revision, error) from error


def _explained(repo: Repo, revision: str | None, error: Exception) -> AvatarError:
    """What a user should know of an error of huggingface_hub's."""
    offline = isinstance(error, LocalEntryNotFoundError | DryRunError)
    match error.__cause__ if offline and error.__cause__ else error:
        case RevisionNotFoundError() | HFValidationError():
            return BadInput(
                f"{repo.name} has no revision {revision!r}.", "Leave --revision out, or check it."
            )
        case GatedRepoError():
            remedy = "Accept them on its page on the hub, then run `hf auth login`."
            return WeightsMissing(f"{repo.name} asks for its terms to be accepted.", remedy)
        case RepositoryNotFoundError():
            remedy = "Check HF_ENDPOINT, and HF_TOKEN if it is private."
            return WeightsMissing(f"{repo.name} is not on the hub, or not for you.", remedy)
        case _ if offline:
            return WeightsMissing(
                f"The hub cannot be reached for {repo.name}.", f"Check the connection. {GO_ON}"
            )
        case other:
            return WeightsMissing(f"Fetching {repo.name} broke off ({type(other).__name__}).", GO_ON)


def _require_room(to_fetch: int, folder: Path) -> None:
    """Raises: DoesNotFit when the folder's disk has no room for so many bytes and some to spare."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if to_fetch and free < to_fetch + SPARE_BYTES:
        raise DoesNotFit(
            f"The weights need {(to_fetch + SPARE_BYTES) / GB:.1f} GB; the disk has {free / GB:.1f} GB free.",
            "Free some space, or choose another disk with --ckpt_dir or HF_HOME.",
        )


def _reporting(progress: Progress, total: int) -> type[tqdm]:
    """A progress bar that shows nothing and tells progress() instead."""
    done = 0

    class Reporting(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            self._counts = options.get("name") == BYTES_WRITTEN
            super().__init__(*args, **options | {"disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            nonlocal done
            if self._counts:
                done += int(n or 0)
                progress(min(done, total), total)
            return None

    return Reporting


BYTES_WRITTEN = "huggingface_hub.snapshot_download"  # the library's name for its bar of bytes on disk
