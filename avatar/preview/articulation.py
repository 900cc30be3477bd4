"""Mouth movement: viseme probabilities and loudness to smooth articulation, one set per video frame.

Everything is a pure function of the speech and absolute time, computed in blocks: memory does not grow with
the speech, and a video may start anywhere in it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import numpy as np

from avatar.geometry import FPS, SPEECH_HZ
from avatar.preview.loudness import PassageLevel
from avatar.preview.pose import Articulation
from avatar.preview.visemes import (
    FRAME_HZ,
    HOP,
    VISEMES,
    Level,
    Listen,
    VisemeNetwork,
    level_of,
    read_padded,
)

Until = Callable[[int], int]

KEYS = tuple(field.name for field in fields(Articulation))

# Articulation of each viseme, tuned by eye on talking portraits.
_TARGETS = {
    #       open  wide round upper lower press  ff  tongue
    "sil": (0.00, 0.00, 0.00, 0.00, 0.00, 0.0, 0.0, 0.0),
    "PP":  (0.00, 0.00, 0.05, 0.00, 0.00, 0.8, 0.0, 0.0),
    "FF":  (0.06, 0.00, 0.00, 0.45, 0.00, 0.0, 1.0, 0.0),
    "TH":  (0.22, 0.10, 0.00, 0.20, 0.10, 0.0, 0.0, 0.9),
    "DD":  (0.22, 0.15, 0.00, 0.25, 0.30, 0.0, 0.0, 0.5),
    "kk":  (0.30, 0.10, 0.00, 0.10, 0.10, 0.0, 0.0, 0.0),
    "CH":  (0.18, 0.00, 0.55, 0.50, 0.40, 0.0, 0.0, 0.0),
    "SS":  (0.11, 0.45, 0.00, 0.45, 0.50, 0.0, 0.0, 0.0),
    "nn":  (0.26, 0.10, 0.00, 0.10, 0.10, 0.0, 0.0, 0.6),
    "RR":  (0.25, 0.00, 0.45, 0.10, 0.10, 0.0, 0.0, 0.0),
    "aa":  (0.88, 0.05, 0.00, 0.00, 0.00, 0.0, 0.0, 0.0),
    "E":   (0.55, 0.40, 0.00, 0.00, 0.00, 0.0, 0.0, 0.0),
    "ih":  (0.34, 0.60, 0.00, 0.15, 0.10, 0.0, 0.0, 0.0),
    "oh":  (0.62, 0.00, 0.60, 0.00, 0.00, 0.0, 0.0, 0.0),
    "ou":  (0.27, 0.00, 1.00, 0.00, 0.00, 0.0, 0.0, 0.0),
}  # fmt: skip
TARGETS = np.array([_TARGETS[viseme] for viseme in VISEMES], np.float32)  # (visemes, KEYS)

# The mouth moves ahead of its sound.
VISUAL_LEAD_S = 0.04
# Sluggishness of each part of the mouth, as the sigma of a Gaussian: the jaw is quick, rounding slow.
_SIGMA_S = {"open": 0.038, "wide": 0.055, "round": 0.060, "upper": 0.045, "lower": 0.045,
            "press": 0.030, "ff": 0.030, "tongue": 0.045}  # fmt: skip
# Closures are quickest, or the lips would never close.
_CLOSURE_SIGMA_S, _CLOSURE_GAIN = 0.022, 1.6
_TUCK_SIGMA_S, _TUCK_GAIN = 0.025, 1.3
# Probabilities are sharpened slightly: of two likely visemes the mouth makes one rather than the mean.
_SHARPNESS = 1.3
# Loudness in dB under the speech's level: silent at the gate, speech 10 dB above; quiet and loud speech.
_GATE_DB, _GATE_RANGE_DB = -38.0, 10.0
_QUIET_DB, _LOUD_RANGE_DB = -22.0, 24.0
# Openings below _REST_OPEN become 0; the widest vowel, smoothed, becomes 1.
_REST_OPEN, _OPEN_GAIN, _MAX_OPEN = 0.03, 1.29, 1.1

# Energy: loudness over a 30 dB range, smoothed over a phrase. Emphasis: rise of a syllable or two above it.
_ENERGY_RANGE_DB = 30.0
_SYLLABLE_SIGMA_S, _PHRASE_SIGMA_S = 0.18, 0.53
_EMPHASIS_GAIN, _EMPHASIS_ONSET = 2.6, 0.15  # gentle onset, without a kink

# Frames on either side that one frame depends on, beyond the network's: sums of three sigmas each.
_MOUTH_CONTEXT = 48
_ENERGY_CONTEXT = 160
BLOCK_S = 2.0


@dataclass(frozen=True, slots=True)
class SpokenFrame:
    """Animation parameters that speech drives in one video frame.

    energy: loudness of the speech around the frame, 0 (silent) to 1. emphasis: 0 to 1, rise above its phrase.
    """

    articulation: Articulation
    energy: float
    emphasis: float


def smooth(x: np.ndarray, sigma_s: float) -> np.ndarray:
    """Convolve (T,) at `FRAME_HZ` with a Gaussian cut off at three sigmas, with edge padding."""
    reach = int(np.ceil(3 * sigma_s * FRAME_HZ))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / (sigma_s * FRAME_HZ)) ** 2)
    kernel = (kernel / kernel.sum()).astype(np.float32)
    return np.convolve(np.pad(x, reach, "edge"), kernel, "valid")


def loudness_db(listen: Listen, start: int, stop: int, level: Level) -> np.ndarray:
    """Return the rms of frames start..stop in dB over `level`, (stop - start,) float32."""
    hops = read_padded(listen, start * HOP, stop * HOP).reshape(-1, HOP)
    rms = np.sqrt((hops**2).mean(1) + np.float32(1e-12))
    return (20 * np.log10(rms / level_of(level, start, stop))).astype(np.float32)


def mouth_curves(probabilities: np.ndarray, loudness: np.ndarray) -> np.ndarray:
    """Return articulation from viseme probabilities (T, visemes) and loudness (T,) in dB: (T, KEYS) float32.

    Without the visual lead. The first and last `_MOUTH_CONTEXT` frames are affected by the edges.
    """
    sharpened = probabilities**_SHARPNESS
    moved = sharpened / sharpened.sum(1, keepdims=True) @ TARGETS
    loud = np.clip((smooth(loudness, 0.03) - _QUIET_DB) / _LOUD_RANGE_DB, 0, 1.15)
    gate = np.clip((loudness - _GATE_DB) / _GATE_RANGE_DB, 0, 1)
    quick, slow = smooth(gate, 0.025), smooth(gate, 0.05)
    near = np.clip(2 * smooth(gate, 0.1), 0, 1)  # lips may close for an initial "p" before it sounds
    for column, key in enumerate(KEYS):
        if key == "open":
            moved[:, column] *= (0.45 + 0.65 * loud) * quick
        else:
            moved[:, column] *= near if key in ("press", "ff") else slow
    curves = {key: smooth(moved[:, column], _SIGMA_S[key]) for column, key in enumerate(KEYS)}
    closed = smooth(probabilities[:, VISEMES.index("PP")], _CLOSURE_SIGMA_S)
    closed = np.clip(_CLOSURE_GAIN * closed, 0, 1)
    tucked = 0.8 * np.clip(_TUCK_GAIN * smooth(probabilities[:, VISEMES.index("FF")], _TUCK_SIGMA_S), 0, 1)
    opening = curves["open"] * (1 - closed) ** 1.2
    opening = opening * (1 - tucked) + _TARGETS["FF"][0] * tucked
    curves["open"] = np.clip((opening - _REST_OPEN) * _OPEN_GAIN, 0, _MAX_OPEN)
    curves["upper"] = curves["upper"] * (1 - closed)
    curves["lower"] = curves["lower"] * (1 - closed)
    return np.stack([curves[key] for key in KEYS], 1).astype(np.float32)


def energy_curves(loudness: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return energy and emphasis, (T,) each in 0..1, from loudness (T,) in dB.

    The first and last `_ENERGY_CONTEXT` frames are affected by the edges.
    """
    loud = np.clip(loudness / _ENERGY_RANGE_DB + 1, 0, 1)
    syllables, phrase = smooth(loud, _SYLLABLE_SIGMA_S), smooth(loud, _PHRASE_SIGMA_S)
    rise = np.maximum(_EMPHASIS_GAIN * (syllables - phrase), 0)
    return phrase, np.minimum(rise**2 / (rise + _EMPHASIS_ONSET), 1)


def spoken_curves(
    network: VisemeNetwork, listen: Listen, start: int, stop: int, level: Level
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return articulation (T, KEYS), energy (T,) and emphasis (T,) of frames start..stop at `FRAME_HZ`."""
    mouth, reach = _MOUTH_CONTEXT, _ENERGY_CONTEXT
    loudness = loudness_db(listen, start - reach, stop + reach, level)
    probabilities = network.probabilities(listen, start - mouth, stop + mouth, level)
    articulation = mouth_curves(probabilities, loudness[reach - mouth : len(loudness) - reach + mouth])
    energy, emphasis = energy_curves(loudness)
    return articulation[mouth:-mouth], energy[reach:-reach], emphasis[reach:-reach]


def articulate(
    listen: Listen,
    num_frames: int,
    fps: float = FPS,
    first_frame: int = 0,
    network: VisemeNetwork | None = None,
    level: Level | None = None,
    until: Until | None = None,
) -> Iterator[SpokenFrame]:
    """Yield the animation parameters of video frames first_frame..num_frames, frame i at i / fps seconds.

    level: None for that of each passage, which takes a first pass over the speech. until: of a speech that
    grows, whose length is not known: the frame given, or their number if there are fewer.
    listen is called as frames are consumed, some seconds ahead.
    """
    network = network or VisemeNetwork.load()
    if level is None:
        level = PassageLevel(listen, int(num_frames / fps * SPEECH_HZ))
    block, first = max(1, round(BLOCK_S * fps)), first_frame
    while (last := min(first + block, num_frames)) > first:
        last = last if until is None else until(last)
        if last <= first:
            return
        frames = np.arange(first, last)
        first = last
        times = frames / fps * FRAME_HZ
        start, stop = int(times[0]), int(times[-1]) + 2
        lead = round(VISUAL_LEAD_S * FRAME_HZ)
        articulation, energy, emphasis = spoken_curves(network, listen, start, stop + lead, level)
        grid = np.arange(start, stop)
        columns = [np.interp(times, grid, column) for column in articulation[lead:].T]
        energies = np.interp(times, grid, energy[: stop - start])
        emphases = np.interp(times, grid, emphasis[: stop - start])
        for row, loud, stressed in zip(np.stack(columns, 1), energies, emphases, strict=True):
            yield SpokenFrame(Articulation(*map(float, row)), float(loud), float(stressed))
