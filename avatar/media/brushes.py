"""Several masks in one painting: each speaker has a brush with a colour of its own."""

from __future__ import annotations

import numpy as np

BRUSHES = ((226, 60, 44), (28, 104, 226), (20, 160, 84), (232, 170, 0))  # RGB
PAINTED_ALPHA = 64  # from this opacity on, a pixel is painted


def of_brush(rgba: np.ndarray, brush: int) -> np.ndarray:
    """What was painted with one of the BRUSHES, as a mask, uint8 (H, W). rgba: uint8 (H, W, 4).

    Where colours mix, at edges and in what is painted over, the nearest of them counts.
    """
    colours = np.array(BRUSHES, np.int32)
    distances = np.square(rgba[..., None, :3].astype(np.int32) - colours).sum(-1)
    painted = (distances.argmin(-1) == brush) & (rgba[..., 3] >= PAINTED_ALPHA)
    return np.where(painted, 255, 0).astype(np.uint8)
