"""The work between two convolutions of the video decoder, in one pass on a GPU: norm, SiLU and layout.

PyTorch's compiler needs three passes, with two copies in between.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ELEMENTS = 4096  # per program


def laid_out(
    x: Tensor, past: Tensor, gamma: Tensor, bias: Tensor | None, *, stacked: bool
) -> tuple[Tensor, Tensor]:
    """The frames that a causal convolution reads, and the last P of them, which are the next call's past.

    x: B C T H W, a convolution's result without its bias; past: B C P H W, the frames before; channels are
    contiguous in memory. Each pixel of x is normalised over its channels to a root mean square of gamma, C,
    and passed through SiLU. Returns B C P+T H W, or, if stacked, B (P+1)*C T H W with each frame's past
    frames among its channels, oldest first; and B C P H W.
    """
    batch, channels, frames, height, width = x.shape
    reach = past.shape[2]
    x, past = (values.movedim(1, -1).contiguous() for values in (x, past))  # no copy: already channels-last
    shape = (frames, (reach + 1) * channels) if stacked else (reach + frames, channels)
    out = x.new_empty(batch, shape[0], height, width, shape[1])
    fresh = torch.empty_like(past)
    block = triton.next_power_of_2(channels)
    pixels = ELEMENTS // block
    _lay_out[(triton.cdiv(height * width, pixels), reach + frames, batch)](
        x,
        past,
        gamma.flatten(),
        bias,
        out,
        fresh,
        height * width,
        frames,
        reach,
        channels,
        block,
        pixels,
        bias is not None,
        stacked,
    )
    return out.movedim(-1, 1), fresh.movedim(-1, 1)


@triton.jit
def _lay_out(  # type: ignore[no-untyped-def]
    x,
    past,
    gamma,
    bias,
    out,
    fresh,
    area,
    frames,
    REACH: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
    PIXELS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    STACKED: tl.constexpr,
):
    """One program: PIXELS pixels of one frame, of the past or of x after it."""
    frame, sample = tl.program_id(1), tl.program_id(2).to(tl.int64)
    pixel = tl.program_id(0).to(tl.int64) * PIXELS + tl.arange(0, PIXELS)[:, None]
    channel = tl.arange(0, BLOCK)[None, :]
    inside = (pixel < area) & (channel < CHANNELS)
    place, whole = pixel * CHANNELS + channel, area * CHANNELS
    if frame < REACH:
        source = past + (sample * REACH + frame) * whole
    else:
        source = x + (sample * frames + frame - REACH) * whole
    given = tl.load(source + place, inside, 0.0)
    # Load gamma and bias per pixel: a single row gets another thread layout, and all else is moved to match.
    scale = tl.load(tl.broadcast_to(gamma + channel, (PIXELS, BLOCK)), inside, 0.0).to(tl.float32)
    v = given.to(tl.float32)
    if HAS_BIAS:
        v += tl.load(tl.broadcast_to(bias + channel, (PIXELS, BLOCK)), inside, 0.0).to(tl.float32)
    length = tl.maximum(tl.sqrt(tl.sum(v * v, 1, keep_dims=True)), 1e-12)
    v = v / length * CHANNELS**0.5 * scale
    y = tl.where(frame < REACH, given, (v * tl.sigmoid(v)).to(given.dtype))
    if STACKED:
        for slot in tl.static_range(REACH + 1):  # this frame is in slot `slot` of frame `frame - slot`
            of = frame - slot
            if (of >= 0) & (of < frames):
                to = out + (sample * frames + of) * whole * (REACH + 1) + slot * CHANNELS
                tl.store(to + pixel * (CHANNELS * (REACH + 1)) + channel, y, inside)
    else:
        tl.store(out + (sample * (REACH + frames) + frame) * whole + place, y, inside)
    if frame >= frames:
        tl.store(fresh + (sample * REACH + frame - frames) * whole + place, y, inside)
