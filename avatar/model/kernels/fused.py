"""A layer's pieces on a GPU, with kernels that pass over memory once; TransformerLayer is the reference.

The matrix products are library calls. Each kernel writes its output in the format, bf16 or 8 bits, that the
next linear layer reads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from avatar.model.attention_8bit import Calibration, EightBit, Queries
from avatar.model.kernels.elementwise import Tokens, added, added_and_normed, normed, quantised, short_weights
from avatar.model.kernels.qkv import quantise_queries, rotated, write
from avatar.model.kv_cache import KeysValues, ShortText
from avatar.model.linear_8bit import QuantisedLinear
from avatar.model.transformer_layer import TransformerLayer


def project_rotated(
    layer: TransformerLayer, x: Tensor, vectors: Tensor, table: Tensor
) -> tuple[Tensor, KeysValues]:
    """See TransformerLayer."""
    attention = layer.self_attn
    q, k, v = _projected(layer, x, vectors)
    norm_q, norm_k = attention.norm_q, attention.norm_k
    assert norm_q.eps is not None
    assert norm_k.eps is not None
    return rotated(q, norm_q.weight, table, norm_q.eps), KeysValues(
        rotated(k, norm_k.weight, table, norm_k.eps), v
    )


def project_quantised(
    layer: TransformerLayer,
    x: Tensor,
    vectors: Tensor,
    table: Tensor,
    calibration: Calibration,
    own: EightBit,
) -> Queries:
    """The same in 8 bits: returns queries, and writes keys and values to the window's own part."""
    attention = layer.self_attn
    q, k, v = _projected(layer, x, vectors)
    norm_q, norm_k = attention.norm_q, attention.norm_k
    assert norm_q.eps is not None
    assert norm_k.eps is not None
    write(own, KeysValues(k, v), calibration, table, norm_k.weight, norm_k.eps)
    return quantise_queries(q, norm_q.weight, table, norm_q.eps)


def after_self_attention(
    layer: TransformerLayer, x: Tensor, attended: Tensor, vectors: Tensor
) -> tuple[Tensor, Tensor]:
    """See TransformerLayer."""
    norm, query = layer.norm3, layer.cross_attn.q
    y = _product_of(layer.self_attn.o, attended.flatten(-2))
    x, rows = added_and_normed(
        x, y, vectors[2], norm.weight, norm.bias, norm.eps, _taken_by(query, x), plus_one=False
    )
    return x, _product(query, rows).unflatten(-1, (layer.cross_attn.num_heads, -1))


def after_cross_attention(layer: TransformerLayer, x: Tensor, attended: Tensor, vectors: Tensor) -> Tensor:
    """See TransformerLayer."""
    return _feed_forward(layer, x, _product_of(layer.cross_attn.o, attended.flatten(-2)), vectors)


def after_short_text(
    layer: TransformerLayer, x: Tensor, query: Tensor, text: ShortText, vectors: Tensor
) -> Tensor:
    """See TransformerLayer."""
    norm = layer.cross_attn.norm_q
    assert norm.eps is not None
    weights = short_weights(query, norm.weight, norm.eps, text.keys, text.counts)
    return _feed_forward(layer, x, torch.addmm(layer.cross_attn.o.bias, weights, text.outputs), vectors)


def _projected(layer: TransformerLayer, x: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, N h d, neither normed nor rotated."""
    qkv = layer.self_attn.qkv
    assert qkv is not None
    rows = normed(x, vectors[1], vectors[0], layer.eps, _taken_by(qkv, x), plus_one=True)
    q, k, v = _product(qkv, rows).unflatten(-1, (3, layer.self_attn.num_heads, -1)).unbind(1)
    return q, k, v


def _feed_forward(layer: TransformerLayer, x: Tensor, y: Tensor, vectors: Tensor) -> Tensor:
    """The residual with cross-attention's result y and the feed-forward added."""
    *_, shift, scale, gate = vectors.unbind()
    first, _, second = layer.ffn
    x, rows = added_and_normed(x, y, None, scale, shift, layer.eps, _taken_by(first, x), plus_one=True)
    if isinstance(first, nn.Linear):
        hidden = torch._addmm_activation(first.bias, rows.values, first.weight.t(), use_gelu=True)
        return added(x, _product_of(second, hidden), gate)
    active = quantised(_product(first, rows), _taken_by(second, x), gelu=True)
    return added(x, _product(second, active), gate)


def _taken_by(linear: nn.Module, x: Tensor) -> torch.dtype:
    """The dtype in which a linear layer reads its input."""
    if isinstance(linear, QuantisedLinear) and linear.multiplies_on(x.device):
        return linear.weight.dtype
    return x.dtype


def _product_of(linear: nn.Module, x: Tensor) -> Tensor:
    like = _taken_by(linear, x)
    return _product(linear, Tokens(x, None) if like == x.dtype else quantised(x, like))


def _product(linear: nn.Module, rows: Tokens) -> Tensor:
    if rows.scale is None:
        return linear(rows.values)
    assert isinstance(linear, QuantisedLinear)
    return linear.multiply(rows.values, rows.scale)
