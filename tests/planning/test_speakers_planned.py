"""What several speakers hold in memory is in the plan, and is what their injections really take."""

from __future__ import annotations

import json
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from avatar.cli import main
from avatar.hardware.inventory import Inventory
from avatar.model.audio_injection import AdaLN, AudioTokens, Injection
from avatar.model.transformer_layer import Attention
from avatar.planning.estimates import SUMMED_TENSORS
from avatar.planning.planner import largest_geometry, plan
from avatar.planning.verdict import judge
from avatar.preset import load_preset

H200 = Inventory.imagine(1, 139)
FULL = load_preset("80gb")


def items(num_speakers: int, preset: Any = FULL) -> dict[str, int]:
    planned = plan(preset, H200, num_speakers=num_speakers)
    device = planned.gpus[0] if planned.gpus else planned.host
    return {item.name: item.num_bytes for item in device.items}


def test_every_voice_has_audio_tokens_and_states() -> None:
    one, four = items(1), items(4)
    for name in ("audio_injections", "speech_states"):
        assert four[name] == 4 * one[name]
    block = largest_geometry(FULL).block_tokens * 5120 * 2
    assert four["activations"] - one["activations"] == SUMMED_TENSORS * block
    same = set(one) - {"audio_injections", "speech_states", "activations", "margin"}
    assert all(one[name] == four[name] for name in same)


def test_the_preview_holds_every_face() -> None:
    preset = load_preset("cpu-preview")
    assert items(3, preset)["frames"] == 3 * items(1, preset)["frames"]


def test_verdict_and_command_count_speakers(capsys: pytest.CaptureFixture[str]) -> None:
    peak = judge(FULL, H200, num_speakers=4).plan.gpus[0].peak_bytes
    assert judge(FULL, H200).plan.gpus[0].peak_bytes < peak
    imagined = ["plan", "--preset", "80gb", "--gpus", "1", "--vram", "139", "--json"]
    assert main([*imagined, "--num_speakers", "4"]) == 0
    four = json.loads(capsys.readouterr().out)
    assert main(imagined) == 0
    one = json.loads(capsys.readouterr().out)
    assert four["gpus"][0]["peak_bytes"] == peak > one["gpus"][0]["peak_bytes"]
    with pytest.raises(SystemExit):
        main([*imagined, "--num_speakers", "5"])


class Held(TorchDispatchMode):
    """Counts the bytes of all tensors made within it that are alive at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in self._known:
                self._hold(tensor.untyped_storage())
        return out

    def _hold(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)

        def gone() -> None:
            self._known.discard(key)
            self.now -= size

        weakref.finalize(storage, gone)


def injected(num_speakers: int, tokens: int = 600, dim: int = 256) -> float:
    """Peak bytes of one injection, in tensors of a block's tokens."""
    torch.manual_seed(0)
    injection = nn.Module.to(Injection(Attention(dim, 2, 1e-6), AdaLN(dim)), torch.bfloat16)
    local = torch.randn(num_speakers, 3, 5, dim).bfloat16()
    overall = torch.randn(num_speakers, 3, dim).bfloat16()
    masks = torch.rand(num_speakers, tokens, 1).bfloat16() if num_speakers > 1 else None
    with torch.no_grad():
        context = injection.context(AudioTokens(local, overall))
        x = torch.randn(tokens, dim).bfloat16()
        with Held() as held:
            injection.add(x, context, masks)
    return held.peak / (tokens * dim * 2)


def test_injections_take_what_is_planned() -> None:
    one, two, four = (injected(count) for count in (1, 2, 4))
    assert one < two <= four <= one + SUMMED_TENSORS
