"""One transformer layer, split into pieces between its attentions.

Each piece is a pure function of tensors with static shapes, so one compiled graph of it serves every layer,
block and step; attention itself runs outside compiled code, so that its length can vary and its kernel can be
chosen freely. Tokens are N C, without a batch axis. Source: Wan-Video/Wan2.2 wan/modules/model.py,
Alibaba-Quark/LiveAvatar liveavatar/models/wan/causal_model_s2v.py.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avatar.model.attention import HALF_DTYPES, few_keys_weights
from avatar.model.kv_cache import KeysValues, ShortText
from avatar.model.linear_8bit import join_linears
from avatar.model.rope import rotate


def modulate(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """Layer norm without weights, then scale and shift, in float32; returns x's dtype."""
    normed = F.layer_norm(x.float(), x.shape[-1:], eps=eps)
    return (normed * (1 + scale) + shift).to(x.dtype)


class Attention(nn.Module):
    """The projections around an attention; queries and keys are RMS-normed over the full width."""

    def __init__(self, dim: int, num_heads: int, eps: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.o = nn.Linear(dim, dim)
        self.norm_q = nn.RMSNorm(dim, eps=eps)
        self.norm_k = nn.RMSNorm(dim, eps=eps)
        self.qkv: nn.Module | None = None

    def fuse(self) -> None:
        """Join q, k and v into one linear layer: after loading, since it changes the tensors' names."""
        self.qkv = join_linears([self.q, self.k, self.v])
        del self.q, self.k, self.v

    def query(self, x: Tensor) -> Tensor:
        """The tokens' queries: ... N C to ... N h d."""
        return self.normed_query(self._heads(self.q(x)))

    def normed_query(self, query: Tensor) -> Tensor:
        """RMS-norm projected queries, ... N h d."""
        return self._heads(self.norm_q(query.flatten(-2)))

    def keys_values(self, context: Tensor) -> KeysValues:
        """Keys and values of the tokens to attend to: ... M C to ... M h d."""
        return KeysValues(self._heads(self.norm_k(self.k(context))), self._heads(self.v(context)))

    def project(self, x: Tensor) -> tuple[Tensor, KeysValues]:
        """Queries, keys and values of the same tokens, not rotated."""
        if self.qkv is None:
            return self.query(x), self.keys_values(x)
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return self._heads(self.norm_q(q)), KeysValues(self._heads(self.norm_k(k)), self._heads(v))

    def outputs_by_head(self, values: Tensor) -> Tensor:
        """The output projection, without bias, of each head's value by itself: ... M h d to ... M h C."""
        heads = torch.eye(self.num_heads, dtype=values.dtype, device=values.device)
        alone = (values.unsqueeze(-3) * heads.unsqueeze(-1)).flatten(-2)
        return self.o(alone) - self.o.bias

    def short_text(self, text: Tensor, num_tokens: int, num_rows: int) -> ShortText:
        """Prepare a padded prompt, L C, of which num_tokens are real; all padding tokens are identical.

        One padding token is weighted to stand for all. num_rows: rows of the result, more than num_tokens.
        """
        keys, values = self.keys_values(text[:num_rows])
        counts = torch.full((num_rows,), -math.inf)
        counts[:num_tokens] = 0
        counts[num_tokens] = math.log(len(text) - num_tokens)
        outputs = self.outputs_by_head(values).transpose(0, 1).flatten(0, 1)
        return ShortText(keys.contiguous(), outputs, counts.to(text.device))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1))


class FeedForward(nn.Sequential):
    """Linear, GELU (tanh), linear; in half precision on a GPU, one kernel computes the first two."""

    def forward(self, x: Tensor) -> Tensor:
        """... C to ... C."""
        first, activation, second = self
        if not (x.is_cuda and x.dtype in HALF_DTYPES and isinstance(first, nn.Linear)):
            return second(activation(first(x)))
        return second(torch._addmm_activation(first.bias, x, first.weight.t(), use_gelu=True))


class TransformerLayer(nn.Module):
    """Self-attention, cross-attention to the text, feed-forward.

    vectors, in the methods' arguments: the result of vectors(), 6 C float32.
    """

    def __init__(self, dim: int, ffn_dim: int, num_heads: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.self_attn = Attention(dim, num_heads, eps)
        self.cross_attn = Attention(dim, num_heads, eps)
        self.norm3 = nn.LayerNorm(dim, eps=eps)
        self.ffn = FeedForward(nn.Linear(dim, ffn_dim), nn.GELU(approximate="tanh"), nn.Linear(ffn_dim, dim))
        self.modulation = nn.Parameter(torch.empty(1, 6, dim))

    def vectors(self, modulation: Tensor) -> Tensor:
        """Shift, scale and gate of self-attention and feed-forward; modulation: the time embedding's, 6 C."""
        return self.modulation[0].float() + modulation

    def project(self, x: Tensor, vectors: Tensor) -> tuple[Tensor, KeysValues]:
        """Self-attention's queries, keys and values, not rotated."""
        shift, scale, *_ = vectors.unbind()
        return self.self_attn.project(modulate(x, shift, scale, self.eps))

    def project_rotated(self, x: Tensor, vectors: Tensor, table: Tensor) -> tuple[Tensor, KeysValues]:
        """Self-attention's queries, keys and values, with queries and keys rotated by their positions."""
        q, own = self.project(x, vectors)
        return rotate(q, table), KeysValues(rotate(own.k, table), own.v)

    def after_self_attention(self, x: Tensor, attended: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """The residual with self-attention's result (N h d) added; cross-attention's queries, not normed."""
        gate = vectors[2]
        x = (x + self.self_attn.o(attended.flatten(-2)).float() * gate).to(x.dtype)
        return x, self.cross_attn.q(self.norm3(x)).unflatten(-1, (self.cross_attn.num_heads, -1))

    def normed_query(self, query: Tensor) -> Tensor:
        """Cross-attention's queries, N h d, normed for attention to a long prompt."""
        return self.cross_attn.normed_query(query)

    def after_cross_attention(self, x: Tensor, attended: Tensor, vectors: Tensor) -> Tensor:
        """The residual with cross-attention's result (N h d) and the feed-forward added."""
        return self._feed_forward(x + self.cross_attn.o(attended.flatten(-2)), vectors)

    def after_short_text(self, x: Tensor, query: Tensor, text: ShortText, vectors: Tensor) -> Tensor:
        """The same for a short prompt, from cross-attention's queries, N h d, not normed."""
        weights = few_keys_weights(self.normed_query(query), text.keys, text.counts)
        return self._feed_forward(x + torch.addmm(self.cross_attn.o.bias, weights, text.outputs), vectors)

    def _feed_forward(self, x: Tensor, vectors: Tensor) -> Tensor:
        *_, shift, scale, gate = vectors.unbind()
        return (x + self.ffn(modulate(x, shift, scale, self.eps)).float() * gate).to(x.dtype)
