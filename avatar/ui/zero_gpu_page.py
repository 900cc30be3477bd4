"""ZeroGPU: a Space's GPU, attached only while a decorated function runs. Does nothing elsewhere.

Source: spaces 0.51.3, zero/decorator.py and zero/wrappers.py.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator

from avatar.errors import AvatarError, WorkerLost
from avatar.events import Event
from avatar.hardware.zero_gpu_card import ZeroGpuCard, zero_gpu_card
from avatar.runtime.protocol import Ended, Run
from avatar.runtime.zero_gpu_engine import EngineSpec, Make, ZeroGpu

log = logging.getLogger(__name__)


def zero_gpu_of_space() -> ZeroGpu | None:
    """The ZeroGPU of this Space; None if this is not a Space with ZeroGPU.

    Called before Gradio and PyTorch are imported: `spaces` changes what both do. Raises: AvatarError.
    """
    card = zero_gpu_card()
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
    log.info("ZeroGPU: runs are made on %s, attached for each", card.name)
    return ZeroGpu(lambda make, duration_s: _with_our_errors(_decorated(spaces.GPU, card, make, duration_s)))


def _decorated(
    decorator: Callable[..., Callable[[Make], Make]],
    card: ZeroGpuCard,
    make: Make,
    duration_s: Callable[[EngineSpec, Run], int],
) -> Make:
    return decorator(duration=duration_s, size=card.size)(make)


def _with_our_errors(make: Make) -> Make:
    """Raise ZeroGPU's refusals as our own errors: `spaces` raises Gradio's, worded for visitors."""

    def made(spec: EngineSpec, run: Run) -> Generator[Event | Ended]:
        import gradio

        try:
            yield from make(spec, run)
        except gradio.Error as error:
            reported = str(error.message).rstrip(".")
            log.warning("ZeroGPU: %s", reported)
            raise WorkerLost(f"ZeroGPU: {reported}.", "Try again later, or with shorter speech.") from error
        except RuntimeError as error:
            log.exception("ZeroGPU failed")
            raise WorkerLost("ZeroGPU gave no GPU.", "Try again later.") from error

    return made
