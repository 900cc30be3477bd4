"""Attention split by heads: each rank has some tokens, and during self-attention all tokens of some heads.

Tokens and heads need not divide evenly, and nothing is padded. Rings hold only a rank's own heads.
Source: DeepSpeed-Ulysses, arXiv 2309.14509.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, distributed
from torch.distributed import ProcessGroup

from avatar.distributed.rank_meter import RankMeter
from avatar.geometry import BLOCK_LATENT_FRAMES, Geometry
from avatar.model.attention_8bit import empty_ring
from avatar.model.kv_cache import KeysValues, Ring
from avatar.pipeline.layer_stack import LayerStack, WorkItem
from avatar.planning.layout import even_parts


@dataclass(frozen=True)
class TokenSplit:
    """How tokens are split among peers: the same way in each frame, since audio is injected frame by frame.

    parts: each peer's tokens within a frame.
    """

    num_frames: int
    parts: tuple[range, ...]
    peer: int = 0

    @classmethod
    def of_block(cls, geometry: Geometry, num_peers: int = 1, peer: int = 0) -> TokenSplit:
        """The split of a block's tokens."""
        return cls(BLOCK_LATENT_FRAMES, tuple(even_parts(geometry.frame_tokens, num_peers)), peer)

    @classmethod
    def of_condition(cls, geometry: Geometry, num_peers: int = 1, peer: int = 0) -> TokenSplit:
        """The split of the condition's tokens, treated as one frame."""
        return cls(1, tuple(even_parts(geometry.condition_tokens, num_peers)), peer)

    def count(self, peer: int) -> int:
        """How many tokens a peer has."""
        return self.num_frames * len(self.parts[peer])

    def of_peer(self, x: Tensor, peer: int) -> Tensor:
        """A peer's tokens, N' ..., out of all, N ..."""
        part = self.parts[peer]
        return x.unflatten(0, (self.num_frames, -1))[:, part.start : part.stop].flatten(0, 1)

    def own(self, x: Tensor) -> Tensor:
        """This peer's tokens, out of all."""
        return x if len(self.parts) == 1 else self.of_peer(x, self.peer).contiguous()

    def joined(self, pieces: list[Tensor]) -> Tensor:
        """Reassemble all tokens from every peer's."""
        return torch.cat([x.unflatten(0, (self.num_frames, -1)) for x in pieces], dim=1).flatten(0, 1)


@dataclass
class SharedStack(LayerStack):
    """A LayerStack for some of the tokens, whose self-attention computes some of the heads.

    peers: the ranks that share the rest; heads: each peer's heads. x, and an item's table and masks, cover
    only the rank's own tokens; condition tables, in items and prefill, cover all.
    """

    splits_heads: ClassVar[bool] = True
    peers: ProcessGroup | None = None
    heads: tuple[range, ...] = ()
    peer: int = 0
    meter: RankMeter | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._block = TokenSplit.of_block(self.geometry, len(self.heads), self.peer)
        self._condition = TokenSplit.of_condition(self.geometry, len(self.heads), self.peer)
        self._split = self._block

    def prefill(self, x: Tensor, modulation: Tensor, table: Tensor, anchor: int) -> Tensor:
        """See LayerStack; x: the rank's own tokens."""
        self._split = self._condition
        return super().prefill(x, modulation, table, anchor)

    def forward(self, x: Tensor, item: WorkItem) -> Tensor:
        """See LayerStack; x: the rank's own tokens."""
        self._split = self._block
        return super().forward(x, item)

    def scatter(self, q: Tensor, own: KeysValues) -> tuple[Tensor, KeysValues]:
        """See LayerStack. Queries, keys and values are exchanged together."""
        qkv = torch.stack((q, own.k, own.v))
        mine = len(self.heads[self.peer])
        received = self._exchange(
            [qkv[:, :, heads.start : heads.stop] for heads in self.heads],
            [(3, self._split.count(peer), mine, q.shape[-1]) for peer in range(len(self.heads))],
        )
        q, k, v = (self._split.joined([part[which] for part in received]) for which in range(3))
        return q, KeysValues(k, v)

    def gather(self, attended: Tensor) -> Tensor:
        """See LayerStack."""
        count = self._split.count(self.peer)
        received = self._exchange(
            [self._split.of_peer(attended, peer) for peer in range(len(self.heads))],
            [(count, len(heads), attended.shape[-1]) for heads in self.heads],
        )
        return torch.cat(received, dim=1)

    def new_ring(self) -> Ring:
        """See LayerStack."""
        dtype = self.ring_dtype or self.dtype
        num_heads, head_dim = len(self.heads[self.peer]), self.transformer.config.head_dim
        return empty_ring(self.geometry, num_heads, head_dim, dtype, self.device)

    def _exchange(self, outgoing: list[Tensor], shapes: list[tuple[int, ...]]) -> list[Tensor]:
        """Send one tensor to each peer, and receive one from each, with the given shapes."""
        sizes = [torch.Size(shape).numel() for shape in shapes]
        received = outgoing[0].new_empty(sum(sizes))
        sent = torch.cat([x.reshape(-1) for x in outgoing])
        own_sizes = [x.numel() for x in outgoing]
        distributed.all_to_all_single(received, sent, sizes, own_sizes, group=self.peers)
        if self.meter is not None:
            self.meter.sent(sent.nbytes - outgoing[self.peer].nbytes)
        return [x.view(shape) for x, shape in zip(received.split(sizes), shapes, strict=True)]


@dataclass(frozen=True)
class PeerTokens:
    """A TokenShare of one peer, for the block's and the condition's tokens."""

    block: TokenSplit
    condition: TokenSplit
    peers: ProcessGroup | None

    @classmethod
    def of(cls, geometry: Geometry, num_peers: int, peer: int, peers: ProcessGroup | None) -> PeerTokens:
        """A peer's tokens. peers: None if there is only one, which has all tokens."""
        split = (geometry, num_peers, peer)
        return cls(TokenSplit.of_block(*split), TokenSplit.of_condition(*split), peers)

    @property
    def num_block(self) -> int:
        """How many of a block's tokens this peer has."""
        return self.block.count(self.block.peer)

    @property
    def num_condition(self) -> int:
        """How many of the condition's tokens this peer has."""
        return self.condition.count(self.condition.peer)

    def of_block(self, x: Tensor) -> Tensor:
        """See TokenShare."""
        return self.block.own(x)

    def of_condition(self, x: Tensor) -> Tensor:
        """See TokenShare."""
        return self.condition.own(x)

    def all_of_block(self, x: Tensor) -> Tensor:
        """See TokenShare."""
        return x if self.peers is None else join_tokens(x, self.block, self.peers)


def join_tokens(x: Tensor, split: TokenSplit, peers: ProcessGroup) -> Tensor:
    """Gather all tokens, N C, from every peer; shorter parts are padded for the transfer."""
    longest = max(split.count(peer) for peer in range(len(split.parts)))
    padded = x.new_zeros(longest, *x.shape[1:])
    padded[: len(x)] = x
    parts = [torch.empty_like(padded) for _ in split.parts]
    distributed.all_gather(parts, padded, group=peers)
    return split.joined([part[: split.count(peer)] for peer, part in enumerate(parts)])
