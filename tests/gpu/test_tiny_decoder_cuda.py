"""The tiny decoder on a GPU, at full size: half precision against float32, its time and its memory.

`--log-cli-level=info` shows what is measured.
"""

from __future__ import annotations

import logging
import statistics

import pytest
import torch
from torch import Tensor

from avatar.geometry import BLOCK_FRAMES, BLOCK_LATENT_FRAMES
from avatar.pipeline.decode import StreamingDecoder
from tests.fixtures.tiny_decoder import decode_at_once, make_decoder, published_tensors

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.usefixtures("full_float32"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

log = logging.getLogger(__name__)

WIDTH, HEIGHT = 704, 384
LAYERS = 32  # convolutions in a row; each rounds its output to half precision
WARM_BLOCKS, TIMED_BLOCKS = 3, 20


def make_latents(num_frames: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(16, num_frames, HEIGHT // 8, WIDTH // 8, generator=generator).cuda()


def test_half_precision_stays_within_its_rounding() -> None:
    """Three blocks in a stream against the slow twin in float32, which decodes them at once."""
    latents = make_latents(1 + 3 * BLOCK_LATENT_FRAMES, 1)
    source = make_decoder("cuda")
    assert source.dtype == torch.float16
    decoder = StreamingDecoder(source)
    parts = []
    with torch.no_grad():
        for part in latents.split([1, *[BLOCK_LATENT_FRAMES] * 3], dim=1):
            parts.append(decoder._video(part).float())
    tensors = {name: value.cuda() for name, value in published_tensors(torch.float32).items()}
    expected = decode_at_once(tensors, latents)
    video = torch.cat(parts, dim=2)
    assert video.shape == expected.shape == (1, 3, 1 + 3 * BLOCK_FRAMES, HEIGHT, WIDTH)
    error = float((video - expected).norm() / (expected + 1).norm())
    log.info("relative error of half precision: %.2e", error)
    assert 1e-5 < error < 2 * LAYERS**0.5 * 2**-11


def test_float32_on_the_gpu_is_the_slow_twin() -> None:
    latents = make_latents(1 + 2 * BLOCK_LATENT_FRAMES, 2)
    source = make_decoder("cuda")
    weights_dtype = source.dtype
    source.decoder.float()
    source.dtype = torch.float32
    decoder = StreamingDecoder(source)
    with torch.no_grad():
        parts = [decoder._video(part) for part in latents.split([1, 3, 3], dim=1)]
    rounded = {name: value.to(weights_dtype) for name, value in published_tensors(torch.float32).items()}
    tensors = {name: value.cuda().float() for name, value in rounded.items()}
    expected = decode_at_once(tensors, latents)
    assert float((torch.cat(parts, dim=2) - expected).norm() / (expected + 1).norm()) < 1e-5


def test_a_block_at_full_size_takes_little_time_and_memory() -> None:
    """Logs milliseconds a block, as the pipeline decodes it, and the bytes per pixel that planning uses."""
    source = make_decoder("cuda")
    decoder = StreamingDecoder(source)
    decoder.prime(make_latents(7, 3))
    block, pixels = make_latents(BLOCK_LATENT_FRAMES, 4), WIDTH * HEIGHT
    times = []
    for index in range(WARM_BLOCKS + TIMED_BLOCKS):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        if index == WARM_BLOCKS:
            torch.cuda.synchronize()
            held = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
        begin.record()
        frames = decoder.decode(block)
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
        assert frames.shape == (BLOCK_FRAMES if index else BLOCK_FRAMES - 3, HEIGHT, WIDTH, 3)
    workspace = torch.cuda.max_memory_allocated() - held
    pasts = sum(past.numel() * past.element_size() for past in decoder._pasts or ())
    weights = sum(value.nbytes for value in source.decoder.state_dict().values())
    timed = times[WARM_BLOCKS:]
    log.info("a block: %.2f ms in the median, %.2f ms at most", statistics.median(timed), max(timed))
    log.info("weights %.1f MiB, pasts %.0f B/px", weights / 2**20, pasts / pixels)
    log.info("workspace %.0f MiB = %.0f B/px", workspace / 2**20, workspace / pixels)
    assert statistics.median(timed) < 40  # a full decoder takes some 70 on the fastest cards
    assert workspace < 2**30
