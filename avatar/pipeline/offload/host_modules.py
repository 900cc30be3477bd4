"""Modules whose tensors wait in one pinned buffer on the host."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from avatar.pipeline.offload.pinned import BufferLayout, host_buffer


class HostModules:
    """Modules whose tensors wait in a buffer on the host, and are on the device only while they work."""

    def __init__(self, modules: Iterable[nn.Module], device: torch.device) -> None:
        """device: where they work; their tensors may be anywhere now. Raises: DoesNotFit."""
        tensors = tensors_of(modules)
        self.device, self._places = device, list(tensors)
        self._layout = BufferLayout.of(tensors.values())
        self.buffer = host_buffer(self._layout.num_bytes, device)
        views = self._layout.views(self.buffer)
        for view, tensor in zip(views, tensors.values(), strict=True):
            view.copy_(tensor)
        self._put(views)

    @contextmanager
    def on_device(self) -> Iterator[None]:
        """The modules are on the device meanwhile, in the current stream's order."""
        self._put(self._layout.views(self.buffer.to(self.device, non_blocking=True)))
        try:
            yield
        finally:
            self._put(self._layout.views(self.buffer))

    def _put(self, tensors: Iterable[Tensor]) -> None:
        for (module, name), tensor in zip(self._places, tensors, strict=True):
            if name in module._parameters:
                module._parameters[name] = nn.Parameter(tensor, requires_grad=False)
            else:
                module._buffers[name] = tensor


def tensors_of(modules: Iterable[nn.Module]) -> dict[tuple[nn.Module, str], Tensor]:
    """Every parameter and buffer by its owner and name, in the modules' order."""
    return {
        (part, name): tensor
        for module in modules
        for part in module.modules()
        for name, tensor in (*part._parameters.items(), *part._buffers.items())
        if tensor is not None
    }
