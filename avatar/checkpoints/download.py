"""Download the missing parts of the checkpoint from the Hugging Face hub, if they fit on the disk.

huggingface_hub does the requests, and reads HF_HOME, HF_ENDPOINT, HF_TOKEN and the proxy variables. An
interrupted download resumes where it stopped, and each file's sha256 is checked.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import tqdm

from avatar.checkpoints.file_download import ByteCounter, LargeFile, fetch_files
from avatar.checkpoints.hub_errors import explaining
from avatar.checkpoints.locations import (
    DIFFUSERS,
    LORA_FILE,
    LORA_REPO,
    OFFICIAL,
    PARTS,
    SHARD_STEM,
    TINY_DECODER,
    Checkpoint,
    CheckpointLayout,
    hub_cache,
    tiny_decoder_home,
)
from avatar.errors import DoesNotFit, WeightsMissing
from avatar.locks import take

logger = logging.getLogger(__name__)

GB = 10**9
SPARE_BYTES = GB  # left free on the disk, for the videos
LOCK = ".live-avatar-download.lock"

Progress = Callable[[int, int], None]
"""Called with the bytes fetched so far and the bytes to fetch, from any thread."""

Notify = Callable[[str], None]
"""Called with a sentence for the user, from any thread."""


@dataclass(frozen=True)
class Repo:
    """A repository on the hub, and which of its files are needed.

    folder: its subfolder of a download target. revision: the commit to download unless the caller names
    another; None: the newest.
    """

    name: str
    patterns: tuple[str, ...]
    folder: str
    revision: str | None = None


# The commits that the public code's users have pinned; the model is known to be these files.
COMMITS = {
    OFFICIAL.repo: "dab4e9c55bbe4c8c4d03db1c2c98c7f0ac9c454b",
    LORA_REPO: "92cdccd12a91e8a63767a7c821b7c75e51d5a172",
}


def base_repo(layout: CheckpointLayout = OFFICIAL, parts: Collection[str] = PARTS) -> Repo:
    """The base model in one of its layouts, or some parts of it, without files for other programs."""
    folder = "" if layout.transformer == "." else f"{layout.transformer}/"
    weights = {
        part: (path if path.endswith(".pth") else f"{path}/*",)
        for part, path in (("text_encoder", layout.text_encoder), ("vae", layout.vae))
    }
    patterns = {
        "transformer": (f"{folder}config.json", f"{folder}{SHARD_STEM}*"),
        **weights,
        "tokenizer": (f"{layout.tokenizer}/*",),
        "speech_encoder": tuple(
            f"{layout.speech_encoder}/{name}" for name in ("*config.json", "model.safetensors")
        ),
    }
    wanted = tuple(pattern for part in PARTS if part in parts for pattern in patterns[part])
    return Repo(layout.repo, wanted, layout.repo.split("/")[1], COMMITS.get(layout.repo))


LORA = Repo(LORA_REPO, (LORA_FILE,), "LiveAvatar", COMMITS[LORA_REPO])
REPOS: tuple[Repo, ...] = (base_repo(OFFICIAL), LORA)
DIFFUSERS_REPOS: tuple[Repo, ...] = (base_repo(DIFFUSERS), LORA)
# The tiny decoder's newest edition is on no hub. Commit, size and sha256 are those that its users pin.
TAEHV = Repo("madebyollin/taehv", (TINY_DECODER,), "", "1a88a7dcafa06f46866661c0d687654aafa5521b")
TAEHV_URL = f"https://raw.githubusercontent.com/{TAEHV.name}/{TAEHV.revision}/{TINY_DECODER}"
TAEHV_BYTES = 22_678_901
TAEHV_SHA256 = "d26151e76cdc2c9424bef988de874b33d9a53f30ef3060cd556c429c469c797e"
PART_BYTES = {  # of the published files
    "transformer": 32_600_000_000,
    "text_encoder": 11_361_920_418,
    "tokenizer": 21_500_000,
    "vae": 507_609_880,
    "speech_encoder": 1_262_000_000,
    "lora": 1_350_000_000,
}


def lacking(found: Checkpoint) -> list[str]:
    """The missing parts, including "lora"."""
    return [part for part in PARTS if part not in found.parts] + ([] if found.lora else ["lora"])


def lacking_bytes(found: Checkpoint) -> int:
    """Approximate download size of the missing parts."""
    return sum(PART_BYTES[part] for part in lacking(found))


def needed_repos(
    found: Checkpoint,
    layout: CheckpointLayout = OFFICIAL,
    target: Path | None = None,
    *,
    only_missing: bool = True,
) -> tuple[Repo, ...]:
    """The repositories that a download completes, without the parts that lie elsewhere or in another form.

    found: what is there. target: the download's folder; None: the hub's cache. only_missing: False: only what
    lies in the target already is left out, so that it ends up with all parts.
    """
    base = base_repo(layout)

    def is_left_out(path: Path | None, folder: str) -> bool:
        if path is None:
            return False
        homes = {home.absolute() for home in (path, *path.parents)}
        if target is None:
            return hub_cache().absolute() not in homes
        is_its_own = (target / folder).absolute() in homes  # it is checked again
        return not is_its_own and (only_missing or target.absolute() in homes)

    parts = [part for part in PARTS if not is_left_out(found.parts.get(part), base.folder)]
    repos = [base_repo(layout, parts)] if parts else []
    return tuple(repos) if is_left_out(found.lora, LORA.folder) else (*repos, LORA)


def download(
    repos: Sequence[Repo] = REPOS,
    revision: str | Mapping[str, str] | None = None,
    target: Path | None = None,
    progress: Progress | None = None,
    *,
    notify: Notify = logger.warning,
    tiny_decoder: bool = False,
) -> list[Path]:
    """Download the missing files, and return each repository's folder, and the tiny decoder's if asked for.

    revision: a branch, tag or commit, for every repository or by repository name; None: the pinned ones.
    target: the folder for --ckpt_dir; None: the hub's cache. progress: None shows bars on a terminal.
    notify: told of a file that is fetched again.
    Raises: BadInput for an unknown revision; DoesNotFit, before anything is downloaded, for a disk that is
    too small; WeightsMissing when the hub cannot be reached, the connection breaks for good, a file arrives
    corrupt twice, or another download into the same folder is running.
    """
    with _alone(target or hub_cache()):
        return _download(repos, revision, target, progress, notify, tiny_decoder)


def _download(
    repos: Sequence[Repo],
    revision: str | Mapping[str, str] | None,
    target: Path | None,
    progress: Progress | None,
    notify: Notify,
    tiny_decoder: bool,
) -> list[Path]:
    """As download, without its lock."""
    # The library logs each attempt, which it makes again by itself; what it gives up on is reported here.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    wanted = [_survey(repo, _revision(repo, revision), target, notify) for repo in repos]
    small = [_tiny_decoder_file(target)] if tiny_decoder else []
    apart = [file for file in small if not _is_whole(file, notify)]
    total = sum(one.to_fetch for one in wanted) + sum(file.num_bytes for file in apart)
    here = sum(file.here_bytes for file in [*apart, *(file for one in wanted for file in one.large)])
    require_disk_space(total - here, target or hub_cache())
    logger.info("to fetch: %.1f GB", (total - here) / GB)
    counter = None if progress is None else ByteCounter(total, progress, here)
    bar = None if counter is None else _reporting(counter)
    if counter is not None:
        counter.add(0)
    folders = []
    for repo, one in zip(repos, wanted, strict=True):
        with explaining(repo.name, one.revision):
            fetch_files(one.large, bar, counter, notify)
        bars = {} if bar is None else {"tqdm_class": bar}
        folders.append(Path(_snapshot(repo, one.revision, target, **bars)))
    if apart:
        with explaining(TAEHV.name, TAEHV.revision):
            fetch_files(apart, bar, counter, notify)
    return folders + [file.place.parent for file in small]


def _tiny_decoder_file(target: Path | None) -> LargeFile:
    """The tiny decoder's file, and where it goes."""
    place = tiny_decoder_home(target) / TINY_DECODER
    assert TAEHV.revision is not None
    return LargeFile(
        TAEHV.name, TAEHV.revision, TINY_DECODER, TAEHV_BYTES, TAEHV_SHA256, place, url=TAEHV_URL
    )


def _is_whole(file: LargeFile, notify: Notify) -> bool:
    """Whether a file is in its place; one of another size is replaced."""
    if not file.place.is_file():
        return False
    if file.place.stat().st_size == file.num_bytes:
        return True
    notify(f"{file.name} is not whole and is fetched again.")
    return False


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One download into a folder at a time: two would append to the same partial files.

    Raises: WeightsMissing when there is another, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = take(folder / LOCK)
    except OSError as error:
        is_file = isinstance(error, FileExistsError | NotADirectoryError)
        why = "it is a file, or lies in one" if is_file else error.strerror
        raise WeightsMissing(
            f"{folder.name} cannot be the folder of the weights: {why}.",
            "Choose another one with --ckpt_dir or HF_HOME.",
        ) from error
    if lock is None:
        raise WeightsMissing(
            "Another program is fetching the model into the same folder.", "Wait for it, or stop it."
        )
    try:
        yield
    finally:
        lock.release()


@dataclass(frozen=True)
class _Survey:
    """What is still to be downloaded of a repository. large: files that are downloaded one by one."""

    revision: str | None
    to_fetch: int
    large: tuple[LargeFile, ...]


def _survey(repo: Repo, revision: str | None, target: Path | None, notify: Notify) -> _Survey:
    """Compare the hub with the local files. Local files of another size than the hub's are removed first."""
    silent = _reporting(ByteCounter(0, lambda done, total: None))
    files = _snapshot(repo, revision, target, dry_run=True, tqdm_class=silent)
    if not files:
        raise WeightsMissing(f"{repo.name} contains none of the required files.", "Check HF_ENDPOINT.")
    commit = files[0].commit_hash
    with explaining(repo.name, revision):
        entries = HfApi().list_repo_tree(repo.name, recursive=True, revision=commit)
        tree = {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}
    to_fetch, large = 0, []
    for file in files:
        entry, path = tree.get(file.filename), Path(file.local_path)
        size = file.file_size or 0 if entry is None else entry.size
        missing = file.will_download
        if entry is not None and not missing and path.is_file() and path.stat().st_size != size:
            notify(f"{file.filename} is not whole and is fetched again.")
            path.resolve().unlink()  # in the cache, path is a link to the file
            path.unlink(missing_ok=True)
            missing = True
        if not missing:
            continue
        to_fetch += size
        if entry is not None and entry.lfs is not None:
            place = path if target else _blobs(repo) / entry.lfs.sha256
            large.append(LargeFile(repo.name, commit, file.filename, size, entry.lfs.sha256, place))
    return _Survey(revision, to_fetch, tuple(large))


def _blobs(repo: Repo) -> Path:
    """The folder where the hub's cache keeps a repository's files, each named by its sha256."""
    return hub_cache() / f"models--{repo.name.replace('/', '--')}" / "blobs"


def _revision(repo: Repo, revision: str | Mapping[str, str] | None) -> str | None:
    asked = revision.get(repo.name) if isinstance(revision, Mapping) else revision
    return asked or repo.revision


def _snapshot(repo: Repo, revision: str | None, target: Path | None, **options: Any) -> Any:
    """Call huggingface_hub's snapshot_download for the needed files of one repository."""
    folder = None if target is None else target / repo.folder
    with explaining(repo.name, revision):
        return snapshot_download(
            repo.name, revision=revision, allow_patterns=list(repo.patterns), local_dir=folder, **options
        )


def require_disk_space(to_fetch: int, folder: Path) -> None:
    """Raises: DoesNotFit when the folder's disk has less free space than to_fetch plus SPARE_BYTES."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if to_fetch and free < to_fetch + SPARE_BYTES:
        raise DoesNotFit(
            f"{to_fetch / GB:.1f} GB are still to be fetched, and {SPARE_BYTES / GB:.0f} GB must stay free; "
            f"the disk has {free / GB:.1f} GB free.",
            "Free some space, or choose another disk with --ckpt_dir or HF_HOME.",
        )


def _reporting(counter: ByteCounter) -> type[tqdm]:
    """A progress bar class that shows nothing and reports to the counter instead."""

    class Reporting(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            self._counts = options.get("name") in BYTES_WRITTEN
            super().__init__(*args, **options | {"disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            if self._counts:
                counter.add(int(n or 0))
            return None

    return Reporting


# The library's names for its byte progress bars: of a snapshot, and of a single file.
BYTES_WRITTEN = ("huggingface_hub.snapshot_download", "huggingface_hub.http_get")
