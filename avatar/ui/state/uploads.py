"""The folder of uploads: which paths may be used, and how much it may hold. No Gradio page here."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import stat
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from gradio_client.utils import strip_invalid_filename_characters

from avatar.errors import AvatarError, BadInput

log = logging.getLogger(__name__)

MIB, GIB = 2**20, 2**30
FRAMING_BYTES = 64 * 2**10  # of the form around a file
SHARE = 0.25  # the fraction of max_bytes that one visitor's uploads under way may take
MOST_FILES = 5000
IN_USE_S = 60.0  # a file used this recently is not removed to make space


class NotUploaded(BadInput):
    """A path is not that of an upload; the message is the same whatever is there."""

    def __init__(self) -> None:
        super().__init__("This file was not found among the uploads.", "Please upload it again.")


class UploadsFull(AvatarError):
    """There is no space for another upload, and no unused file left to remove."""

    def __init__(self) -> None:
        super().__init__(
            "The server has no space for uploads right now.", "Please try again in a few minutes."
        )


class TooLarge(BadInput):
    """An upload is larger than allowed."""

    def __init__(self, most_bytes: int) -> None:
        super().__init__(f"The file exceeds the maximum allowed size of {most_bytes / MIB:.0f} MiB.")
        self.most_bytes = most_bytes


@dataclass
class Uploads:
    """Visitors' files, and copies of files shown to them, in one folder of bounded size.

    max_file_bytes: of one upload. max_bytes: of all together. min_free_bytes: to leave free on the disk.
    """

    folder: Path
    max_file_bytes: int = 64 * MIB
    max_bytes: int = 2 * GIB
    min_free_bytes: int = 512 * MIB
    _arriving: Counter[str] = field(default_factory=Counter, init=False)  # bytes under way, by visitor
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def __post_init__(self) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder = self.folder.resolve()
        self._staging = self.folder.with_name(self.folder.name + "-arriving")
        self._staging.mkdir(mode=0o700, exist_ok=True)

    def find(self, path: object) -> Path:
        """The regular file below the folder that a visitor names, links resolved; it counts as used now.

        Raises: NotUploaded.
        """
        try:
            found = Path(path).resolve(strict=True)  # type: ignore[arg-type]  # whatever it is
            if found.is_relative_to(self.folder) and stat.S_ISREG(found.stat().st_mode):
                os.utime(found)
                return found
        except (OSError, ValueError, TypeError, RuntimeError) as error:  # no such file, bad name, link loop
            log.info("a path was refused: %s", type(error).__name__)
        raise NotUploaded

    def check(self, payload: object) -> None:
        """Refuse a payload in which any path, however deep, is not an upload. Raises: BadInput."""
        waiting = [payload]
        while waiting:
            value = waiting.pop()
            if isinstance(value, dict):
                if value.get("path") is not None:
                    self.find(value["path"])
                waiting.extend(value.values())
            elif isinstance(value, list | tuple):
                waiting.extend(value)

    def reserve(self, num_bytes: int, visitor: str = "") -> None:
        """Reserve space for an upload, removing the least recently used files; release it afterwards.

        Raises: TooLarge, UploadsFull.
        """
        if num_bytes > self.max_file_bytes + FRAMING_BYTES:
            raise TooLarge(self.max_file_bytes)
        with self._lock:
            if self._arriving[visitor] + num_bytes > max(num_bytes, self.max_bytes * SHARE):
                raise UploadsFull
            self._make_room(num_bytes)
            self._arriving[visitor] += num_bytes

    def release(self, num_bytes: int, visitor: str = "") -> None:
        """Release the space reserved for an upload that has arrived or failed."""
        with self._lock:
            self._arriving[visitor] -= num_bytes
            self._arriving += Counter()  # drops visitors with nothing under way

    def stage(self) -> Path:
        """A new folder for files while they arrive, on the same disk; the caller removes it."""
        return Path(tempfile.mkdtemp(dir=self._staging))

    def place(self, arrived: Path, name: str) -> Path:
        """Move a file that has arrived to a path that nobody can guess."""
        plain = strip_invalid_filename_characters(Path(name).name).lstrip(".") or "upload"
        with self._lock:
            folder = self.folder / secrets.token_hex(16)
            folder.mkdir(mode=0o700)
            return arrived.rename(folder / plain)

    def _make_room(self, num_bytes: int) -> None:
        found = sorted(self._files(), key=lambda file: file[1].st_mtime)
        arriving = self._arriving.total() + num_bytes
        total = sum(status.st_size for _, status in found) + arriving
        free = shutil.disk_usage(self.folder).free - arriving
        now = time.time()
        most_files = len(found) - MOST_FILES
        for number, (path, status) in enumerate(found):
            if number > most_files and total <= self.max_bytes and free >= self.min_free_bytes:
                return
            if now - status.st_mtime >= IN_USE_S:
                path.unlink(missing_ok=True)
                with suppress(OSError):  # another file is there
                    path.parent.rmdir()
                total -= status.st_size
                free += status.st_size
                log.info("uploads: removed %s", path.parent.name)
        if total > self.max_bytes or free < self.min_free_bytes:
            raise UploadsFull

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        """Every file that has arrived, and every copy that Gradio has made to show it."""
        for path in self.folder.glob("*/*"):
            try:
                status = path.lstat()
            except FileNotFoundError:  # removed just now
                continue
            if stat.S_ISREG(status.st_mode):
                yield path, status
