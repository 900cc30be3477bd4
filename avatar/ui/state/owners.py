"""Runs by owner: which one to show an owner, and how long runs go on while the owner is away."""

from __future__ import annotations

import logging
import time

from avatar.ui.state.job_queue import JobQueue, KeptVideo, QueuedRun
from avatar.ui.state.presence import Presence

log = logging.getLogger(__name__)

RECENT_S = 3600.0


class Owners:
    """Owners are identified by their hash, as in the gallery."""

    def __init__(self, job_queue: JobQueue, keep_running_s: float | None = None) -> None:
        """keep_running_s: how long a run goes on while its owner has no page open; None: to its end.

        0: a run ends with the page that began it.
        """
        self.job_queue, self.keep_running_s = job_queue, keep_running_s
        self.presence = Presence()

    def run_to_show(self, owner_hash: str) -> QueuedRun | None:
        """The run to show when its owner opens a page: the running one, else the next, else the last.

        One that has ended counts for an hour, as long as its video exists.
        """
        runs = self.job_queue.runs(owner_hash)
        alive = [run for run in runs if run.outcome is None]
        if alive:
            return alive[0]
        for run in runs:
            fresh = time.monotonic() - run.ended < RECENT_S
            if fresh and (not isinstance(run.outcome, KeptVideo) or run.outcome.entry.video.is_file()):
                return run
        return None

    def end_abandoned(self) -> None:
        """Stop the runs whose owners have had no page open for longer than the host allows."""
        if self.keep_running_s is None:
            return
        for run in self.job_queue.runs():
            away_s = self.presence.away_s(run.requester.owner_hash)
            if not run.over.is_set() and away_s > self.keep_running_s:
                log.info("a run ends: its owner has been away for %.0f s", away_s)
                self.job_queue.stop(run, wanted=True)

    def page_closed(self, visit: str) -> None:
        """Note that a page was closed, and stop its runs if runs end with their page."""
        self.presence.closed(visit)
        if self.keep_running_s == 0:
            for run in self.job_queue.runs():
                if run.requester.visit == visit and not run.over.is_set():
                    self.job_queue.stop(run, wanted=True)
