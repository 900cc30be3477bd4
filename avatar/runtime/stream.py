"""Turn any engine's frames into events: segments, progress, notices, the finished file."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np

from avatar.checkpoints.locations import cache_folder
from avatar.errors import AvatarError, Cancelled, NotPlaced
from avatar.events import (
    Event,
    Finished,
    Notice,
    Phase,
    PlanMade,
    Progress,
    Segment,
)
from avatar.geometry import FPS
from avatar.media.atomic import disk_error
from avatar.media.caption_files import Burner
from avatar.media.growing import open_speech, settled
from avatar.media.portrait import read_portrait
from avatar.media.segments import SegmentWriter, join_segments
from avatar.media.transparent import TransparentWriter, complete
from avatar.planning.plan import Plan
from avatar.request import KEEP, LiveRequest, Request
from avatar.runtime.engine import FrameSource
from avatar.runtime.extent import Extent
from avatar.runtime.finished_files import Unreported, new_report, publish, save_thumbnail, settle_report
from avatar.runtime.progress import ProgressClock
from avatar.runtime.report import MemoryUse, RungTaken, RunReport
from avatar.runtime.usual_times import UsualTimes

if TYPE_CHECKING:
    from avatar.media.background.compositor import Compositor

log = logging.getLogger(__name__)

PROGRESS_S = 0.4  # maximum between two Progress events

_QUEUED_BATCHES = 2  # batches of the source that may wait for the encoder
_BATCH = 25  # frames encoded between two checks for cancellation


def stream_frames(
    source: FrameSource,
    request: Request,
    cancelled: Callable[[], bool] = lambda: False,
    *,
    encoder_threads: int = 1,
    plan: Callable[[], Plan | None] = lambda: None,
    use: Callable[[], MemoryUse | None] = lambda: None,
) -> Iterator[Event]:
    """Run a source to its end and yield events: Progress at least twice a second, Finished last.

    plan, use: for the report; plan is called as the run begins, use at its end.

    The source runs in one thread, the encoder in another; a slow consumer slows neither. Closing the iterator
    cancels the source and finishes the file with the frames made so far. When cancelled() returns True, the
    last event is Finished(stopped=True), or Cancelled is raised if no frame was made. After an error,
    Finished(stopped=True, error=…) is yielded if frames were made, then the error is raised. Thumbnail and
    report are written beside request.output. Raises: NotPlaced, without Finished, when the video is made but
    cannot be moved there.
    """
    run = _Run(source, request, cancelled, encoder_threads, plan, use)
    try:
        run.start()
        yield from run.events()
    finally:
        run.stop()
    if run.error and not (run.finished and isinstance(run.error, Cancelled)):
        raise run.error


class _Run:
    """One run: a rendering thread, an encoding thread, and their events for the consumer."""

    def __init__(
        self,
        source: FrameSource,
        request: Request,
        cancelled: Callable[[], bool],
        encoder_threads: int,
        plan: Callable[[], Plan | None],
        use: Callable[[], MemoryUse | None],
    ) -> None:
        self.error: BaseException | None = None  # the first one
        self.finished: Finished | None = None
        self._source, self._request, self._encoder_threads = source, request, encoder_threads
        self._fps = FPS
        self._extent = Extent(request)
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()  # None: the end
        self._frames: queue.Queue[np.ndarray | None] = queue.Queue(_QUEUED_BATCHES)  # None: no more frames
        self._segments: list[Segment] = []
        self._stopping = threading.Event()
        self._cancelled = lambda: self._stopping.is_set() or cancelled()
        self._threads = [
            threading.Thread(target=work, name=work.__name__.strip("_"), daemon=True)
            for work in (self._render, self._encode)
        ]
        loads = request.preset.engine == "diffusion"
        usual = UsualTimes(cache_folder(), request.preset.name) if loads else None
        self._clock = ProgressClock(*self._extent.expected, usual)
        self._report = new_report(request, source.label)
        self._plan, self._use = plan, use
        self._made = 0  # frames received from the source

    def start(self) -> None:
        for notice in self._request.notices:
            self._emit(notice)
        self._clock.start()
        for thread in self._threads:
            thread.start()

    def events(self) -> Iterator[Event]:
        """The threads' events, with Progress in between."""
        yield self._clock.progress()
        due = time.monotonic() + PROGRESS_S
        while True:
            try:
                event = self._events.get(timeout=max(0.0, due - time.monotonic()))
            except queue.Empty:
                self._clock.num_frames, self._clock.num_segments = self._extent.expected
                event = self._clock.progress()
            if event is None:
                break
            yield event
            if isinstance(event, Progress):
                due = time.monotonic() + PROGRESS_S
        yield self._clock.progress()
        if self.finished:
            yield self.finished

    def stop(self) -> None:
        """Cancel the run and wait for both threads."""
        self._stopping.set()
        for thread in self._threads:
            if thread.ident:
                thread.join()

    def _emit(self, event: Event) -> None:
        if isinstance(event, Segment):
            self._segments.append(event)
            self._clock.segment_done()
        if isinstance(event, Notice):
            self._report.notices.append(asdict(event))
            if event.rung:
                taken = RungTaken(event.rung, event.code, event.text, self._made, event.values)
                self._report.rungs.append(taken)
        self._events.put(event)

    def _render(self) -> None:
        """First thread: pass frames from the source to the encoder, until all are made or the run stops."""
        try:
            if (planned := self._plan()) is not None:
                self._report.plan = planned.as_dict()
                self._emit(PlanMade(planned))
            compositor = compositor_of(self._request)
            burner = Burner(self._request.captions, self._fps) if self._request.burn_captions else None
            for item in self._source.frames(self._request, self._cancelled):
                if self._cancelled():
                    raise Cancelled("The run was stopped.")
                if isinstance(item, Progress):
                    self._clock.ranks = item.ranks or self._clock.ranks
                    if self._clock.follow(item):
                        self._emit(self._clock.progress())
                elif isinstance(item, Notice | PlanMade):
                    self._emit(item)
                else:
                    if compositor is not None:
                        item = compositor.apply(item)
                    if burner is not None:
                        burner.show(self._extent.captions)
                        item = burner.burn(item, self._request.first_frame + self._made)
                    self._made += self._hand_over(item, self._extent.most - self._made)
            if self._made < (wanted := self._extent.most):
                if self._cancelled():
                    raise Cancelled("The run was stopped.")
                raise AvatarError(
                    f"The engine stopped after {self._made} of {wanted} frames.",
                    "What was made is kept; run it again, and report it if it happens again.",
                )
            if self._extent.error is not None:
                raise self._extent.error
        except BaseException as error:
            self._fail(error)
        finally:
            self._frames.put(None)

    def _hand_over(self, frames: np.ndarray, wanted: int) -> int:
        """Queue the wanted frames, with a notice if there were more; returns how many were queued."""
        self._clock.frame_made()
        if len(frames) > wanted:
            surplus = len(frames) - wanted
            text = f"{surplus} frames past the speech's end were left out."
            self._emit(Notice("frames_cut", text, "warning", values={"count": surplus}))
            frames = frames[:wanted]
        for start in range(0, len(frames), _BATCH):
            self._frames.put(frames[start : start + _BATCH])
        return len(frames)

    def _fail(self, error: BaseException) -> None:
        error = disk_error(error)
        if not isinstance(error, AvatarError):
            log.error("the run failed", exc_info=error)
        # An error says more than a cancellation, and NotPlaced, which says where the video is, says most.
        if self.error is None or isinstance(self.error, Cancelled) or isinstance(error, NotPlaced):
            self.error = error

    def _encode(self) -> None:
        """Second thread: write frames to files; runs until the first has ended, even after an error."""
        request, rendering = self._request, True
        transparent = _transparent_writer(request, self._fps, self._encoder_threads)
        try:
            with open_speech(request) as speech:
                writer = SegmentWriter(
                    speech,
                    request.work,
                    _shown_output(request),
                    lengths=self._extent.segments,
                    fps=self._fps,
                    threads=self._encoder_threads,
                    part=request.part,
                )
                try:
                    while (frames := self._frames.get()) is not None:
                        self._write(writer, frames, transparent)
                    rendering = False
                    if transparent is not None and transparent.num_frames:
                        transparent.finish(speech)
                    self._finish(writer)
                except BaseException:
                    writer.abort()
                    if transparent is not None:
                        transparent.abort()
                    raise
        except BaseException as error:
            self._fail(error)
            self._stopping.set()
            while rendering and self._frames.get() is not None:  # so that the first thread is not blocked
                pass
            if self._segments and self.finished is None and not isinstance(error, NotPlaced):
                self._count_up()
                self._join()
        finally:
            self._events.put(None)

    def _settle(self) -> None:
        """From now on, go by what has been said of a text whose voice was still speaking."""
        self._request = settled(self._request)
        self._clock.num_frames, self._clock.num_segments = self._extent.expected
        settle_report(self._report, self._request)

    def _join(self) -> None:
        """Rebuild the file from its segments after it could not be completed."""
        self._settle()
        try:
            self.finished = _join(self._request, self._report, self._segments, _error_text(self.error))
        except Unreported as error:
            self.finished = error.finished
        except NotPlaced as error:
            self._fail(error)

    def _write(
        self, writer: SegmentWriter, frames: np.ndarray, transparent: TransparentWriter | None
    ) -> None:
        first = writer.num_frames == 0
        writer.lengths = self._extent.segments
        if transparent is not None:
            from avatar.media.background.compositor import on_chequers  # imports OpenCV

            transparent.write(frames)
            frames = on_chequers(frames)
        for segment in writer.write(frames):
            self._emit(segment)
        if first and writer.num_frames:
            save_thumbnail(frames[0], self._request)
        self._clock.frames_encoded(writer.num_frames)

    def _finish(self, writer: SegmentWriter) -> None:
        """Move the finished file, thumbnail and report to their destinations, if a frame was made."""
        if writer.num_frames == 0:
            return
        self._clock.enter(Phase.FINISHING)
        self._emit(self._clock.progress())
        for segment in writer.finish():
            self._emit(segment)
        self._settle()
        self._count_up()
        self._report.width, self._report.height = writer.width, writer.height
        self._report.stopped = self.error is not None
        try:
            self.finished = publish(self._request, self._report, writer.num_frames, _error_text(self.error))
        except Unreported as error:
            self.finished = error.finished
            self._fail(error)

    def _count_up(self) -> None:
        """Enter times, memory and the kind of error in the report."""
        report, state = self._report, self._clock.progress()
        report.elapsed_s, report.first_frame_s = state.elapsed_s, state.first_frame_s
        report.frames_per_s, report.first_segment_s = state.fps, self._clock.first_segment_s
        report.activities_s = self._clock.activities_s
        report.memory, report.error_kind = self._use(), error_kind(self.error)


def finish_from_segments(
    request: Request,
    segments: Sequence[Segment],
    error: AvatarError,
    *,
    label: str = "",
    progress: Progress | None = None,
    plan: Plan | None = None,
    memory: MemoryUse | None = None,
) -> Finished | None:
    """Join a killed run's finished segments into a file with its report; None if that fails, too.

    Raises: NotPlaced when the file cannot be moved to its destination.

    segments: as reported, in order. error: why the run ended. progress: the last one reported.
    plan, memory: for the report.
    """
    request = settled(request)
    report = replace(new_report(request, label), error_kind=error_kind(error), memory=memory)
    if plan is not None:
        report.plan = plan.as_dict()
    if progress is not None:
        report.elapsed_s, report.first_frame_s = progress.elapsed_s, progress.first_frame_s
        report.frames_per_s = progress.fps
    try:
        return _join(request, report, segments, str(error))
    except Unreported as unreported:
        log.error("%s", unreported)
        return unreported.finished


def error_kind(error: BaseException | None) -> str | None:
    """The class of the error that ended a run early; None if nothing did, or the user cancelled."""
    return None if error is None or isinstance(error, Cancelled) else type(error).__name__


def _join(
    request: Request, report: RunReport, segments: Sequence[Segment], error: str | None
) -> Finished | None:
    report.stopped = True
    try:
        with open_speech(request) as speech:
            num_frames = sum(segment.num_frames for segment in segments)
            if request.transparent_output is not None:
                made = complete(request.work, speech, request.transparent_output, report.fps)
                num_frames = made if request.transparent_output == request.output else num_frames
            join_segments(segments, speech, _shown_output(request), report.fps, request.part)
        with av.open(str(_shown_output(request))) as video:
            picture = next(video.decode(video=0))
        report.width, report.height = picture.width, picture.height
        save_thumbnail(picture.to_ndarray(format="rgb24"), request)
        return publish(request, report, num_frames, error)
    except (av.FFmpegError, OSError):
        log.exception("the segments could not be joined")
        return None


def compositor_of(request: Request | LiveRequest) -> Compositor | None:
    """What puts another background behind the person; None where the portrait's own is kept."""
    if request.background == KEEP:
        return None
    from avatar.media.background.compositor import Compositor  # imports OpenCV; only for such a run

    picture = request.background_picture
    return Compositor(request.background, None if picture is None else read_portrait(picture))


def _transparent_writer(request: Request, fps: int, threads: int) -> TransparentWriter | None:
    output = request.transparent_output
    return None if output is None else TransparentWriter(request.work, output, fps=fps, threads=threads)


def _shown_output(request: Request) -> Path:
    """Where the H.264 goes that has played: it is the output, unless that is a transparent file."""
    return request.work / "shown.mp4" if request.transparent_output == request.output else request.output


def _error_text(error: BaseException | None) -> str | None:
    """An error's text for the user: None for their own cancellation, no internals of a bug."""
    if error is None or isinstance(error, Cancelled):
        return None
    if isinstance(error, AvatarError):
        return str(error)
    return "The engine failed unexpectedly; what was made is kept. The log says more."
