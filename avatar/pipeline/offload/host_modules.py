"""Offloaded modules, whose tensors are kept in one pinned buffer on the host."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.hooks import ModelHook
from accelerate.utils import named_module_tensors, send_to_device
from torch import Tensor, nn

from avatar.model.weights.loading import install
from avatar.pipeline.offload.pinned import BufferLayout, host_buffer


class HostModules:
    """Modules whose tensors are kept in a buffer on the host, and are on the device only while in use."""

    def __init__(self, modules: Iterable[nn.Module], device: torch.device) -> None:
        """device: where the modules run; their tensors may now be on any device. Raises: DoesNotFit."""
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
        """Context in which the modules are on the device, in the current stream's order."""
        self.bring()
        try:
            yield
        finally:
            self.take_back()

    def bring(self) -> None:
        """Copy all modules to the device in a single copy, without waiting for it."""
        self._put(self._layout.views(self.buffer.to(self.device, non_blocking=True)))

    def take_back(self) -> None:
        """Drop the device copies; work enqueued from here on may reuse their memory."""
        self._put(self._layout.views(self.buffer))

    def _put(self, tensors: Iterable[Tensor]) -> None:
        for (module, name), tensor in zip(self._places, tensors, strict=True):
            install(module, name, tensor)


class VisitHook(ModelHook):
    """Keeps a model on the device while its forward runs, and on the host otherwise.

    accelerate's own hooks copy tensor by tensor from memory that is not pinned, and copy back as well.
    """

    def __init__(self, host: HostModules) -> None:
        """host: the HostModules of the model that the hook is added to."""
        self._host = host

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """See ModelHook. Moves the arguments to the device too."""
        self._host.bring()
        device = self._host.device
        return send_to_device(args, device), send_to_device(kwargs, device)

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        """See ModelHook. The output stays on the device."""
        self._host.take_back()
        return output


def tensors_of(modules: Iterable[nn.Module]) -> dict[tuple[nn.Module, str], Tensor]:
    """Every parameter and buffer by its module and name, in the modules' order."""
    return {
        (part, name): tensor
        for module in modules
        for part in module.modules()
        for name, tensor in named_module_tensors(part)
    }
