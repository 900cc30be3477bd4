"""A generation's parts: loaded as the preset's memory settings say, quantised ones from the cache."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from avatar.bench.random_parts import random_parts
from avatar.diffusion.parts import Parts
from avatar.errors import Cancelled
from avatar.models import weight_cache
from avatar.models.checkpoint import open_checkpoint
from avatar.models.quantize import FLOAT8, Float8Linear
from avatar.models.transformer import StreamingTransformer
from avatar.preset import load_preset

PRESET = load_preset("self-test").with_settings(weight_dtype="fp8")


def require_float8(model: StreamingTransformer) -> None:
    """Big products in fp8, the rest in bf16."""
    layer = model.layer(0)
    for linear in (layer.self_attn.qkv, layer.self_attn.o, layer.ffn[0], layer.cross_attn.k):
        assert isinstance(linear, Float8Linear)
    dtypes = {tensor.dtype for name, tensor in model.state_dict().items() if not name.endswith("scale")}
    assert dtypes == {FLOAT8, torch.bfloat16}
    assert model.dtype == torch.bfloat16


def test_fp8_weights_come_through_the_cache(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(weight_cache.ENVIRONMENT, str(tmp_path))
    monkeypatch.setattr(weight_cache, "FILE_BYTES", 100_000)
    parts = Parts.load(PRESET.memory, open_checkpoint(tiny_checkpoint))
    assert not list(tmp_path.iterdir())  # the transformer comes later
    require_float8(parts.load_transformer())
    assert (tmp_path / weight_cache.key(open_checkpoint(tiny_checkpoint), torch.bfloat16)).is_dir()
    parts.release_transformer()
    require_float8(parts.load_transformer())


def test_loading_fp8_may_be_stopped(tiny_checkpoint: Path) -> None:
    parts = Parts.load(PRESET.memory, open_checkpoint(tiny_checkpoint))

    def stop() -> None:
        raise Cancelled("The run was stopped.")

    with pytest.raises(Cancelled):
        parts.load_transformer(stop)


def test_random_weights_are_quantised_too() -> None:
    require_float8(random_parts(PRESET).load_transformer())
