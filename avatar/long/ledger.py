"""The progress of a long video: a folder with its plan, its finished parts, and an append-only ledger.

A part is done once its line is in the ledger, which is written after all files that it refers to are on disk.
So the ledger is correct whenever a run ends, and everything else in the folder may be removed.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from avatar import locks
from avatar.errors import BadInput
from avatar.events import Finished
from avatar.long.splitting import Span
from avatar.media import atomic
from avatar.media.side_files import MADE_BY, MARK, REPORT, THUMBNAIL, made_here, report_path, thumbnail_path
from avatar.request import Part, Request
from avatar.runtime.fingerprint import check_same, file_digest, origin, run_name

log = logging.getLogger(__name__)

PLAN, LINES, _LOCK = "plan.json", "ledger.jsonl", ".lock"
SPOKEN = "spoken.wav"  # speech made from a text; the .json beside it holds that text
_VERSION = 1
_SUFFIXES = (".mp4", REPORT, THUMBNAIL)
_MADE = re.compile(  # names of files that are made here
    rf"part_\d{{5}}({'|'.join(map(re.escape, _SUFFIXES))})|carry_\d{{5}}\.bin|\..+{re.escape(atomic.DRAFT)}"
)


@dataclass(frozen=True)
class FinishedPart:
    """One finished part. digest: SHA-256 of its video. carry: that of its file for the next part, or ""."""

    part: int
    digest: str
    carry: str = ""


class Ledger:
    """One long video's folder, locked by one process at a time. Created by begin or resume.

    chained: each part continues from the previous one's carry file; otherwise parts may be made in any order.
    """

    def __init__(self, folder: Path, plan: dict[str, Any], lock: locks.FileLock) -> None:
        self.folder = folder
        self.spans = [Span(**span) for span in plan["spans"]]
        self.chained = bool(plan["chained"])
        self.run = run_name(plan["made_from"], plan["spans"])
        self._lock = lock
        self._writing = threading.Lock()
        self._lines: dict[int, FinishedPart] = {}

    @classmethod
    def begin(
        cls, folder: Path, request: Request, spans: Sequence[Span], *, independent: bool = False
    ) -> Ledger:
        """Plan a new video in a folder that is new or empty. Raises: BadInput, OSError.

        independent: diffusion's parts all begin from the portrait; the preview's are always independent.
        """
        lock = _take(folder)
        if (folder / PLAN).exists():
            lock.release()
            raise BadInput(
                f"A half-made {request.output.name} is there already.",
                f"Resume it with --resume, or delete the folder {folder.name} to start over.",
            )
        try:
            _check_ours(folder)
        except BaseException:
            lock.release()
            raise
        plan = {
            **MARK,
            "version": _VERSION,
            "made_from": origin(request),
            "spans": [asdict(span) for span in spans],
            "chained": request.preset.engine == "diffusion" and not independent,
        }
        (folder / LINES).unlink(missing_ok=True)  # left by a finished video
        atomic.write(folder / PLAN, json.dumps(plan, indent=1).encode())
        atomic.sync(folder.parent)
        ledger = cls(folder, plan, lock)
        ledger._clear()
        return ledger

    @classmethod
    def resume(cls, folder: Path, request: Request) -> Ledger:
        """Continue a video, if its inputs are the same; otherwise nothing is changed.

        Raises: BadInput for other inputs, a damaged folder, or one that another process is using.
        """
        plan = _read_plan(folder)
        lock = _take(folder)
        try:
            check_same(plan["made_from"], origin(request), request.output.name)
            ledger = cls(folder, plan, lock)
            ledger._read_lines()
            ledger._clear()
        except BaseException:
            lock.release()
            raise
        return ledger

    @property
    def done(self) -> set[int]:
        """The finished parts."""
        return set(self._lines)

    @property
    def missing(self) -> list[int]:
        return [part for part in range(len(self.spans)) if part not in self._lines]

    def video(self, part: int) -> Path:
        """The path of a finished part; its report and thumbnail are beside it."""
        return self.folder / f"part_{part:05d}.mp4"

    def carry(self, part: int) -> Path:
        """The path of the file that a part leaves for the next one."""
        return self.folder / f"carry_{part:05d}.bin"

    def request(self, part: int, whole: Request) -> Request:
        """The engine's request for one part, with its own work folder."""
        span, last = self.spans[part], part == len(self.spans) - 1
        work = whole.work / f"part_{part:05d}"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        return replace(
            whole,
            work=work,
            output=work / self.video(part).name,
            num_frames=span.num_frames,
            notices=(),
            part=Part(
                run=self.run,
                first_frame=span.first_frame,
                speech_frames=whole.num_frames,
                carry=self.carry(part - 1) if self.chained and part else None,
                leave=work / self.carry(part).name if self.chained and not last else None,
            ),
        )

    def record(self, part: int, request: Request, finished: Finished) -> Path:
        """Save a finished part: first its files, then its line.

        Raises: OSError; the part's report and thumbnail then remain in the work folder, too.
        """
        video = self.video(part)
        atomic.copy(thumbnail_path(finished.video), thumbnail_path(video))
        atomic.copy(finished.report, report_path(video))
        leave = request.part.leave if request.part else None
        carry = "" if leave is None else file_digest(leave)
        if leave is not None:
            atomic.move(leave, self.carry(part))
        atomic.move(finished.video, video)
        self._append(FinishedPart(part, file_digest(video), carry))
        if request.part and request.part.carry:
            request.part.carry.unlink(missing_ok=True)  # replaced by this part's own
        return video

    def finish(self, keep_parts: bool = False) -> None:
        """Discard the ledger, since the whole video is at its destination and nothing is left to resume."""
        (self.folder / PLAN).unlink()  # without it, the rest does not count as a video
        tidy(self.folder, keep_parts)
        self.close()

    def close(self) -> None:
        """Release the lock, so that another process can continue the video."""
        self._lock.release()

    def _append(self, line: FinishedPart) -> None:
        with self._writing, (self.folder / LINES).open("ab") as file:
            before = file.tell()
            try:
                file.write((json.dumps(asdict(line)) + "\n").encode())
                file.flush()
                os.fsync(file.fileno())
                atomic.sync(self.folder)
            except OSError:
                os.truncate(self.folder / LINES, before)  # no other line may follow a partial one
                raise
            self._lines[line.part] = line

    def _read_lines(self) -> None:
        """Read the lines whose files match; an incomplete last line, as after a power cut, is ignored."""
        path = self.folder / LINES
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            os.truncate(path, len(whole.encode()))
        try:
            lines = [FinishedPart(**json.loads(line)) for line in whole.splitlines()]
        except (ValueError, TypeError) as error:
            raise _damaged(self.folder, LINES) from error
        self._lines = {line.part: line for line in lines}
        for line in lines:
            _check(self.video(line.part), line.digest, self.folder)
        if lines and self.chained and self.missing:
            last = lines[-1]
            _check(self.carry(last.part), last.carry, self.folder)

    def _clear(self) -> None:
        """Remove files that were made here but are in no line; never other files."""
        known = set()
        for part in self._lines:
            known |= {self.video(part).with_suffix(suffix).name for suffix in _SUFFIXES}
        if self._lines:
            known.add(self.carry(max(self._lines)).name)
        for path in self.folder.iterdir():
            if path.name not in known and _MADE.fullmatch(path.name):
                log.info("%s: %s is unfinished and removed", self.folder.name, path.name)
                path.unlink()


def tidy(folder: Path, keep_parts: bool = False) -> None:
    """Remove a finished video's ledger files, and its parts unless keep_parts."""
    if not (folder / LINES).exists() or (folder / PLAN).exists():
        return
    for path in list(folder.iterdir()):
        if path.name in (_LOCK, SPOKEN, SPOKEN.replace(".wav", ".json")) or (
            _MADE.fullmatch(path.name) and not keep_parts
        ):
            path.unlink()
    (folder / LINES).unlink()
    if not any(folder.iterdir()):
        folder.rmdir()


def open_ledger(
    folder: Path,
    request: Request,
    spans: Callable[[], Sequence[Span]],
    *,
    independent: bool = False,
    resume: bool = False,
) -> Ledger:
    """Begin a video, or continue it. spans: called only when it is begun.

    independent: see begin. Raises: BadInput, AvatarError when the disk is full.
    """
    try:
        if resume and (folder / PLAN).exists():
            return Ledger.resume(folder, request)
        return Ledger.begin(folder, request, spans(), independent=independent)
    except OSError as error:
        raise atomic.disk_error(error) from error


def _take(folder: Path) -> locks.FileLock:
    """Take the folder's lock, until release(). Raises: BadInput when another process holds it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = locks.take(folder / _LOCK)
    except OSError as error:
        raise BadInput(
            f"The folder {folder.name} cannot be written ({error.strerror}).", "Choose another output."
        ) from error
    if lock is None:
        raise BadInput(f"Another process is working on {folder.name}.", "Wait for it to end, or stop it.")
    return lock


def _read_plan(folder: Path) -> dict[str, Any]:
    try:
        plan = json.loads((folder / PLAN).read_text(encoding="utf-8"))
        if plan["version"] != _VERSION or not plan["spans"] or not isinstance(plan["made_from"], dict):
            raise ValueError("another version")
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(folder, PLAN) from error
    return plan  # type: ignore[no-any-return]


def _check_ours(folder: Path) -> None:
    """Refuse a folder in which files that are not ours would be replaced or removed. Raises: BadInput."""
    for path in sorted(folder.iterdir()):
        is_lines = path.name == LINES
        is_side = path.name.endswith(_SUFFIXES) and _MADE.fullmatch(path.name) is not None
        if (is_lines and not _is_lines(path)) or (is_side and not made_here(path)):
            raise BadInput(
                f"{path.name} in {folder.name} was not made by {MADE_BY}.",
                "It is left as it is: choose another name for the output.",
            )


def _is_lines(path: Path) -> bool:
    """Whether a file is a ledger, or empty."""
    try:
        FinishedPart(**json.loads(path.read_text(encoding="utf-8").partition("\n")[0] or "{}"))
    except (OSError, ValueError, TypeError):
        return path.stat().st_size == 0
    return True


def _check(path: Path, digest: str, folder: Path) -> None:
    if not path.is_file() or file_digest(path) != digest:
        raise _damaged(folder, path.name)


def _damaged(folder: Path, name: str) -> BadInput:
    return BadInput(
        f"{name} in {folder.name} is damaged or missing: the video cannot be resumed.",
        f"Restore the file, or delete the folder {folder.name} to start over.",
    )
