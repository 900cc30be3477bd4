"""Which brush each pixel of a painting was painted with."""

from __future__ import annotations

import numpy as np
import pytest

from avatar.media.brushes import BRUSHES, of_brush


@pytest.mark.parametrize("brush", range(len(BRUSHES)))
def test_each_brush_is_a_mask_of_its_own(brush: int) -> None:
    rgba = np.zeros((1, 6, 4), np.uint8)
    for column, colour in enumerate(BRUSHES):
        rgba[0, column] = (*colour, 158)
    rgba[0, 4] = (*BRUSHES[brush], 20)  # the soft rim of a stroke
    expected = np.zeros((1, 6), np.uint8)
    expected[0, brush] = 255
    assert np.array_equal(of_brush(rgba, brush), expected)


def test_rounded_colours_are_still_their_brush() -> None:
    rng = np.random.default_rng(0)
    colour = np.clip(np.array(BRUSHES[2]) + rng.integers(-12, 13, (8, 8, 3)), 0, 255)
    rgba = np.dstack([colour, np.full((8, 8), 158)]).astype(np.uint8)
    assert of_brush(rgba, 2).all()
    assert not any(of_brush(rgba, other).any() for other in (0, 1, 3))
