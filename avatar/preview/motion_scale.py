"""How much the preview's person moves, from still to lively, as shares of its usual motion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from avatar.preview.pose import Articulation
from avatar.settings import MotionLevel

WIDEST = 1.1  # of Articulation.open


@dataclass(frozen=True)
class MotionScale:
    """Shares of the usual motion; blinks and breath are never scaled, nor are closed lips.

    head: sway and nods. brow: raised brows. gaze: glances aside. mouth: how far lips and jaw open and spread.
    """

    head: float = 1.0
    brow: float = 1.0
    gaze: float = 1.0
    mouth: float = 1.0

    def spoken(self, articulation: Articulation) -> Articulation:
        """The articulation with the lips moved so much; closures stay closed."""
        if self.mouth == 1.0:
            return articulation
        a, share = articulation, self.mouth
        return replace(
            a,
            open=min(a.open * share, WIDEST),
            wide=a.wide * share,
            round=a.round * share,
            upper=a.upper * share,
            lower=a.lower * share,
        )


USUAL = MotionScale()
MOTION_SCALES: Mapping[MotionLevel, MotionScale] = {
    "still": MotionScale(head=0.0, brow=0.0, gaze=0.3, mouth=0.85),
    "calm": MotionScale(head=0.5, brow=0.5, gaze=0.7, mouth=0.92),
    "normal": USUAL,
    "lively": MotionScale(head=1.5, brow=1.1, gaze=1.2, mouth=1.15),
}
