"""Components with random weights instead of a checkpoint; speed and memory are the real model's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from torch import Tensor, nn
from transformers import Wav2Vec2Config, Wav2Vec2Model

from avatar.checkpoints.transformer_config import ModelConfig
from avatar.geometry import Size
from avatar.model.linear_8bit import Quantiser
from avatar.model.transformer import StreamingTransformer
from avatar.model.vae.tiny_decoder import WIDTH, TinyCausalDecoder, TinyDecoder
from avatar.model.vae.vae import VideoVAE, drop_decoder
from avatar.model.wav2vec2 import SpeechEncoder
from avatar.model.weights import tiny
from avatar.model.weights.loading import Check
from avatar.model.weights.random_weights import random_transformer
from avatar.pipeline.components import Components
from avatar.pipeline.conditioning import (
    REFERENCE,
    AnyTrack,
    AudioFeatures,
    PortraitEncoder,
    prepare_portrait,
)
from avatar.pipeline.decode import LatentDecoder
from avatar.pipeline.denoiser import Conditions
from avatar.pipeline.device import DTYPES, best_device, quantised_dtype
from avatar.pipeline.offload.encoders import OffloadedVAE, offload_speech_encoder
from avatar.pipeline.offload.host_layers import settle_on_host
from avatar.planning.placement import ALL_ON_GPU, Placement
from avatar.planning.weight_format import settled_here
from avatar.preset import Preset

VAE_WIDTH = 96  # Wan 2.1's
# Scales a random decoder's output. Unscaled it is noise: 1.4 bits per pixel in H.264, and 7.2 ms per frame of
# 704×384 on a CPU core. Scaled, it takes 0.2 bits and 4.2 ms; a talking head takes 0.1 bits and 3.3 ms.
CONTRAST = 0.05
SPEECH = Wav2Vec2Config(  # wav2vec2-large
    hidden_size=1024,
    num_hidden_layers=24,
    num_attention_heads=16,
    intermediate_size=4096,
    do_stable_layer_norm=True,
    feat_extract_norm="layer",
    conv_bias=True,
)


@dataclass
class RandomConditions:
    """A ConditionEncoder without prompt encoder or tokenizer: every prompt gets the same random embedding.

    num_tokens: length of every prompt.
    """

    portraits: PortraitEncoder
    speech: SpeechEncoder
    text_dim: int
    num_tokens: int

    def encode(
        self,
        portrait: Path,
        prompt: str,
        size: Size,
        speech: Sequence[AnyTrack],
        masks: Tensor | None = None,
    ) -> Conditions:
        """See ConditionEncoder.encode."""
        motion = self.portraits.encode(prepare_portrait(portrait, size))
        text = torch.randn(self.num_tokens, self.text_dim, generator=torch.Generator().manual_seed(0))
        tracks = [track.features(self.speech) for track in speech]
        return Conditions(text, motion[:, REFERENCE], motion, AudioFeatures(tracks), masks=masks)


def random_parts(
    preset: Preset, placement: Placement = ALL_ON_GPU, prompt_tokens: int | None = None
) -> Components:
    """The preset's model on the best device, with the given placement; toy-sized for the self-test.

    prompt_tokens: length of every prompt; None for the longest short prompt, as the presets' are short.
    """
    assert not placement.layers_in_blocks  # there is no file
    memory = settled_here(preset).memory
    device, dtype, format = best_device(), DTYPES[memory.weight_dtype], quantised_dtype(memory)
    is_tiny = preset.requires.weights == "tiny"
    config = tiny.CONFIG if is_tiny else ModelConfig()
    torch.manual_seed(0)
    with torch.device(device):
        vae = AutoencoderKLWan(base_dim=tiny.VAE_WIDTH if is_tiny else VAE_WIDTH)
        speech = Wav2Vec2Model(tiny.SPEECH if is_tiny else SPEECH)
    vae.decoder.conv_out.weight.data.mul_(CONTRAST)
    if preset.memory.decoder == "tiny":
        drop_decoder(vae)
    nn.Module.to(vae, device, dtype)  # the library's own to() gives a needless warning
    nn.Module.to(speech, device)  # one of its tensors is created on the CPU whatever the default
    video, encoder = VideoVAE(vae), SpeechEncoder(speech)
    if placement.side_models_on_host:
        video = OffloadedVAE(video)
        if placement.speech_on_cpu:
            nn.Module.to(speech, "cpu")
        else:
            offload_speech_encoder(encoder, device)
    decoder: LatentDecoder = video
    if preset.memory.decoder == "tiny":
        decoder = _random_tiny_decoder(video, tiny.TINY_DECODER_WIDTH if is_tiny else WIDTH)
    settle = settle_on_host(config, placement)

    def make(check: Check) -> StreamingTransformer:
        check()
        if format is None:
            return random_transformer(config, device, dtype, settle=settle)
        quantiser = Quantiser(format)
        model = random_transformer(config, device, dtype, place=quantiser.place, settle=settle)
        quantiser.install(model)
        return model

    if prompt_tokens is None:
        prompt_tokens = config.short_text_tokens - 1
    conditions = RandomConditions(PortraitEncoder(video), encoder, config.text_dim, prompt_tokens)
    return Components(device, dtype, video, conditions, make, decoder, placement)


def _random_tiny_decoder(vae: VideoVAE, width: int) -> TinyDecoder:
    model = TinyCausalDecoder(width)
    model.load_state_dict(tiny.random_tensors(model, torch.Generator().manual_seed(0), torch.float32))
    last: Any = model.decoder[-1]
    last.weight.data.mul_(CONTRAST)
    last.bias.data.fill_(0.5)  # mid-grey, between 0 and 1
    return TinyDecoder(model, vae)
