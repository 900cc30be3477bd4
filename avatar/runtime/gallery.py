"""The gallery: finished and stopped videos on disk, one folder each, bounded by age and size.

It knows nothing of engines and pages. A video is made in a draft folder, whose name starts with a dot and
which is locked for as long as somebody works in it; one rename makes it an entry; deleting renames first too.
So there is never half an entry to see, and several processes may share one outputs folder.
A draft of a long video keeps what it needs to go on in its HALF folder; ended early, it becomes an unfinished
entry, which can be made a draft again.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from avatar import locks
from avatar.errors import AvatarError, BadInput
from avatar.media import atomic
from avatar.media.side_files import captions_paths, thumbnail_path, written_report, written_thumbnail
from avatar.request import beside
from avatar.runtime.finished_files import save_small
from avatar.runtime.gallery_entry import (
    ABOUT,
    DRAFT,
    HALF,
    PORTRAIT,
    About,
    GalleryEntry,
    as_reported,
    close_to_others,
    is_too_old,
    owner_hash,
    read_entry,
    remove,
    renew,
    size_bytes,
    video_name,
)
from avatar.runtime.scratch import is_written

log = logging.getLogger(__name__)

_ID = re.compile(r"\d{8}-\d{6}-[0-9a-f]{10}")
_GONE = ".gone-"
_LOCK, _KEY = ".lock", ".key"
_KEY_BYTES = 32
_PRUNE_EVERY_S = 3600.0

__all__ = ["ABOUT", "HALF", "About", "Gallery", "GalleryEntry", "owner_hash", "video_name"]


class Gallery:
    """The entries of one outputs folder; safe to use from several threads, and several processes.

    Owners are given as owner_hash has them; None stands for who may see and change everything.
    """

    def __init__(self, folder: Path, max_age_s: float = 30 * 86_400, max_bytes: int = 4 * 2**30) -> None:
        """Opens or creates the folder; drafts that nobody works in any more become entries or are removed.

        Raises: BadInput when the folder cannot be written.
        """
        self.max_age_s = max_age_s
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        self._held: dict[str, locks.FileLock] = {}  # locks of our drafts, by id
        self._left: list[Path] = []  # drafts of ended processes
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.folder = folder.resolve()
            self._key = _shared_key(self.folder / _KEY)
            for left in list(self.folder.iterdir()):
                if _is_ours(left, _GONE):
                    remove(left)
                elif _is_ours(left, DRAFT):
                    self._left.append(left)
                elif _ID.fullmatch(left.name):
                    renew(left)
            self.prune()
        except OSError as error:
            raise BadInput(
                f"The outputs folder {folder.name or folder} cannot be used ({error.strerror}).",
                "Choose another one with --outputs.",
            ) from error

    def draft(self) -> Path:
        """A new folder for a run to work in, locked; end it with keep or discard.

        Raises: AvatarError when the folder cannot be written.
        """
        while True:
            id = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(5)}"
            draft = self.folder / f"{DRAFT}{id}"
            try:
                draft.mkdir(mode=0o700)
                if self._hold(id, draft):
                    return draft
            except FileNotFoundError:  # another process swept it before it was locked
                if not self.folder.is_dir():
                    raise _unwritable("it is gone") from None
            except OSError as error:
                raise _unwritable(error.strerror) from error

    def keep(self, draft: Path, about: About) -> GalleryEntry:
        """Turn a draft that holds its video into an entry; what is not named like the video is removed.

        Raises: FileNotFoundError when there is no video.
        """
        video = draft / video_name(draft.name)
        if not video.is_file():
            raise FileNotFoundError(video.name)
        for other in draft.iterdir():
            beside = other.name.startswith(f"{video.stem}.") or other.name in (ABOUT, _LOCK)
            if not beside and not (about.stopped and other.name == HALF):
                shutil.rmtree(other) if other.is_dir() else other.unlink()
        try:
            self.describe(draft, about)
        except OSError:  # the disk is full: what was noted when the draft was begun will do
            if not (draft / ABOUT).is_file():
                raise
            log.exception("gallery: %s is kept as it was first described", draft.name)
        folder = self._make_entry(draft)
        entry = GalleryEntry(folder.name, folder, about, size_bytes(folder))
        self.prune(keep=folder.name)
        return entry

    def describe(self, draft: Path, about: About) -> None:
        """Note what a draft will be; without it, it never becomes an entry."""
        about.write(draft)

    def about(self, draft: Path) -> About:
        """What describe noted."""
        return About.read(draft)

    def discard(self, draft: Path) -> None:
        """Remove a draft and all in it; one with a whole video, or a half-made long one, becomes an entry.

        A draft that became an entry, or is gone, is let be.
        """
        if draft.parent != self.folder or not _is_ours(draft, DRAFT) or not draft.exists():
            return
        id = draft.name.removeprefix(DRAFT)
        video, is_described = draft / video_name(draft.name), (draft / ABOUT).is_file()
        thumbnails = sorted((draft / HALF).rglob("part_*.jpg"))
        if is_described and video.is_file():
            self._make_entry(draft)
        elif is_described and thumbnails:
            shutil.copyfile(thumbnails[0], thumbnail_path(video))
            self._make_entry(draft)
        else:
            remove(draft)
            self._let_go(id)

    def set_aside(self, draft: Path, error: str | None = None) -> None:
        """End a draft that may hold nothing but its request: it becomes an entry that can be resumed.

        Without a request, as discard. error: why nothing was made.
        """
        if (draft / HALF).is_dir() and (draft / ABOUT).is_file():
            if error is not None:
                self.describe(draft, replace(self.about(draft), error=error))
            video, portrait = draft / video_name(draft.name), draft / HALF / PORTRAIT
            parts = any((draft / HALF).rglob("part_*.jpg"))
            if portrait.is_file() and not parts and not video.is_file():
                save_small(portrait, thumbnail_path(video))
                self._make_entry(draft)
                return
        self.discard(draft)

    def reopen(self, id: str, owner: str | None = None) -> Path | None:
        """Make an unfinished entry a draft again, locked; None when there is none of the owner's."""
        entry = self.get(id, owner)
        if entry is None or not entry.is_unfinished:
            return None
        with self._lock:
            draft = self.folder / f"{DRAFT}{id}"
            if id in self._held:
                return None
            try:
                if not self._hold(id, entry.folder):
                    return None  # another was first
                entry.folder.rename(draft)
            except FileNotFoundError:  # as above
                self._let_go(id)
                return None
            except OSError as error:
                self._let_go(id)
                raise _unwritable(error.strerror) from error
        return draft

    def entries(self, owner: str | None = None) -> list[GalleryEntry]:
        """Newest first; with an owner, only what is theirs."""
        self._recover_left()
        if time.monotonic() - self._pruned > _PRUNE_EVERY_S:
            self.prune()
        found = sorted(self._read_all(), key=lambda entry: entry.about.created, reverse=True)
        return [entry for entry in found if entry.belongs_to(owner)]

    def get(self, id: str, owner: str | None = None) -> GalleryEntry | None:
        """The entry of that id; None when there is none, whatever the id is, or it is not the owner's."""
        entry = read_entry(self.folder / id) if isinstance(id, str) and _ID.fullmatch(id) else None
        return entry if entry is not None and entry.belongs_to(owner) else None

    def key(self, id: str, name: str) -> str:
        """What opens one file of an entry, and no other: only who may see the entry learns it."""
        return hmac.new(self._key, f"{id}/{name}".encode(), hashlib.sha256).hexdigest()[:40]

    def file(self, id: str, name: str, key: str) -> Path | None:
        """The path of a file of an entry's, video or beside it; None without its key, or for another file."""
        if not _ID.fullmatch(id):
            return None
        video = self.folder / id / video_name(id)
        ours = (video, written_thumbnail(video), written_report(video), *captions_paths(video), beside(video))
        if name not in [path.name for path in ours]:
            return None
        if not hmac.compare_digest(self.key(id, name).encode(), key.encode(errors="replace")):
            return None
        path = self.folder / id / name
        return path if path.is_file() and path.resolve().parent == self.folder / id else None

    def delete(self, id: str, owner: str | None = None) -> bool:
        """Remove an entry, at once as others see it; False when there is none, or it is not the owner's."""
        entry = self.get(id, owner)
        if entry is None:
            return False
        with self._lock:
            gone = self.folder / f"{_GONE}{id}"
            try:
                entry.folder.rename(gone)
            except FileNotFoundError:  # another thread was first
                return False
        remove(gone)
        return True

    def prune(self, keep: str = "") -> None:
        """Remove what is too old, then the oldest until the rest is within max_bytes; `keep` stays."""
        self._pruned = time.monotonic()
        self._recover_left()
        entries = sorted(self._read_all(), key=lambda entry: entry.about.created)
        total = sum(entry.size_bytes for entry in entries)
        for entry in entries:
            if entry.id == keep:
                continue
            try:
                old = is_too_old(entry, self.max_age_s)
                if (old or total > self.max_bytes) and self.delete(entry.id):
                    total -= entry.size_bytes
                    log.info("gallery: removed %s (%s)", entry.id, "age" if old else "size")
            except OSError as error:
                log.error("gallery: %s cannot be removed: %s", entry.id, error.strerror)

    def close(self) -> None:
        """Let other processes take over what is still a draft."""
        for id in list(self._held):
            self._let_go(id)

    def _hold(self, id: str, folder: Path) -> bool:
        """Lock a folder for as long as its draft is ours; False when another has it.

        Raises: FileNotFoundError when it is gone by now.
        """
        lock = locks.take(folder / _LOCK)
        if lock is None:
            return False
        if not (folder / _LOCK).exists():  # removed before it was locked
            lock.release()
            raise FileNotFoundError(folder.name)
        self._held[id] = lock
        return True

    def _let_go(self, id: str) -> None:
        lock = self._held.pop(id, None)
        if lock is not None:
            lock.release()

    def _recover_left(self) -> None:
        """What ended processes were making is kept as far as it came, else removed.

        One whose video the engine is closing, which may outlive its page, waits for the next call; one that
        another process works in is its own.
        """
        with self._lock:
            left, self._left = self._left, []
        for draft in left:
            id = draft.name.removeprefix(DRAFT)
            try:
                if is_written(draft):
                    self._left.append(draft)
                elif self._hold(id, draft):
                    self._end_left(draft)
            except FileNotFoundError:
                log.debug("%s has just been ended by another process", draft.name)
            except (
                BadInput,
                OSError,
                ValueError,
                TypeError,
            ) as error:  # it must not keep a page from starting
                self._let_go(id)
                log.warning("gallery: %s stays as it was left: %s", draft.name, error)

    def _end_left(self, draft: Path) -> None:
        if (draft / video_name(draft.name)).is_file() and (draft / ABOUT).is_file():
            self.keep(draft, as_reported(draft))
        else:
            self.set_aside(draft)

    def _make_entry(self, draft: Path) -> Path:
        """Make a draft an entry; its lock goes last, so that nobody sweeps what is still a draft."""
        id = draft.name.removeprefix(DRAFT)
        close_to_others(draft)
        folder = self.folder / id
        atomic.replace(draft, folder)
        (folder / _LOCK).unlink(missing_ok=True)
        self._let_go(id)
        return folder

    def _read_all(self) -> Iterator[GalleryEntry]:
        try:
            folders = list(self.folder.iterdir())
        except OSError as error:
            log.error("gallery: the outputs folder cannot be read (%s)", error.strerror)
            return
        for folder in folders:
            if _ID.fullmatch(folder.name):
                entry = read_entry(folder)
                if entry is not None:
                    yield entry


def _unwritable(reason: str | None) -> AvatarError:
    return AvatarError(
        f"The outputs folder cannot be written ({reason}).",
        "The server's administrator must free space or repair it.",
    )


def _shared_key(path: Path) -> bytes:
    """The secret from which all processes of an outputs folder derive keys; made once. Raises: OSError."""
    with locks.waiting_for(path.with_name(f"{path.name}.lock")):
        key = path.read_bytes() if path.exists() else b""
        if len(key) != _KEY_BYTES:
            key = secrets.token_bytes(_KEY_BYTES)
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(key)
    return key


def _is_ours(folder: Path, prefix: str) -> bool:
    """Whether a name is one that this module gives: users may keep other things there."""
    return folder.name.startswith(prefix) and bool(_ID.fullmatch(folder.name.removeprefix(prefix)))
