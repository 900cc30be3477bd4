"""The gallery: finished and stopped videos on disk, one folder each, bounded by age and size.

It knows nothing of engines and pages. A video is made in a draft folder, whose name starts with a dot; one
rename makes it an entry; deleting renames first too. So there is never half an entry to see.
A draft of a long video keeps what it needs to go on in its HALF folder; ended early, it becomes an unfinished
entry, which can be made a draft again.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from avatar import locks
from avatar.errors import BadInput
from avatar.media.report import RunReport, read_report

log = logging.getLogger(__name__)

ABOUT, HALF = "about.json", "half"
_ID = re.compile(r"\d{8}-\d{6}-[0-9a-f]{10}")
_DRAFT, _GONE = ".draft-", ".gone-"


def video_name(folder: str) -> str:
    """The video's file name, by its draft's or entry's folder name: what a download is called."""
    return f"avatar-{folder.removeprefix(_DRAFT)[:15]}.mp4"


def _beside(id: str, suffix: str) -> str:
    """The name of the thumbnail (.jpg) or report (.json) beside the video."""
    return str(Path(video_name(id)).with_suffix(suffix))


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
        return self.video.with_suffix(".jpg")

    @property
    def report(self) -> Path:
        return self.video.with_suffix(".json")

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
        """Opens or creates the folder; drafts that an ended process left behind are shelved or removed."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder.resolve()
        self.max_age_s = max_age_s
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        self._sole = locks.take(self.folder / ".lock")
        if self._sole is not None:  # no other process drafts here
            for left in self.folder.iterdir():
                if left.name.startswith(_GONE):
                    shutil.rmtree(left)
                if left.name.startswith(_DRAFT):
                    self.discard(left)
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
            if other.stem != video.stem and not (about.stopped and other.name == HALF):
                shutil.rmtree(other) if other.is_dir() else other.unlink()
        self.describe(draft, about)
        folder = self.folder / draft.name.removeprefix(_DRAFT)
        draft.rename(folder)
        self.prune(keep=folder.name)
        return Entry(folder.name, folder, about, _size_bytes(folder))

    def describe(self, draft: Path, about: About) -> None:
        """Note what a draft will be; without it, it is never shelved."""
        (draft / ABOUT).write_text(json.dumps(asdict(about), ensure_ascii=False), encoding="utf-8")

    def about(self, draft: Path) -> About:
        """What describe noted."""
        return About(**json.loads((draft / ABOUT).read_text(encoding="utf-8")))

    def discard(self, draft: Path) -> None:
        """Remove a draft and all in it; a half-made long video becomes an unfinished entry instead.

        A draft that became an entry, or is gone, is let be.
        """
        if draft.parent != self.folder or not draft.name.startswith(_DRAFT) or not draft.exists():
            return
        thumbnails = sorted((draft / HALF).rglob("part_*.jpg"))
        if not thumbnails or not (draft / ABOUT).is_file():
            shutil.rmtree(draft)
            return
        shutil.copyfile(thumbnails[0], draft / _beside(draft.name.removeprefix(_DRAFT), ".jpg"))
        draft.rename(self.folder / draft.name.removeprefix(_DRAFT))

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
        found = sorted(self._read_all(), key=lambda entry: entry.about.created, reverse=True)
        return [entry for entry in found if owner is None or (owner and entry.about.owner == owner)]

    def get(self, id: str) -> Entry | None:
        """The entry of that id; None when there is none, whatever the id is."""
        return self._read(self.folder / id) if _ID.fullmatch(id) else None

    def file(self, id: str, name: str) -> Path | None:
        """The path of an entry's video, thumbnail or report, or None: never one outside its own folder."""
        if not _ID.fullmatch(id) or name not in (video_name(id), _beside(id, ".jpg"), _beside(id, ".json")):
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
            self._sole.release()
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


def _size_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*"))
