"""Causal convolutions with explicit state, shared by the video VAE's encoder and decoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Pasts = list[Tensor]  # one tensor B C p H W per causal convolution, in execution order


class CausalLayers(nn.Module):
    """diffusers' layers with their state made explicit; diffusers keeps the past inside the model.

    Tensors are B C T H W with channels contiguous in memory, which convolutions on GPUs prefer. Each
    convolution pops its past from the front of `pasts`, which frees it unless it is referenced elsewhere, and
    appends the next call's past to `fresh`. If pasts is None, zeros serve as the causal padding.
    """

    def _causal(self, conv: nn.Conv3d, x: Tensor, pasts: Pasts | None, fresh: Pasts) -> Tensor:
        """A convolution over its past and x; appends the next call's past to fresh."""
        x = joined([self._past(conv, x, pasts), x], "frames")
        fresh.append(x[:, :, -_reach(conv) :].clone(memory_format=torch.channels_last_3d))
        return self._convolve(conv, x, conv.bias)

    def _convolve(self, conv: nn.Conv3d, x: Tensor, bias: Tensor | None) -> Tensor:
        """A convolution over x, which includes the past frames; padded in height and width only."""
        return F.conv3d(x, conv.weight, bias, conv.stride, padding=_padding(conv))

    def _past(self, conv: nn.Conv3d, x: Tensor, pasts: Pasts | None) -> Tensor:
        if pasts is not None:
            return pasts.pop(0)
        batch, channels, _, height, width = x.shape
        zeros = x.new_zeros(batch, channels, _reach(conv), height, width)
        return channels_last(zeros)

    def _residual(self, block: Any, x: Tensor, pasts: Pasts | None, fresh: Pasts) -> Tensor:
        skip = block.conv_shortcut(x)
        x = self._causal(block.conv1, block.nonlinearity(block.norm1(x)), pasts, fresh)
        x = self._causal(block.conv2, block.nonlinearity(block.norm2(x)), pasts, fresh)
        return x + skip

    def _frame_by_frame(self, layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Apply an image layer, N C H W, to every frame of x, B C T H W."""
        batch, _, frames, height, width = x.shape
        x = layer(x.permute(0, 2, 1, 3, 4).reshape(batch * frames, -1, height, width))
        return x.reshape(batch, frames, *x.shape[1:]).permute(0, 2, 1, 3, 4)


def channels_last(x: Tensor) -> Tensor:
    """The same tensor, B C T H W, with channels contiguous in memory."""
    return x.contiguous(memory_format=torch.channels_last_3d)


def joined(parts: list[Tensor], along: Literal["frames", "channels"]) -> Tensor:
    """Concatenate tensors B C T H W, keeping channels contiguous in memory.

    The compiler lays out a concatenation in the order of its dimensions, whatever the parts' layout, and
    would move channels back and forth.
    """
    dim = 1 if along == "frames" else -1
    return torch.cat([part.movedim(1, -1) for part in parts], dim).movedim(-1, 1)


def _padding(conv: nn.Conv3d) -> tuple[int, int, int]:
    _, height, width = conv.kernel_size
    return 0, height // 2, width // 2


def _reach(conv: nn.Conv3d) -> int:
    """How many past frames the next call reads."""
    return conv.kernel_size[0] - conv.stride[0]
