"""Engines for tests: they write real files, and follow a script."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from avatar.errors import Cancelled
from avatar.events import Event, Finished, Notice, Phase, PlanMade, Progress, Segment
from avatar.planning.plan import Plan
from avatar.preset import Preset
from avatar.request import Request

PREVIEW = Preset(name="cpu-preview", title="Preview", summary="", engine="preview")


@dataclass
class ScriptedEngine:
    """Makes num_segments segments. hold: wait at each until released; fail_at: raise error at that one."""

    num_segments: int = 3
    hold: bool = False
    fail_at: int | None = None
    error: BaseException | None = None
    label: str = "preview"
    plan: Plan | None = None
    requests: list[Request] = field(default_factory=list)
    closed: bool = False

    def __post_init__(self) -> None:
        self.go = threading.Event()
        self._cancelled = threading.Event()

    def stream(self, request: Request) -> Iterator[Event]:
        self._cancelled.clear()
        self.requests.append(request)
        if self.plan is not None:
            yield PlanMade(self.plan)
        yield Progress(Phase.ENCODING)
        yield Notice("head_only", "Only the head moves.", "warning")
        made = 0
        for index in range(self.num_segments):
            while self.hold and not self.go.is_set() and not self._cancelled.is_set():
                time.sleep(0.01)
                yield Progress(Phase.GENERATING, 50 * made, request.num_frames)
            if self._cancelled.is_set():
                break
            if self.fail_at == index:
                if made:
                    yield self._finish(request, made, str(self.error))
                assert self.error is not None
                raise self.error
            path = request.work / f"segment-{index}.mp4"
            path.write_bytes(b"segment")
            made += 1
            yield Segment(path, index, 50 * index, 50)
            yield Progress(Phase.GENERATING, 50 * made, request.num_frames, made, self.num_segments)
        if not made:
            raise Cancelled("Stopped before the first frame.")
        yield self._finish(request, made, None)

    def _finish(self, request: Request, made: int, error: str | None) -> Finished:
        request.output.write_bytes(b"video")
        stopped = made < self.num_segments
        report = request.output.with_suffix(".report.json")
        return Finished(request.output, report, 50 * made, 2.0 * made, stopped=stopped, error=error)

    def cancel(self) -> None:
        self._cancelled.set()

    def close(self) -> None:
        self.closed = True


def make_request(output: Path, work: Path, preset: Preset = PREVIEW) -> Request:
    """A request whose files are not read."""
    work.mkdir(parents=True, exist_ok=True)
    return Request(
        portrait=work / "portrait.png",
        speech=work / "speech.wav",
        work=work,
        output=output,
        preset=preset,
        num_frames=150,
        portrait_name="me.jpg",
        speech_name="hello.wav",
    )
