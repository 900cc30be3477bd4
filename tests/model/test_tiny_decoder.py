"""The tiny decoder: its layers and names as published, streamed as decoded at once, and its files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from avatar.errors import WeightsMissing
from avatar.geometry import BLOCK_FRAMES, BLOCK_LATENT_FRAMES, LEAD_IN_FRAMES
from avatar.model.vae.tiny_decoder import TinyCausalDecoder, TinyDecoder
from avatar.pipeline.decode import PRIMING_LATENT_FRAMES, StreamingDecoder
from tests.fixtures.tiny_decoder import (
    decode_at_once,
    make_decoder,
    published_tensors,
    stand_in_vae,
    write_published,
)

LIGHT_BYTES = 45_274_004  # of lighttaew2_1.safetensors, float32, as its LFS pointer says
HALF_BYTES = 22_678_901  # of taew2_1.pth, float16, as public projects that pin it say
ENCODER_VALUES = 1_470_928  # of the published encoder, counted from taehv.py


def make_latents(num_frames: int, seed: int = 0) -> Tensor:
    return torch.randn(16, num_frames, 4, 6, generator=torch.Generator().manual_seed(seed))


def stream(source: TinyDecoder, latents: Tensor, sizes: list[int]) -> list[Tensor]:
    decoder = StreamingDecoder(source)
    with torch.no_grad():
        return [decoder._video(part) for part in latents.split(sizes, dim=1)]


def test_it_has_as_many_values_as_the_published_files() -> None:
    """A file holds encoder and decoder; a header of names, or a zip archive, comes on top."""
    values = sum(value.numel() for value in TinyCausalDecoder().state_dict().values())
    assert values == 9_844_611
    assert 0 < LIGHT_BYTES - 4 * (values + ENCODER_VALUES) < 20_000
    assert 0 < HALF_BYTES - 2 * (values + ENCODER_VALUES) < 60_000


def test_its_names_are_the_published_ones() -> None:
    """Sequential's numbers in taehv.py: only convolutions hold tensors."""
    expected = {f"{index}.{leaf}" for index in (1, 22) for leaf in ("weight", "bias")}
    expected |= {f"{index}.weight" for index in (8, 14, 20)}
    expected |= {f"{index}.conv.weight" for index in (7, 13, 19)}
    blocks = (3, 4, 5, 9, 10, 11, 15, 16, 17)
    expected |= {f"{i}.conv.{j}.{leaf}" for i in blocks for j in (0, 2, 4) for leaf in ("weight", "bias")}
    shapes = {name: tuple(value.shape) for name, value in TinyCausalDecoder().state_dict().items()}
    assert set(shapes) == {f"decoder.{name}" for name in expected}
    assert shapes["decoder.1.weight"] == (256, 16, 3, 3)
    assert shapes["decoder.3.conv.0.weight"] == (256, 512, 3, 3)
    assert shapes["decoder.13.conv.weight"] == (256, 128, 1, 1)
    assert shapes["decoder.22.weight"] == (3, 64, 3, 3)


@pytest.mark.parametrize("sizes", [[1, 3, 3, 3], [1, 9], [1] * 10, [1, 2, 4, 1, 2]])
def test_streamed_is_what_is_decoded_at_once(sizes: list[int]) -> None:
    latents = make_latents(10)
    parts = stream(make_decoder(), latents, sizes)
    assert [part.shape[2] for part in parts] == [1, *(4 * size for size in sizes[1:])]
    expected = decode_at_once(published_tensors(torch.float32), latents)
    assert torch.cat(parts, dim=2).shape == expected.shape == (1, 3, 37, 32, 48)
    assert float((torch.cat(parts, dim=2) - expected).abs().max()) < 1e-5 * float(expected.abs().max())


def test_blocks_have_as_many_frames_as_with_the_vae() -> None:
    motion, latents = make_latents(19, 1), make_latents(4 * BLOCK_LATENT_FRAMES, 2)
    decoder = StreamingDecoder(make_decoder())
    decoder.prime(motion)
    blocks = [decoder.decode(block) for block in latents.split(BLOCK_LATENT_FRAMES, dim=1)]
    assert [len(block) for block in blocks] == [BLOCK_FRAMES - LEAD_IN_FRAMES] + 3 * [BLOCK_FRAMES]
    assert blocks[0].dtype == torch.uint8
    whole = torch.cat([motion[:, :PRIMING_LATENT_FRAMES], latents], dim=1)
    expected = decode_at_once(published_tensors(torch.float32), whole)[0]
    expected = expected[:, 1 + 4 * (PRIMING_LATENT_FRAMES - 1) + LEAD_IN_FRAMES :].permute(1, 2, 3, 0)
    difference = torch.cat(blocks).float() - (expected.clamp(-1, 1) + 1) * 127.5
    assert difference.abs().max() <= 0.51  # rounding to whole levels


def test_a_video_that_goes_on_needs_nothing_but_its_motion() -> None:
    """No frame reaches back further than the 19 latent frames by which a run is resumed."""
    latents = make_latents(40)
    decoder = StreamingDecoder(make_decoder())
    decoder.prime(latents[:, :7])
    parts = [decoder.decode(part) for part in latents[:, 7:].split(BLOCK_LATENT_FRAMES, dim=1)]
    resumed = StreamingDecoder(make_decoder())
    resumed.go_on(latents[:, 15:34])
    assert torch.equal(torch.cat(parts)[-24:], resumed.decode(latents[:, 34:]))


def test_what_is_kept_between_blocks_does_not_grow() -> None:
    decoder = StreamingDecoder(make_decoder())
    decoder.prime(make_latents(19, 1))
    sizes = []
    for index in range(3):
        decoder.decode(make_latents(BLOCK_LATENT_FRAMES, index))
        sizes.append(sum(past.untyped_storage().nbytes() for past in decoder._pasts or ()))
    values = 3 * (256 * 24 + 128 * 24 * 4 + 64 * 24 * 16)  # a frame per memory block, at its size
    assert sizes == 3 * [4 * values]


@pytest.mark.parametrize("name", ["taew2_1.pth", "taew2_1.safetensors", "lighttaew2_1.safetensors"])
def test_either_form_of_file_is_read(tmp_path: Path, name: str) -> None:
    """LightTAE takes the VAE's own latents, TAEHV the normalised ones; their tensors look the same."""
    vae, latents = stand_in_vae(), make_latents(1)
    found = stream(TinyDecoder.load(write_published(tmp_path / name), vae), latents, [1])[0]
    asked = latents * vae.std[0] + vae.mean[0] if name.startswith("light") else latents
    halves = {name: value.float() for name, value in published_tensors().items()}
    assert torch.allclose(found, decode_at_once(halves, asked), atol=1e-4)


def test_another_models_file_is_refused_by_name(tmp_path: Path) -> None:
    tensors = published_tensors()
    tensors["decoder.1.weight"] = torch.zeros(256, 48, 3, 3)  # Wan 2.2's 48 channels
    del tensors["decoder.22.bias"]
    save_file(tensors, tmp_path / "taew2_2.safetensors")
    with pytest.raises(WeightsMissing) as caught:
        TinyDecoder.load(tmp_path / "taew2_2.safetensors", stand_in_vae())
    assert "taew2_2.safetensors does not match" in caught.value.message
    assert "decoder.1.weight" in caught.value.message
    assert "decoder.22.bias" in caught.value.message


@pytest.mark.parametrize("name", ["taew2_1.pth", "taew2_1.safetensors"])
def test_an_absent_file_is_refused_by_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(WeightsMissing, match=f"{name} is missing"):
        TinyDecoder.load(tmp_path / name, stand_in_vae())


def test_growth_splits_channels_into_frames_in_order() -> None:
    grown = make_decoder().decoder.decoder[13]
    x = torch.randn(2, 128, 3, 5).contiguous(memory_format=torch.channels_last)  # as it comes
    with torch.no_grad():
        whole, found = grown.conv(x), grown(x)
    expected = torch.stack([whole[0, :128], whole[0, 128:], whole[1, :128], whole[1, 128:]])
    assert torch.equal(found, expected)
    assert found.is_contiguous(memory_format=torch.channels_last)
