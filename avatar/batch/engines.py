"""A pool with a fixed number of engines for a batch; each is opened on demand and kept for the next video."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from avatar.errors import DoesNotFit
from avatar.hardware.inventory import Inventory
from avatar.planning.verdict import judge
from avatar.preset import Preset
from avatar.runtime.engine import Engine

Open = Callable[[Preset, int], Engine]  # a preset, and the engine's slot in the pool


class Engines:
    """A thread-safe pool of engines."""

    def __init__(self, open_engine: Open, num_places: int) -> None:
        self._open_engine = open_engine
        self._held: dict[int, tuple[Hashable, Engine]] = {}
        self._idle: queue.SimpleQueue[int] = queue.SimpleQueue()
        for place in range(num_places):
            self._idle.put(place)
        self._opening = threading.Lock()

    @contextmanager
    def borrow(self, preset: Preset, all_idle: bool = False) -> Iterator[list[Engine]]:
        """Wait for a free engine for a preset; with all_idle, also take all others that are free then."""
        places = [self._idle.get()]
        try:
            while all_idle:
                try:
                    places.append(self._idle.get_nowait())
                except queue.Empty:
                    break
            yield [self._engine(preset, place) for place in places]
        finally:
            for place in places:
                self._idle.put(place)

    def close(self) -> None:
        """Close every engine."""
        for _, engine in self._held.values():
            engine.close()

    def _engine(self, preset: Preset, place: int) -> Engine:
        key = preset.models
        with self._opening:
            held = self._held.pop(place, None)
            if held is not None and held[0] != key:
                held[1].close()
                held = None
            if held is None:
                held = key, self._open_engine(preset, place)
            self._held[place] = held
            return held[1]


def gpus_of(
    preset: Preset, place: int, num_places: int, inventory: Inventory, num_speakers: int = 1
) -> list[str] | None:
    """The GPUs of one of num_places engines, as CUDA_VISIBLE_DEVICES names them; None: no need to choose.

    Each engine in turn takes the best remaining GPUs. num_speakers: see judge.
    Raises: DoesNotFit when there are too few.
    """
    if not preset.num_gpus:
        return None
    left = inventory
    for taken in range(num_places):
        found = judge(preset, left, num_speakers=num_speakers)
        if num_places > 1 and (not found.ok or found.uuids is None):
            raise DoesNotFit(
                f"--jobs {num_places} needs {num_places * preset.num_gpus} GPUs that {preset.name} can use; "
                f"there are enough for {taken}.",
                f"Take --jobs {max(1, taken)}.",
            )
        if taken == place:
            return found.uuids
        left = replace(left, gpus=tuple(gpu for gpu in left.gpus if gpu not in found.gpus))
    return None
