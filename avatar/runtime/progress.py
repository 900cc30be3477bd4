"""Counts and times of a run, reported as Progress."""

from __future__ import annotations

import time

from avatar.events import Phase, Progress, RankLoad

_ORDER = list(Phase)


class ProgressClock:
    """Tracks what is done and when; each attribute is written by one thread only."""

    def __init__(self, num_frames: int, num_segments: int) -> None:
        self.num_frames, self.num_segments = num_frames, num_segments
        self.frames_done = self.segments_done = 0
        self.first_frame_s: float | None = None
        self.first_segment_s: float | None = None
        self.ranks: tuple[RankLoad, ...] = ()
        self._phase = Phase.LOADING
        self._start = self._asked = self._last = time.monotonic()

    def start(self) -> None:
        """Mark the start of the run."""
        self._start = self._asked = self._last = time.monotonic()

    def enter(self, phase: Phase) -> bool:
        """Enter a phase, and return whether it is new; phases never go back."""
        if _ORDER.index(phase) <= _ORDER.index(self._phase):
            return False
        if phase is Phase.GENERATING:
            self._asked = time.monotonic()
        self._phase = phase
        return True

    def frame_made(self) -> None:
        """Note that the source yielded frames."""
        if self.first_frame_s is None:
            self.first_frame_s = self._elapsed()
            if self._phase is not Phase.FINISHING:
                self._phase = Phase.GENERATING

    def frames_encoded(self, total: int) -> None:
        """Note the total of encoded frames."""
        self.frames_done, self._last = total, time.monotonic()

    def segment_done(self) -> None:
        """Note that one more segment is on disk."""
        self.segments_done += 1
        if self.first_segment_s is None:
            self.first_segment_s = self._elapsed()

    def progress(self) -> Progress:
        """The current Progress."""
        fps = self.frames_done / max(self._last - self._asked, 1e-6) if self.frames_done else None
        left = self.num_frames - self.frames_done
        since = time.monotonic() - self._last
        return Progress(
            phase=self._phase,
            frames_done=self.frames_done,
            num_frames=self.num_frames,
            segments_done=self.segments_done,
            num_segments=self.num_segments,
            elapsed_s=self._elapsed(),
            fps=fps,
            first_frame_s=self.first_frame_s,
            eta_s=max(0.0, left / fps - since) if fps else None,
            ranks=self.ranks,
        )

    def _elapsed(self) -> float:
        return time.monotonic() - self._start
