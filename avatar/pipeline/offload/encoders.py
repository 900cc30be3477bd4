"""Side models that are on the GPU only while they work, and wait in pinned host memory otherwise."""

from __future__ import annotations

import torch
from accelerate.hooks import add_hook_to_module
from torch import Tensor

from avatar.model.vae.vae import VideoVAE
from avatar.model.wav2vec2 import SpeechEncoder
from avatar.pipeline.offload.host_modules import HostModules, VisitHook


def offload_speech_encoder(encoder: SpeechEncoder, device: torch.device) -> None:
    """Move a speech encoder to the host: it visits the device for each window, and its results come back."""
    add_hook_to_module(encoder.model, VisitHook(HostModules([encoder.model], device)))


class OffloadedVAE(VideoVAE):
    """A VAE whose encoder visits the GPU for each portrait; its decoder stays."""

    def __init__(self, vae: VideoVAE) -> None:
        """vae: on the device where it works; its encoder is moved to the host."""
        super().__init__(vae.model)
        self.host = HostModules([self.model.encoder, self.model.quant_conv], self.device)

    def encode(self, video: Tensor) -> Tensor:
        """See VideoVAE.encode."""
        with self.host.on_device():
            return super().encode(video)

    def encode_still(self, picture: Tensor, num_frames: int) -> Tensor:
        """See VideoVAE.encode_still."""
        with self.host.on_device():
            return super().encode_still(picture, num_frames)
