"""Side models that are on the GPU only while they work, and wait in pinned host memory otherwise."""

from __future__ import annotations

import torch
from torch import Tensor

from avatar.model.speech_encoder import SpeechEncoder
from avatar.model.vae.vae import VideoVAE
from avatar.pipeline.offload.host_modules import HostModules


class OffloadedSpeechEncoder(SpeechEncoder):
    """A speech encoder that visits the GPU for each window; what it heard stays on the host."""

    def __init__(self, encoder: SpeechEncoder, device: torch.device) -> None:
        """encoder: its model is moved to the host."""
        super().__init__(encoder.model, encoder.normalise)
        self.host = HostModules([self.model], device)

    def encode(self, samples: Tensor) -> Tensor:
        """See SpeechEncoder.encode; the result is on the host."""
        with self.host.on_device():
            return super().encode(samples).cpu()


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
