"""Measures for a page, taken in a bounded process: the page's own loads neither OpenCV nor face models."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

from avatar.runtime.bounded_process import BoundedJob, BoundedProcesses
from avatar.runtime.fingerprint import file_digest

MEMORY_BYTES = 2 * 2**30  # pictures of 1280 pixels, small networks, and what was measured of each frame
START_CPU_S, CPU_S = 60.0, 8.0  # beside the video's length, and for each second of it
MOST_KEPT = 200  # measures of as many videos; each takes a few kilobytes


class BoundedMeasuring:
    """Measures finished videos, each once, one at a time; safe to use from several threads."""

    def __init__(self, per_visitor: int = 4) -> None:
        """per_visitor: videos of one visitor that may wait. The process starts with the first video."""
        self._per_visitor = per_visitor
        self._lock = threading.Lock()
        self._bounded: BoundedProcesses | None = None
        self._jobs: OrderedDict[str, BoundedJob] = OrderedDict()  # by the video's digest
        self._waiting: Counter[BoundedJob] = Counter()  # how many wait for each

    def begin(self, video: Path, duration_s: float, visitor: str = "") -> BoundedJob:
        """The job whose result is Measures.as_dict of a video; leave() it. Raises: Crowded."""
        digest = file_digest(video)
        with self._lock:
            job = self._jobs.get(digest)
            if job is None or job.cancelled.is_set() or job.error is not None:
                if self._bounded is None:
                    self._bounded = BoundedProcesses(MEMORY_BYTES, places=1, per_visitor=self._per_visitor)
                cpu_s = START_CPU_S + CPU_S * duration_s
                job = self._bounded.submit(measured, video, name=video.name, cpu_s=cpu_s, visitor=visitor)
                self._jobs[digest] = job
            self._jobs.move_to_end(digest)
            while len(self._jobs) > MOST_KEPT:
                self._jobs.popitem(last=False)
            self._waiting[job] += 1
            return job

    def leave(self, job: BoundedJob) -> None:
        """Wait no more; a job that nobody waits for is cancelled, if it is not over."""
        with self._lock:
            self._waiting[job] -= 1
            if self._waiting[job] <= 0:
                del self._waiting[job]
                if not job.wait(0):
                    job.cancel()

    def close(self) -> None:
        """End the process."""
        if self._bounded is not None:
            self._bounded.close()


def measured(video: Path) -> dict[str, Any]:
    """In the child: the measures of a video, its clips' borders as its report tells. Raises: BadInput."""
    from avatar.compare import measuring

    return measuring.measured(video, borders=measuring.borders_of(video, None)).as_dict()
