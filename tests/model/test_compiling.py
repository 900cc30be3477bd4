"""Compiled functions and threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from avatar.model.compile import compiled


def test_it_is_the_function_with_torchs_options(monkeypatch):
    given = {}
    monkeypatch.setattr(torch, "compile", lambda f, **options: given.update(options) or f)
    assert compiled(lambda a, b: a - b, backend="eager")(3, b=1) == 2
    assert given == {"fullgraph": True, "backend": "eager"}


def test_there_is_a_graph_for_each_of_many_picture_sizes():
    """More than the eight that PyTorch would keep, before it refuses."""
    shapes = []

    def backend(module: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        shapes.append(inputs[0].shape)
        return module.forward

    graph = compiled(lambda x: x + 1, backend=backend)
    for size in range(1, 13):
        assert torch.equal(graph(torch.zeros(size)), torch.ones(size))
    assert shapes == [(size,) for size in range(1, 13)]  # numbers: none stands for several


def test_one_thread_at_a_time_in_any_of_them(monkeypatch):
    """While one traces, a call of another thread would be refused."""
    inside, most, lock = 0, 0, threading.Lock()

    def traced() -> None:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        time.sleep(0.01)
        with lock:
            inside -= 1

    monkeypatch.setattr(torch, "compile", lambda f, **_: f)
    functions = [compiled(traced) for _ in range(3)]
    threads = [threading.Thread(target=lambda f=f: [f() for _ in range(5)]) for f in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_an_error_leaves_the_turn_to_others(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda f, **_: f)

    def broken() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        compiled(broken)()
    done: list[int] = []
    thread = threading.Thread(target=lambda: done.append(compiled(lambda: 1)()), daemon=True)
    thread.start()
    thread.join(10)
    assert done == [1]
