"""Pictures that the preview's tests look at, and what is known of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

PORTRAITS = Path(__file__).parents[2] / "assets" / "portraits"

# Where the drawings have their features, in pixels, read off the SVGs.
DRAWN = {
    "mara": {
        "mouth_left": (321, 572),
        "mouth_right": (447, 572),
        "inner_lip_top": (384, 579),
        "inner_lip_bottom": (384, 581),
        "outer_lip_top": (384, 555),
        "outer_lip_bottom": (384, 608),
        "chin": (384, 666),
        "eye_left": (312, 440),
        "eye_right": (456, 440),
    },
    "robot": {
        "mouth_left": (318, 530),
        "mouth_right": (482, 530),
        "inner_lip_top": (400, 540),
        "inner_lip_bottom": (400, 542),
        "outer_lip_top": (400, 510),
        "outer_lip_bottom": (400, 578),
        "eye_left": (300, 354),
        "eye_right": (500, 354),
    },
    "fox": {
        "mouth_left": (331, 578),
        "mouth_right": (469, 578),
        "inner_lip_top": (400, 588),
        "inner_lip_bottom": (400, 590),
        "outer_lip_top": (400, 568),
        "outer_lip_bottom": (400, 622),
        "eye_left": (310, 400),
        "eye_right": (490, 400),
    },
}


def portrait(name: str) -> np.ndarray:
    """A shipped portrait, uint8 (H, W, 3) RGB."""
    (path,) = (p for p in PORTRAITS.glob(f"{name}.*") if p.suffix in (".png", ".jpg"))
    return np.asarray(Image.open(path).convert("RGB"))


def smiley() -> np.ndarray:
    """A child's drawing: a circle, two dots, a line. (400, 400, 3)."""
    image = Image.new("RGB", (400, 400), "white")
    pen = ImageDraw.Draw(image)
    pen.ellipse((60, 60, 340, 340), fill="#ffd84a", outline="black", width=5)
    pen.ellipse((135, 150, 155, 170), fill="black")
    pen.ellipse((245, 150, 265, 170), fill="black")
    pen.arc((130, 170, 270, 270), 20, 160, fill="black", width=6)
    return np.asarray(image)


SMILEY_POINTS = {
    "mouth_left": [0.335, 0.59],
    "mouth_right": [0.665, 0.59],
    "inner_lip_top": [0.5, 0.668],
    "inner_lip_bottom": [0.5, 0.672],
    "outer_lip_top": [0.5, 0.655],
    "outer_lip_bottom": [0.5, 0.685],
    "chin": [0.5, 0.85],
    "eye_left": [0.3625, 0.4],
    "eye_right": [0.6375, 0.4],
}


def small_astronaut(side: int) -> np.ndarray:
    """The astronaut's head alone, (side, side, 3); her face is two thirds of it high."""
    head = Image.fromarray(portrait("astronaut")).crop((152, 50, 304, 202))
    return np.asarray(head.resize((side, side), Image.Resampling.BOX))


def bystander() -> np.ndarray:
    """A man in profile whose face is 80 px high, and far behind him a face of 30 px that looks at us.

    Source: "camera" of scikit-image, CC0.
    """
    import skimage.data

    scene = np.repeat(np.asarray(skimage.data.camera())[:, :, None], 3, axis=2).copy()
    scene[300:346, 420:466] = small_astronaut(46)
    return scene
