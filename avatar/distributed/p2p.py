"""Messages between rank 0 and the other ranks, sent pickled over the CPU process group.

The ranks are processes of one program and trust each other.
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

MAX_UNREAD = 64  # messages that a rank has not yet received, beyond which sending blocks


@dataclass(frozen=True)
class LoadShare:
    """Load your share: a run has been requested."""


@dataclass(frozen=True)
class StartWork:
    """Start working: rank 0 has loaded its own share."""


@dataclass(frozen=True)
class Begin:
    """Begin a generation with empty rings. text, motion: for the stages that embed them, else None.

    num_tokens: length of the prompt without padding.
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
    """Compute an anchor's condition. reference: for the stages that embed it, else None."""

    anchor: int
    reference: Tensor | None


@dataclass(frozen=True)
class Release:
    """Free an anchor's condition: no later item refers to it."""

    anchor: int


@dataclass(frozen=True)
class OpenBlockInputs:
    """A block's inputs, sent before its first item; audio and pose are for the stages that embed them."""

    block: Block
    anchor: int


@dataclass(frozen=True)
class Work:
    """Do the item (block, step). latents: from the previous step; None if the stage already has them."""

    block: int
    step: int
    latents: Tensor | None


@dataclass(frozen=True)
class Done:
    """An item is done. latents: 16 3 h w float32 on the CPU, if they are needed elsewhere."""

    block: int
    step: int
    latents: Tensor | None


@dataclass(frozen=True)
class End:
    """End the generation and free its caches."""


@dataclass(frozen=True)
class Encode:
    """Encode a prompt together with all ranks, between two generations. ids: 1 N."""

    ids: Tensor


Message = Begin | Prefill | Release | OpenBlockInputs | Work | Done | End


class MessageChannel:
    """Sends and receives messages by rank, in order between any two ranks; sending does not block."""

    def __init__(self, sent: Callable[[int], None] = lambda num_bytes: None) -> None:
        """sent: called with the number of bytes of each message sent."""
        self._sent = sent
        self._unread: dict[int, deque[Any]] = {}

    def send(self, message: Any, rank: int) -> None:
        """Send a dataclass to a rank; its tensors must not be modified afterwards."""
        data = torch.frombuffer(pack(message), dtype=torch.uint8)
        unread = self._unread.setdefault(rank, deque())
        while len(unread) > MAX_UNREAD:
            unread.popleft().wait()
        for part in (torch.tensor([len(data)]), data):
            unread.append(_Sending(part, distributed.isend(part, rank)))
        self._sent(len(data))

    def receive(self, rank: int) -> Any:
        """Wait for the next message from a rank."""
        length = torch.empty(1, dtype=torch.int64)
        distributed.recv(length, rank)
        data = torch.empty(int(length), dtype=torch.uint8)
        distributed.recv(data, rank)
        return pickle.loads(data.numpy().data)

    def settle(self) -> None:
        """Wait until all sent messages have been received."""
        for unread in self._unread.values():
            while unread:
                unread.popleft().wait()


@dataclass
class _Sending:
    """A tensor being sent, kept alive until that is done."""

    tensor: Tensor
    work: Any

    def wait(self) -> None:
        self.work.wait()


class _Pickler(pickle.Pickler):
    """Pickles tensors of any dtype as raw bytes."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            return _rebuild, (data, value.dtype, tuple(value.shape))
        return NotImplemented


def pack(message: Any) -> bytearray:
    """Serialise a message; pickle.loads reverses it."""
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=pickle.HIGHEST_PROTOCOL).dump(message)
    return bytearray(buffer.getbuffer())


def _rebuild(data: bytes, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    if not data:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).view(dtype).view(shape)
