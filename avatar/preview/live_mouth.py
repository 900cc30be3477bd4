"""Streaming version of `articulation`, with a look-ahead of 200 ms.

A frame depends only on the sound up to `LOOK_AHEAD_FRAMES` after its start, not on later sound, nor on how
or how fast the sound arrived. Beyond the look-ahead, the last known features are repeated. Every array holds
a fixed length of the past.
"""

from __future__ import annotations

import numpy as np

from avatar.geometry import FPS, SPEECH_HZ
from avatar.media.timeline import Timeline
from avatar.preview.articulation import VISUAL_LEAD_S, SpokenFrame, energy_curves, loudness_db, mouth_curves
from avatar.preview.loudness import CONTEXT, POWERS_IN_STEP, STEP_HZ, levels_db
from avatar.preview.pose import Articulation
from avatar.preview.visemes import (
    FRAME_HZ,
    HOP,
    LEVEL_FRAME,
    WINDOW,
    VisemeNetwork,
    log_mels,
)

LOOK_AHEAD_FRAMES = 5  # video frames of sound needed for a frame, its own included: 200 ms
_PER_FRAME = FRAME_HZ // FPS  # feature frames per video frame
_FILTER_REACH = 8  # samples at SPEECH_HZ by which the timeline may lag
# Feature frames known when a video frame is made, counted from the video frame's first.
_AHEAD = (LOOK_AHEAD_FRAMES * SPEECH_HZ // FPS - _FILTER_REACH - (HOP + WINDOW) // 2) // HOP + 1
_LEAD = round(VISUAL_LEAD_S * FRAME_HZ)
_MOUTH_PAST, _ENERGY_PAST = 48, 160  # feature frames of the past that smoothing uses; see articulation
_KEEP = 256  # feature frames, more than any window
_SILENT_DB = -45.0  # relative to the level; too quiet to open the mouth or move the head

_TYPICAL_DB = -24.0  # initial level: the rms of speech at an ordinary distance
_MEMORY_STEPS = 20.0 * STEP_HZ  # time constant of the overall level, in steps of speech


class RunningLevel:
    """The rms of the current passage, from past sound alone; see `loudness.PassageLevel` for whole speech."""

    def __init__(self) -> None:
        self._powers = np.full((2 * CONTEXT + 1, POWERS_IN_STEP), np.nan)  # the newest in the middle
        self._whole = 10 ** (_TYPICAL_DB / 10)
        self._num_steps = 0
        self.rms = np.float32(10 ** (_TYPICAL_DB / 20))

    def follow(self, timeline: Timeline, num_heard: int) -> None:
        """Process the new sound before sample num_heard, step by step."""
        per_step = SPEECH_HZ // STEP_HZ
        while (self._num_steps + 1) * per_step <= num_heard:
            samples = timeline.listen(self._num_steps * per_step, (self._num_steps + 1) * per_step)
            self._num_steps += 1
            self._powers[:CONTEXT] = self._powers[1 : CONTEXT + 1]
            self._powers[CONTEXT] = np.square(samples.reshape(-1, LEVEL_FRAME)).mean(1, dtype=np.float64)
            levels, speaking = levels_db(self._powers, 10 * np.log10(self._whole))
            self.rms = np.float32(10 ** (levels[0] / 20))
            if speaking[0]:
                self._whole += (float(self._powers[CONTEXT].max()) - self._whole) / _MEMORY_STEPS


class LiveMouth:
    """Computes the animation parameters of one video frame after another."""

    def __init__(self, timeline: Timeline, network: VisemeNetwork | None = None) -> None:
        self._timeline = timeline
        self._network = network or VisemeNetwork.load()
        self._level = RunningLevel()
        self.num_frames = 0
        reach = self._network.CONTEXT
        silent = log_mels(lambda start, stop: np.zeros(stop - start, np.float32), 0, 1, 1.0)
        self._known = 0  # number of feature frames computed
        self._new = 0  # of these, frames whose probabilities are final but not yet in _sure
        self._mels = np.repeat(silent, _KEEP, 0)  # the most recent, newest last
        self._loudness = np.full(_KEEP, -100.0, np.float32)
        self._sure = np.repeat(self._network(np.repeat(silent, 2 * reach + 1, 0)), _KEEP, 0)
        # Final probabilities, of frames before _known - reach: later sound cannot change them.

    @property
    def is_ready(self) -> bool:
        """Whether the sound that the next frame needs has arrived."""
        needed = (self.num_frames + LOOK_AHEAD_FRAMES) * (SPEECH_HZ // FPS)
        return self._timeline.num_heard >= needed - _FILTER_REACH

    def next(self) -> SpokenFrame:
        """The next video frame's parameters; call this when is_ready. Raises: LookupError before that."""
        own = self.num_frames * _PER_FRAME
        self._hear(own + _AHEAD)
        if self._loudness.max() < _SILENT_DB:  # the common case: the computation below would give the same
            self.num_frames += 1
            return SpokenFrame(Articulation(), 0.0, 0.0)
        tail = self._probabilities()
        ahead = self._known - own  # feature frames from this video frame's first on
        past = _MOUTH_PAST + ahead
        loudness = self._loudness[-past:]
        curves = mouth_curves(np.concatenate([self._sure, tail])[-past:], loudness)
        energy, emphasis = energy_curves(self._loudness[-(_ENERGY_PAST + ahead) :])
        self.num_frames += 1
        articulation = Articulation(*map(float, curves[_LEAD - ahead]))
        return SpokenFrame(articulation, float(energy[-ahead]), float(emphasis[-ahead]))

    def _hear(self, known: int) -> None:
        """Compute features and loudness of the new frames before `known`."""
        first, self._known = self._known, known
        self._level.follow(self._timeline, (known - 1) * HOP + (HOP + WINDOW) // 2)
        rms = float(self._level.rms)
        listen = self._timeline.listen
        self._mels = _pushed(self._mels, log_mels(listen, first, known, rms))
        self._loudness = _pushed(self._loudness, loudness_db(listen, first, known, rms))
        self._new = min(self._new + known - first, _KEEP - 2 * self._network.CONTEXT)

    def _probabilities(self) -> np.ndarray:
        """Probabilities of frames not yet final, (reach, visemes); those that became final are stored."""
        reach = self._network.CONTEXT
        window = self._mels[-(2 * reach + self._new) :]
        held = np.concatenate([window, np.repeat(window[-1:], reach, 0)])
        found = self._network(held)  # of frames known - reach - new .. known
        self._sure = _pushed(self._sure, found[: self._new])
        new, self._new = self._new, 0
        return found[new:]


def _pushed(held: np.ndarray, new: np.ndarray) -> np.ndarray:
    """The last _KEEP rows of held and new."""
    return np.concatenate([held, new])[-_KEEP:]
