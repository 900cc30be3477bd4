"""The streaming decoder against the public code's frames and against decoding all at once."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from avatar.geometry import BLOCK_FRAMES, BLOCK_LATENT_FRAMES, LEAD_IN_FRAMES
from avatar.model.vae import streaming_decoder
from avatar.model.vae.vae import VideoVAE
from avatar.pipeline.decode import PRIMING_LATENT_FRAMES, StreamingDecoder

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(GOLDEN / "vae.safetensors")


@pytest.fixture
def vae() -> VideoVAE:
    return VideoVAE.load(GOLDEN / "Wan2.1_VAE.tiny.pth", "cpu", torch.float32)


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


@torch.no_grad()
def decode_at_once(vae: VideoVAE, latents: Tensor) -> Tensor:
    """The slow twin: the library's own decode of a whole video."""
    return vae.model.decode(vae.decoder_input(latents)).sample


def stream(vae: VideoVAE, latents: Tensor, sizes: list[int], *, compile: bool = False) -> list[Tensor]:
    decoder = StreamingDecoder(vae, compile=compile)
    with torch.no_grad():
        return [decoder._video(part) for part in latents[0].split(sizes, dim=1)]


def test_the_whole_decode_is_the_public_codes(vae: VideoVAE, golden: dict[str, Tensor]) -> None:
    assert relative(decode_at_once(vae, golden["latents"]), golden["decoded_full"].clamp(-1, 1)) < 1e-5


def test_convolving_pictures_gives_what_convolving_videos_does(
    vae: VideoVAE, golden: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The toy's channels are all few; the real decoder does either."""
    pictures = torch.cat(stream(vae, golden["latents"], [1, 3, 3, 3]), dim=2)
    calls = []
    monkeypatch.setattr(streaming_decoder, "FEW_CHANNELS", 0)
    monkeypatch.setattr(streaming_decoder, "convolve_stacked", lambda *arguments: calls.append(arguments))
    videos = torch.cat(stream(vae, golden["latents"], [1, 3, 3, 3]), dim=2)
    assert not calls
    assert relative(videos, golden["decoded_full"]) < 1e-5
    assert relative(pictures, videos) < 1e-5


@pytest.mark.parametrize("sizes", [[1, 3, 3, 3], [1, 9], [1] * 10, [1, 2, 4, 1, 2]])
def test_the_streamed_decode_is_the_public_codes(
    vae: VideoVAE, golden: dict[str, Tensor], sizes: list[int]
) -> None:
    parts = stream(vae, golden["latents"], sizes)
    assert [part.shape[2] for part in parts] == [1 + 4 * (sizes[0] - 1), *(4 * size for size in sizes[1:])]
    assert relative(torch.cat(parts, dim=2), golden["decoded_full"]) < 1e-5
    chunks = torch.cat([golden[f"stream_chunk{index}"] for index in range(3)], dim=2)
    assert relative(torch.cat(parts, dim=2), chunks) < 1e-5


@pytest.mark.slow
def test_the_compiled_decoder_is_one_graph_and_kept(
    vae: VideoVAE, golden: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graph is captured whole and run by PyTorch's own kernels, which spares a minute of C++."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    compiled = stream(vae, golden["latents"], [1, 3, 3, 3], compile=True)
    assert relative(torch.cat(compiled, dim=2), golden["decoded_full"]) < 1e-5
    assert vae.compiled_decoder is vae.compiled_decoder


def test_channels_are_fastest_in_all_that_is_kept(vae: VideoVAE) -> None:
    decoder = StreamingDecoder(vae)
    decoder.prime(torch.zeros(16, 19, 4, 6))
    pasts = decoder._pasts or []
    assert len(pasts) > 20
    weights = [conv.weight for conv in vae.decoder.modules() if isinstance(conv, torch.nn.Conv3d)]
    for kept in [*pasts, *weights]:
        assert kept.is_contiguous(memory_format=torch.channels_last_3d)


def test_bfloat16_stays_within_its_precision(golden: dict[str, Tensor]) -> None:
    """Some 40 layers that each round at 2^-9."""
    vae = VideoVAE.load(GOLDEN / "Wan2.1_VAE.tiny.pth", "cpu", torch.bfloat16)
    video = torch.cat(stream(vae, golden["latents"], [1, 3, 3, 3]), dim=2).float()
    assert 1e-4 < relative(video, golden["decoded_full"]) < 2 * 40**0.5 * 2**-9


def make_latents(num_frames: int, seed: int) -> Tensor:
    return torch.randn(16, num_frames, 4, 6, generator=torch.Generator().manual_seed(seed))


def test_a_primed_stream_is_the_whole_decode_without_lead_in(vae: VideoVAE) -> None:
    """The slow twin decodes the priming and all blocks at once with the library, then cuts."""
    motion, latents = make_latents(19, 1), make_latents(4 * BLOCK_LATENT_FRAMES, 2)
    decoder = StreamingDecoder(vae)
    decoder.prime(motion)
    blocks = [decoder.decode(block) for block in latents.split(BLOCK_LATENT_FRAMES, dim=1)]
    assert [len(block) for block in blocks] == [BLOCK_FRAMES - LEAD_IN_FRAMES] + 3 * [BLOCK_FRAMES]
    assert blocks[0].dtype == torch.uint8
    assert blocks[0].shape[1:] == (32, 48, 3)
    whole = decode_at_once(vae, torch.cat([motion[:, :PRIMING_LATENT_FRAMES], latents], dim=1)[None])[0]
    expected = whole[:, 1 + 4 * (PRIMING_LATENT_FRAMES - 1) + LEAD_IN_FRAMES :].permute(1, 2, 3, 0)
    difference = torch.cat(blocks).float() - (expected + 1) * 127.5
    assert difference.abs().max() <= 0.51  # rounding to whole levels


def test_priming_again_starts_another_video(vae: VideoVAE) -> None:
    motion, block = make_latents(19, 1), make_latents(BLOCK_LATENT_FRAMES, 2)
    decoder = StreamingDecoder(vae)
    decoder.prime(motion)
    first = decoder.decode(block)
    decoder.decode(block)
    decoder.prime(motion)
    assert torch.equal(decoder.decode(block), first)


def test_what_is_kept_between_blocks_does_not_grow(vae: VideoVAE) -> None:
    decoder = StreamingDecoder(vae)
    decoder.prime(make_latents(19, 1))
    sizes = []
    for index in range(4):
        decoder.decode(make_latents(BLOCK_LATENT_FRAMES, index))
        sizes.append(sum(past.untyped_storage().nbytes() for past in decoder._pasts or ()))
    assert len(set(sizes)) == 1
