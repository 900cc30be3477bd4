"""Side models that wait on the host compute what those on the device do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from avatar.model.vae.vae import VideoVAE
from avatar.model.wav2vec2 import SpeechEncoder, SpeechFeatures
from avatar.model.weights.checkpoint import CheckpointFiles, open_checkpoint
from avatar.pipeline.offload.encoders import OffloadedVAE, offload_speech_encoder
from avatar.pipeline.offload.host_modules import tensors_of

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def files(tiny_checkpoint: Path) -> CheckpointFiles:
    return open_checkpoint(tiny_checkpoint)


def test_a_visiting_speech_encoder_hears_the_same(files: CheckpointFiles) -> None:
    sound = np.random.default_rng(0).normal(0, 0.1, 16_000 * 5).astype(np.float32)

    def features(encoder: SpeechEncoder) -> torch.Tensor:
        def listen(start: int, stop: int) -> np.ndarray:
            index = np.arange(start, stop)
            return np.where((index >= 0) & (index < len(sound)), sound[index.clip(0, len(sound) - 1)], 0)

        speech = SpeechFeatures(encoder, listen, len(sound), window_s=2.0, margin_s=0.5)
        return torch.cat([speech.frames(start, 12) for start in range(0, 120, 12)], dim=-1)

    resident, visiting = (SpeechEncoder.load(files.speech_encoder, CPU, torch.float32) for _ in range(2))
    offload_speech_encoder(visiting, CPU)
    assert torch.equal(features(visiting), features(resident))
    assert visiting.normalise == resident.normalise


def test_a_visiting_encoder_of_pictures_sees_the_same(files: CheckpointFiles) -> None:
    resident, waiting = (VideoVAE.load(files.vae, CPU, torch.float32) for _ in range(2))
    visiting = OffloadedVAE(waiting)
    video = torch.randn(1, 3, 9, 64, 64, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    latents = resident.encode(video)
    for _ in range(2):
        assert torch.equal(visiting.encode(video), latents)
    picture = video[:, :, :1]
    for _ in range(2):
        assert torch.equal(visiting.encode_still(picture, 9), resident.encode_still(picture, 9))
    found, _ = visiting.decoder.start(visiting.decoder_input(latents[:, :, :1]))
    expected, _ = resident.decoder.start(resident.decoder_input(latents[:, :, :1]))
    assert torch.equal(found, expected)


def test_only_the_encoders_tensors_lie_in_the_buffer(files: CheckpointFiles) -> None:
    visiting = OffloadedVAE(VideoVAE.load(files.vae, CPU, torch.bfloat16))
    storage = visiting.host.buffer.untyped_storage().data_ptr()
    for name, tensor in visiting.model.state_dict().items():
        lies_there = tensor.untyped_storage().data_ptr() == storage
        assert lies_there == name.startswith(("encoder.", "quant_conv.")), name
    with visiting.host.on_device():
        pass
    tensors = tensors_of([visiting.model.encoder, visiting.model.quant_conv]).values()
    assert {tensor.untyped_storage().data_ptr() for tensor in tensors} == {storage}
