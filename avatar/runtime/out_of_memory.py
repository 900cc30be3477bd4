"""The out-of-memory ladder at run time: which rung comes next, and how it is reported.

Only this module decides that a run steps down; all devices that share the run follow its decision.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from avatar.errors import DoesNotFit
from avatar.events import Notice
from avatar.planning.fallback_ladder import describe, rungs, value
from avatar.planning.plan import Plan, gib
from avatar.preset import Preset, Rung
from avatar.request import Request
from avatar.runtime.report import RUNG_OOM, RUNG_PLANNED

log = logging.getLogger(__name__)


class FallbackDescent:
    """One run's descent of its preset's ladder.

    request: with the rungs taken so far applied. num_taken: rungs below the requested preset.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self.num_taken = 0
        self._steps: Sequence[tuple[Rung, Preset]] = list(rungs(request.preset))

    def skip(self, num_rungs: int) -> None:
        """Start num_rungs further down."""
        for _ in range(min(num_rungs, len(self._steps) - self.num_taken)):
            self._take()

    def step_down(self, block: int, device: str) -> Notice:
        """Take the next rung, because a device ran out of memory while this block was being made.

        device: its name, "" if there is only one. Raises: DoesNotFit when no rung is left.
        """
        if not self._is_left:
            raise DoesNotFit(
                f"{device or 'The device'} ran out of memory, and the preset allows no further saving.",
                "Close other programs that use it, or choose a preset for smaller cards.",
            )
        why = f"{device or 'The device'} ran out of memory at block {block}"
        return self._notice(RUNG_OOM, why, device, block)

    def step_down_planned(self, planned: Plan) -> Notice:
        """Take the next rung before loading, because this plan does not fit.

        Raises: DoesNotFit when no rung is left.
        """
        if not self._is_left:
            raise DoesNotFit(
                f"Preset {planned.preset} does not fit. {planned.shortfall}",
                "Close other programs that use the GPU, or choose a preset for smaller cards.",
            )
        gpu = max(planned.gpus, key=lambda gpu: gpu.shortfall_bytes)
        why = f"{gpu.label} lacks {gib(gpu.shortfall_bytes)} by the plan"
        return self._notice(RUNG_PLANNED, why, f"GPU {gpu.index}", None)

    @property
    def _is_left(self) -> bool:
        return self.num_taken < len(self._steps)

    def _notice(self, code: str, why: str, device: str, block: int | None) -> Notice:
        """Take the next rung, and return the notice of it."""
        before = self.request.preset
        rung = self._take()
        was, now = value(before, rung), value(self.request.preset, rung)
        text = f"{why}: {describe(rung, self.request.preset)} from here on (was {was})."
        log.warning("%s", text)
        return Notice(code, text, "warning", rung, {"now": now, "was": was, "device": device, "block": block})

    def _take(self) -> Rung:
        rung, preset = self._steps[self.num_taken]
        self.num_taken += 1
        self.request = replace(self.request, preset=preset)
        return rung


def lowered(request: Request) -> Request:
    """The request with the preset of its part's current rung."""
    descent = FallbackDescent(request)
    descent.skip(request.part.num_rungs if request.part else 0)
    return descent.request
