"""Films whose truth is known: a shipped photograph that speaks, turns and blinks, and damage done to it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import soundfile
import soxr

from avatar.geometry import FPS, SPEECH_HZ, Size
from avatar.measures.face_track import FaceTrack, follow
from avatar.measures.lip_sync import NATURAL_LEAD_S, ExpectedMouth, expected_mouth
from avatar.preview.animate import animate
from avatar.preview.articulation import TARGETS, smooth
from avatar.preview.face_detection import find_face
from avatar.preview.pose import Articulation, Pose
from avatar.preview.render import Renderer, framed
from avatar.preview.visemes import FRAME_HZ, VISEMES
from tests.preview.pictures import portrait

ROOT = Path(__file__).parents[2]
SIZE = Size(320, 320)
CLIP = 48  # frames between the borders that are cut
LENGTH_S = 10
SLOW_FPS = FPS / 2  # shows what moves slowly as well, by half the pictures

Frames = list[np.ndarray]


@cache
def renderer() -> Renderer:
    """The shipped photograph of a real face, ready to move."""
    image = portrait("astronaut")
    face = find_face(image).face
    assert face is not None
    return Renderer(*framed(image, face, SIZE))


@cache
def speech() -> np.ndarray:
    """LENGTH_S of a person's recorded speech, float32 at 16 kHz."""
    samples, rate = soundfile.read(ROOT / "assets/speech/hello-en.flac", dtype="float32")
    mono = samples if samples.ndim == 1 else samples.mean(1)
    return soxr.resample(mono, rate, SPEECH_HZ)[: LENGTH_S * SPEECH_HZ].astype(np.float32)


def heard(samples: np.ndarray, later_ms: float = 0) -> ExpectedMouth:
    """What is heard of a sound that comes so much later (negative: sooner)."""
    shift = round(later_ms * SPEECH_HZ / 1000)
    moved = np.concatenate([np.zeros(shift, np.float32), samples]) if shift > 0 else samples[-shift:]
    return expected_mouth(lambda start, stop: moved[start:stop], len(moved))


@cache
def spoken() -> tuple[np.ndarray, ...]:
    """The photograph speaks `speech`, as the preview engine makes it."""
    samples = speech()
    acts = animate(lambda start, stop: samples[start:stop], LENGTH_S * FPS, seed=3)
    return tuple(renderer().frame(articulation, pose) for articulation, pose in acts)


@cache
def read_aloud() -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """The photograph says sentences whose sounds are known, by their truth, not by the network's ear.

    Returns frames and the sound.
    """
    folder = ROOT / "tests/data/speech"
    truth = json.loads((folder / "truth.json").read_text(encoding="utf-8"))
    rows, sounds = [], []
    for name in ("00_flite", "01_flite", "08_kokoro"):
        samples, _ = soundfile.read(folder / f"{name}.flac", dtype="float32")
        visemes = [viseme for viseme, count in truth[name]["visemes"] for _ in range(count)]
        sounds.append(samples[: len(visemes) * SPEECH_HZ // FRAME_HZ])
        rows += visemes
    shapes = TARGETS[[VISEMES.index(viseme) for viseme in rows]]
    curves = np.stack([smooth(column, 0.03) for column in shapes.T], 1)
    frames = []
    for index in range(len(rows) * FPS // FRAME_HZ):
        at = min(round(index / FPS * FRAME_HZ + NATURAL_LEAD_S * FRAME_HZ), len(rows) - 1)
        frames.append(renderer().frame(Articulation(*map(float, curves[at])), Pose()))
    return tuple(frames), np.concatenate(sounds)


def acted(act: Callable[[float], Pose | Articulation], seconds: float, fps: float = FPS) -> Frames:
    """The photograph poses, or moves its mouth, as a function of time."""
    frames = []
    for index in range(round(seconds * fps)):
        asked = act(index / fps)
        pose, mouth = (asked, Articulation()) if isinstance(asked, Pose) else (Pose(), asked)
        frames.append(renderer().frame(mouth, pose))
    return frames


def watched(
    frames: Sequence[np.ndarray], portrait: np.ndarray | None = None, fps: float = FPS
) -> FaceTrack:
    """What is measured of frames."""
    return follow(((index / fps, frame) for index, frame in enumerate(frames)), portrait)


@cache
def untouched() -> FaceTrack:
    """The film that nothing was done to, beside its own portrait."""
    return watched(spoken(), renderer().image)


@cache
def sentences() -> FaceTrack:
    """The film whose sounds are known by their truth."""
    return watched(read_aloud()[0])


@cache
def moved_at_borders() -> FaceTrack:
    """The film of which every second clip stands elsewhere."""
    return watched(per_clip(shifted))


@cache
def at_rest() -> FaceTrack:
    """The photograph, with a camera's noise, for 5 s at SLOW_FPS."""
    return watched(still(5, SLOW_FPS), fps=SLOW_FPS)


def turned(degrees: float, seconds: float, period_s: float, fps: float = FPS) -> Frames:
    """The photograph itself, turned in the picture's plane to and fro: nothing of ours draws it."""
    image, (height, width) = renderer().image, renderer().image.shape[:2]
    frames = []
    for index in range(round(seconds * fps)):
        # OpenCV's angles go counter-clockwise.
        angle = -degrees * math.sin(2 * math.pi * index / fps / period_s)
        affine = cv2.getRotationMatrix2D((width / 2, height / 2), angle, 1)
        frames.append(cv2.warpAffine(image, affine, (width, height), borderMode=cv2.BORDER_REPLICATE))
    return frames


def smiling(rise: float, seconds: float, period_s: float, fps: float = FPS) -> Frames:
    """The photograph with the corners of its mouth drawn up, by up to `rise` of the face's height."""
    image, face = renderer().image, find_face(renderer().image).face
    assert face is not None
    points = face.landmarks[:, :2]
    height = float(np.linalg.norm(points[10] - points[152]))
    y, x = np.mgrid[: image.shape[0], : image.shape[1]].astype(np.float32)
    near = np.zeros_like(x)
    for corner in points[[61, 291]]:
        near += np.exp(-((x - corner[0]) ** 2 + (y - corner[1]) ** 2) / (2 * (0.06 * height) ** 2))
    frames = []
    for index in range(round(seconds * fps)):
        way = 0.5 - 0.5 * math.cos(2 * math.pi * index / fps / period_s)
        frames.append(cv2.remap(image, x, y + near * np.float32(rise * height * way), cv2.INTER_LINEAR))
    return frames


def still(seconds: float, fps: float = FPS) -> Frames:
    """The photograph, with a camera's noise."""
    rng, image = np.random.default_rng(0), renderer().image
    noisy = (image + rng.normal(0, 2, image.shape) for _ in range(round(seconds * fps)))
    return [np.clip(frame, 0, 255).astype(np.uint8) for frame in noisy]


def per_clip(change: Callable[[np.ndarray, int], np.ndarray]) -> Frames:
    """The film with a change to each frame by the number of its clip."""
    return [change(frame, index // CLIP) for index, frame in enumerate(spoken())]


def shifted(frame: np.ndarray, clip: int, px: int = 3) -> np.ndarray:
    """Every second clip stands px further to the right."""
    return np.roll(frame, px * (clip % 2), axis=1)


def tinted(frame: np.ndarray, clip: int, share: float = 0.06) -> np.ndarray:
    """Every second clip is redder."""
    return coloured(frame, share * (clip % 2))


def skipped(num_frames: int = 8) -> Frames:
    """At every border some frames are missing, as where a clip does not go on from the last one's end."""
    source = spoken()
    return [
        source[index]
        for start in range(0, len(source), CLIP + num_frames)
        for index in range(start, min(start + CLIP, len(source)))
    ]


def coloured(frame: np.ndarray, share: float) -> np.ndarray:
    """More red and less blue by a share."""
    return np.clip(frame * np.array([1 + share, 1, 1 - share]), 0, 255).astype(np.uint8)


def drifting(change: Callable[[np.ndarray, float], np.ndarray]) -> Frames:
    """The film at SLOW_FPS changed more and more; change: of a frame, and how far the film is, 0 to 1."""
    source = spoken()[::2]
    return [change(frame, index / (len(source) - 1)) for index, frame in enumerate(source)]


def blurred(frame: np.ndarray, sigma: float) -> np.ndarray:
    """Out of focus by a Gaussian of sigma pixels."""
    return frame if sigma < 0.05 else cv2.GaussianBlur(frame, (0, 0), sigma)
