"""Lip sync: the mouth's opening against the opening expected from the sound, and closures for p, b and m.

The sound is judged by the project's own viseme network and articulation, the picture by the gap between the
lips. In a video of the preview engine both come from the same network: the measure then shows that sound and
picture were joined in sync, not how well a person could read its lips.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from avatar.geometry import SPEECH_HZ
from avatar.measures.face_track import FaceTrack
from avatar.preview.articulation import VISUAL_LEAD_S, loudness_db, spoken_curves
from avatar.preview.loudness import PassageLevel
from avatar.preview.visemes import FRAME_HZ, VISEMES, Listen, VisemeNetwork

LARGEST_OFFSET_S = 0.5
# The mouth leads its sound by −40 to 200 ms in running speech, mostly by little; the preview's lead counts as
# in sync.
# Source: Schwartz, Savariaux, "No, there is no 150 ms lead of visual speech on auditory speech" (2014).
NATURAL_LEAD_S = VISUAL_LEAD_S
SURE = 0.25  # least confidence for reporting an offset
SHORTEST_S = 1.5  # nothing is reported for less speech with a face

_BLOCK = 20 * FRAME_HZ  # frames of sound analysed at once
_TREND_S = 1.0  # slower changes are not lip movement
_FAR_S = 0.15  # confidence is the lead over peaks further away than this
_CLOSED_GAP = 0.016  # between the inner lips, in face heights; closed lips measure 0.002 to 0.008
_CLOSURE, _CLOSURE_FRAMES = 0.5, 3  # a p, b or m has this probability for this many frames of sound
_CLOSURE_SLACK_S = 0.06  # the lips must close within this time
_SPEAKING, _AUDIBLE_DB = 0.6, -30.0  # in speech, silence is less likely and the sound louder


@dataclass(frozen=True)
class ExpectedMouth:
    """Mouth movements expected from the sound, at FRAME_HZ from 0 s on.

    opening: (T,) 0 to 1, of jaw and lips. closures: seconds, the middle of each p, b or m.
    speaking: (T,) bool.
    """

    opening: np.ndarray
    closures: np.ndarray
    speaking: np.ndarray

    @property
    def times(self) -> np.ndarray:
        return np.arange(len(self.opening)) / FRAME_HZ


@dataclass(frozen=True)
class LipSync:
    """Synchrony of sound and mouth; None where unknown, and why gives the reason.

    offset_ms: delay of the sound after the mouth beyond the natural one; negative: the sound is early.
    correlation: of opening and sound at that offset, −1 to 1. confidence: 0 to 1, lead of that correlation
    over those at other offsets. closure_recall: share of p, b and m at which the lips close, offset removed;
    closure_chance: the same share for all moments of speech. closures: number of p, b and m.
    """

    offset_ms: float | None = None
    correlation: float | None = None
    confidence: float = 0.0
    closure_recall: float | None = None
    closure_chance: float | None = None
    closures: int = 0
    why: str = ""


def expected_mouth(
    listen: Listen, num_samples: int, on_window: Callable[[], None] = lambda: None
) -> ExpectedMouth:
    """Analyse a whole speech, in blocks. num_samples: its length at SPEECH_HZ."""
    network, level = VisemeNetwork.load(), PassageLevel(listen, num_samples)
    num_frames = num_samples * FRAME_HZ // SPEECH_HZ
    openings, closed, speaking = [], [], []
    for start in range(0, num_frames, _BLOCK):
        stop = min(start + _BLOCK, num_frames)
        articulation, _, _ = spoken_curves(network, listen, start, stop, level)
        visemes = network.probabilities(listen, start, stop, level)
        openings.append(articulation[:, 0])
        closed.append(visemes[:, VISEMES.index("PP")])
        loud = loudness_db(listen, start, stop, level) > _AUDIBLE_DB
        speaking.append(loud & (visemes[:, VISEMES.index("sil")] < _SPEAKING))
        on_window()
    if not openings:
        return ExpectedMouth(np.zeros(0), np.zeros(0), np.zeros(0, bool))
    closures = _middles(np.concatenate(closed) > _CLOSURE)
    return ExpectedMouth(np.concatenate(openings), closures, np.concatenate(speaking))


def lip_sync(track: FaceTrack, heard: ExpectedMouth) -> LipSync:
    """Compare a face's mouth with the sound."""
    seen = track.seen
    spoken_s = float((heard.speaking.sum()) / FRAME_HZ)
    if seen.sum() / track.fps < SHORTEST_S:
        return LipSync(why="no face is seen for long enough")
    if spoken_s < SHORTEST_S:
        return LipSync(why="there is too little speech")
    gap = track.signals["gap"]
    if float(np.nanpercentile(gap, 95) - np.nanpercentile(gap, 5)) < 0.25 * _CLOSED_GAP:
        return LipSync(why="the mouth does not move")
    lags = np.arange(-round(LARGEST_OFFSET_S * FRAME_HZ), round(LARGEST_OFFSET_S * FRAME_HZ) + 1)
    scores = correlations(track.times[seen], gap[seen], heard, lags / FRAME_HZ)
    best = int(np.argmax(scores))
    far = np.abs(lags - lags[best]) > _FAR_S * FRAME_HZ
    confidence = float(np.clip(scores[best] - max(scores[far].max(initial=0.0), 0.0), 0, 1))
    lag_s = float(lags[best] + _vertex(scores, best)) / FRAME_HZ
    at_edge = best in (0, len(lags) - 1)
    sure = confidence >= SURE and not at_edge
    found = LipSync(
        offset_ms=round(1000 * (lag_s - NATURAL_LEAD_S), 1) if sure else None,
        correlation=float(scores[best]),
        confidence=0.0 if at_edge else confidence,
        closures=len(heard.closures),
        why="" if sure else "mouth and sound do not go together well enough to tell an offset",
    )
    return _with_closures(found, track, heard, lag_s if sure else NATURAL_LEAD_S)


def correlations(times: np.ndarray, gap: np.ndarray, heard: ExpectedMouth, lags_s: np.ndarray) -> np.ndarray:
    """The correlation of mouth and sound for each lag of the sound behind the mouth."""
    grid = np.arange(int(times[0] * FRAME_HZ), int(times[-1] * FRAME_HZ) + 1) / FRAME_HZ
    mouth = _detrended(np.interp(grid, times, gap))
    # Longer stretches without a face are left out.
    nearest = np.abs(times[np.clip(np.searchsorted(times, grid), 0, len(times) - 1)] - grid)
    known = nearest < 0.1
    sound_times, sound = heard.times, _detrended(heard.opening)
    scores = []
    for lag_s in lags_s:
        shifted = np.interp(grid + lag_s, sound_times, sound, left=0, right=0)
        scores.append(_correlation(mouth[known], shifted[known]))
    return np.array(scores)


def _with_closures(found: LipSync, track: FaceTrack, heard: ExpectedMouth, lag_s: float) -> LipSync:
    times, gap = track.times[track.seen], track.signals["gap"][track.seen]

    def shut(moments: np.ndarray) -> np.ndarray:
        """Whether the lips close around each moment of the sound that the video covers."""
        shown = moments - lag_s
        inside = (shown > times[0]) & (shown < times[-1])
        first = np.searchsorted(times, shown[inside] - _CLOSURE_SLACK_S)
        last = np.searchsorted(times, shown[inside] + _CLOSURE_SLACK_S)
        return np.array([gap[a:b].min() < _CLOSED_GAP for a, b in zip(first, last) if b > a], bool)

    at_closures, anywhere = shut(heard.closures), shut(heard.times[heard.speaking])
    return LipSync(
        found.offset_ms,
        found.correlation,
        found.confidence,
        float(at_closures.mean()) if len(at_closures) else None,
        float(anywhere.mean()) if len(anywhere) else None,
        len(at_closures),
        found.why,
    )


def _middles(held: np.ndarray) -> np.ndarray:
    """The middle, in seconds, of each stretch of _CLOSURE_FRAMES or more."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], held.astype(np.int8), [0]])))
    starts, stops = edges[::2], edges[1::2]
    long = stops - starts >= _CLOSURE_FRAMES
    return (starts[long] + stops[long] - 1) / 2 / FRAME_HZ


def _detrended(values: np.ndarray) -> np.ndarray:
    """The values minus their moving average over _TREND_S."""
    reach = round(_TREND_S * FRAME_HZ / 2)
    kernel = np.ones(2 * reach + 1) / (2 * reach + 1)
    padded = np.pad(values, reach, "edge") if len(values) else np.zeros(2 * reach + 1)
    return values - np.convolve(padded, kernel, "valid")[: len(values)]


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    spread = float(a.std() * b.std())
    return float(((a - a.mean()) * (b - b.mean())).mean() / spread) if spread > 1e-12 else 0.0


def _vertex(scores: np.ndarray, best: int) -> float:
    """Offset, −0.5 to 0.5, of the vertex of a parabola through the best score and its neighbours."""
    if best in (0, len(scores) - 1):
        return 0.0
    left, middle, right = scores[best - 1 : best + 2]
    bend = left - 2 * middle + right
    return float(np.clip(0.5 * (left - right) / bend, -0.5, 0.5)) if bend < 0 else 0.0
