"""Encode a generation's conditions: prompt and portrait once, speech as a source of features."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from avatar.geometry import BLOCK_FRAMES, LEAD_IN_FRAMES, MOTION_FRAMES, Size, covering_size
from avatar.media.speech_reader import SpeechReader
from avatar.model.text_encoder import PromptTokenizer, TextWeights
from avatar.model.vae.vae import VideoVAE
from avatar.model.voice_wav2vec2 import VoiceFeatures
from avatar.model.wav2vec2 import Listen, SpeechEncoder, SpeechFeatures
from avatar.model.weights.checkpoint import CheckpointFiles
from avatar.pipeline.denoiser import Conditions

EncodeText = Callable[[Tensor], Tensor]
"""A prompt's token ids, 1 N, to its hidden states, N D; nothing of the encoder stays in memory."""

REFERENCE = slice(0, 1)  # of the portrait's motion latents: equals the portrait encoded as a single frame
NUM_REMEMBERED = 8  # cached results, for prompts and for portraits each


@dataclass(frozen=True)
class SpeechTrack:
    """One speaker's complete speech. listen: returns samples start:stop at 16 kHz."""

    listen: Listen
    num_samples: int

    def features(self, encoder: SpeechEncoder) -> Features:
        """Features of this speech, computed with the given encoder."""
        return SpeechFeatures(encoder, self.listen, self.num_samples)


class VoiceTrack:
    """A text's speech, which may still be growing; as block after block of it becomes available."""

    def __init__(self, speech: SpeechReader) -> None:
        self._speech = speech
        self._features: VoiceFeatures | None = None

    def features(self, encoder: SpeechEncoder) -> VoiceFeatures:
        """See AnyTrack."""
        self._features = VoiceFeatures(encoder, self._speech.listen, self._speech.until_16k)
        return self._features

    def is_ready(self, block: int) -> bool:
        """See rollout.Arrival."""
        assert self._features is not None, "the conditions are encoded before the first block"
        return self._speech.has_16k(self._features.needs(block * BLOCK_FRAMES, BLOCK_FRAMES))

    def exists(self, block: int) -> bool:
        """See rollout.Arrival."""
        first = max(0, block * BLOCK_FRAMES - LEAD_IN_FRAMES)
        return self._speech.until_frame(first + 1) > first


class Features(Protocol):
    """One speaker's features."""

    def frames(self, start: int, num_frames: int) -> Tensor:
        """See SpeechFeatures.frames."""
        ...


class AnyTrack(Protocol):
    """One speaker's speech, complete or live."""

    def features(self, encoder: SpeechEncoder) -> Features:
        """Features of this speech, computed with the given encoder."""
        ...


class AudioFeatures:
    """Every speaker's features for any run of frames: parts of a tensor S 25 C T never built as a whole."""

    def __init__(self, speakers: Sequence[Features]) -> None:
        self._speakers = list(speakers)

    def __len__(self) -> int:
        return len(self._speakers)

    def frames(self, start: int, num_frames: int) -> Tensor:
        """S 25 C num_frames; zeros past the end of each speech."""
        return torch.stack([speaker.frames(start, num_frames) for speaker in self._speakers])


class ConditionEncoder:
    """Encodes requests; caches the last prompts and portraits, which people reuse.

    encode_text is called only for a new prompt: the prompt encoder is by far the largest side model.
    """

    def __init__(
        self,
        files: CheckpointFiles,
        vae: VideoVAE,
        speech: SpeechEncoder,
        encode_text: EncodeText,
    ) -> None:
        self._files = files
        self.speech = speech
        self._encode_text = encode_text
        self._texts: _Memory = _Memory()
        self._portraits = PortraitEncoder(vae)

    def encode(
        self,
        portrait: Path,
        prompt: str,
        size: Size,
        speech: Sequence[AnyTrack],
        masks: Tensor | None = None,
    ) -> Conditions:
        """Encode the conditions of one run, checking the prompt first. size: the video's, not an area.

        masks: see Conditions.
        Raises: BadInput for a prompt that is too long, WeightsMissing.
        """
        ids = PromptTokenizer(self._files.tokenizer)(prompt)
        image = prepare_portrait(portrait, size)
        text = self._texts.get(tuple(ids[0].tolist()), lambda: self._encode_text(ids))
        motion = self._portraits.encode(image)
        speakers = [track.features(self.speech) for track in speech]
        return Conditions(
            text=text,
            reference=motion[:, REFERENCE],
            motion=motion,
            audio=AudioFeatures(speakers),
            masks=masks,
        )


@dataclass(frozen=True)
class LocalTextEncoder:
    """An EncodeText on one device, with one of the encoder's blocks in memory. Raises: WeightsMissing."""

    path: Path
    device: torch.device
    dtype: torch.dtype

    def __call__(self, ids: Tensor) -> Tensor:
        text = TextWeights.open(self.path).streamed(self.device, self.dtype).encode(ids).clone()
        if text.is_cuda:
            torch.cuda.empty_cache()  # returns a block's memory to the driver before the rings are allocated
        return text


def prepare_portrait(path: Path, size: Size) -> Tensor:
    """The portrait scaled to cover the size and centre-cropped, 3 H W float32 in -1..1.

    Source: matches torchvision's Resize and CenterCrop to the pixel.
    """
    with Image.open(path) as source:
        image = source.convert("RGB")
    scaled = covering_size(image.width, image.height, size)
    left, top = round((scaled.width - size.width) / 2), round((scaled.height - size.height) / 2)
    image = image.resize((scaled.width, scaled.height), Image.Resampling.BILINEAR)
    image = image.crop((left, top, left + size.width, top + size.height))
    pixels = torch.from_numpy(np.array(image, dtype=np.float32))
    return pixels.permute(2, 0, 1).div(127.5).sub(1.0).contiguous()


def encode_portrait(vae: VideoVAE, image: Tensor) -> Tensor:
    """The portrait as motion latents, 16 19 h w float32: a still video of 73 frames.

    The encoder is causal, so the first latent frame equals the portrait encoded as one frame: the reference.
    """
    return vae.encode_still(image[None, :, None], MOTION_FRAMES)[0]


class PortraitEncoder:
    """Encodes portraits as motion latents; caches the last ones by their pixels."""

    def __init__(self, vae: VideoVAE) -> None:
        self._vae = vae
        self._known = _Memory()

    def encode(self, image: Tensor) -> Tensor:
        """See encode_portrait."""
        pixels = (tuple(image.shape), hashlib.sha256(image.numpy().tobytes()).digest())
        return self._known.get(pixels, lambda: encode_portrait(self._vae, image))


@dataclass
class _Memory:
    """A least-recently-used cache of the last few results."""

    entries: OrderedDict[Hashable, Tensor] = field(default_factory=OrderedDict)

    def get(self, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        if key not in self.entries:
            self.entries[key] = make()
        self.entries.move_to_end(key)
        while len(self.entries) > NUM_REMEMBERED:
            self.entries.popitem(last=False)
        return self.entries[key]
