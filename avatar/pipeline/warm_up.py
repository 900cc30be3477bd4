"""Prepare compiled code in a thread of its own, while models load and conditions are encoded."""

from __future__ import annotations

import importlib
import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from avatar.geometry import LATENT_CHANNELS, VAE_SPACE_STRIDE, Size
from avatar.model.device_checks import compiles
from avatar.pipeline.decode import PRIMING_LATENT_FRAMES, LatentDecoder, StreamingDecoder

log = logging.getLogger(__name__)

COMPILER = "torch._inductor.compile_fx"  # imported by PyTorch when it first compiles, which takes seconds


class WarmUp:
    """What a process's first run would otherwise wait for; begins at once, with the compiler itself."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._thread = ThreadPoolExecutor(1, "warm-up")
        self._tasks: list[Future[None]] = [self._thread.submit(self._prepare_compiler)]

    def decode(self, source: LatentDecoder, size: Size) -> None:
        """Go on with the graph that decodes latents of a video's size, as soon as its decoder is loaded.

        PyTorch traces it anew in each process, for some seconds, even where it finds the code in its cache.
        """
        self._tasks.append(self._thread.submit(self._prepare_decoder, source, size))

    def wait(self) -> None:
        """Wait until all of it is done. Raises: what went wrong, such as memory that ran out."""
        while self._tasks:
            self._tasks.pop(0).result()

    def _prepare_compiler(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)  # each thread has its own
        begun = time.monotonic()
        importlib.import_module(COMPILER)
        works = compiles(self._device)
        log.info("the compiler %s, %.1f s", "is ready" if works else "is missing", time.monotonic() - begun)

    def _prepare_decoder(self, source: LatentDecoder, size: Size) -> None:
        if not compiles(self._device):
            return
        begun = time.monotonic()
        frame = size.height // VAE_SPACE_STRIDE, size.width // VAE_SPACE_STRIDE
        latents = torch.zeros(LATENT_CHANNELS, PRIMING_LATENT_FRAMES, *frame)
        StreamingDecoder(source, compile=True).prime(latents)
        log.info("the decoder's graph is ready, %.1f s", time.monotonic() - begun)
