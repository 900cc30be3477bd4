"""torch.compile for functions that several threads of a process call, such as denoising and decoding."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import torch

T = TypeVar("T")

_turn = threading.RLock()
_constants: list[Callable[..., Any]] = []


def constant(function: Callable[..., T]) -> Callable[..., T]:
    """Mark a function whose result a graph takes for a constant.

    PyTorch's own mark would import its compiler, half a second, also where nothing is compiled.
    """
    _constants.append(function)
    return function


def compiled(function: Callable[..., T], **options: Any) -> Callable[..., T]:
    """The function as one graph for each shape, built at its first use, with one thread in any at a time.

    PyTorch marks for the whole process that a graph is being traced, and refuses a call of another thread
    meanwhile. A call only gives the GPU its work, so the others wait for long just while a graph is built.
    options: torch.compile's.
    """
    for marked in _constants:
        torch.compiler.assume_constant_result(marked)
    graph = torch.compile(function, fullgraph=True, dynamic=False, **options)

    def call(*arguments: Any, **named: Any) -> T:
        with _turn:
            return graph(*arguments, **named)

    return call
