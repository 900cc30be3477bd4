"""A long video as one run: an Engine over engines that makes the missing parts and joins all parts."""

from __future__ import annotations

import logging
import queue
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from avatar.errors import AvatarError, Cancelled, NotPlaced
from avatar.events import (
    Event,
    Finished,
    Notice,
    PartDone,
    Phase,
    Progress,
    RankLoad,
    Segment,
)
from avatar.geometry import FPS
from avatar.long.ledger import Ledger
from avatar.media.atomic import disk_error, unwritten
from avatar.media.join import join_parts
from avatar.media.side_files import written_report, written_thumbnail
from avatar.request import Request
from avatar.runtime.engine import Engine
from avatar.runtime.extent import segment_lengths
from avatar.runtime.finished_files import Unreported, new_report, publish, thumbnail
from avatar.runtime.report import read_report, together
from avatar.runtime.stream import error_kind

log = logging.getLogger(__name__)

Outbox = queue.Queue[tuple[int, Event] | BaseException | None]  # a part's event; an error; None: engine done


class LongVideo:
    """An Engine for one request, made in parts: one after another, or, if independent, on several engines."""

    def __init__(
        self,
        engines: Sequence[Engine],
        ledger: Ledger,
        *,
        keep_parts: bool = False,
        keep_segments: bool = False,
    ) -> None:
        """engines: owned by the caller. keep_parts: leave the parts beside the video.

        keep_segments: until the request's work folder is removed, for a player that may lag behind; otherwise
        they are removed when their part is finished.
        """
        self._engines = list(engines[:1] if ledger.chained else engines)
        self._ledger, self._keep_parts, self._keep_segments = ledger, keep_parts, keep_segments
        self._cancelled = threading.Event()

    @property
    def label(self) -> str:
        return str(getattr(self._engines[0], "label", ""))

    def stream(self, request: Request) -> Iterator[Event]:
        """Events of the whole video; see Engine.stream. Parts in the ledger are not made again."""
        run = _PartsRun(request, self._ledger)
        outbox: Outbox = queue.Queue()
        waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
        for part in self._ledger.missing:
            waiting.put(part)
        workers = [
            threading.Thread(
                target=self._make, args=(engine, run, waiting, outbox), name="parts", daemon=True
            )
            for engine in self._engines
        ]
        try:
            yield from run.begin()
            for worker in workers:
                worker.start()
            error: BaseException | None = None
            for _ in workers:
                while (said := outbox.get()) is not None:
                    if isinstance(said, BaseException):
                        error = error or said
                        self.cancel()
                    else:
                        yield from run.events_for(*said)
        finally:
            self.cancel()
            for worker in workers:
                if worker.ident:
                    worker.join()
        yield from self._finish(run, error)

    def cancel(self) -> None:
        """See Engine. The ledger and finished parts stay."""
        self._cancelled.set()
        for engine in self._engines:
            engine.cancel()

    def close(self) -> None:
        """Release the ledger; the engines stay open."""
        self._ledger.close()

    def _make(
        self,
        engine: Engine,
        run: _PartsRun,
        waiting: queue.SimpleQueue[int],
        outbox: Outbox,
    ) -> None:
        """One engine's thread: make part after part, until none is left or the run stops."""
        try:
            while not self._cancelled.is_set():
                try:
                    part = waiting.get_nowait()  # not after empty(): another engine may take it
                except queue.Empty:
                    break
                self._make_part(engine, run, part, outbox)
        except BaseException as error:
            outbox.put(error)
        finally:
            outbox.put(None)

    def _make_part(self, engine: Engine, run: _PartsRun, part: int, outbox: Outbox) -> None:
        request = self._ledger.request(part, run.request)
        for event in engine.stream(request):
            if self._cancelled.is_set():  # perhaps before the engine had started
                engine.cancel()
            if not isinstance(event, Finished):
                outbox.put((part, event))
            elif event.stopped:
                run.unfinished[part] = event
            else:
                try:
                    video = self._ledger.record(part, request, event)
                except OSError as error:
                    whole = event.video if event.video.exists() else self._ledger.video(part)
                    run.unfinished[part] = replace(event, video=whole)
                    raise unwritten(error) from error
                if not self._keep_segments:
                    shutil.rmtree(request.work)
                span = self._ledger.spans[part]
                outbox.put((part, PartDone(video, part, run.num_parts, span.first_frame, span.num_frames)))

    def _finish(self, run: _PartsRun, error: BaseException | None) -> Iterator[Event]:
        """Join the consecutive parts from the beginning; discard them once the video is complete."""
        ledger = self._ledger
        whole = not ledger.missing
        if isinstance(error, AvatarError) or error is None:
            failure = None if isinstance(error, Cancelled) else error
        else:
            log.error("a long video failed", exc_info=error)
            failure = AvatarError("The engine failed.", "The log says why; finished parts are kept.")
        try:
            finished = run.join(whole, failure)
        except Unreported as trouble:
            finished, failure = trouble.finished, failure or trouble
        except (AvatarError, OSError) as trouble:
            raise self._unjoined(run, failure, trouble) from trouble
        if finished is not None:
            if whole:
                ledger.finish(self._keep_parts)
            yield finished
        if failure is not None:
            raise failure
        if finished is None:
            raise Cancelled("Stopped before the first frame was made.")

    def _unjoined(self, run: _PartsRun, failure: AvatarError | None, trouble: BaseException) -> BaseException:
        """The error for parts that cannot be joined: it says where they are."""
        error = failure or disk_error(trouble)
        kept = [one.video for one in run.unfinished.values() if one.video.exists()]
        if not isinstance(error, AvatarError):
            return error
        remedy = error.remedy
        if self._ledger.done:
            count = f"{len(self._ledger.done)} of {run.num_parts}"
            remedy = f"{remedy} {count} parts are kept: resume the video when there is room."
        return NotPlaced(error.message, remedy, kept) if kept else type(error)(error.message, remedy)


class _PartsRun:
    """Translates the parts' events to events of the whole video."""

    def __init__(self, request: Request, ledger: Ledger) -> None:
        self.request, self.ledger = request, ledger
        self.unfinished: dict[int, Finished] = {}
        self.num_parts = len(ledger.spans)
        fps, segment_s = FPS, request.segment_s
        counts = [len(segment_lengths(span.num_frames, segment_s, fps)) for span in ledger.spans]
        self._first_segment = [sum(counts[:part]) for part in range(self.num_parts)]
        self._num_segments = sum(counts)
        self._frames = {part: ledger.spans[part].num_frames for part in ledger.done}
        self._segments = sum(counts[part] for part in ledger.done)
        self._frames_before = sum(self._frames.values())
        self._start = time.monotonic()
        self._asked: float | None = None  # when the first frame was requested
        self._first_frame_s: float | None = None
        self._ranks: tuple[RankLoad, ...] = ()

    def begin(self) -> Iterator[Event]:
        """The request's notices, and a notice of parts that exist already."""
        yield from self.request.notices
        if self.ledger.done:
            text = f"Resumed: {len(self.ledger.done)} of {self.num_parts} parts were there already."
            values = {"done": len(self.ledger.done), "total": self.num_parts}
            yield Notice("resumed", text, values=values)
        yield self._progress(Phase.LOADING)

    def events_for(self, part: int, event: Event) -> Iterator[Event]:
        """A part's event, as event of the whole video."""
        start = self.ledger.spans[part].first_frame
        match event:
            case Segment():
                self._segments += 1
                index = self._first_segment[part] + event.index
                yield replace(event, index=index, start_frame=start + event.start_frame)
            case Progress():
                self._frames[part] = event.frames_done
                if event.phase is Phase.GENERATING and self._asked is None:
                    self._asked = time.monotonic()
                self._ranks = event.ranks or self._ranks
                if event.frames_done and self._first_frame_s is None:
                    self._first_frame_s = event.first_frame_s
                now = self._progress(event.phase if self._asked is None else Phase.GENERATING)
                yield replace(now, activity=event.activity, usual_s=event.usual_s)
            case PartDone():
                self._frames[part] = event.num_frames
                yield event
                yield self._progress(Phase.GENERATING)
            case _:
                yield event

    def _progress(self, phase: Phase) -> Progress:
        now, done = time.monotonic(), sum(self._frames.values())
        made = done - self._frames_before
        fps = made / max(now - self._asked, 1e-6) if self._asked is not None and made > 0 else None
        return Progress(
            phase=phase,
            frames_done=done,
            num_frames=self.request.num_frames,
            segments_done=self._segments,
            num_segments=self._num_segments,
            elapsed_s=now - self._start,
            fps=fps,
            first_frame_s=self._first_frame_s,
            eta_s=(self.request.num_frames - done) / fps if fps else None,
            parts_done=len(self.ledger.done),
            num_parts=self.num_parts,
            ranks=self._ranks,
        )

    def join(self, whole: bool, failure: AvatarError | None) -> Finished | None:
        """Join all parts, or those available from the beginning without a gap; None without any."""
        parts = []
        for part in range(self.num_parts):
            if part in self.ledger.done:
                parts.append(self.ledger.video(part))
                continue
            if part in self.unfinished:
                parts.append(self.unfinished[part].video)
            break
        if not parts:
            return None
        num_frames = join_parts(parts, self.request.output)
        shutil.copyfile(written_thumbnail(parts[0]), thumbnail(self.request))
        reports = [read_report(written_report(path)) for path in parts]
        report = new_report(self.request, reports[0].engine)
        report.width, report.height = reports[0].width, reports[0].height
        state = self._progress(Phase.FINISHING)
        report.elapsed_s, report.first_frame_s = sum(one.elapsed_s for one in reports), state.first_frame_s
        report.first_segment_s, report.frames_per_s = reports[0].first_segment_s, state.fps
        report.stopped, report.error_kind = not whole, error_kind(failure)
        report.plan, report.memory = reports[0].plan, together([one.memory for one in reports])
        start = 0
        for one in reports:
            report.notices += [notice for notice in one.notices if notice not in report.notices]
            report.rungs += [replace(taken, frame=start + (taken.frame or 0)) for taken in one.rungs]
            start += one.num_frames
        return publish(self.request, report, num_frames, None if failure is None else str(failure))
