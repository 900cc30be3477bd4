"""Read the page's portraits and speech in bounded processes, each upload once.

Results and refusals are cached by the file's digest: a portrait that was checked when the user chose it is
not decoded again by the run.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from avatar.errors import BadInput
from avatar.geometry import Size
from avatar.media.files import check_file, display_name
from avatar.media.limits import InputLimits
from avatar.media.portrait import Portrait, open_mask, open_portrait
from avatar.media.pose_video import PoseVideo, write_pose
from avatar.media.readers import Reader
from avatar.media.speech_reader import Speech, write_speech
from avatar.runtime.bounded_process import BoundedJob, BoundedProcesses

log = logging.getLogger(__name__)

KEPT_BYTES = 512 * 2**20  # cache size; a portrait is 12 MB at most, a minute of speech 6 MB
KEPT_S = 3600.0
MOST_KEPT = 1000  # mostly refusals, which take almost no space

POSE_FRAME_CPU_S = 0.03  # CPU time for each frame of a pose video, besides that for any file

PICTURES = ("portrait", "mask")  # kinds of files; besides them "speech" and "pose"

Key = tuple[str, str, str]  # digest, name in messages, kind, and what is read of a pose or mask


class ReaderCache:
    """The cache of read files, on disk and of limited size; creates readers."""

    def __init__(self, folder: Path, limits: InputLimits, places: int = 2, per_visitor: int = 8) -> None:
        """folder: will be created. per_visitor: files that may wait to be read, per visitor."""
        folder.mkdir(mode=0o700)
        self.folder, self.limits = folder, limits
        self.bounded = BoundedProcesses(limits.max_decode_bytes, places, per_visitor)
        self._lock = threading.Lock()
        self._entries: OrderedDict[Key, _Entry] = OrderedDict()  # least recently used first
        self._count = 0

    def by(self, visitor: str) -> Reader:
        """The reader of one visitor."""
        return BoundedReader(self, visitor)

    def begin(self, kind: str, path: Path, name: str | None, visitor: str, *wanted: Any) -> _Entry:
        """A file's entry; starts reading if it is new. Release it with leave(). Raises: BadInput, Crowded.

        wanted: of a pose, its size and number of frames; of a mask, the brush.
        """
        name = display_name(path, name)
        most = self.limits.max_portrait_bytes if kind in PICTURES else self.limits.max_speech_bytes
        check_file(path, name, most, kind)
        key = (_digest(path, name), name, " ".join(map(str, (kind, *wanted))))
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None and entry.job.cancelled.is_set():
                self._entries[("", entry.target.name, kind)] = entry  # until it is over
                entry = None
            if entry is None:
                entry = self._entries[key] = self._submit(kind, path, name, visitor, *wanted)
            self._entries.move_to_end(key)
            entry.users += 1
            entry.used = time.monotonic()
        return entry

    def _submit(self, kind: str, path: Path, name: str, visitor: str, *wanted: Any) -> _Entry:
        limits = self.limits
        self._count += 1
        read, suffix = _READERS[kind]
        cpu_s = limits.portrait_cpu_s if kind in PICTURES else limits.speech_cpu_s
        if kind == "pose":
            cpu_s += POSE_FRAME_CPU_S * wanted[1]
        target = self.folder / f"{self._count}.{suffix}"
        job = self.bounded.submit(
            read, path, target, name, limits, *wanted, name=name, cpu_s=cpu_s, visitor=visitor
        )
        return _Entry(job, target)

    def leave(self, entry: _Entry) -> None:
        """Release an entry; a reading without users is cancelled."""
        with self._lock:
            entry.users -= 1
            if not entry.users and not entry.job.wait(0):
                entry.job.cancel()
        self.tidy()

    def tidy(self) -> None:
        """Drop old and least recently used entries, and those that failed through no fault of the file."""
        with self._lock:
            idle = [(key, entry) for key, entry in self._entries.items() if not entry.users and entry.is_over]
            total = sum(entry.size_bytes for entry in self._entries.values())
            spare = len(self._entries) - MOST_KEPT
            for number, (key, entry) in enumerate(idle):
                if entry.job.error is not None:  # left behind by a process that was killed
                    entry.target.unlink(missing_ok=True)
                old = time.monotonic() - entry.used > KEPT_S
                if old or entry.is_void or total > KEPT_BYTES or number < spare:
                    total -= entry.size_bytes
                    entry.target.unlink(missing_ok=True)
                    del self._entries[key]

    def close(self) -> None:
        """End the processes."""
        self.bounded.close()


@dataclass
class _Entry:
    """A file that was read, or is being read. users: how many need it now. used: when it was last used."""

    job: BoundedJob
    target: Path
    users: int = 0
    used: float = 0.0

    @property
    def is_over(self) -> bool:
        return self.job.wait(0)

    @property
    def is_void(self) -> bool:
        """Whether reading ended without a verdict on the file."""
        return self.job.error is not None and not isinstance(self.job.error, BadInput)

    @property
    def size_bytes(self) -> int:
        try:
            return self.target.stat().st_size
        except FileNotFoundError:  # refused, or not begun
            return 0


class BoundedReader(Reader):
    """One visitor's reader, which reads in other processes and caches the results."""

    def __init__(self, cache: ReaderCache, visitor: str) -> None:
        self._cache, self._visitor = cache, visitor

    def portrait(self, path: Path, *, name: str | None = None, limits: InputLimits | None = None) -> Portrait:
        """limits: ignored; those of the cache apply."""
        with self._used("portrait", path, name) as entry:
            return replace(entry.job.result(), pixels=np.load(entry.target))

    def mask(
        self,
        path: Path,
        *,
        name: str | None = None,
        limits: InputLimits | None = None,
        brush: int | None = None,
    ) -> np.ndarray:
        """limits: ignored; those of the cache apply."""
        with self._used("mask", path, name, brush) as entry:
            entry.job.result()
            pixels: np.ndarray = np.load(entry.target)
            return pixels

    def speech(
        self, source: Path, target: Path, *, name: str | None = None, limits: InputLimits | None = None
    ) -> Speech:
        """limits: ignored; those of the cache apply. target: made a hard link to the result, or a copy."""
        with self._used("speech", source, name) as entry:
            heard: Speech = entry.job.result()
            _give(entry.target, target)
            return heard

    def pose(
        self,
        source: Path,
        target: Path,
        *,
        size: Size,
        num_frames: int,
        name: str | None = None,
        limits: InputLimits | None = None,
    ) -> PoseVideo:
        """limits: ignored; those of the cache apply. target: as for speech."""
        with self._used("pose", source, name, size, num_frames) as entry:
            read: PoseVideo = entry.job.result()
            _give(entry.target, target)
            return read

    def judge(self, speech: Path, *, name: str | None = None, limits: InputLimits | None = None) -> Speech:
        """limits: ignored; those of the cache apply. The result is cached for the run."""
        with self._used("speech", speech, name) as entry:
            heard: Speech = entry.job.result()
            return heard

    def ahead(self, portrait: Path | None, speech: Path | None, every_s: float) -> Iterator[None]:
        begun: list[_Entry] = []
        try:
            for kind, path in (("portrait", portrait), ("speech", speech)):
                if path is not None:
                    try:
                        begun.append(self._cache.begin(kind, path, None, self._visitor))
                    except BadInput as error:  # reported to the caller who uses it
                        log.debug("not read ahead: %s", error)
            for entry in begun:
                while not entry.job.wait(every_s):
                    yield
        finally:
            for entry in begun:
                self._cache.leave(entry)

    @contextmanager
    def _used(self, kind: str, path: Path, name: str | None, *wanted: Any) -> Iterator[_Entry]:
        """A file's entry, which is kept while in use."""
        entry = self._cache.begin(kind, path, name, self._visitor, *wanted)
        try:
            yield entry
        finally:
            self._cache.leave(entry)


def _read_portrait(source: Path, target: Path, name: str, limits: InputLimits) -> Portrait:
    """In the child: save the picture's pixels in target, and return the rest."""
    portrait = open_portrait(source, name=name, limits=limits)
    np.save(target, portrait.pixels)
    return replace(portrait, pixels=portrait.pixels[:0])


def _read_mask(source: Path, target: Path, name: str, limits: InputLimits, brush: int | None) -> None:
    """In the child: save the mask's pixels in target."""
    np.save(target, open_mask(source, name=name, limits=limits, brush=brush))


def _read_speech(source: Path, target: Path, name: str, limits: InputLimits) -> Speech:
    """In the child: write the canonical WAV to target."""
    return write_speech(source, target, name=name, limits=limits)


def _read_pose(
    source: Path, target: Path, name: str, limits: InputLimits, size: Size, num_frames: int
) -> PoseVideo:
    """In the child: write the frames to target."""
    return write_pose(source, target, size=size, num_frames=num_frames, name=name, limits=limits)


_READERS: Mapping[str, tuple[Callable[..., Any], str]] = {  # by kind, with a suffix
    "portrait": (_read_portrait, "npy"),
    "mask": (_read_mask, "npy"),
    "speech": (_read_speech, "wav"),
    "pose": (_read_pose, "mkv"),
}


def _digest(path: Path, name: str) -> str:
    """SHA-256 of a file, in constant memory. Raises: BadInput when the file no longer exists."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise BadInput(f"{name} is no longer here.", "Choose it again.") from None


def _give(source: Path, target: Path) -> None:
    """Hard-link a file; copy it on another file system."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
