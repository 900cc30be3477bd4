"""Triton's kernels on a CPU: its interpreter, rounding to e4m3 as hardware does.

Run as a program by the tests, since Triton reads TRITON_INTERPRET when it is imported. Prints a line of JSON:
how far each kernel is from its slow twin, relative to the twin's norm.
"""

from __future__ import annotations

import json
import sys

import numpy as np
import torch
import triton.language as tl
import triton.runtime.interpreter as interpreter
from torch import Tensor, nn

from avatar.geometry import Geometry
from avatar.model import attention_8bit
from avatar.model.attention import few_keys_weights
from avatar.model.attention_8bit import Calibration, EightBitRing, EightBitWindow
from avatar.model.kernels import attention as attention_kernel
from avatar.model.kernels import elementwise, products
from avatar.model.kernels import qkv as head_kernels
from avatar.model.kv_cache import KeysValues
from avatar.model.products_8bit import multiply_plainly
from avatar.model.quantize import FLOAT8, INT8, hadamard, quantise_rows
from avatar.model.rope import block_table, rotate
from avatar.model.transformer_layer import modulate
from avatar.model.weights import tiny
from benchmarks.between_products import calls

converted = interpreter._convert_float
CPU = torch.device("cpu")


def convert(values, given, wanted, rounding):
    """The interpreter's own rounds halves up, loses carries, and cuts subnormals off."""
    if wanted != tl.float8e4nv:
        return converted(values, given, wanted, rounding)
    wide = torch.from_numpy(np.ascontiguousarray(values).astype(np.float32))
    return wide.to(FLOAT8).view(torch.uint8).numpy().reshape(values.shape)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def attention(by_descriptor: bool) -> float:
    torch.manual_seed(0)
    attention_kernel._copies_by_descriptor = lambda device: by_descriptor
    geometry, heads, dim = Geometry(64, 64, 8), 2, 32
    room, ring = EightBitWindow(geometry, heads, dim, CPU), EightBitRing.empty(geometry, heads, dim, CPU)
    own, past, condition = (
        KeysValues(*(torch.randn(count, heads, dim) + 2 for _ in "kv"))
        for count in (48, 48, geometry.condition_tokens)
    )
    calibration = Calibration.of(own, condition)
    for part, given in ((room.own, past), (None, None), (room.own, own), (room.condition, condition)):
        if part is None:
            ring.append(room.own)
            continue
        attention_8bit.write(part, given, calibration)
    arguments = (
        attention_8bit.quantise_heads(torch.randn(70, heads, dim)),
        [room.near, ring.past()],
        calibration,
        torch.float32,
    )
    return relative(attention_kernel.attend(*arguments), attention_8bit.attend(*arguments))


def heads() -> dict[str, float]:
    torch.manual_seed(0)
    geometry, num_heads, dim = Geometry(64, 64, 6), 3, 12
    table = block_table(geometry, 5, dim, CPU)
    qkv = torch.randn(geometry.block_tokens, 3 * num_heads * dim)
    q, k, v = (part.unflatten(-1, (num_heads, dim)) for part in qkv.chunk(3, -1))
    norm = nn.RMSNorm(num_heads * dim, eps=1e-6).requires_grad_(False)
    norm.weight.uniform_()
    normed = [rotate(norm(part.flatten(1)).unflatten(-1, (num_heads, dim)), table) for part in (q, k)]
    found, right = (
        head_kernels.quantise_queries(q, norm.weight, table, 1e-6),
        attention_8bit.quantise_heads(normed[0]),
    )
    mean, scale = torch.randn(num_heads, dim), torch.rand(num_heads) / 20
    condition = KeysValues(*(torch.randn(geometry.condition_tokens, num_heads, dim) for _ in "kv"))
    ours, twin = (EightBitWindow(geometry, num_heads, dim, CPU) for _ in range(2))
    calibration = Calibration(mean, scale, torch.randn(num_heads, dim), scale.flip(0))
    head_kernels.write(ours.own, KeysValues(k, v), calibration, table, norm.weight, 1e-6)
    attention_8bit.write(twin.own, KeysValues(normed[1], v), calibration)
    for room, kernels in ((ours, head_kernels), (twin, attention_8bit)):
        kernels.write(room.condition, condition, calibration, table[: geometry.condition_tokens])
    return {
        "rotated": relative(head_kernels.rotated(k, norm.weight, table, 1e-6), normed[1]),
        "queries": relative(found.values, right.values) + relative(found.scale, right.scale),
        "keys": relative(ours.near.k, twin.near.k),
        "values": relative(ours.near.v.float(), twin.near.v.float()),
    }


def between_products() -> dict[str, float]:
    torch.manual_seed(0)
    width, num_heads, dim = 100, 3, 12
    x, y = torch.randn(2, 20, width)
    gate, scale, shift = torch.randn(3, width)
    total = x + y * gate
    fresh, normed = elementwise.added_and_normed(x, y, gate, scale, shift, 1e-6, torch.float32, plus_one=True)
    plain = elementwise.normed(x, scale, shift, 1e-6, FLOAT8, plus_one=False)
    layer_norm = nn.functional.layer_norm(x, (width,), eps=1e-6) * scale + shift
    active = elementwise.quantised(x, FLOAT8, gelu=True)
    several = torch.randn(20, 80), torch.randn(20, 1280)  # blocks of 16 and of 256, the last piece cut short
    _, normed_int8 = elementwise.added_and_normed(
        several[0], several[0], None, scale[:80], shift[:80], 1e-6, INT8, plus_one=True
    )
    q, keys = torch.randn(20, num_heads, dim), torch.randn(7, num_heads, dim)
    norm = nn.RMSNorm(num_heads * dim, eps=1e-6).requires_grad_(False)
    norm.weight.uniform_()
    counts = torch.tensor([0.0, 0.0, 0.0, 3.0] + 3 * [-torch.inf])
    weights = few_keys_weights(norm(q.flatten(1)).unflatten(-1, (num_heads, dim)), keys, counts)
    return {
        "added": relative(fresh, total) + relative(elementwise.added(x, y, None), x + y),
        "normed": relative(normed.values, modulate(total, shift, scale, 1e-6)),
        "normed_float8": apart(plain, quantise_rows(layer_norm)),
        "gelu_float8": apart(active, quantise_rows(nn.functional.gelu(x, approximate="tanh"))),
        "normed_int8": apart(
            normed_int8, quantise_rows(hadamard(modulate(2 * several[0], shift[:80], scale[:80], 1e-6)), INT8)
        ),
        "gelu_int8": max(
            apart(
                elementwise.quantised(each, INT8, gelu=True),
                quantise_rows(hadamard(nn.functional.gelu(each, approximate="tanh")), INT8),
            )
            for each in several
        ),
        "short": relative(elementwise.short_weights(q, norm.weight, 1e-6, keys, counts), weights),
    }


def products_of_int8() -> dict[str, float]:
    """Sides that fill tiles and that do not; more rows than a group of tiles has; a single row."""
    torch.manual_seed(0)
    found = {}
    for name, num_rows, width, outputs in (
        ("product", 64, 96, 128),
        ("product_odd", 33, 80, 48),
        ("product_many_rows", 300, 48, 80),
        ("product_one_row", 1, 32, 16),
    ):
        values, weight = (torch.randint(-127, 128, (n, width), dtype=INT8) for n in (num_rows, outputs))
        given = values, torch.rand(num_rows, 1), weight, torch.rand(outputs), torch.randn(outputs)
        found[name] = relative(products.multiply(*given, torch.float32), multiply_plainly(*given))
    return found


def apart(found: elementwise.Tokens, right: tuple[Tensor, Tensor]) -> float:
    return relative(found.values.float() * found.scale, right[0].float() * right[1])


def timed() -> float:
    """How many of the kernels that are timed give the same for two of their inputs."""
    same = 0.0
    for format in (FLOAT8, INT8):
        for call in calls(tiny.CONFIG, Geometry(64, 64, 8), CPU, format).values():
            found = [call(0), call(1)]
            if found[0] is not None:  # else it writes to a window
                values = [each if isinstance(each, Tensor) else each[0] for each in found]
                same += torch.equal(*(each.float() for each in values))
    return same


def main() -> None:
    interpreter._convert_float = convert
    differences = {
        "attention": attention(True),
        "attention_by_pointers": attention(False),
        **heads(),
        **between_products(),
        **products_of_int8(),
        "timed": timed(),
    }
    json.dump(differences, sys.stdout)


if __name__ == "__main__":
    main()
