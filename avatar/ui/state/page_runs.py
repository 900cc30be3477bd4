"""Which run each open page shows."""

from __future__ import annotations

from avatar.ui.state.app_state import AppState
from avatar.ui.state.job_queue import QueuedRun


class PageRuns:
    """Which run each open page shows, and which it began by a press of Generate."""

    def __init__(self, app_state: AppState) -> None:
        self.app_state = app_state
        self._shown: dict[str, QueuedRun] = {}
        self._pressed: dict[str, QueuedRun] = {}

    def begin(self, visit: str, run: QueuedRun) -> None:
        """Generate was pressed on a page, which now shows this run in place of its earlier one."""
        earlier = self._pressed.get(visit)
        if earlier is not None and earlier is self._shown.get(visit):
            self.app_state.job_queue.stop(earlier)
        self._pressed[visit] = run
        self.show(visit, run)

    def show(self, visit: str, run: QueuedRun) -> None:
        """A page shows a run from now on."""
        self._shown[visit] = run

    def is_current(self, visit: str, run: QueuedRun) -> bool:
        return self._shown.get(visit) is run

    def shown(self, visit: str) -> QueuedRun | None:
        return self._shown.get(visit)

    def stop(self, visit: str) -> None:
        """Stop the run that a page shows, if there is one."""
        run = self._shown.get(visit)
        if run is not None:
            self.app_state.job_queue.stop(run)

    def end(self, visit: str, run: QueuedRun) -> None:
        """The page no longer follows the run, or is closed; the run goes on if the host allows it."""
        ends_with_page = self.app_state.keep_running_s == 0 and run.requester.visit == visit
        if ends_with_page and self.is_current(visit, run):  # otherwise the page shows another run by now
            self.app_state.job_queue.stop(run, wanted=True)
        run.let_go()
        for runs in (self._shown, self._pressed):
            if runs.get(visit) is run:
                del runs[visit]
