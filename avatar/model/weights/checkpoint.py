"""A complete checkpoint on disk: which file or folder holds which part of the model."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

from avatar.checkpoints.locations import (
    DEFAULT_FOLDER,
    DOWNLOAD_COMMAND,
    ENVIRONMENT,
    LORA_FILE,
    SHARD_STEM,
    TINY_DECODER,
    TINY_DECODER_REMEDY,
    find_checkpoint,
)
from avatar.checkpoints.lora_files import UserLora
from avatar.errors import WeightsMissing
from avatar.model.weights.tensor_files import FETCH_AGAIN, shard_files

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckpointFiles:
    """Paths of each part.

    config: config.json, or a file from whose tensors the sizes are inferred. shards: the transformer's.
    text_encoder, vae, speech_encoder: a folder, or a file. lora: the published one. loras: the user's, merged
    after it. tiny_decoder: its file, where it is here.
    """

    config: Path
    shards: tuple[Path, ...]
    text_encoder: Path
    tokenizer: Path
    vae: Path
    speech_encoder: Path
    lora: Path
    loras: tuple[UserLora, ...] = ()
    tiny_decoder: Path | None = None

    def require_tiny_decoder(self) -> Path:
        """The tiny decoder's file. Raises: WeightsMissing."""
        if self.tiny_decoder is None:
            text = f"The tiny decoder's file, {TINY_DECODER}, is not here."
            raise WeightsMissing(text, TINY_DECODER_REMEDY)
        return self.tiny_decoder


def open_checkpoint(ckpt_dir: Path | None = None) -> CheckpointFiles:
    """Find the weights in ckpt_dir, $AVATAR_WEIGHTS, ./ckpt, then the hub's cache, in either layout.

    Raises: WeightsMissing listing the places searched and the command to run, or every absent file.
    """
    found = find_checkpoint(ckpt_dir)
    if found.base is None:
        raise WeightsMissing(
            f"No model weights were found. Looked in --ckpt_dir{'' if ckpt_dir else ' (not given)'}, "
            f"${ENVIRONMENT}{'' if os.environ.get(ENVIRONMENT) else ' (not set)'}, ./{DEFAULT_FOLDER} "
            "and the Hugging Face cache.",
            f"Run `{DOWNLOAD_COMMAND}` (47 GB), or name the folder with --ckpt_dir.",
        )
    if found.missing or found.lora is None:
        raise WeightsMissing(f"Missing from the checkpoint: {', '.join(found.missing)}.", FETCH_AGAIN)
    parts = found.parts
    logger.info("weights: %s, LoRA in %s", ", ".join(map(str, parts.values())), found.lora)
    whole = parts["transformer"]
    return CheckpointFiles(
        config=whole / "config.json" if whole.is_dir() else whole,
        shards=tuple(shard_files(whole, SHARD_STEM)) if whole.is_dir() else (whole,),
        text_encoder=parts["text_encoder"],
        tokenizer=parts["tokenizer"],
        vae=parts["vae"],
        speech_encoder=parts["speech_encoder"],
        lora=found.lora / LORA_FILE,
        tiny_decoder=found.tiny_decoder,
    )
