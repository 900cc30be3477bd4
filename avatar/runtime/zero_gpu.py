"""ZeroGPU, which attaches a Space's GPU while a decorated function runs: that function, and an engine on it.

The engine has no subprocess: its runs execute in the function, which gets a GPU per call. ZeroGPU may run it
in a fork of this process: only what it yields comes back, cancellation reaches it through shared memory, and
models loaded before the fork are available immediately. hardware/zero_gpu_card.py decides whether this is
such a Space, and which card it gets. Source: spaces 0.51.3, zero/decorator.py and zero/wrappers.py.
"""

from __future__ import annotations

import importlib
import itertools
import logging
import math
import mmap
import os
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

from avatar.errors import AvatarError, Cancelled, WorkerLost
from avatar.events import Event, Phase, Progress
from avatar.geometry import FPS
from avatar.hardware.zero_gpu_card import ZeroGpuCard, zero_gpu_card
from avatar.request import Request
from avatar.runtime.protocol import Ended, Run, StartEngine
from avatar.runtime.run_meter import RunMeter, planned
from avatar.runtime.scratch import writing_in
from avatar.runtime.shown_segments import ShownSegments
from avatar.runtime.stream import stream_frames

log = logging.getLogger(__name__)

# The requested GPU time per run: estimated from an H200's steps and the cards' published rates.
START_S = 45.0  # models to the GPU, the prompt encoded
SPEECH_FACTOR = 3.0  # seconds on a whole RTX PRO 6000 per second of speech, uncompiled
NUMBER_BYTES = 8  # size of a run's number
_numbers = itertools.count(1)  # numbers of runs and engines


@dataclass(frozen=True)
class EngineSpec(StartEngine):
    """The source and options of one engine's runs. engine: the engine's unique number."""

    engine: int = 0


Make = Callable[[EngineSpec, Run], Generator[Event | Ended]]
WithGpu = Callable[[Make, Callable[[EngineSpec, Run], int]], Make]
"""From a function, and how many seconds a call of it takes, to the same function with a GPU.

When called it raises AvatarError where no GPU is given, or one is taken away.
"""


class _Held:
    """A built source, from this process or from the one that it was forked from."""

    def __init__(self, spec: EngineSpec) -> None:
        module, name = spec.source.split(":")
        self.spec, self.pid = spec, os.getpid()
        self.source = getattr(importlib.import_module(module), name)(**spec.options)


class ZeroGpu:
    """The one function that ZeroGPU gives a GPU to, for all presets."""

    def __init__(self, with_gpu: WithGpu) -> None:
        self._cancelled = mmap.mmap(-1, NUMBER_BYTES)  # number of the last cancelled run; shared with forks
        self._held: _Held | None = None
        self._loading = threading.Lock()
        self.make = with_gpu(self._make, duration_s)

    def load(self, spec: EngineSpec) -> str:
        """Build a source, and load what is possible without a GPU; once per engine. Raises: AvatarError.

        Returns its label.
        """
        with self._loading:
            if self._held is None or self._held.spec != spec:
                self._drop()
                held = _Held(spec)
                held.source.load()
                self._held = held
            return str(self._held.source.label)

    def drop(self, spec: EngineSpec) -> None:
        """Release what this process loaded."""
        with self._loading:
            if self._held is not None and self._held.spec == spec:
                self._drop()

    def cancel(self, run: int) -> None:
        """Cancel a run, in whichever process it is."""
        self._cancelled[:] = run.to_bytes(NUMBER_BYTES, "little")

    def is_cancelled(self, run: int) -> bool:
        """Whether a run was cancelled."""
        return self._cancelled[:] == run.to_bytes(NUMBER_BYTES, "little")

    def _make(self, spec: EngineSpec, run: Run) -> Generator[Event | Ended]:
        """Yield a run's events, then Ended; in this process or a fork of it. See stream.stream_frames."""
        request, stopped = run.request, partial(self.is_cancelled, run.run)
        error: AvatarError | None = None
        try:
            if self._held is None or self._held.spec != spec:  # forked before load()
                self._drop()
                self._held = _Held(spec)
            source, weights = self._held.source, spec.options.get("weights")
            with (
                closing(RunMeter(source.pinned_bytes)) as meter,
                writing_in(request.work, request.output.parent),
            ):
                yield from stream_frames(
                    source,
                    request,
                    stopped,
                    plan=lambda: planned(source, request, weights, stopped),
                    use=meter.look,
                )
        except AvatarError as raised:
            error = raised
        except Exception:
            log.exception("the engine failed")
            error = AvatarError("The engine failed.", "The log of the server says why.")
        yield Ended(run.run, error)

    def _drop(self) -> None:
        held, self._held = self._held, None
        if held is not None and held.pid == os.getpid():  # otherwise its files belong to another process
            held.source.close()


def zero_gpu_of_space() -> ZeroGpu | None:
    """The ZeroGPU of this Space; None if this is not a Space with ZeroGPU.

    Called before Gradio and PyTorch are imported: `spaces` changes what both do. Raises: AvatarError.
    """
    card = zero_gpu_card()
    if card is None:
        return None
    try:
        import spaces
    except ImportError as error:
        raise AvatarError(
            f"This Space has ZeroGPU, but {error.name or 'spaces'} cannot be imported.",
            "Add spaces to the Space's requirements.txt.",
        ) from error
    log.info("ZeroGPU: runs are made on %s, attached for each", card.name)
    return ZeroGpu(lambda make, duration_s: _with_our_errors(_decorated(spaces.GPU, card, make, duration_s)))


class ZeroGpuEngine:
    """See Engine. Its events are those that the GPU function yields."""

    pinned_bytes = None  # unknown: the run may be in another process

    def __init__(self, gpu: ZeroGpu, source: str, **options: Any) -> None:
        """source: "package.module:Class" of a FrameSource with load(); options: for its constructor."""
        self._gpu = gpu
        level = logging.getLogger().getEffectiveLevel()
        self._spec = EngineSpec(source, options, level, next(_numbers))
        self._busy = threading.Lock()
        self._run = 0  # the current run's number
        self.label = ""

    def warm(self) -> None:
        """Load the models into the host's memory. Raises: AvatarError."""
        self.label = self._gpu.load(self._spec)

    def stream(self, request: Request) -> Iterator[Event]:
        """Events of one run; see Engine.stream. Also raises WorkerLost, when ZeroGPU takes the GPU away."""
        if not self._busy.acquire(blocking=False):
            raise AvatarError("The engine is busy with another video.", "Wait for it to end, or stop it.")
        try:
            self._run = next(_numbers)
            yield Progress(Phase.LOADING)
            self.warm()
            if self._gpu.is_cancelled(self._run):  # cancelled: no GPU is requested
                raise Cancelled("The run was stopped.")
            yield from self._followed(Run(self._run, request))
        finally:
            self._run = 0
            self._busy.release()

    def cancel(self) -> None:
        """See Engine."""
        if self._run:
            self._gpu.cancel(self._run)

    def close(self) -> None:
        """See Engine."""
        self.cancel()
        self._gpu.drop(self._spec)

    def _followed(self, run: Run) -> Iterator[Event]:
        """The run's events. Closing the iterator cancels the run. Raises: AvatarError."""
        shown = ShownSegments()
        ended: Ended | None = None
        try:
            with closing(self._gpu.make(self._spec, run)) as events:
                for reported in events:  # to its end, so that the GPU is released properly
                    ended = reported if isinstance(reported, Ended) else ended
                    yield from shown.note(reported)
            if ended is None:
                raise WorkerLost("The GPU was taken away.", "Try again.")
            if ended.error is not None:
                raise ended.error
        except WorkerLost as lost:
            yield from shown.salvaged(run.request, lost, self.label)
            raise
        finally:
            self._gpu.cancel(run.run)


def duration_s(spec: EngineSpec, run: Run) -> int:
    """The GPU time to request for a run, in whole seconds; an estimate, not measured."""
    return math.ceil(START_S + SPEECH_FACTOR * run.request.num_frames / FPS)


def _decorated(
    decorator: Callable[..., Callable[[Make], Make]],
    card: ZeroGpuCard,
    make: Make,
    duration_s: Callable[[EngineSpec, Run], int],
) -> Make:
    return decorator(duration=duration_s, size=card.size)(make)


def _with_our_errors(make: Make) -> Make:
    """Raise ZeroGPU's refusals as our own errors: `spaces` raises Gradio's, worded for visitors."""

    def made(spec: EngineSpec, run: Run) -> Generator[Event | Ended]:
        import gradio

        try:
            yield from make(spec, run)
        except gradio.Error as error:
            reported = str(error.message).rstrip(".")
            log.warning("ZeroGPU: %s", reported)
            raise WorkerLost(f"ZeroGPU: {reported}.", "Try again later, or with shorter speech.") from error
        except RuntimeError as error:
            log.exception("ZeroGPU failed")
            raise WorkerLost("ZeroGPU gave no GPU.", "Try again later.") from error

    return made
