"""Download the base model from ModelScope, by its own library, which resumes and checks each file."""

from __future__ import annotations

from pathlib import Path

from avatar.checkpoints.download import base_repo, require_disk_space
from avatar.checkpoints.hub_errors import GO_ON
from avatar.checkpoints.locations import OFFICIAL
from avatar.errors import BadInput, WeightsMissing

INSTALL = "pip install modelscope"
BASE_BYTES = 45_800_000_000


def download_base(target: Path, revision: str | None = None) -> Path:
    """Download the base model into a subfolder of the target, and return that folder. revision: ModelScope's.

    Raises: BadInput without the library; DoesNotFit; WeightsMissing when the download fails.
    """
    try:
        from modelscope import snapshot_download
    except ImportError as error:
        raise BadInput("ModelScope's library is not installed.", f"Run `{INSTALL}`.") from error
    repo = base_repo(OFFICIAL)
    folder = target / repo.folder
    here = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    require_disk_space(max(0, BASE_BYTES - here), target)
    try:
        snapshot_download(
            repo.name, revision=revision, local_dir=str(folder), allow_patterns=list(repo.patterns)
        )
    except Exception as error:  # the library and its HTTP layer raise types of their own
        text = f"{repo.name} could not be fetched from ModelScope ({type(error).__name__})."
        raise WeightsMissing(text, GO_ON) from error
    return folder
