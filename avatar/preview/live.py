"""The preview engine for live sessions: one frame per 40 ms of sound, with idle motion in silence."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import cv2
import numpy as np

from avatar.events import Notice
from avatar.geometry import FPS, Size
from avatar.media.timeline import SAMPLES_PER_FRAME, Timeline
from avatar.preview.face_detection import Face
from avatar.preview.head_motion import Motion
from avatar.preview.live_mouth import LiveMouth
from avatar.preview.motion_scale import USUAL, MotionScale
from avatar.preview.pose import Articulation, Pose
from avatar.preview.several import SEED_STEP, SeveralFaces
from avatar.preview.visemes import VisemeNetwork
from avatar.runtime.live_protocol import LiveFrames

MEASURED_FRAMES = 2 * FPS  # frames timed before deciding whether the machine keeps up at this size
HELD_SHARE = 0.6  # of a frame's time for drawing; the rest is for encoding and sending it
SMALLER = (576, 448, 320)  # smaller sizes to step down to, as the side of a square of the same area, px
LATE_FRAMES = 6  # with more frames of sound queued, the last picture is repeated
LOST_FRAMES = 25  # with more, frames are dropped with their sound, to bound the latency


class LiveRenderer:
    """Draws frames of a fixed size, at a smaller size inside if the machine is slow."""

    def __init__(
        self,
        image: np.ndarray,
        face: Face,
        size: Size,
        idle: Sequence[Face] = (),
        still: Sequence[Face] = (),
        drawn: SeveralFaces | None = None,
    ) -> None:
        """image: uint8 (H, W, 3) RGB, the portrait. idle: other faces that move; still: those that do not.

        drawn: all of this, if it is ready.
        """
        self._image, self._size = image, size
        self._faces, self._still = [face, *idle], list(still)
        self._drawn = drawn or SeveralFaces(image, self._faces, self._still, size)
        self._smaller = [side for side in SMALLER if side * side < size.width * size.height]
        self._last = self._drawn.frame([(Articulation(), Pose())] * len(self._faces))
        self._shape = self._last.shape[1::-1]
        self._num_measured, self._spent_s = 0, 0.0

    @property
    def num_idle(self) -> int:
        """How many faces move besides the one that speaks."""
        return len(self._faces) - 1

    def frame(self, articulation: Articulation, pose: Pose, idle: Sequence[Pose] = ()) -> np.ndarray:
        """Draw a frame, uint8 (H, W, 3) RGB. idle: the poses of the idle faces; without them, as they are."""
        begin = time.perf_counter()
        others = idle or [Pose()] * self.num_idle
        picture = self._drawn.frame([(articulation, pose), *((Articulation(), one) for one in others)])
        if picture.shape[1::-1] != self._shape:
            picture = cv2.resize(picture, self._shape, interpolation=cv2.INTER_LINEAR)
        self._spent_s += time.perf_counter() - begin
        self._num_measured += 1
        self._last = picture
        return picture

    def last(self) -> np.ndarray:
        """The previous frame again."""
        return self._last

    def step_down(self) -> Notice | None:
        """Draw smaller from now on if the last MEASURED_FRAMES were too slow; None if they were not."""
        if self._num_measured != MEASURED_FRAMES:
            return None
        mean_s, self._spent_s = self._spent_s / MEASURED_FRAMES, 0.0
        if mean_s * FPS <= HELD_SHARE or not self._smaller:
            return None
        self._num_measured, side = 0, self._smaller.pop(0)
        self._drawn = SeveralFaces(self._image, self._faces, self._still, Size(side, side))
        text = f"A frame took {mean_s * 1e3:.0f} ms; it is drawn at {side}*{side} now, to hold {FPS} fps."
        values = {"ms": round(mean_s * 1e3), "size": f"{side}*{side}", "fps": FPS}
        return Notice("live_size", text, "warning", values=values)


def animate_live(
    renderer: LiveRenderer,
    sound: Iterator[np.ndarray],
    cancelled: Callable[[], bool],
    *,
    seed: int = 0,
    speaks: bool = True,
    may_skip: bool = True,
    network: VisemeNetwork | None = None,
    scale: MotionScale = USUAL,
) -> Iterator[LiveFrames | Notice]:
    """Yield each frame as soon as the sound that it needs has arrived; see LiveSource.

    speaks: False keeps the mouth shut. may_skip: see LiveRequest.
    """
    timeline, motion = Timeline(), Motion(seed, scale)
    idle = [Motion(seed + SEED_STEP * (number + 1), scale) for number in range(renderer.num_idle)]
    mouth = LiveMouth(timeline, network)
    for samples in sound:
        pieces = np.split(samples, range(SAMPLES_PER_FRAME, len(samples), SAMPLES_PER_FRAME))
        for num_left, piece in zip(range(len(pieces), 0, -1), pieces, strict=True):
            timeline.append(piece)
            while mouth.is_ready and not cancelled():
                index = mouth.num_frames
                spoken = mouth.next()
                if may_skip and num_left > LOST_FRAMES:
                    continue
                if may_skip and num_left > LATE_FRAMES:
                    picture = renderer.last()
                else:
                    articulation = scale.spoken(spoken.articulation) if speaks else Articulation()
                    pose = motion.pose(index / FPS, spoken.energy, spoken.emphasis)
                    picture = renderer.frame(articulation, pose, [one.pose(index / FPS) for one in idle])
                start = index * SAMPLES_PER_FRAME
                heard = timeline.sound(start, start + SAMPLES_PER_FRAME)
                yield LiveFrames(index, picture[None], heard.copy())
                reported = renderer.step_down()
                if reported is not None:
                    yield reported
