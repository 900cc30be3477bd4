"""Counts and times of a run, reported as Progress."""

from __future__ import annotations

import time

from avatar.events import Activity, Phase, Progress, RankLoad
from avatar.runtime.usual_times import UsualTimes

_ORDER = list(Phase)
_TIMED = (*Activity, Phase.ENCODING)  # before the first frame, by an engine that loads models


class ProgressClock:
    """Tracks what is done and when; each attribute is written by one thread only."""

    def __init__(self, num_frames: int, num_segments: int, usual: UsualTimes | None = None) -> None:
        """usual: of an engine that loads models; None for one that begins at once."""
        self.num_frames, self.num_segments = num_frames, num_segments
        self.frames_done = self.segments_done = 0
        self.first_frame_s: float | None = None
        self.first_segment_s: float | None = None
        self.ranks: tuple[RankLoad, ...] = ()
        self.activities_s: dict[str, float] = {}  # how long each took
        self._phase = Phase.LOADING
        self._usual, self._activity = usual, None if usual is None else Activity.STARTING
        self._doing_since = time.monotonic()
        self._start = self._asked = self._last = time.monotonic()

    def start(self) -> None:
        """Mark the start of the run."""
        self._start = self._asked = self._last = self._doing_since = time.monotonic()

    def follow(self, progress: Progress) -> bool:
        """Take over the source's phase and activity, and return whether one of them is new."""
        is_new = self.enter(progress.phase)
        if progress.phase is self._phase and progress.activity not in (None, self._activity):
            self._turn_to(progress.activity)
            return True
        return is_new

    def enter(self, phase: Phase) -> bool:
        """Enter a phase, and return whether it is new; phases never go back."""
        if _ORDER.index(phase) <= _ORDER.index(self._phase):
            return False
        if phase is Phase.GENERATING:
            self._asked = time.monotonic()
        self._turn_to(None)
        self._phase = phase
        return True

    def frame_made(self) -> None:
        """Note that the source yielded frames."""
        if self.first_frame_s is None:
            self.first_frame_s = self._elapsed()
            self._turn_to(None)
            if self._phase is not Phase.FINISHING:
                self._phase = Phase.GENERATING

    def _turn_to(self, activity: Activity | None) -> None:
        """Note how long the last activity or phase took, and begin another."""
        now, done = time.monotonic(), self._doing
        if self._usual is not None and done in _TIMED:
            took_s = now - self._doing_since
            self.activities_s[done] = round(self.activities_s.get(done, 0.0) + took_s, 3)
            self._usual.took(done, took_s)
        self._activity, self._doing_since = activity, now

    @property
    def _doing(self) -> str:
        return self._activity or self._phase

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
            activity=self._activity,
            usual_s=None if self._usual is None else self._usual.of(self._doing),
        )

    def _elapsed(self) -> float:
        return time.monotonic() - self._start
