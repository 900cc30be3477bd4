"""torch.compile for functions that several threads of a process call, such as denoising and decoding."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import torch

T = TypeVar("T")

MAX_SHAPES = 128  # of which a function's graphs are kept; past PyTorch's default of 8 the next is an error
MAX_GRAPHS = 10 * MAX_SHAPES  # of a function in all

_turn = threading.RLock()
_constants: list[Callable[..., Any]] = []


def constant(function: Callable[..., T]) -> Callable[..., T]:
    """Mark a function whose result a graph takes for a constant. PyTorch's own mark imports its compiler."""
    _constants.append(function)
    return function


def compiled(function: Callable[..., T], **options: Any) -> Callable[..., T]:
    """The function as one graph for each shape, built at its first use, with one thread in any at a time.

    PyTorch marks for the whole process that a graph is being traced, and refuses a call of another thread
    meanwhile. A call only gives the GPU its work, so the others wait for long just while a graph is built.
    options: torch.compile's.
    """
    _prepare()
    graph = torch.compile(function, fullgraph=True, dynamic=False, **options)

    def call(*arguments: Any, **named: Any) -> T:
        with _turn:
            return graph(*arguments, **named)

    return call


def _prepare() -> None:
    """Tell PyTorch's compiler what holds for all graphs. Limits are those of the thread that sets them."""
    from torch._dynamo import config  # slow to import: where nothing is compiled, nobody does

    config.recompile_limit = max(config.recompile_limit, MAX_SHAPES)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, MAX_GRAPHS)
    for function in _constants:
        torch.compiler.assume_constant_result(function)
