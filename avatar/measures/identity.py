"""Identity preservation: the face's likeness to the portrait, its colour and its sharpness, over time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from avatar.measures.face_track import FaceTrack

WINDOW_S = 1.0  # window of each median, which ignores blinks and vowels
SHORTEST_S = 8.0  # no drift is reported for shorter videos
# Smaller changes do not count as drift, whatever the noise: in SSIM, in CIE 1976 colour units, as a share of
# the sharpness.
LEAST = {"ssim": 0.05, "colour": 2.0, "sharpness": 0.25}
_SURE = 3.0  # standard errors


@dataclass(frozen=True)
class Drift:
    """Change over time. per_min: slope; change: over the whole video; drifts: whether it counts as drift."""

    mean: float
    per_min: float | None
    change: float | None
    drifts: bool | None


@dataclass(frozen=True)
class Likeness:
    """Likeness of the face to the reference. ssim: 1 for identical. colour: distance in CIE 1976 units.

    sharpness: divided by the reference's, 1 for as sharp. against: "portrait", or "first frame" where there
    is no portrait or it shows no face. None where unknown; why gives the reason.
    """

    ssim: Drift | None = None
    colour: Drift | None = None
    sharpness: Drift | None = None
    against: str = ""
    why: str = ""

    @property
    def drifting(self) -> tuple[str, ...]:
        kinds = {"ssim": self.ssim, "colour": self.colour, "sharpness": self.sharpness}
        return tuple(name for name, drift in kinds.items() if drift is not None and drift.drifts)


def likeness(track: FaceTrack) -> Likeness:
    """Compare the face with its reference, from the beginning to the end."""
    seen = track.seen
    if seen.sum() / track.fps < WINDOW_S or track.reference_colour is None or not track.reference_sharpness:
        return Likeness(why="no face is seen for long enough")
    signals, times = track.signals, track.times
    colours = np.stack([signals[name] for name in ("lightness", "green_red", "blue_yellow")], 1)
    centres, windows = _windows(times, seen, track.fps)
    # Take each window's median colour first: noise would inflate the distances of single frames.
    means = np.array([np.median(colours[window], axis=0) for window in windows])
    distance = np.linalg.norm(means - track.reference_colour, axis=1)
    sharpness = _medians(signals["sharpness"], windows) / track.reference_sharpness
    along = means - means[0]  # change of the colour itself, which distances from the portrait might hide
    return Likeness(
        ssim=_drift(centres, _medians(signals["ssim"], windows), LEAST["ssim"]),
        colour=_drift(centres, distance, LEAST["colour"], along=along),
        sharpness=_drift(centres, sharpness, LEAST["sharpness"] * float(np.median(sharpness))),
        against="portrait" if track.against_portrait else "first frame",
    )


def _windows(times: np.ndarray, seen: np.ndarray, fps: float) -> tuple[np.ndarray, list[np.ndarray]]:
    """Centres of the windows in minutes, and the frames of each that show a face."""
    number = np.floor((times - times[0]) / WINDOW_S).astype(int)
    fewest = max(1, round(WINDOW_S * fps / 3))
    found = [np.flatnonzero((number == one) & seen) for one in range(number[-1] + 1)]
    found = [frames for frames in found if len(frames) >= fewest]
    return np.array([times[frames].mean() / 60 for frames in found]), found


def _medians(values: np.ndarray, windows: list[np.ndarray]) -> np.ndarray:
    return np.array([np.median(values[frames]) for frames in windows])


def _drift(minutes: np.ndarray, values: np.ndarray, least: float, along: np.ndarray | None = None) -> Drift:
    """The drift of values over time. along: (n, d), if given, decides instead whether it counts as drift."""
    mean = float(values.mean())
    if len(values) < SHORTEST_S / WINDOW_S:
        return Drift(mean, None, None, None)
    length = float(minutes[-1] - minutes[0])
    slope, error = _trend(minutes, values)
    judged = slope
    if along is not None:
        trends = [_trend(minutes, column) for column in along.T]
        judged = float(np.linalg.norm([one for one, _ in trends]))
        error = float(np.linalg.norm([one for _, one in trends]))
    drifts = abs(judged) > _SURE * error and abs(judged) * length > least
    return Drift(mean, slope, slope * length, bool(drifts))


def _trend(minutes: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """Slope of the least-squares line and its standard error, corrected for noise correlated over windows."""
    centred = minutes - minutes.mean()
    slope = float((centred * values).sum() / (centred**2).sum())
    rest = values - values.mean() - slope * centred
    spread = float((rest**2).sum() / max(len(values) - 2, 1))
    lasting = float((rest[1:] * rest[:-1]).sum() / max((rest**2).sum(), 1e-12))
    factor = (1 + max(lasting, 0.0)) / (1 - min(max(lasting, 0.0), 0.9))
    return slope, float(np.sqrt(spread * factor / (centred**2).sum()))
