"""ZeroGPU, as far as planning needs it: a Space whose page has no GPU, while one decorated function gets one.

Source: docs/hub/spaces-zerogpu.md of huggingface/hub-docs; spaces 0.51.3, config.py and zero/configs.json.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from avatar.errors import BadInput

SPACE = "SPACES_ZERO_GPU"  # environment variable, set on a ZeroGPU Space
SIZE = "AVATAR_ZERO_GPU_SIZE"
YES = ("1", "t", "true")


@dataclass(frozen=True)
class ZeroGpuCard:
    """The card that ZeroGPU provides. size: as spaces.GPU names it. free_gib: memory available to a run."""

    size: str
    name: str
    free_gib: float
    compute_capability: str = "12.0"


CARDS = {
    card.size: card
    for card in (
        ZeroGpuCard("large", "half an RTX PRO 6000 Blackwell", 44.5),
        ZeroGpuCard("xlarge", "RTX PRO 6000 Blackwell", 94.0),
    )
}


def zero_gpu_card() -> ZeroGpuCard | None:
    """The card that this Space's function gets; None outside a ZeroGPU Space.

    Raises: BadInput for an unknown size.
    """
    if os.environ.get(SPACE, "").lower() not in YES:
        return None
    size = os.environ.get(SIZE, "large")
    if size not in CARDS:
        raise BadInput(f"${SIZE} is {size[:20]!r}.", f"Set it to {' or '.join(CARDS)}.")
    return CARDS[size]
