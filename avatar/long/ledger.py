"""What is done of a long video: a folder with its plan, its finished parts, and a ledger that only grows.

A part counts once its line is in the ledger; the line is written when everything that it speaks of is on the
disk. So whenever a run is ended, what the ledger says is true, and all else in the folder may be removed.
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
SPOKEN = "spoken.wav"  # what was spoken from a text; beside it, as .json, from which
_VERSION = 1
_SUFFIXES = (".mp4", REPORT, THUMBNAIL)
_MADE = re.compile(  # names of what is made here
    rf"part_\d{{5}}({'|'.join(map(re.escape, _SUFFIXES))})|carry_\d{{5}}\.bin|\..+{re.escape(atomic.DRAFT)}"
)


@dataclass(frozen=True)
class Line:
    """One finished part. digest: SHA-256 of its file. carry: of what it left for the next, or ""."""

    part: int
    digest: str
    carry: str = ""


class Ledger:
    """One long video's folder; held by one process at a time. Made by begin, or by resume.

    chained: each part begins from what the one before it left; else they may be made in any order.
    """

    def __init__(self, folder: Path, plan: dict[str, Any], lock: locks.FileLock) -> None:
        self.folder = folder
        self.spans = [Span(**span) for span in plan["spans"]]
        self.chained = bool(plan["chained"])
        self.run = run_name(plan["made_from"], plan["spans"])
        self._lock = lock
        self._writing = threading.Lock()
        self._lines: dict[int, Line] = {}

    @classmethod
    def begin(
        cls, folder: Path, request: Request, spans: Sequence[Span], *, independent: bool = False
    ) -> Ledger:
        """Plan a new video in a folder that is not there, or empty. Raises: BadInput, OSError.

        independent: diffusion's parts all begin from the portrait; the preview's never need each other.
        """
        lock = _take(folder)
        if (folder / PLAN).exists():
            lock.release()
            raise BadInput(
                f"A half-made {request.output.name} is there already.",
                f"Resume it with --resume, or delete the folder {folder.name} to begin anew.",
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
        (folder / LINES).unlink(missing_ok=True)  # of a video that is finished
        atomic.write(folder / PLAN, json.dumps(plan, indent=1).encode())
        atomic.sync(folder.parent)
        ledger = cls(folder, plan, lock)
        ledger._clear()
        return ledger

    @classmethod
    def resume(cls, folder: Path, request: Request) -> Ledger:
        """Take up a video again, if it is made from the same; nothing is changed where it is not.

        Raises: BadInput for other ingredients, a damaged folder, or one that another process works on.
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
        """The parts that are finished."""
        return set(self._lines)

    @property
    def missing(self) -> list[int]:
        return [part for part in range(len(self.spans)) if part not in self._lines]

    def video(self, part: int) -> Path:
        """Where a finished part lies; its report and thumbnail lie beside it."""
        return self.folder / f"part_{part:05d}.mp4"

    def carry(self, part: int) -> Path:
        """Where lies what a part left for the next one."""
        return self.folder / f"carry_{part:05d}.bin"

    def request(self, part: int, whole: Request) -> Request:
        """What the engine is asked for: one part, in its own place of work."""
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
        """Keep a finished part for good: its files first, then its line.

        Raises: OSError; what lies beside the part is still where it was made then.
        """
        video = self.video(part)
        atomic.copy(thumbnail_path(finished.video), thumbnail_path(video))
        atomic.copy(finished.report, report_path(video))
        leave = request.part.leave if request.part else None
        carry = "" if leave is None else file_digest(leave)
        if leave is not None:
            atomic.move(leave, self.carry(part))
        atomic.move(finished.video, video)
        self._append(Line(part, file_digest(video), carry))
        if request.part and request.part.carry:
            request.part.carry.unlink(missing_ok=True)  # this part's own stands in its place
        return video

    def finish(self, keep_parts: bool = False) -> None:
        """The whole video is in its place: there is nothing to resume."""
        (self.folder / PLAN).unlink()  # without it nobody takes the rest for a video
        tidy(self.folder, keep_parts)
        self.close()

    def close(self) -> None:
        """Let another process take the video up."""
        self._lock.release()

    def _append(self, line: Line) -> None:
        with self._writing, (self.folder / LINES).open("ab") as file:
            before = file.tell()
            try:
                file.write((json.dumps(asdict(line)) + "\n").encode())
                file.flush()
                os.fsync(file.fileno())
                atomic.sync(self.folder)
            except OSError:
                os.truncate(self.folder / LINES, before)  # another engine's line must not follow half of one
                raise
            self._lines[line.part] = line

    def _read_lines(self) -> None:
        """Every line whose files are as it says; one cut short by the power, at the end, is no line."""
        path = self.folder / LINES
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            os.truncate(path, len(whole.encode()))
        try:
            lines = [Line(**json.loads(line)) for line in whole.splitlines()]
        except (ValueError, TypeError) as error:
            raise _damaged(self.folder, LINES) from error
        self._lines = {line.part: line for line in lines}
        for line in lines:
            _check(self.video(line.part), line.digest, self.folder)
        if lines and self.chained and self.missing:
            last = lines[-1]
            _check(self.carry(last.part), last.carry, self.folder)

    def _clear(self) -> None:
        """Remove what was made here and no line speaks of; nobody else's files."""
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
    """Remove what a finished video's ledger has left, and unless they are to be kept its parts."""
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
    """Begin a video, or take it up where it was left. spans: asked for when it is begun.

    independent: see begin. Raises: BadInput, AvatarError when the disk is full.
    """
    try:
        if resume and (folder / PLAN).exists():
            return Ledger.resume(folder, request)
        return Ledger.begin(folder, request, spans(), independent=independent)
    except OSError as error:
        raise atomic.disk_error(error) from error


def _take(folder: Path) -> locks.FileLock:
    """The folder's lock, held until it is released. Raises: BadInput when another process holds it."""
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
    """Refuse to begin where files that are not ours would be replaced or removed. Raises: BadInput."""
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
        Line(**json.loads(path.read_text(encoding="utf-8").partition("\n")[0] or "{}"))
    except (OSError, ValueError, TypeError):
        return path.stat().st_size == 0
    return True


def _check(path: Path, digest: str, folder: Path) -> None:
    if not path.is_file() or file_digest(path) != digest:
        raise _damaged(folder, path.name)


def _damaged(folder: Path, name: str) -> BadInput:
    return BadInput(
        f"{name} in {folder.name} is damaged or missing: the video cannot be resumed.",
        f"Restore the file, or delete the folder {folder.name} to begin anew.",
    )
