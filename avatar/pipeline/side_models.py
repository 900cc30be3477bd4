"""The models around the transformer: video VAE, speech and prompt encoder; kept when it alone changes."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from avatar.geometry import Size
from avatar.model.vae.tiny_decoder import TinyDecoder
from avatar.model.vae.vae import VideoVAE
from avatar.model.wav2vec2 import SpeechEncoder
from avatar.model.weights.checkpoint import CheckpointFiles
from avatar.model.weights.loading import Check
from avatar.pipeline.conditioning import AnyTrack, ConditionEncoder, EncodeText, LocalTextEncoder
from avatar.pipeline.decode import LatentDecoder
from avatar.pipeline.denoiser import Conditions
from avatar.pipeline.device import DTYPES
from avatar.pipeline.offload.encoders import OffloadedVAE, offload_speech_encoder
from avatar.planning.placement import Placement
from avatar.settings import Memory


class Conditioner(Protocol):
    """Encodes a run's conditions: ConditionEncoder, or its replacement without a prompt encoder."""

    def encode(
        self,
        portrait: Path,
        prompt: str,
        size: Size,
        speech: Sequence[AnyTrack],
        masks: Tensor | None = None,
    ) -> Conditions:
        """See ConditionEncoder.encode."""
        ...


def _state(part: Path) -> tuple[tuple[str, int, int], ...]:
    """Path, size and time of a part's file, or of all files in its folder."""
    files = sorted(path for path in part.rglob("*") if path.is_file()) if part.is_dir() else [part]
    stats = [(str(file), file.stat()) for file in files]
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


@dataclass(frozen=True)
class SideModels:
    """Loaded side models. key: see key_of. decoder: the VAE itself unless it is the tiny decoder."""

    key: Hashable
    vae: VideoVAE
    decoder: LatentDecoder
    conditions: Conditioner

    @staticmethod
    def key_of(
        memory: Memory, files: CheckpointFiles, placement: Placement, device: torch.device
    ) -> Hashable:
        """All that side models depend on; those with an equal key can be kept."""
        choices = DTYPES[memory.weight_dtype], memory.decoder, memory.text_encoder
        places = placement.side_models_on_host, placement.speech_on_cpu
        parts = files.vae, files.speech_encoder, files.text_encoder, files.tokenizer, files.tiny_decoder
        return tuple(_state(part) for part in parts if part is not None), device, choices, places

    @classmethod
    def load(
        cls,
        memory: Memory,
        files: CheckpointFiles,
        check: Check,
        placement: Placement,
        encode_text: EncodeText | None,
        device: torch.device,
    ) -> SideModels:
        """See Components.load."""
        dtype = DTYPES[memory.weight_dtype]
        check()
        is_tiny = memory.decoder == "tiny"
        small = files.require_tiny_decoder() if is_tiny else None
        vae = VideoVAE.load(files.vae, device, dtype, decodes=not is_tiny)
        check()
        away = placement.side_models_on_host
        speech = SpeechEncoder.load(files.speech_encoder, "cpu" if away else device, torch.float32)
        if away:
            vae = OffloadedVAE(vae)
            if not placement.speech_on_cpu:
                offload_speech_encoder(speech, device)
        decoder = vae if small is None else TinyDecoder.load(small, vae)
        if encode_text is None:
            places = {"gpu": device, "cpu": torch.device("cpu")}
            encode_text = LocalTextEncoder(files.text_encoder, places[memory.text_encoder], dtype)
        conditions = ConditionEncoder(files, vae, speech, encode_text)
        return cls(cls.key_of(memory, files, placement, device), vae, decoder, conditions)
