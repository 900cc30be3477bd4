"""An Engine that runs each video as a task on a Ray cluster: files are sent there, the video comes back.

Ray schedules the task where its GPUs are, retries it when a worker or node is lost, and transfers the files
and this package. So nodes need no shared disk, only the packages of requirements.txt and the weights.
"""

from __future__ import annotations

import logging
import os
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from avatar.errors import AvatarError, BadInput, Cancelled, WorkerLost
from avatar.events import Event, Finished, Notice, Phase, Progress
from avatar.media import atomic, caption_files
from avatar.media.side_files import report_path, thumbnail_path
from avatar.preset import Preset
from avatar.request import Request
from avatar.runtime.engine import Engine
from avatar.runtime.factory import source_of
from avatar.runtime.finished_files import unreported
from avatar.runtime.request_bundle import RequestBundle, other_files

log = logging.getLogger(__name__)

MAX_RETRIES = 3  # of a task whose worker or node is lost
_POLL_S = 0.4
_PACKAGE = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class RayRequest:
    """A request without portrait and speech, which all parts share. source, options: of the FrameSource.

    others: see RequestBundle.
    """

    request: Request
    source: str
    options: dict[str, Any]
    carry: bytes | None
    others: Mapping[str, bytes]


@dataclass(frozen=True)
class RayResult:
    """A finished video with the files beside it. carry: the file that it left for the next part."""

    finished: Finished
    notices: tuple[Notice, ...]
    label: str
    video: bytes
    thumbnail: bytes
    report: bytes
    carry: bytes | None


def connect() -> int:
    """Join the cluster that $RAY_ADDRESS names, or start one on this machine; returns its number of CPUs.

    Raises: BadInput when Ray is not installed or the cluster cannot be reached.
    """
    try:
        import ray
    except ImportError as error:
        raise BadInput(
            "Ray is not installed.", "Run: pip install 'ray>=2.50,<3'; or leave out --executor ray."
        ) from error
    try:
        if not ray.is_initialized():
            ray.init(
                log_to_driver=False,
                logging_level=logging.ERROR,
                include_dashboard=False,
                runtime_env={"py_modules": [str(_PACKAGE)]},
            )
    except (ConnectionError, RuntimeError, ValueError) as error:
        log.error("ray", exc_info=error)
        raise BadInput(
            "The Ray cluster cannot be reached.", "Check $RAY_ADDRESS, or unset it to use this machine."
        ) from error
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


class RayEngine:
    """See Engine; every video is one task. Use it from one thread at a time, like any engine."""

    def __init__(
        self, preset: Preset, weights: Path | None = None, source: tuple[str, dict[str, Any]] | None = None
    ) -> None:
        """weights: the checkpoint's folder on the nodes. source: overrides the preset's."""
        self._source, self._options = source or source_of(preset, weights)
        self._num_gpus = preset.num_gpus
        self._cancelled = threading.Event()
        self._running = False
        self._sent: tuple[list[Path], list[Any]] = [], []  # of a request, and their Ray object refs
        self.label = ""

    def stream(self, request: Request) -> Iterator[Event]:
        """See Engine; Progress has no frame counts. Raises: WorkerLost when retries are used up."""
        import ray

        self._cancelled.clear()
        self._running = True
        make = ray.remote(_make).options(
            num_cpus=1,
            num_gpus=self._num_gpus,
            max_retries=MAX_RETRIES,
            retry_exceptions=[WorkerLost],
        )
        try:
            yield Progress(Phase.QUEUED, num_frames=request.num_frames)
            task = make.remote(self._ship(request), *self._send(request))
            while not ray.wait([task], timeout=_POLL_S)[0]:
                if self._cancelled.is_set():
                    ray.cancel(task, force=True)
                    raise Cancelled("The run was stopped.")
                yield Progress(Phase.GENERATING, num_frames=request.num_frames)
            yield from self._receive(request, _result(task))
        finally:
            self._running = False

    def cancel(self) -> None:
        """See Engine. Frames that the task has made so far are lost."""
        if self._running:
            self._cancelled.set()

    def close(self) -> None:
        """Does nothing: the cluster does not belong to this engine."""

    def _ship(self, request: Request) -> RayRequest:
        carry = request.part.carry if request.part else None
        carried = None if carry is None else carry.read_bytes()
        return RayRequest(request, self._source, self._options, carried, other_files(request))

    def _send(self, request: Request) -> list[Any]:
        """Put portrait, speech and voices in Ray's object store, once for all parts of a video."""
        import ray

        files = [request.portrait, request.speech, *request.voices]
        if self._sent[0] != files:
            self._sent = files, [ray.put(path.read_bytes()) for path in files]
        return self._sent[1]

    def _receive(self, request: Request, delivery: RayResult) -> Iterator[Event]:
        """Write the delivered files to the request's destinations."""
        self.label = delivery.label
        yield from delivery.notices
        report = report_path(request.output)
        finished = replace(delivery.finished, video=request.output, report=report)
        _place(request, delivery)
        if request.part and request.part.leave and delivery.carry is not None:
            request.part.leave.write_bytes(delivery.carry)
        yield Progress(Phase.FINISHING, frames_done=finished.num_frames, num_frames=finished.num_frames)
        try:
            atomic.write(thumbnail_path(request.output), delivery.thumbnail)
            if request.captions and request.part is None:
                caption_files.write(request.output, request.captions, finished.duration_s)
            atomic.write(report, delivery.report)
        except OSError as error:
            yield finished
            raise unreported(error, finished) from error
        yield finished


def _place(request: Request, delivery: RayResult) -> None:
    """Write the video to its destination, atomically. Raises: NotPlaced; AvatarError: the disk is full."""
    whole = request.work / "whole.mp4"
    try:
        whole.write_bytes(delivery.video)
    except OSError as error:
        raise atomic.disk_error(error) from error
    atomic.place(whole, request.output)


def _result(task: Any) -> RayResult:
    """The task's result. Raises: the task's AvatarError; WorkerLost."""
    import ray

    try:
        delivery: RayResult = ray.get(task)
        return delivery
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, AvatarError):
            raise error.cause from error
        log.error("a task failed", exc_info=error)
        raise AvatarError("A task of the cluster failed.", "The log says why.") from error
    except ray.exceptions.RayError as error:
        log.error("a task was lost", exc_info=error)
        raise WorkerLost(
            f"A worker of the cluster was lost, {MAX_RETRIES + 1} times.", "Run it again with --resume."
        ) from error


_engines: dict[Any, Engine] = {}  # in a worker process: its engine, kept for the next task


def _make(shipment: RayRequest, portrait: bytes, speech: bytes, *voices: bytes) -> RayResult:
    """Runs on a node: make the video and pack it."""
    with tempfile.TemporaryDirectory(prefix="avatar-ray-") as folder:
        bundle = RequestBundle(portrait, speech, shipment.carry, shipment.others, voices)
        request = bundle.unpacked(shipment.request, Path(folder))
        notices: list[Notice] = []
        finished: Finished | None = None
        engine = _engine(shipment)
        for event in engine.stream(request):
            if isinstance(event, Notice):
                notices.append(event)
            elif isinstance(event, Finished):
                finished = event
        assert finished is not None
        leave = request.part.leave if request.part else None
        return RayResult(
            finished,
            tuple(notices),
            str(getattr(engine, "label", "")),
            finished.video.read_bytes(),
            thumbnail_path(finished.video).read_bytes(),
            finished.report.read_bytes(),
            leave.read_bytes() if leave is not None and leave.exists() else None,
        )


def _engine(shipment: RayRequest) -> Engine:
    """This worker's engine, replaced when a task needs another preset."""
    from avatar.runtime.engine_process import EngineProcess

    others = {name: value for name, value in shipment.options.items() if name != "preset"}
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
    key = (shipment.source, shipment.request.preset.models, repr(sorted(others.items())), gpus)
    if key not in _engines:
        for engine in _engines.values():
            engine.close()
        _engines.clear()
        _engines[key] = EngineProcess(shipment.source, None, **shipment.options)
    return _engines[key]
