"""The gallery: finished and stopped videos on disk, one folder each, bounded by age and size.

It knows nothing of engines and pages. A video is made in a draft folder, whose name starts with a dot; one
rename makes it an entry; deleting renames first too. So there is never half an entry to see.
A draft of a long video keeps what it needs to go on in its HALF folder; ended early, it becomes an unfinished
entry, which can be made a draft again.
"""

from __future__ import annotations

import fcntl
import json
import logging
import re
import secrets
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from avatar.errors import BadInput
from avatar.media import durable
from avatar.media.beside import thumbnail_path, written_report, written_thumbnail
from avatar.media.report import RunReport, read_report
from avatar.scratch import is_written

log = logging.getLogger(__name__)

ABOUT, HALF = "about.json", "half"
_ID = re.compile(r"\d{8}-\d{6}-[0-9a-f]{10}")
_DRAFT, _GONE = ".draft-", ".gone-"


def video_name(folder: str) -> str:
    """The video's file name, by its draft's or entry's folder name: what a download is called."""
    return f"avatar-{folder.removeprefix(_DRAFT)[:15]}.mp4"


@dataclass(frozen=True)
class About:
    """What is known of a video. created: seconds since 1970. label: "preview", or "" for the full model's.

    settings: what "use these settings" fills in. owner: who may see it in a private gallery, "" for nobody.
    """

    portrait: str
    speech: str
    prompt: str
    preset: str
    label: str
    settings: dict[str, Any]
    num_frames: int
    duration_s: float
    stopped: bool = False
    error: str | None = None
    owner: str = ""
    created: float = field(default_factory=time.time)


@dataclass(frozen=True)
class Entry:
    """One video of the gallery. size_bytes: all of its files together."""

    id: str
    folder: Path
    about: About
    size_bytes: int

    @property
    def is_unfinished(self) -> bool:
        """Whether it can be gone on with; there may be no video then."""
        return (self.folder / HALF).is_dir()

    @property
    def video(self) -> Path:
        return self.folder / video_name(self.id)

    @property
    def thumbnail(self) -> Path:
        return written_thumbnail(self.video)

    @property
    def report(self) -> Path:
        return written_report(self.video)

    def told(self) -> RunReport | None:
        """The run report; None where there is none, or it cannot be read."""
        if not self.report.is_file():
            return None
        try:
            return read_report(self.report)
        except BadInput as error:
            log.warning("gallery: %s", error.message)
            return None


class Gallery:
    """The entries of one outputs folder; safe to use from several threads."""

    def __init__(self, folder: Path, max_age_s: float = 30 * 86_400, max_bytes: int = 4 * 2**30) -> None:
        """Opens or creates the folder; drafts that an ended process left behind are shelved or removed.

        Raises: BadInput where the folder cannot be written.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._sole = _lock_file(folder / ".lock")
        except OSError as error:
            raise BadInput(
                f"The outputs folder cannot be used ({error.strerror}).", "Choose another one with --outputs."
            ) from error
        self.folder = folder.resolve()
        self.max_age_s = max_age_s
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        self._left: list[Path] = []  # drafts of ended processes
        if self._sole is not None:  # no other process drafts here
            for left in self.folder.iterdir():
                if _is_ours(left, _GONE):
                    shutil.rmtree(left)
                if _is_ours(left, _DRAFT):
                    self._left.append(left)
        self.prune()

    def draft(self) -> Path:
        """A new folder for a run to work in; end it with keep or discard."""
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(5)}"
        draft = self.folder / f"{_DRAFT}{name}"
        draft.mkdir()
        return draft

    def keep(self, draft: Path, about: About) -> Entry:
        """Turn a draft that holds its video into an entry; what is not named like the video is removed.

        Raises: FileNotFoundError when there is no video.
        """
        video = draft / video_name(draft.name)
        if not video.is_file():
            raise FileNotFoundError(video.name)
        for other in draft.iterdir():
            beside = other.name.startswith(f"{video.stem}.")
            if not beside and other.name != ABOUT and not (about.stopped and other.name == HALF):
                shutil.rmtree(other) if other.is_dir() else other.unlink()
        try:
            self.describe(draft, about)
        except OSError:  # the disk is full: what was noted when the draft was begun will do
            if not (draft / ABOUT).is_file():
                raise
            log.exception("gallery: %s is kept as it was first described", draft.name)
        folder = self.folder / draft.name.removeprefix(_DRAFT)
        draft.rename(folder)
        self.prune(keep=folder.name)
        return Entry(folder.name, folder, about, _size_bytes(folder))

    def describe(self, draft: Path, about: About) -> None:
        """Note what a draft will be; without it, it is never shelved."""
        durable.write(draft / ABOUT, json.dumps(asdict(about)).encode())

    def about(self, draft: Path) -> About:
        """What describe noted."""
        return About(**json.loads((draft / ABOUT).read_text(encoding="utf-8")))

    def discard(self, draft: Path) -> None:
        """Remove a draft and all in it; one with a whole video, or a half-made long one, becomes an entry.

        A draft that became an entry, or is gone, is let be.
        """
        if draft.parent != self.folder or not _is_ours(draft, _DRAFT) or not draft.exists():
            return
        if not (draft / ABOUT).is_file():
            shutil.rmtree(draft)
            return
        if (draft / video_name(draft.name)).is_file():
            draft.rename(self.folder / draft.name.removeprefix(_DRAFT))
            return
        thumbnails = sorted((draft / HALF).rglob("part_*.jpg"))
        if not thumbnails:
            shutil.rmtree(draft)
            return
        shutil.copyfile(thumbnails[0], thumbnail_path(draft / video_name(draft.name)))
        draft.rename(self.folder / draft.name.removeprefix(_DRAFT))

    def _shelve_left(self) -> None:
        """What ended processes were making is kept as far as it came, else removed.

        One whose video the engine is closing, which may outlive its page, waits for the next call.
        """
        with self._lock:
            left, self._left = self._left, []
        for draft in left:
            try:
                if is_written(draft):
                    self._left.append(draft)
                elif (draft / video_name(draft.name)).is_file() and (draft / ABOUT).is_file():
                    self.keep(draft, self._as_reported(draft))
                else:
                    self.discard(draft)
            except (
                BadInput,
                OSError,
                ValueError,
                TypeError,
            ) as error:  # it must not keep a page from starting
                log.warning("gallery: %s stays as it was left: %s", draft.name, error)

    def _as_reported(self, draft: Path) -> About:
        """What describe noted of a draft, and what its report says of the video."""
        about = self.about(draft)
        path = written_report(draft / video_name(draft.name))
        if not path.is_file():
            return about
        report = read_report(path)
        return replace(
            about,
            label=report.engine,
            num_frames=report.num_frames,
            duration_s=report.duration_s,
            stopped=report.stopped,
            error=report.error,
        )

    def reopen(self, id: str, owner: str | None = None) -> Path | None:
        """Make an unfinished entry a draft again; None when there is none, or it is not the owner's."""
        entry = self.get(id)
        if entry is None or not entry.is_unfinished or (owner is not None and entry.about.owner != owner):
            return None
        with self._lock:
            draft = self.folder / f"{_DRAFT}{id}"
            try:
                entry.folder.rename(draft)
            except FileNotFoundError:  # another thread was first
                return None
        return draft

    def entries(self, owner: str | None = None) -> list[Entry]:
        """Newest first; with an owner, only what is theirs."""
        self._shelve_left()
        found = sorted(self._read_all(), key=lambda entry: entry.about.created, reverse=True)
        return [entry for entry in found if owner is None or (owner and entry.about.owner == owner)]

    def get(self, id: str) -> Entry | None:
        """The entry of that id; None when there is none, whatever the id is."""
        return self._read(self.folder / id) if _ID.fullmatch(id) else None

    def file(self, id: str, name: str) -> Path | None:
        """The path of an entry's video, thumbnail or report, or None: never one outside its own folder."""
        if not _ID.fullmatch(id):
            return None
        video = self.folder / id / video_name(id)
        if name not in [path.name for path in (video, written_thumbnail(video), written_report(video))]:
            return None
        path = self.folder / id / name
        return path if path.is_file() and path.resolve().parent == self.folder / id else None

    def delete(self, id: str, owner: str | None = None) -> bool:
        """Remove an entry, at once as others see it; False when there is none, or it is not the owner's."""
        entry = self.get(id)
        if entry is None or (owner is not None and entry.about.owner != owner):
            return False
        with self._lock:
            gone = self.folder / f"{_GONE}{id}"
            try:
                entry.folder.rename(gone)
            except FileNotFoundError:  # another thread was first
                return False
        shutil.rmtree(gone)
        return True

    def prune(self, keep: str = "") -> None:
        """Remove what is too old, then the oldest until the rest is within max_bytes; `keep` stays."""
        self._shelve_left()
        entries = sorted(self._read_all(), key=lambda entry: entry.about.created)
        total = sum(entry.size_bytes for entry in entries)
        for entry in entries:
            old = time.time() - entry.about.created > self.max_age_s
            if entry.id != keep and (old or total > self.max_bytes) and self.delete(entry.id):
                total -= entry.size_bytes
                log.info("gallery: removed %s (%s)", entry.id, "age" if old else "size")

    def close(self) -> None:
        """Let another process take the folder over."""
        if self._sole is not None:
            self._sole.close()
            self._sole = None

    def _read_all(self) -> Iterator[Entry]:
        for folder in self.folder.iterdir():
            if _ID.fullmatch(folder.name):
                entry = self._read(folder)
                if entry is not None:
                    yield entry

    def _read(self, folder: Path) -> Entry | None:
        try:
            about = About(**json.loads((folder / ABOUT).read_text(encoding="utf-8")))
            return Entry(folder.name, folder, about, _size_bytes(folder))
        except FileNotFoundError:  # deleted meanwhile
            return None
        except (ValueError, TypeError, OSError) as error:
            log.warning("gallery: %s is left out, its %s cannot be read: %s", folder.name, ABOUT, error)
            return None


def _is_ours(folder: Path, prefix: str) -> bool:
    """Whether a name is one that this module gives: users may keep other things there."""
    return folder.name.startswith(prefix) and bool(_ID.fullmatch(folder.name.removeprefix(prefix)))


def _size_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*"))


def _lock_file(path: Path) -> IO[str] | None:
    """The opened file while this process alone holds it, else None."""
    file = path.open("a")  # whatever it is, it stays
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file
