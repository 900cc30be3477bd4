"""The entry to attention against the formula."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch

from avatar.model import attention as module
from avatar.model.attention import attention, flash_kernel, installed, join_parts, prioritised_sdpa
from avatar.model.kv_cache import KeysValues


def formula(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    scores = torch.einsum("bnhd,bmhd->bhnm", q.double(), k.double()) / q.shape[-1] ** 0.5
    return torch.einsum("bhnm,bmhd->bnhd", scores.softmax(-1), v.double())


@pytest.mark.parametrize("function", [attention, prioritised_sdpa])
@pytest.mark.parametrize(("batch", "queries", "keys"), [(1, 96, 250), (6, 32, 5)])
def test_equals_the_formula(function, batch, queries, keys):
    torch.manual_seed(0)
    q, k, v = (torch.randn(batch, n, 2, 32) for n in (queries, keys, keys))
    torch.testing.assert_close(function(q, k, v).double(), formula(q, k, v), rtol=1e-5, atol=1e-5)


def test_a_prefix_of_the_keys_is_read_in_place():
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, n, 2, 32) for n in (16, 64, 64))
    torch.testing.assert_close(
        attention(q, k[:, :40], v[:, :40]).double(), formula(q, k[:, :40], v[:, :40]), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    ("capability", "available", "chosen"),
    [
        ((9, 0), {"flash_attn_interface", "flash_attn.cute"}, "flash_attn_interface"),
        ((10, 0), {"flash_attn_interface", "flash_attn.cute"}, "flash_attn.cute"),
        ((8, 9), {"flash_attn_interface", "flash_attn.cute"}, None),
        ((9, 0), set(), None),
    ],
)
def test_flash_attention_is_taken_where_its_kernels_run(monkeypatch, capability, available, chosen):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(module, "installed", available.__contains__)
    monkeypatch.setattr(module, "flash_kernel", lambda name: name)
    module.kernel_for.cache_clear()
    kernel = module.kernel_for(torch.device("cuda", 0))
    module.kernel_for.cache_clear()
    assert kernel == (chosen or prioritised_sdpa)


@pytest.mark.parametrize("with_lse", [False, True])
def test_flash_kernel_gives_the_output_alone(monkeypatch, with_lse):
    fake = ModuleType("fake_flash")
    fake.flash_attn_func = lambda q, k, v: (q + 1, "lse") if with_lse else q + 1
    monkeypatch.setitem(sys.modules, "fake_flash", fake)
    x = torch.zeros(1, 2, 3, 4)
    assert torch.equal(flash_kernel("fake_flash")(x, x, x), x + 1)


def test_installed_asks_without_importing():
    assert installed("torch.nn")
    assert not installed("no_such_package.inner")


def with_lse(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """attention_with_lse, written out."""
    scores = torch.einsum("nhd,mhd->hnm", q, k) * q.shape[-1] ** -0.5
    return torch.einsum("hnm,mhd->nhd", scores.softmax(-1), v), scores.logsumexp(-1)


@pytest.mark.parametrize("offset", [0.0, -20.0, 20.0])
@pytest.mark.parametrize("padding", [0, 7])
def test_two_parts_one_of_them_padded_are_attention_to_all(offset, padding):
    """Also where every score is far below or above zero, which the padding's part of the sum might drown."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(n, 3, 16) for n in (20, 50, 50))
    q, k = q + 1, k + offset / 4
    padded = KeysValues(
        torch.cat([k[:30], k[:1].expand(padding, -1, -1)]), torch.cat([v[:30], v.new_zeros(padding, 3, 16)])
    )
    joined = join_parts(q, with_lse(q, *padded), with_lse(q, k[30:], v[30:]), k[0], padding)
    expected, _ = with_lse(q.double(), k.double(), v.double())
    assert float((joined - expected).norm() / expected.norm()) < 1e-5
