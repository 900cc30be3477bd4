"""ZeroGPU: a Space's GPU, attached only while a decorated function runs. Does nothing elsewhere.

Source: spaces 0.51.3, zero/decorator.py and zero/wrappers.py.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator

from avatar.errors import AvatarError, WorkerLost
from avatar.events import Event
from avatar.hardware.zero_gpu import LentCard, lent_card
from avatar.runtime.protocol import Ended, Run
from avatar.runtime.zero_gpu import LentGpu, Make, Opening

log = logging.getLogger(__name__)


def lent_gpu() -> LentGpu | None:
    """The ZeroGPU of this Space; None if this is not a Space with ZeroGPU.

    Called before Gradio and PyTorch are imported: `spaces` changes what both do. Raises: AvatarError.
    """
    card = lent_card()
    if card is None:
        return None
    try:
        import spaces
        from spaces.config import Config
    except ImportError as error:
        raise AvatarError(
            f"This Space has ZeroGPU, but {error.name or 'spaces'} cannot be imported.",
            "Add spaces to the Space's requirements.txt.",
        ) from error
    if not Config.zero_gpu:
        return None
    log.info("ZeroGPU: runs are made on %s, lent for each", card.name)
    return LentGpu(lambda make, duration_s: _speaking(_lent(spaces.GPU, card, make, duration_s)))


def _lent(
    decorator: Callable[..., Callable[[Make], Make]],
    card: LentCard,
    make: Make,
    duration_s: Callable[[Opening, Run], int],
) -> Make:
    return decorator(duration=duration_s, size=card.size)(make)


def _speaking(make: Make) -> Make:
    """Raise ZeroGPU's refusals as our own errors: `spaces` raises Gradio's, worded for visitors."""

    def made(opening: Opening, run: Run) -> Generator[Event | Ended]:
        import gradio

        try:
            yield from make(opening, run)
        except gradio.Error as error:
            reported = str(error.message).rstrip(".")
            log.warning("ZeroGPU: %s", reported)
            raise WorkerLost(f"ZeroGPU: {reported}.", "Try again later, or with shorter speech.") from error
        except RuntimeError as error:
            log.exception("ZeroGPU failed")
            raise WorkerLost("ZeroGPU gave no GPU.", "Try again later.") from error

    return made
