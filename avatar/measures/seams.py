"""Smoothness where clips meet: jolts at the borders of clips, relative to those within clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from avatar.measures.face_track import FaceTrack

SEEN_FROM = 1.5  # least ratio that counts as a visible seam, if it is also above usual
_FEWEST_INSIDE = 10  # frames within clips; fewer are too few to compare with
_USUAL_PERCENT = 99  # percentile of the ratios at frames that are not borders


@dataclass(frozen=True)
class Seam:
    """One kind of jolt. ratio: its mean at the borders divided by its mean inside clips; 1 means no seam.

    usual: 99th percentile of that ratio for the borders' pattern shifted to other frames. worst: ratio at the
    worst border.
    """

    ratio: float
    usual: float
    worst: float
    worst_frame: int

    @property
    def is_seen(self) -> bool:
        return self.ratio > max(self.usual, SEEN_FROM)


@dataclass(frozen=True)
class Smoothness:
    """Jolts at borders: of landmarks (acceleration), motion (change of optical flow), colour (of the face).

    None where unknown, and why gives the reason. borders: number of borders. worst_frame: the first frame
    after the worst border.
    """

    landmarks: Seam | None = None
    flow: Seam | None = None
    colour: Seam | None = None
    borders: int = 0
    why: str = ""

    @property
    def kinds(self) -> dict[str, Seam]:
        found = {"landmarks": self.landmarks, "flow": self.flow, "colour": self.colour}
        return {name: seam for name, seam in found.items() if seam is not None}

    @property
    def ratio(self) -> float | None:
        """The largest of the three ratios."""
        return max((seam.ratio for seam in self.kinds.values()), default=None)

    @property
    def is_seen(self) -> bool | None:
        return any(seam.is_seen for seam in self.kinds.values()) if self.kinds else None

    @property
    def worst_frame(self) -> int | None:
        if not self.kinds:
            return None
        return max(self.kinds.values(), key=lambda seam: seam.worst).worst_frame


def smoothness(track: FaceTrack, borders: Sequence[int]) -> Smoothness:
    """Compare borders with all other frames. borders: the first frames of all clips but the first."""
    inside = sorted({int(frame) for frame in borders if 2 <= frame < track.num_frames - 1})
    if not inside:
        return Smoothness(why="no borders of clips are known")
    landmarks, flow, colour = (
        _seam(values, inside) for values in (_jerk(track), track.flow, _colour_steps(track))
    )
    if landmarks is flow is colour is None:
        return Smoothness(borders=len(inside), why="the video is too short")
    return Smoothness(landmarks, flow, colour, len(inside))


def _jerk(track: FaceTrack) -> np.ndarray:
    """(T,) mean length of the landmarks' second differences at each frame, the larger of two."""
    second = np.linalg.norm(np.diff(track.shapes.astype(np.float64), n=2, axis=0), axis=-1).mean(-1)
    out = np.full(track.num_frames, np.nan)
    # Two second differences contain the step from frame t − 1 to t: those that end at t and at t + 1.
    out[2:-1] = np.fmax(second[:-1], second[1:])
    return out


def _colour_steps(track: FaceTrack) -> np.ndarray:
    """(T,) change of the face's mean colour from one frame to the next, in CIE 1976 units."""
    colours = np.stack([track.signals[name] for name in ("lightness", "green_red", "blue_yellow")], 1)
    steps = np.linalg.norm(np.diff(colours, axis=0), axis=1)
    return np.concatenate([[np.nan], steps])


def _seam(values: np.ndarray, borders: Sequence[int]) -> Seam | None:
    """The seam in values, one per frame; None where too little is known."""
    at = np.array(borders)
    beside = np.zeros(len(values), bool)
    for shift in (-1, 0, 1):
        beside[np.clip(at + shift, 0, len(values) - 1)] = True
    known = np.isfinite(values)
    rest, jolts = values[known & ~beside], values[at[known[at]]]
    if len(rest) < _FEWEST_INSIDE or not len(jolts) or rest.mean() <= 0:
        return None
    usual = float(rest.mean())
    worst = at[known[at]][int(np.argmax(jolts))]
    chance = np.percentile(_elsewhere(values, known & ~beside, at) / usual, _USUAL_PERCENT)
    return Seam(float(jolts.mean()) / usual, float(chance), float(jolts.max()) / usual, int(worst))


def _elsewhere(values: np.ndarray, allowed: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Means of the values at the borders' pattern, shifted to every other position."""
    means = []
    for shift in range(1, len(values)):
        places = (at + shift) % len(values)
        places = places[allowed[places]]
        if len(places):
            means.append(float(values[places].mean()))
    return np.array(means or [0.0])


def clip_borders(num_frames: int, infer_frames: int, lead_in: int = 0) -> list[int]:
    """First frames of all clips but the first. lead_in: frames of the first clip that are dropped."""
    return list(range(infer_frames - lead_in, num_frames, infer_frames))
