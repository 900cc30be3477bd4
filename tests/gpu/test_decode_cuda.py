"""The video decoder on a GPU: the golden frames, compiled, in both ways in which it convolves."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from avatar.model.vae import streaming_decoder
from avatar.model.vae.vae import VideoVAE
from tests.pipeline.streams import relative_error
from tests.pipeline.test_decode import GOLDEN, stream

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.usefixtures("full_float32"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


def decoded(vae: VideoVAE, sizes: list[int], *, compile: bool) -> Tensor:
    latents = load_file(GOLDEN / "vae.safetensors")["latents"]
    return torch.cat(stream(vae, latents, sizes, compile=compile), dim=2).float().cpu()


@pytest.mark.parametrize("few_channels", [0, 128])
@pytest.mark.parametrize("sizes", [[1] * 10, [1, 3, 3, 3]])
def test_compiled_float32_parity(
    few_channels: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiled, what lies between two convolutions is one kernel of our own; and only then."""
    monkeypatch.setattr(streaming_decoder, "FEW_CHANNELS", few_channels)
    vae = VideoVAE.load(GOLDEN / "Wan2.1_VAE.tiny.pth", "cuda", torch.float32)
    expected = load_file(GOLDEN / "vae.safetensors")["decoded_full"]
    for compile in (False, True):
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            assert relative_error(decoded(vae, sizes, compile=compile), expected) < 1e-5
        assert any("_lay_out" in event.key for event in profiler.key_averages()) == compile


def test_compiled_bfloat16_stays_within_its_precision() -> None:
    """Some 40 layers that each round at 2^-9."""
    vae = VideoVAE.load(GOLDEN / "Wan2.1_VAE.tiny.pth", "cuda", torch.bfloat16)
    expected = load_file(GOLDEN / "vae.safetensors")["decoded_full"]
    assert 1e-4 < relative_error(decoded(vae, [1, 3, 3, 3], compile=True), expected) < 2 * 40**0.5 * 2**-9
