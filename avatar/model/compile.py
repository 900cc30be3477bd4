"""torch.compile for functions that several threads of a process call, such as denoising and decoding."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from avatar.model.device_checks import found_missing
from avatar.model.torch_compat import is_build_failure

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

MAX_SHAPES = 128  # shapes per function that may have a graph; one more is an error (PyTorch's default is 8)
MAX_GRAPHS = 10 * MAX_SHAPES  # in all, per function

_turn = threading.RLock()
_constants: list[Callable[..., Any]] = []


def constant_when_compiled(function: F) -> F:
    """Mark a function whose result compiled code keeps as a constant.

    Passed on to PyTorch when something is compiled: its own decorator imports the compiler, which takes
    seconds that a process without compiled code need not spend.
    """
    _constants.append(function)
    return function


def compiled(function: Callable[..., T], **options: Any) -> Callable[..., T]:
    """Compile a function to one graph per shape, built at first use; one thread at a time runs any of them.

    While PyTorch traces a graph, it sets a process-wide flag and refuses calls from other threads. A call
    only enqueues GPU work, so other threads wait long only while a graph is being built.
    The limits on the number of graphs, and static shapes, are set in the config of the calling thread: when
    static shapes are passed to torch.compile instead, it sets them again at every call, which takes 11 µs.
    options: passed to torch.compile. A function that fails to build runs uncompiled from then on.
    """
    from torch._dynamo import config

    for constant in _constants:
        torch.compiler.assume_constant_result(constant)
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
            graph = function  # safe to call now: the graph had not begun to run
            return graph(*arguments, **named)

    return call
