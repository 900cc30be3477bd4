"""torch.compile for functions that several threads of a process call, such as denoising and decoding."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch._dynamo import config

from avatar.model.device_checks import found_missing
from avatar.model.torch_compat import is_build_failure

T = TypeVar("T")

MAX_SHAPES = 128  # of which a function's graphs are kept; past PyTorch's default of 8 the next is an error
MAX_GRAPHS = 10 * MAX_SHAPES  # of a function in all

_turn = threading.RLock()


def compiled(function: Callable[..., T], **options: Any) -> Callable[..., T]:
    """The function as one graph for each shape, built at its first use, with one thread in any at a time.

    PyTorch marks for the whole process that a graph is being traced, and refuses a call of another thread
    meanwhile. A call only gives the GPU its work, so the others wait for long just while a graph is built.
    The limits of how many graphs are kept, and that each has static shapes, are set for the calling thread;
    if torch.compile is given the latter, it sets it anew at every call, which takes 11 µs. options: its own.
    A function that cannot be built runs as it is, from then on.
    """
    config.recompile_limit = max(config.recompile_limit, MAX_SHAPES)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, MAX_GRAPHS)
    config.automatic_dynamic_shapes = False
    graph: Callable[..., T] = torch.compile(function, fullgraph=True, **options)

    def call(*arguments: Any, **named: Any) -> T:
        nonlocal graph
        with _turn:
            try:
                return graph(*arguments, **named)
            except Exception as error:
                if not is_build_failure(error):
                    raise
                found_missing("compile", error)
            graph = function  # nothing had run yet
            return graph(*arguments, **named)

    return call
