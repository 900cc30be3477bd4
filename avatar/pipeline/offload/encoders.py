"""Offloaded side models: on the GPU only while they run, otherwise in pinned host memory."""

from __future__ import annotations

import torch
from accelerate.hooks import add_hook_to_module
from torch import Tensor

from avatar.model.vae.vae import VideoVAE
from avatar.model.wav2vec2 import SpeechEncoder
from avatar.pipeline.offload.host_modules import HostModules, VisitHook


def offload_speech_encoder(encoder: SpeechEncoder, device: torch.device) -> None:
    """Offload a speech encoder: each window copies it to the device, and its results back to the host."""
    add_hook_to_module(encoder.model, VisitHook(HostModules([encoder.model], device)))


class OffloadedVAE(VideoVAE):
    """A VAE whose encoder is copied to the GPU for each portrait; its decoder stays there."""

    def __init__(self, vae: VideoVAE) -> None:
        """vae: on the device where it runs; its encoder is moved to the host."""
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
