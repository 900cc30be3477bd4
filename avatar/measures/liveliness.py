"""Liveliness: head motion, blinks, and how far and fast brows, eyes and mouth corners move."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from avatar.measures.face_track import FaceTrack

# Kinds of head motion in conversation. Source: Hadar, Steiner, Grant, Rose, "Kinematics of head movements
# accompanying speech during conversation" (1983).
BANDS_HZ = {"slow": (0.2, 1.8), "ordinary": (1.8, 3.7), "rapid": (3.7, 7.0)}
# Blinks per minute: 4.5 in reading, 17 at rest, 26 in conversation, log-normally distributed; the usual range
# is from the first to twice the last.
# Source: Bentivoglio et al., "Analysis of blink rate patterns in normal subjects" (1997).
USUAL_BLINKS_PER_MIN = (4.5, 52.0)
MEAN_BLINKS_PER_MIN = {"reading": 4.5, "at rest": 17.0, "in conversation": 26.0}
# Source: BioNumbers, the Harvard database of useful biological numbers.
USUAL_BLINK_MS = (100.0, 400.0)
SHORTEST_S = 4.0  # nothing is reported for shorter videos
BLINKS_FROM_S = 20.0  # the blink rate of shorter videos is not judged

_OPEN_S = 3.0  # window for an eye's usual openness
_SHUT_SHARE = 0.55  # an eye below this share of it is shut
_LONGEST_BLINK_S = 0.6  # longer closures are deliberate
_SMOOTH = np.array([1, 4, 6, 4, 1]) / 16
_LOW, _HIGH = 5, 95  # percentiles that bound a range


@dataclass(frozen=True)
class Movement:
    """Extent and speed of a movement: between the 5th and 95th percentile, and rms speed per second."""

    range: float
    speed: float


@dataclass(frozen=True)
class Naturalness:
    """Head motion and blinks; None where unknown, and why gives the reason.

    yaw, pitch, roll: degrees. spectrum: each band's share of the rotation's power between 0.2 and 7 Hz, by
    the names of BANDS_HZ. blinks_per_min, blink_ms: rate and mean length, from half shut to half open.
    unusual: names of the values outside human ranges.
    """

    yaw: Movement | None = None
    pitch: Movement | None = None
    roll: Movement | None = None
    spectrum: dict[str, float] | None = None
    blinks: int | None = None
    blinks_per_min: float | None = None
    blink_ms: float | None = None
    unusual: tuple[str, ...] = ()
    why: str = ""


@dataclass(frozen=True)
class Expression:
    """Ranges and speeds in hundredths of the face's height; for eyes of their width, without blinks.

    None where unknown, and why gives the reason.
    """

    brows: Movement | None = None
    eyes: Movement | None = None
    mouth_corners: Movement | None = None
    mouth_width: Movement | None = None
    why: str = ""


_SHORT = "a face must be seen for some seconds"


def naturalness(track: FaceTrack) -> Naturalness:
    """Measure head motion and blinks."""
    seen_s = float(track.seen.sum() / track.fps)
    if seen_s < SHORTEST_S:
        return Naturalness(why=_SHORT)
    spans = {name: _span(track.signals[name], track.fps) for name in ("yaw", "pitch", "roll")}
    lengths = blink_lengths(track)
    rate = 60 * len(lengths) / seen_s
    blink_ms = 1000 * float(np.mean(lengths)) if lengths else None
    unusual = []
    if seen_s >= BLINKS_FROM_S and not USUAL_BLINKS_PER_MIN[0] <= rate <= USUAL_BLINKS_PER_MIN[1]:
        unusual.append("blinks_per_min")
    if blink_ms is not None and not USUAL_BLINK_MS[0] <= blink_ms <= USUAL_BLINK_MS[1]:
        unusual.append("blink_ms")
    return Naturalness(
        spans["yaw"],
        spans["pitch"],
        spans["roll"],
        spectrum(track),
        len(lengths),
        rate,
        blink_ms,
        tuple(unusual),
    )


def expression(track: FaceTrack) -> Expression:
    """Measure the movement of brows, eyes and mouth corners."""
    if track.seen.sum() / track.fps < SHORTEST_S:
        return Expression(why=_SHORT)
    signals, fps = track.signals, track.fps

    def both(name: str) -> np.ndarray:
        return 100 * (signals[f"{name}_left"] + signals[f"{name}_right"]) / 2

    eyes = both("eye")
    eyes[_shut(track) > 0] = np.nan
    return Expression(
        brows=_span(both("brow"), fps),
        eyes=_span(eyes, fps),
        mouth_corners=_span(both("corner"), fps),
        mouth_width=_span(100 * signals["mouth_width"], fps),
    )


def spectrum(track: FaceTrack) -> dict[str, float] | None:
    """Shares of the head rotation's power in each band; None for a head that does not move."""
    powers = dict.fromkeys(BANDS_HZ, 0.0)
    for name in ("yaw", "pitch", "roll"):
        values = _filled(track.signals[name])
        values = values - np.polyval(np.polyfit(np.arange(len(values)), values, 1), np.arange(len(values)))
        power = np.abs(np.fft.rfft(values * np.hanning(len(values)))) ** 2
        hz = np.fft.rfftfreq(len(values), 1 / track.fps)
        for band, (low, high) in BANDS_HZ.items():
            powers[band] += float(power[(hz >= low) & (hz < high)].sum())
    total = sum(powers.values())
    return {band: power / total for band, power in powers.items()} if total > 1e-9 else None


def blink_lengths(track: FaceTrack) -> list[float]:
    """Length of each blink in seconds, from half shut to half open."""
    shut = _shut(track)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], shut, [0]])))
    found = []
    for start, stop in zip(edges[::2], edges[1::2]):
        length_s = _between_halves(track, int(start), int(stop))
        if length_s <= _LONGEST_BLINK_S and start > 0 and stop < len(shut):
            found.append(length_s)
    return found


def _openness(track: FaceTrack) -> np.ndarray:
    """(T,) openness of the eyes, relative to the 75th percentile of the surrounding _OPEN_S."""
    eyes = _filled(np.fmax(track.signals["eye_left"], track.signals["eye_right"]))
    reach = max(1, round(_OPEN_S * track.fps / 2))
    padded = np.pad(eyes, reach, "reflect" if len(eyes) > reach else "edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1)
    return eyes / np.maximum(np.percentile(windows, 75, axis=1), 1e-6)


def _shut(track: FaceTrack) -> np.ndarray:
    return ((_openness(track) < _SHUT_SHARE) & track.seen).astype(np.int8)


def _between_halves(track: FaceTrack, start: int, stop: int) -> float:
    """Seconds for which the openness is below _SHUT_SHARE, interpolated between frames."""
    openness = _openness(track)

    def crossing(outside: int, inside: int) -> float:
        if not 0 <= outside < len(openness):
            return float(inside)
        a, b = openness[outside], openness[inside]
        return outside + (inside - outside) * float(np.clip((a - _SHUT_SHARE) / max(a - b, 1e-9), 0, 1))

    return (crossing(stop, stop - 1) - crossing(start - 1, start)) / track.fps


def _span(values: np.ndarray, fps: float) -> Movement:
    """The movement of a signal, NaN where unknown; smoothed over five frames, because landmarks jitter."""
    if len(values) > len(_SMOOTH):
        values = np.convolve(values, _SMOOTH, "valid")
    known = values[np.isfinite(values)]
    if len(known) < 3:
        return Movement(0.0, 0.0)
    steps = (values[2:] - values[:-2]) * fps / 2
    steps = steps[np.isfinite(steps)]
    low, high = np.percentile(known, (_LOW, _HIGH))
    return Movement(float(high - low), float(np.sqrt((steps**2).mean())) if len(steps) else 0.0)


def _filled(values: np.ndarray) -> np.ndarray:
    """Values with gaps filled by linear interpolation."""
    known = np.flatnonzero(np.isfinite(values))
    return np.interp(np.arange(len(values)), known, values[known])
