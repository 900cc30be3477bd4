"""What rank 0 tells the others and what they answer, and how it travels: pickled, over the CPU's group.

The ranks are processes of one program that trust each other.
"""

from __future__ import annotations

import io
import pickle
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed

from avatar.geometry import Geometry
from avatar.pipeline.flow_match_euler import Schedule
from avatar.pipeline.generation import Block

MAX_UNREAD = 64  # messages to a rank that it has not taken yet; the next one waits


@dataclass(frozen=True)
class Load:
    """A run has been asked for; load your share."""


@dataclass(frozen=True)
class Go:
    """Rank 0 has loaded its own share; help."""


@dataclass(frozen=True)
class Begin:
    """A generation begins, with empty rings. text, motion: for the stages that embed them, else None.

    num_tokens: the prompt's own, without padding.
    """

    geometry: Geometry
    schedule: Schedule
    ring_dtype: torch.dtype | None
    num_speakers: int
    masks: Tensor | None
    num_tokens: int
    text: Tensor | None
    motion: Tensor | None


@dataclass(frozen=True)
class Prefill:
    """Make the condition of an anchor. reference: for the stages that embed it, else None."""

    anchor: int
    reference: Tensor | None


@dataclass(frozen=True)
class Release:
    """No item that names this anchor will follow."""

    anchor: int


@dataclass(frozen=True)
class OpenBlockInputs:
    """A block's inputs, before its first item; its audio and pose are for the stages that embed them."""

    block: Block
    anchor: int


@dataclass(frozen=True)
class Work:
    """Do the item (block, step). latents: as the step before left them, None where they are already."""

    block: int
    step: int
    latents: Tensor | None


@dataclass(frozen=True)
class Done:
    """The item has been done. latents: 16 3 h w float32 on the CPU, when they are wanted elsewhere."""

    block: int
    step: int
    latents: Tensor | None


@dataclass(frozen=True)
class End:
    """The generation is over: its caches may go."""


@dataclass(frozen=True)
class Encode:
    """Between two generations: encode a prompt together with all ranks. ids: 1 N."""

    ids: Tensor


Message = Begin | Prefill | Release | OpenBlockInputs | Work | Done | End


class MessageChannel:
    """Sends and receives messages by rank, in order between any two; sending does not wait."""

    def __init__(self, sent: Callable[[int], None] = lambda num_bytes: None) -> None:
        """sent: called with the bytes of each message that leaves."""
        self._sent = sent
        self._unread: dict[int, deque[Any]] = {}

    def send(self, message: Any, rank: int) -> None:
        """Send a dataclass to a rank; its tensors must not change any more."""
        data = torch.frombuffer(pack(message), dtype=torch.uint8)
        unread = self._unread.setdefault(rank, deque())
        while len(unread) > MAX_UNREAD:
            unread.popleft().wait()
        for part in (torch.tensor([len(data)]), data):
            unread.append(_Sending(part, distributed.isend(part, rank)))
        self._sent(len(data))

    def receive(self, rank: int) -> Any:
        """The next message of a rank, waited for."""
        length = torch.empty(1, dtype=torch.int64)
        distributed.recv(length, rank)
        data = torch.empty(int(length), dtype=torch.uint8)
        distributed.recv(data, rank)
        return pickle.loads(data.numpy().data)

    def settle(self) -> None:
        """Wait until all that was sent has been taken."""
        for unread in self._unread.values():
            while unread:
                unread.popleft().wait()


@dataclass
class _Sending:
    """A tensor on its way, kept alive until it has gone."""

    tensor: Tensor
    work: Any

    def wait(self) -> None:
        self.work.wait()


class _Pickler(pickle.Pickler):
    """Tensors of any dtype as their bytes."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            return _rebuild, (data, value.dtype, tuple(value.shape))
        return NotImplemented


def pack(message: Any) -> bytearray:
    """A message as bytes; pickle.loads undoes it."""
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=pickle.HIGHEST_PROTOCOL).dump(message)
    return bytearray(buffer.getbuffer())


def _rebuild(data: bytes, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    if not data:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).view(dtype).view(shape)
