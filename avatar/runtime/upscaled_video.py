"""An Engine that enlarges what another one has finished; what is finished is never lost by it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from avatar.errors import AvatarError, Cancelled
from avatar.events import Event, Finished, Phase, Progress
from avatar.geometry import FPS, Size
from avatar.media.upscale import ARNET, LANCZOS, as_made, check_larger, enlarge_by, rewritten, upscaled_size
from avatar.request import Request
from avatar.runtime.engine import Engine
from avatar.runtime.external_program import COMMAND, Program
from avatar.runtime.report import Upscaled, read_report

log = logging.getLogger(__name__)

PROGRESS_S = 0.4  # between two Progress events


class UpscaledVideo:
    """Runs an engine, then enlarges its finished video in place if the request asks for it.

    A video that was stopped is not enlarged, nor is a part of one. If enlarging fails or is stopped, the
    video stays as the engine made it, and stream() raises after Finished.
    """

    def __init__(self, engine: Engine, program: Sequence[str] = ()) -> None:
        """program: the words of a command that enlarges, see Program; empty for the request's own way."""
        self._engine, self._program = engine, Program(program) if program else None
        self._cancelled = threading.Event()

    @property
    def label(self) -> str:
        return str(getattr(self._engine, "label", ""))

    def stream(self, request: Request) -> Iterator[Event]:
        """See Engine.stream. Raises: AvatarError after Finished, also where enlarging failed."""
        self._cancelled.clear()
        finished: Finished | None = None
        failure: Exception | None = None
        last: Progress | None = None
        events = self._engine.stream(request)
        try:
            for event in events:
                if isinstance(event, Finished):
                    finished = event
                    continue
                last = event if isinstance(event, Progress) else last
                yield event
        except Exception as error:  # an engine raises after Finished, which has to come first here as well
            failure = error
        finally:
            close = getattr(events, "close", None)
            if close is not None:
                close()
        if finished is None:
            if failure is not None:
                raise failure
            return
        wanted = request.preset.generation.upscale != "off" and request.part is None
        if wanted and failure is None and not finished.stopped:
            try:
                yield from self._enlarge(request, finished, last)
            except AvatarError as error:
                failure = error
        yield finished
        if failure is not None:
            raise failure

    def cancel(self) -> None:
        """See Engine."""
        self._cancelled.set()
        self._engine.cancel()

    def close(self) -> None:
        """See Engine."""
        self._engine.close()

    def _enlarge(self, request: Request, finished: Finished, last: Progress | None) -> Iterator[Event]:
        """Replace the finished video by a larger one, and say so in its report. Raises: AvatarError."""
        report = read_report(finished.report)
        made = Size(report.width, report.height)
        size = upscaled_size(made)
        assert size is not None, "looked at before anything was made"
        begun, due = time.monotonic(), 0.0
        try:
            for num_done in self._frames(request, finished, size):
                if self._cancelled.is_set():
                    raise Cancelled("Upscaling was stopped.")
                if time.monotonic() >= due:
                    due = time.monotonic() + PROGRESS_S
                    yield _progress(last, num_done, finished.num_frames, time.monotonic() - begun)
        except AvatarError as error:
            words = f"{finished.video.name} is finished at {made}, and stays so: {error.message}"
            raise type(error)(words, error.remedy) from error
        by = COMMAND if self._program else ARNET if request.preset.generation.upscale != "1080p" else LANCZOS
        took_s = round(time.monotonic() - begun, 2)
        report = replace(
            report,
            width=size.width,
            height=size.height,
            upscaled=Upscaled(by, made.width, made.height, took_s),
        )
        report.write(finished.report)

    def _frames(self, request: Request, finished: Finished, size: Size) -> Iterator[int]:
        """Write the larger video; yields how many frames are done. Raises: AvatarError."""
        pictures = finished.video
        if self._program is None:
            enlarge = enlarge_by(request.preset.generation.upscale, size)
            yield from rewritten(pictures, pictures, pictures, size, enlarge)
            return
        made = request.work / "upscaled.mp4"
        try:
            seconds = finished.num_frames / FPS
            for _ in self._program.running(pictures, made, size, seconds, self._cancelled.is_set):
                yield 0
            check_larger(made, pictures, self._program.name)
            yield from rewritten(made, pictures, pictures, size, as_made)
        finally:
            made.unlink(missing_ok=True)


class AlreadyMade:
    """An Engine for a video that is finished and still has to be enlarged."""

    def __init__(self, engine: Engine, finished: Finished) -> None:
        self._engine, self._finished = engine, finished

    @property
    def label(self) -> str:
        return str(getattr(self._engine, "label", ""))

    def stream(self, request: Request) -> Iterator[Event]:
        """See Engine.stream."""
        yield from request.notices
        yield self._finished

    def cancel(self) -> None:
        """Nothing runs."""

    def close(self) -> None:
        """See Engine."""
        self._engine.close()


def _progress(last: Progress | None, num_done: int, num_frames: int, elapsed_s: float) -> Progress:
    """The run's progress while it is enlarged: all frames are made, and so many are enlarged."""
    fps = num_done / elapsed_s if num_done and elapsed_s > 0 else None
    eta_s = (num_frames - num_done) / fps if fps else None
    before = last or Progress(Phase.FINISHING, num_frames, num_frames)
    elapsed_s += before.elapsed_s
    return replace(before, phase=Phase.UPSCALING, fps=fps, eta_s=eta_s, elapsed_s=elapsed_s)
