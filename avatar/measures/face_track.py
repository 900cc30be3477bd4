"""One pass over a video that tracks its face, or several, from frame to frame and measures each picture."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from avatar.measures.crop import Reference
from avatar.measures.frames import read_frames
from avatar.measures.pose import STEADY, split
from avatar.media.portrait import read_portrait
from avatar.preview.landmarks import crop_of_points, landmarks
from avatar.preview.recent import known_faces
from avatar.preview.topology import (
    CHIN,
    LEFT_BROW,
    LEFT_EYE_CORNERS,
    MOUTH_LEFT,
    MOUTH_RIGHT,
    RIGHT_BROW,
    RIGHT_EYE_CORNERS,
)
from avatar.request import Box

PRESENCE = 0.5  # of the tracked face, 0 to 1; below this the face is lost
FLOW_PX = 160  # longer side of the pictures that optical flow is computed on
SEARCH_EVERY, SEARCH_SELDOM = (
    5,
    80,
)  # frames between searches for a lost face, at first and later

_GAP = ((13, 14), (82, 87), (312, 317))  # inner lips, upper and lower, at the middle and beside it
_LIDS = ((159, 145), (158, 153)), ((386, 374), (385, 380))  # upper and lower, of the left and the right eye
_KEPT = list(dict.fromkeys((*STEADY, CHIN, MOUTH_LEFT, MOUTH_RIGHT, 13, 14, *LEFT_BROW, *RIGHT_BROW)))

SIGNALS = (
    "yaw",  # degrees; pitch and roll too
    "pitch",
    "roll",
    "x",  # of the head, in face heights; y too
    "y",
    "face_px",
    "gap",  # between the inner lips, in face heights
    "mouth_width",  # in face heights; those below too
    "corner_left",  # height of the mouth's corners above the middle of the lips
    "corner_right",
    "brow_left",  # height of the brows above the eyes
    "brow_right",
    "eye_left",  # openness: the lids' distance divided by the eye's width
    "eye_right",
    "ssim",  # of the face with the reference
    "lightness",  # of the face, L*, a*, b*
    "green_red",
    "blue_yellow",
    "sharpness",
)


@dataclass(frozen=True)
class FaceTrack:
    """Measurements of T frames; NaN where no face was found.

    times: (T,) seconds. signals: float64 (T,) each, by the names of SIGNALS. shapes: float32 (T, K, 2), some
    landmarks in face heights. flow: (T,), one number per frame for the change of optical flow, in shares of
    the longer side. fps: frames per second. reference_*: of the portrait, or of the first face.
    """

    times: np.ndarray
    signals: dict[str, np.ndarray]
    shapes: np.ndarray
    flow: np.ndarray
    fps: float
    size: tuple[int, int]
    against_portrait: bool
    reference_sharpness: float | None
    reference_colour: tuple[float, float, float] | None

    @property
    def num_frames(self) -> int:
        return len(self.times)

    @property
    def seen(self) -> np.ndarray:
        """(T,) whether a face was found."""
        return np.isfinite(self.signals["gap"])

    @property
    def seen_share(self) -> float:
        return float(self.seen.mean()) if len(self.times) else 0.0


def track(
    video: Path, portrait: Path | None = None, on_frame: Callable[[int], None] = lambda _: None
) -> FaceTrack:
    """Track the face of a video. portrait: a picture to compare with; on_frame: gets the frames done so far.

    Raises: BadInput for a file that is not a video.
    """
    return follow(read_frames(video), None if portrait is None else read_portrait(portrait), on_frame)


def follow(
    frames: Iterable[tuple[float, np.ndarray]],
    portrait: np.ndarray | None = None,
    on_frame: Callable[[int], None] = lambda _: None,
) -> FaceTrack:
    """As track, from (seconds, uint8 (H, W, 3) RGB) pictures. portrait: uint8 (H, W, 3) RGB."""
    (found,) = follow_several(frames, [None], portrait, on_frame)
    return found


def follow_several(
    frames: Iterable[tuple[float, np.ndarray]],
    boxes: Sequence[Box | None],
    portrait: np.ndarray | None = None,
    on_frame: Callable[[int], None] = lambda _: None,
) -> tuple[FaceTrack, ...]:
    """As follow, a track of each of several faces. boxes: of them, in fractions; None: the main face."""
    followers, flow = [_Follower(portrait, box) for box in boxes], _Flow()
    times: list[float] = []
    changes: list[float] = []
    size = (0, 0)
    for number, (time_s, image) in enumerate(frames):
        size = size if number else (image.shape[1], image.shape[0])
        for follower in followers:
            follower.look(number, image)
        times.append(time_s)
        changes.append(flow.change(image))
        on_frame(number + 1)
    steps = np.diff(times)
    fps = float(1 / np.median(steps)) if len(steps) and np.median(steps) > 0 else 25.0
    return tuple(follower.track(np.array(times), np.array(changes), fps, size) for follower in followers)


class _Follower:
    """Tracks one face and compares it with the reference."""

    def __init__(self, portrait: np.ndarray | None, box: Box | None) -> None:
        """box: see follow_several."""
        self._box = box
        found = None if portrait is None else self._search(portrait)
        self._portrait = None if portrait is None or found is None else (portrait, found)
        self.against_portrait = self._portrait is not None
        self.reference: Reference | None = None
        self._points: np.ndarray | None = None
        self._next_search, self._pause = 0, SEARCH_EVERY
        self._rows: list[list[float]] = []
        self._shapes: list[np.ndarray] = []

    def look(self, number: int, image: np.ndarray) -> None:
        """Measure the next picture."""
        values, shape = self._look(number, image)
        self._rows.append(values)
        self._shapes.append(shape)

    def track(self, times: np.ndarray, flow: np.ndarray, fps: float, size: tuple[int, int]) -> FaceTrack:
        """What was measured of all pictures; see FaceTrack."""
        columns = np.array(self._rows, np.float64).reshape(-1, len(SIGNALS)).T
        reference = self.reference
        return FaceTrack(
            times=times,
            signals=dict(zip(SIGNALS, columns, strict=True)),
            shapes=np.array(self._shapes, np.float32).reshape(-1, len(_KEPT), 2),
            flow=flow,
            fps=fps,
            size=size,
            against_portrait=self.against_portrait,
            reference_sharpness=None if reference is None else reference.look.sharpness,
            reference_colour=None if reference is None else reference.look.colour,
        )

    def _look(self, number: int, image: np.ndarray) -> tuple[list[float], np.ndarray]:
        """The signals of a picture, in the order of SIGNALS, and some of its landmarks."""
        points = self._find(number, image)
        if points is None:
            return [np.nan] * len(SIGNALS), np.full((len(_KEPT), 2), np.nan, np.float32)
        pose, unturned = split(points)
        if self.reference is None:
            source = self._portrait or (image, points)
            self.reference = Reference(*source, pose.face_px)
        seen = self.reference.compare(image, points)
        values = [pose.yaw, pose.pitch, pose.roll]
        values += [pose.place[0] / pose.face_px, pose.place[1] / pose.face_px, pose.face_px]
        values += [*_expression(unturned), seen.ssim, *seen.colour, seen.sharpness]
        return values, (points[_KEPT, :2] / pose.face_px).astype(np.float32)

    def _find(self, number: int, image: np.ndarray) -> np.ndarray | None:
        """Landmarks (468, 3), found near the previous frame's, else by a new search; None without a face."""
        if self._points is not None:
            mesh = landmarks(image, crop_of_points(self._points))
            if mesh.presence >= PRESENCE:
                self._points, self._pause = mesh.points, SEARCH_EVERY
                return self._points
            self._points, self._next_search = None, number
        if number >= self._next_search:
            self._next_search = number + self._pause
            self._pause = min(2 * self._pause, SEARCH_SELDOM)
            self._points = self._search(image)
        return self._points

    def _search(self, image: np.ndarray) -> np.ndarray | None:
        """Landmarks of the face that is followed, (468, 3), wherever it is in a picture; None without it."""
        faces, (height, width) = known_faces(image), image.shape[:2]
        index: int | None = faces.main if faces.found else None
        if self._box is not None:
            left, top, right, bottom = self._box
            index = faces.at((left * width, top * height, right * width, bottom * height))
        return None if index is None else faces.faces[index].landmarks


class _Flow:
    """Computes how much the optical flow changes from frame to frame."""

    def __init__(self) -> None:
        self._dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
        self._grey: np.ndarray | None = None
        self._before: np.ndarray | None = None

    def change(self, image: np.ndarray) -> float:
        """Mean change of the flow since the previous frame, in shares of the longer side; NaN at first."""
        scale = FLOW_PX / max(image.shape[:2])
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        grey = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        if self._grey is None or self._grey.shape != grey.shape:
            self._grey, self._before = grey, None
            return float("nan")
        flow = self._dis.calc(self._grey, grey, None)  # type: ignore[call-overload]
        before, self._grey, self._before = self._before, grey, flow
        if before is None:
            return float("nan")
        return float(np.linalg.norm(flow - before, axis=-1).mean() / FLOW_PX)


def _expression(face: np.ndarray) -> list[float]:
    """The signals "gap" to "eye_right" of a frontal face, (468, 3) in face heights."""

    def apart(a: int, b: int) -> float:
        return float(np.linalg.norm(face[a] - face[b]))

    gap = float(np.mean([apart(a, b) for a, b in _GAP]))
    middle = (face[13, 1] + face[14, 1]) / 2
    corners = [float(middle - face[corner, 1]) for corner in (MOUTH_LEFT, MOUTH_RIGHT)]
    brows, lids = [], []
    for brow, (outer, inner), pairs in zip(
        (LEFT_BROW, RIGHT_BROW), (LEFT_EYE_CORNERS, RIGHT_EYE_CORNERS), _LIDS
    ):
        brows.append(float((face[outer, 1] + face[inner, 1]) / 2 - face[list(brow), 1].mean()))
        lids.append(float(np.mean([apart(a, b) for a, b in pairs])) / apart(outer, inner))
    return [gap, apart(MOUTH_LEFT, MOUTH_RIGHT), *corners, *brows, *lids]
