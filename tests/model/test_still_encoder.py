"""A picture that stands still is encoded as the video of its repetitions is, with less work and memory."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from avatar.model.vae.vae import VideoVAE

GOLDEN = Path(__file__).parents[1] / "golden"
STRUCTURES = {
    "Wan 2.1": {},
    "one block a level": {"num_res_blocks": 1},
    "half the frames first": {"temperal_downsample": [True, True, False]},
    "two levels of one width": {"dim_mult": [1, 1, 2, 2], "temperal_downsample": [True, False, True]},
}


@pytest.fixture
def vae() -> VideoVAE:
    return VideoVAE.load(GOLDEN / "Wan2.1_VAE.tiny.pth", "cpu", torch.float32)


def paint(height: int = 32, width: int = 48, batch: int = 1) -> Tensor:
    return torch.rand(batch, 3, 1, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def encode_repeated(vae: VideoVAE, picture: Tensor, num_frames: int) -> Tensor:
    """The slow twin: the library's own encoder over every frame."""
    return vae.encode(picture.expand(-1, -1, num_frames, -1, -1))


@pytest.mark.parametrize("num_frames", [1, 5, 9, 41, 73, 121])
@pytest.mark.parametrize(("height", "width"), [(32, 48), (40, 24), (35, 51)])
def test_a_still_is_encoded_as_its_repetitions(
    vae: VideoVAE, num_frames: int, height: int, width: int
) -> None:
    picture = paint(height, width, batch=2)
    expected = encode_repeated(vae, picture, num_frames)
    found = vae.encode_still(picture, num_frames)
    assert found.shape == expected.shape
    assert found.dtype == torch.float32
    for still, repeated in zip(found.unbind(2), expected.unbind(2), strict=True):
        assert relative(still, repeated) < 1e-6


def test_a_still_is_encoded_as_the_public_code_does(vae: VideoVAE) -> None:
    golden = load_file(GOLDEN / "vae.safetensors")
    assert relative(vae.encode_still(golden["image"], 5), golden["image_latent_5frames"]) < 1e-5


def test_bfloat16_rounds_as_the_whole_encode_does() -> None:
    """Each of some 40 layers rounds at 2^-9, wherever its frames are computed."""
    vae = VideoVAE.load(GOLDEN / "Wan2.1_VAE.tiny.pth", "cpu", torch.bfloat16)
    assert relative(vae.encode_still(paint(), 73), encode_repeated(vae, paint(), 73)) < 40**0.5 * 2**-9


@pytest.mark.parametrize("structure", STRUCTURES.values(), ids=STRUCTURES)
@torch.no_grad()
def test_a_layer_settles_when_its_structure_says_and_no_earlier(structure: dict) -> None:
    """The slow twin looks at every frame that comes out of every layer of the library's encoder."""
    torch.manual_seed(0)
    vae = VideoVAE(nn.Module.to(AutoencoderKLWan(base_dim=4, **structure), torch.float64))
    stills = vae.still_encoder.stills()
    outputs: list[list[Tensor]] = [[] for _ in stills]
    for still, chunks in zip(stills, outputs, strict=True):
        still.layer.register_forward_hook(lambda layer, args, x, chunks=chunks: chunks.append(x))
    expected = encode_repeated(vae, paint(16, 24).double(), 161)
    for still, chunks in zip(stills, outputs, strict=True):
        assert {chunk.shape[2] for chunk in chunks[1:]} == {still.chunk}
        frames = torch.cat(chunks, dim=2)
        change = (frames - frames[:, :, -1:]).abs().amax(dim=(0, 1, 3, 4))
        assert change[still.settles :].max() < 1e-12
        assert change[still.settles - 1] > 1e-10
    assert relative(vae.encode_still(paint(16, 24).double(), 161), expected) < 1e-6


def test_what_has_settled_is_not_computed_again(vae: VideoVAE, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames that each convolution makes for 73: the dear ones first, those of latent frames to the end."""
    whole = frames_made(vae, monkeypatch, lambda: encode_repeated(vae, paint(), 73))
    still = frames_made(vae, monkeypatch, lambda: vae.encode_still(paint(), 73))
    assert still.keys() == whole.keys()
    made = {name: (still[name], whole[name]) for name in whole}
    assert made["conv_in"] == (5, 73)
    blocks = [made[f"down_blocks.{index}.conv1"] for index in (0, 1, 3, 4, 6, 7, 9, 10)]
    assert blocks == [(9, 73), (13, 73), (17, 73), (21, 73), (15, 37), (19, 37), (15, 19), (19, 19)]
    assert made["down_blocks.5.time_conv"] == (10, 36)
    assert made["conv_out"] == (19, 19)
    assert frames_made(vae, monkeypatch, lambda: vae.encode_still(paint(), 401))["conv_out"] == 29


def frames_made(vae: VideoVAE, monkeypatch: pytest.MonkeyPatch, run: Callable[[], Tensor]) -> Counter[str]:
    """How many frames come out of each of the encoder's convolutions meanwhile, by name."""
    names = {
        module.weight.data_ptr(): name
        for name, module in vae.model.encoder.named_modules()
        if isinstance(module, nn.Conv3d)
    }
    made: Counter[str] = Counter()
    convolve = F.conv3d

    def counted(x: Tensor, weight: Tensor, *args: object, **kwargs: object) -> Tensor:
        out = convolve(x, weight, *args, **kwargs)
        made[names.get(weight.data_ptr(), "quant_conv")] += out.shape[2]
        return out

    with monkeypatch.context() as patch:
        patch.setattr(F, "conv3d", counted)
        run()
    return made


class LiveBytes(TorchDispatchMode):
    """The most bytes of tensors alive at once, of those made meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = {id(storage) for storage in storages((args, kwargs))}
        out = function(*args, **(kwargs or {}))
        for storage in storages(out):
            if id(storage) not in given and id(storage) not in self.alive:
                self.alive[id(storage)] = storage.nbytes()
                weakref.finalize(storage, self.alive.pop, id(storage))
        self.peak = max(self.peak, sum(self.alive.values()))
        return out


def storages(tree: object) -> list[torch.UntypedStorage]:
    return [value.untyped_storage() for value in tree_leaves(tree) if isinstance(value, Tensor)]


def test_a_still_needs_no_more_memory_than_the_whole_encode() -> None:
    """At full width, where the plan's workspace was measured; on the meta device, which computes nothing."""
    with torch.device("meta"):
        vae = VideoVAE(nn.Module.to(AutoencoderKLWan(base_dim=96), torch.bfloat16))
        picture = torch.empty(1, 3, 1, 64, 96)
    peaks = []
    for run in (encode_repeated, VideoVAE.encode_still):
        with LiveBytes() as live:
            run(vae, picture, 73)
        peaks.append(live.peak)
    whole, still = peaks
    assert 0 < still <= whole


def test_nothing_of_a_picture_is_left_for_the_next(vae: VideoVAE) -> None:
    first = vae.encode_still(paint(), 9)
    vae.encode_still(-paint(40, 24), 73)
    assert torch.equal(vae.encode_still(paint(), 9), first)
