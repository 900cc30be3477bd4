"""The Wan 2.1 video VAE: diffusers' model, loaded from either checkpoint layout, with normalised latents."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import torch
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from torch import Tensor

from avatar.errors import WeightsMissing
from avatar.model.compile import compiled
from avatar.model.vae.causal import Pasts
from avatar.model.vae.still_encoder import StillEncoder
from avatar.model.vae.streaming_decoder import CausalDecoder
from avatar.model.weights.tensor_files import (
    WRONG_CHECKPOINT,
    Shapes,
    build_on_meta,
    open_safetensors,
    read_pth,
    require_match,
)
from avatar.model.weights.weight_formats import StoredTensors

DIFFUSERS_FILE = "diffusion_pytorch_model.safetensors"


class VideoVAE:
    """Pixels in -1..1, B 3 T H W, to normalised latents, B 16 t h w; t = 1 + (T - 1) / 4, h = H / 8."""

    # A block on an H200 at 704×384: 72 ms and 2.4 GiB of workspace; with all 3 frames at once, 69 ms and 4.8.
    latent_frames_at_once = 1

    def __init__(self, model: AutoencoderKLWan) -> None:
        self.model = model.eval().requires_grad_(False)
        _lay_out_channels_last(model)
        self.device, self.dtype = model.device, model.dtype  # stored, as the encoder may be moved away later
        shape = (1, -1, 1, 1, 1)
        self.mean = (
            torch.tensor(model.config["latents_mean"], dtype=torch.float32).view(shape).to(self.device)
        )
        self.std = torch.tensor(model.config["latents_std"], dtype=torch.float32).view(shape).to(self.device)

    @classmethod
    def load(
        cls, path: Path, device: torch.device | str, dtype: torch.dtype, *, decodes: bool = True
    ) -> VideoVAE:
        """Read the published .pth file, ComfyUI's .safetensors, or a diffusers folder.

        decodes: False leaves the decoder out of memory; then only encode() and encode_still() work.
        Raises: WeightsMissing.
        """
        model, tensors = _from_folder(path) if path.is_dir() else _from_pth(path)
        expected: Shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        require_match(path.name, expected, {name: tuple(value.shape) for name, value in tensors.items()})
        if not decodes:
            drop_decoder(model)
            tensors = {name: tensors[name] for name in model.state_dict()}
        model.load_state_dict({name: t.to(device, dtype) for name, t in tensors.items()}, assign=True)
        return cls(model)

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        """The mean latents of a video, normalised, float32. video: B 3 T H W in -1..1, T = 1 + 4n."""
        posterior = self.model.encode(video.to(self.device, self.dtype)).latent_dist
        return self._normalise(posterior.mode())

    @torch.no_grad()
    def encode_still(self, picture: Tensor, num_frames: int) -> Tensor:
        """The same for one picture, B 3 1 H W in -1..1, repeated for num_frames = 1 + 4n frames."""
        moments = self.still_encoder(picture.to(self.device, self.dtype), num_frames)
        return self._normalise(moments.chunk(2, dim=1)[0])  # the mean; the variance is the other half

    @cached_property
    def still_encoder(self) -> StillEncoder:
        """The encoder for still pictures."""
        return StillEncoder(self.model)

    @cached_property
    def decoder(self) -> CausalDecoder:
        """The decoder with its causal past made explicit."""
        return CausalDecoder(self.model)

    @cached_property
    def compiled_decoder(self) -> Callable[[Tensor, Pasts], tuple[Tensor, Pasts]]:
        """The same, compiled to one graph per latent shape; cached, so that the next video builds none."""
        return compiled(self.decoder)

    def decoder_input(self, latents: Tensor) -> Tensor:
        """Undo the normalisation, on the decoder's device and in its dtype."""
        latents = latents.to(self.device, torch.float32)
        return (latents * self.std + self.mean).to(self.dtype)

    def _normalise(self, mean: Tensor) -> Tensor:
        return (mean.float() - self.mean) / self.std


def drop_decoder(model: AutoencoderKLWan) -> None:
    """Take the decoder's layers out of diffusers' model."""
    for name in ("decoder", "post_quant_conv"):
        setattr(model, name, torch.nn.Identity())


def _lay_out_channels_last(model: torch.nn.Module) -> None:
    """Store convolution weights channels-last (C contiguous in memory), as GPU kernels prefer."""
    for module in model.modules():
        if isinstance(module, torch.nn.Conv3d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last_3d)
        elif isinstance(module, torch.nn.Conv2d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)


def _from_pth(path: Path) -> tuple[AutoencoderKLWan, dict[str, Tensor]]:
    """Read a single file; ComfyUI's has the published names. Source: ComfyUI comfy/ldm/wan/vae.py."""
    tensors = read_pth(path) if path.suffix == ".pth" else dict(StoredTensors(path))
    try:
        widths = {
            "base_dim": tensors["encoder.conv1.weight"].shape[0],
            "decoder_base_dim": tensors["decoder.head.0.gamma"].shape[0],
            "z_dim": tensors["conv2.weight"].shape[0],
        }
    except KeyError as error:
        raise WeightsMissing(
            f"{path.name} is not the Wan 2.1 VAE: it lacks {error.args[0]}.", WRONG_CHECKPOINT
        ) from error
    with torch.device("meta"):
        model = AutoencoderKLWan(**widths)
    return model, convert_wan_vae_to_diffusers(tensors)


def _from_folder(folder: Path) -> tuple[AutoencoderKLWan, dict[str, Tensor]]:
    model = build_on_meta(folder, AutoencoderKLWan.from_config)
    with open_safetensors(folder / DIFFUSERS_FILE) as tensors:
        return model, {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
