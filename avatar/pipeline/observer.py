"""Callbacks through which a pipeline reports its work, so that it can be measured from outside."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor

from avatar.events import Notice
from avatar.pipeline.offload.host_layers import Traffic


class Observer:
    """Receives a pipeline's events. This base class ignores all of them; subclasses override what they need.

    Calls come from the thread that runs the pipeline, when the host has enqueued work; they do not wait for
    the device.
    """

    def run_begins(self) -> None:
        """A run has begun."""

    def checked(self) -> None:
        """The run has checked for cancellation, as it does between any two steps."""

    def waiting(self) -> None:
        """The run has checked for its end while it waits for sound, of a live session or a voice."""

    def loading(self) -> None:
        """Another model, or another tensor of one, is about to load."""

    def encoded(self) -> None:
        """The run's conditions have been encoded."""

    def prefilling(self) -> AbstractContextManager[object]:
        """Context around the denoiser's begin(): empty rings, the condition's keys and values."""
        return nullcontext()

    def submitted(self) -> None:
        """A block, with its speech encoded, has been submitted to the denoiser."""

    def collecting(self) -> None:
        """The pipeline is about to wait for the oldest block."""

    def stepping(self, num_blocks: int) -> AbstractContextManager[object]:
        """Context around one denoising step of num_blocks blocks on a single device."""
        return nullcontext()

    def denoised(self, traffic: Traffic) -> None:
        """A single device has denoised a block. traffic: bytes copied for offloading so far."""

    def priming(self) -> AbstractContextManager[object]:
        """Context around filling the decoder's past."""
        return nullcontext()

    def decoding(self) -> AbstractContextManager[object]:
        """Context around decoding a block."""
        return nullcontext()

    def decoded(self, frames: Tensor) -> None:
        """A block has been decoded: uint8 T H W 3, on the device."""

    def notices(self) -> Iterable[Notice]:
        """Notices to yield at the end of a run that was not stopped."""
        return ()


UNOBSERVED = Observer()
