"""Head motion: sway, breath, blinks, glances, nods and brows, smooth and seeded.

A pose is a pure function of seed, absolute time and the energy and emphasis of speech at that time: there is
no state between frames, so a video may start anywhere with the same result.
"""

import math
from functools import lru_cache

import numpy as np

from avatar.preview.motion_scale import USUAL, MotionScale
from avatar.preview.pose import Pose

# The video starts from the unchanged portrait and reaches full motion within this time.
_WAKE_S = 2.5
# Sway: sums of slow waves, the slowest the largest. _SWAY: rms amplitudes in lively speech.
_SWAY_HZ, _SWAY_AMPLITUDES = (0.07, 0.42), np.array([1.0, 0.7, 0.5, 0.3])
_SWAY = {"yaw": 0.055, "pitch": 0.028, "roll": 0.011, "tx": 0.005, "ty": 0.004}
# Share of the sway that remains in silence.
_SWAY_AT_REST = 0.55
_BREATH_HZ = 0.24

# Blinks: one at a random time in every slot, some of them double. _LID_S: when a lid is shut, starts to open,
# and is open.
_BLINK_SLOT_S, _DOUBLE_BLINK_SHARE, _DOUBLE_BLINK_S = 3.2, 0.12, 0.34
_LID_S = (0.075, 0.115, 0.30)

# Glances: one saccade in every slot, mostly back to the viewer.
_GLANCE_SLOT_S, _SACCADE_S = 1.8, 0.06
_VIEWER_SHARE, _VIEWER_SIGMA = 0.6, 0.008
_ASIDE_SIGMA_X, _ASIDE_SIGMA_Y, _GAZE_LIMIT = 0.050, 0.022, 0.10
# Eyes counter-rotate against the head, to keep looking at the same point.
_GAZE_HOLD = 0.7

# An emphasised syllable moves the head, the brows, both or neither, depending on two slow waves.
_NOD_PITCH, _NOD_DROP = 0.060, 0.007
_BROW_RAISE = 0.9
_MOOD_HZ = (0.05, 0.30)

# Events keep this distance from their slot's ends, as a share of the slot, so that no two coincide.
_SLOT_MARGIN = 0.06


def smoothstep(x: float) -> float:
    """Rise from 0 at 0 to 1 at 1, with zero slope at both ends."""
    x = min(max(x, 0.0), 1.0)
    return x * x * (3 - 2 * x)


class Motion:
    """The head motion of one video, determined by seed, time, speech energy and how much it may move."""

    def __init__(self, seed: int, scale: MotionScale = USUAL) -> None:
        self._seed, self._scale = seed, scale
        rng = np.random.default_rng((seed, 0))
        waves = (*[_SWAY_HZ] * len(_SWAY), _MOOD_HZ, _MOOD_HZ)
        shape = (len(waves), len(_SWAY_AMPLITUDES))
        low, high = np.array(waves).T[:, :, None]
        self._hz = np.sort(rng.uniform(low, high, shape), axis=1)
        self._phase = rng.uniform(0, 2 * np.pi, shape)
        self._breath_phase = float(rng.uniform(0, 2 * np.pi))
        self._events = lru_cache(maxsize=64)(self._draw)

    def pose(self, time_s: float, energy: float = 0.0, emphasis: float = 0.0) -> Pose:
        """Return the pose at a time from the start of the video, seconds.

        energy, emphasis: 0..1, see `articulation.SpokenFrame`.
        """
        waves = self._waves(time_s)
        wake = smoothstep(time_s / _WAKE_S)
        moved = self._scale
        gain = moved.head * wake * (_SWAY_AT_REST + (1 - _SWAY_AT_REST) * energy)
        sway = {key: gain * size * wave for (key, size), wave in zip(_SWAY.items(), waves, strict=False)}
        nod, raised = (emphasis * smoothstep(0.5 + 0.6 * wave) for wave in waves[len(_SWAY) :])
        nod *= moved.head
        pitch = sway["pitch"] + _NOD_PITCH * nod
        gaze_x, gaze_y = (moved.gaze * angle for angle in self._glance(time_s))
        return Pose(
            yaw=sway["yaw"],
            pitch=pitch,
            roll=sway["roll"],
            tx=sway["tx"],
            ty=sway["ty"] + _NOD_DROP * nod,
            breath=wake * (0.5 + 0.5 * math.sin(2 * math.pi * _BREATH_HZ * time_s + self._breath_phase)),
            brow=moved.brow * _BROW_RAISE * raised,
            blink=self._blink(time_s),
            gaze_x=wake * gaze_x - _GAZE_HOLD * sway["yaw"],
            gaze_y=wake * gaze_y - _GAZE_HOLD * pitch,
        )

    def _waves(self, time_s: float) -> list[float]:
        """Return the waves of the sway and of the two moods, each of unit rms."""
        waves = np.sin(2 * np.pi * self._hz * time_s + self._phase) @ _SWAY_AMPLITUDES
        return (waves / np.sqrt(0.5 * (_SWAY_AMPLITUDES**2).sum())).tolist()

    def blinks(self, start_s: float, stop_s: float) -> list[float]:
        """Return the start times of blinks between two times, in order, in seconds."""
        found = []
        for slot in range(max(0, int(start_s // _BLINK_SLOT_S) - 1), int(stop_s // _BLINK_SLOT_S) + 1):
            place, double, _, _ = self._events(1, slot)
            first = (slot + place) * _BLINK_SLOT_S
            found += [first, first + _DOUBLE_BLINK_S] if double < _DOUBLE_BLINK_SHARE else [first]
        return [time_s for time_s in found if start_s <= time_s < stop_s]

    def _blink(self, time_s: float) -> float:
        shut_s, opening_s, open_s = _LID_S
        lids = 0.0
        for start_s in self.blinks(time_s - open_s, time_s + 1e-9):
            since_s = time_s - start_s
            falling = smoothstep(since_s / shut_s)
            lids = max(lids, falling - smoothstep((since_s - opening_s) / (open_s - opening_s)))
        return lids

    def _glance(self, time_s: float) -> tuple[float, float]:
        slot = int(time_s // _GLANCE_SLOT_S)
        jump_s = (slot + self._events(2, slot)[0]) * _GLANCE_SLOT_S
        moved = smoothstep((time_s - jump_s) / _SACCADE_S)
        (from_x, from_y), (to_x, to_y) = self._target(slot - 1), self._target(slot)
        return from_x + moved * (to_x - from_x), from_y + moved * (to_y - from_y)

    def _target(self, slot: int) -> tuple[float, float]:
        """Return the gaze after a slot's saccade, in radians; at the viewer before the first."""
        if slot < 0:
            return 0.0, 0.0
        _, aside, x, y = self._events(2, slot)
        viewer = aside < _VIEWER_SHARE
        x *= _VIEWER_SIGMA if viewer else _ASIDE_SIGMA_X
        y *= _VIEWER_SIGMA if viewer else _ASIDE_SIGMA_Y
        return min(max(x, -_GAZE_LIMIT), _GAZE_LIMIT), min(max(y, -_GAZE_LIMIT), _GAZE_LIMIT)

    def _draw(self, kind: int, slot: int) -> tuple[float, float, float, float]:
        """Return a slot's random numbers: its event's position in it, one uniform and two normal numbers."""
        rng = np.random.default_rng((self._seed, kind, slot))
        place = float(rng.uniform(_SLOT_MARGIN, 1 - _SLOT_MARGIN))
        return place, float(rng.random()), float(rng.normal()), float(rng.normal())
