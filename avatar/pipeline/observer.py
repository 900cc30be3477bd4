"""What a pipeline reports of its own work, so that it can be measured from outside."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor

from avatar.events import Notice
from avatar.pipeline.offload.host_layers import Traffic


class Observer:
    """Follows what a pipeline does, when it does it. This one ignores it all; others override what they need.

    The calls come from the thread that runs the pipeline, and say what the host has given the device to do:
    the device is not waited for.
    """

    def run_begins(self) -> None:
        """A run begins."""

    def checked(self) -> None:
        """The run has been asked whether it is cancelled, as it is between any two steps."""

    def waiting(self) -> None:
        """A live session has been asked whether it is over, as it is while it waits for sound."""

    def loading(self) -> None:
        """Another model, or another tensor of one, is about to load."""

    def encoded(self) -> None:
        """What the run is conditioned on has been encoded."""

    def prefilling(self) -> AbstractContextManager[object]:
        """Entered while the denoiser begins: empty rings, the condition's keys and values."""
        return nullcontext()

    def submitted(self) -> None:
        """A block has been handed to the denoiser, its speech encoded."""

    def collecting(self) -> None:
        """The oldest block is waited for."""

    def stepping(self, num_blocks: int) -> AbstractContextManager[object]:
        """Entered while a single device denoises so many blocks by one step each."""
        return nullcontext()

    def denoised(self, traffic: Traffic) -> None:
        """A single device has denoised a block; traffic: what crossed the bus for offloading so far."""

    def priming(self) -> AbstractContextManager[object]:
        """Entered while the decoder's past is filled."""
        return nullcontext()

    def decoding(self) -> AbstractContextManager[object]:
        """Entered while a block is decoded."""
        return nullcontext()

    def decoded(self, frames: Tensor) -> None:
        """A block has been decoded: uint8 T H W 3, on the device."""

    def notices(self) -> Iterable[Notice]:
        """What to tell at the end of a run that was not stopped."""
        return ()


UNOBSERVED = Observer()
