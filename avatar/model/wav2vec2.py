"""wav2vec2: speech of any length to one vector per layer and video frame, in overlapping windows."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import Wav2Vec2Config, Wav2Vec2Model

from avatar.errors import WeightsMissing
from avatar.geometry import AUDIO_FEATURE_HZ, FPS, LEAD_IN_FRAMES, SPEECH_HZ, audio_indices
from avatar.model.weights.tensor_files import (
    WRONG_CHECKPOINT,
    Shapes,
    build_on_meta,
    open_safetensors,
    read_json,
    read_pth,
    require_match,
)
from avatar.model.weights.weight_formats import StoredTensors

logger = logging.getLogger(__name__)

HIDDEN_HZ = 50  # wav2vec2's nominal frame rate, used to count the 30 Hz features
WINDOW_S = 60.0  # encoded at once
MARGIN_S = 10.0  # of the window on either side, used only as context
NORMALISE_EPS = 1e-7  # Source: transformers Wav2Vec2FeatureExtractor
CHUNK_SAMPLES = 60 * SPEECH_HZ

TRAINING_ONLY = "masked_spec_embed"  # the mask embedding of training; some files leave it out
STRIDES = (5, 2, 2, 2, 2, 2, 2)  # of wav2vec2's convolutions; cannot be inferred from tensor shapes
HEAD_WIDTH = 64
SAFE_FILE, PICKLED_FILE = "model.safetensors", "pytorch_model.bin"
_LAYERS = "encoder.layers."
_POSITION = "encoder.pos_conv_embed.conv"
WEIGHT_NORM_NAMES = {  # weight norm's names before PyTorch 2.0, and since
    f"{_POSITION}.weight_g": f"{_POSITION}.parametrizations.weight.original0",
    f"{_POSITION}.weight_v": f"{_POSITION}.parametrizations.weight.original1",
}

Listen = Callable[[int, int], np.ndarray]
"""Samples start:stop at 16 kHz, float32 in -1..1; silence outside the speech."""


class SpeechEncoder:
    """16 kHz samples to the hidden states of every layer."""

    def __init__(self, model: Wav2Vec2Model, normalise: bool = True) -> None:
        self.model = model.eval().requires_grad_(False)
        self.normalise = normalise
        self._kernels = tuple(model.config.conv_kernel)
        self._strides = tuple(model.config.conv_stride)
        self.stride = int(np.prod(self._strides))  # samples between frames: 320

    @classmethod
    def load(cls, folder: Path, device: torch.device | str, dtype: torch.dtype) -> SpeechEncoder:
        """Read a transformers wav2vec2 folder or ComfyUI's file; a speech recognition head is ignored.

        Raises: WeightsMissing.
        """
        if folder.is_file():
            return cls._filled(*_from_file(folder), folder.name, device, dtype)
        model = build_on_meta(folder, lambda config: Wav2Vec2Model(Wav2Vec2Config.from_dict(config)))
        listening = read_json(folder / "preprocessor_config.json")
        if listening.get("sampling_rate", SPEECH_HZ) != SPEECH_HZ:
            raise WeightsMissing(
                f"{folder.name} listens at {listening['sampling_rate']} Hz, not {SPEECH_HZ}.",
                WRONG_CHECKPOINT,
            )
        loaded = cls._filled(model, _read_tensors(folder), folder.name, device, dtype)
        loaded.normalise = bool(listening.get("do_normalize", True))
        return loaded

    @classmethod
    def _filled(
        cls,
        model: Wav2Vec2Model,
        tensors: dict[str, Tensor],
        name: str,
        device: torch.device | str,
        dtype: torch.dtype,
    ) -> SpeechEncoder:
        """Load the tensors into the model; names and shapes must match. Raises: WeightsMissing."""
        expected: Shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        if TRAINING_ONLY in expected:
            tensors.setdefault(TRAINING_ONLY, torch.zeros(expected[TRAINING_ONLY]))
        require_match(name, expected, {name: tuple(value.shape) for name, value in tensors.items()})
        model.load_state_dict({name: t.to(device, dtype) for name, t in tensors.items()}, assign=True)
        return cls(model)

    @property
    def num_layers(self) -> int:
        return self.model.config.num_hidden_layers + 1

    @property
    def width(self) -> int:
        return self.model.config.hidden_size

    def num_hidden(self, num_samples: int) -> int:
        """Number of 50 Hz frames for num_samples; 0 when there are too few for one."""
        count = num_samples
        for kernel, stride in zip(self._kernels, self._strides, strict=True):
            count = (count - kernel) // stride + 1
        return max(count, 0)

    def num_samples(self, num_hidden: int) -> int:
        """Number of samples that num_hidden frames span."""
        count = num_hidden
        for kernel, stride in zip(reversed(self._kernels), reversed(self._strides), strict=True):
            count = (count - 1) * stride + kernel
        return count

    @torch.no_grad()
    def encode(self, samples: Tensor) -> Tensor:
        """All layers' hidden states, L T D, of normalised samples in one pass; the last is layer-normed.

        They are returned on the device where the model rests between passes; a pass may run on another one.
        """
        values = samples[None].to(self.model.device, self.model.dtype)
        output = self.model(values, output_hidden_states=True)
        # transformers 5 records the last layer's output before the encoder's final norm, 4 after it.
        states = torch.cat((*output.hidden_states[:-1], output.last_hidden_state))
        return states.to(self.model.device)


class SpeechFeatures:
    """One speech's features for any run of video frames; memory holds one window, whatever the length.

    Identical to a single pass if the speech fits one window. Frame numbers are the model's: the first
    LEAD_IN_FRAMES precede the speech and are silent. Request frames in ascending order.
    listen, num_samples: the speech at 16 kHz.
    """

    def __init__(
        self,
        encoder: SpeechEncoder,
        listen: Listen,
        num_samples: int,
        window_s: float = WINDOW_S,
        margin_s: float = MARGIN_S,
    ) -> None:
        self._encoder = encoder
        self._listen = listen
        self._lead = LEAD_IN_FRAMES * SPEECH_HZ // FPS
        self._total = max(num_samples + self._lead, encoder.num_samples(1))
        self.num_hidden = encoder.num_hidden(self._total)
        self.num_features = num_features(self.num_hidden)
        self._window = max(int(window_s * HIDDEN_HZ), 1)
        self._margin = int(margin_s * HIDDEN_HZ)
        self._core = self._window - 2 * self._margin
        if self._core < 1:
            raise ValueError(f"a window of {window_s} s has no room between margins of {margin_s} s")
        self._mean, self._std = self._level() if encoder.normalise else (0.0, 1.0)
        self._held: tuple[int, int, Tensor] | None = None  # first and end frame, L T D

    def frames(self, start: int, num_frames: int) -> Tensor:
        """Features of video frames start, start + 1, …: L D num_frames, zeros past the end of the speech."""
        wanted = audio_indices(start + num_frames, start=start)
        encoder = self._encoder
        out = torch.zeros(
            num_frames,
            encoder.num_layers,
            encoder.width,
            device=encoder.model.device,
            dtype=encoder.model.dtype,
        )
        for place, feature in enumerate(wanted.tolist()):
            if feature < self.num_features:
                out[place] = self._feature(feature)
        return out.permute(1, 2, 0)

    def _feature(self, index: int) -> Tensor:
        """A 30 Hz feature, L D, interpolated between two hidden states; both series' ends are aligned."""
        low, high, weight = self._place(index)
        first = self._hidden(low)
        return first if high == low else torch.lerp(first, self._hidden(high), weight)

    def _place(self, index: int) -> tuple[int, int, float]:
        return interpolation(index, self.num_features, self.num_hidden)

    def _hidden(self, index: int) -> Tensor:
        """Hidden states at 50 Hz frame index, L D."""
        if self._held is None or not self._held[0] <= index < self._held[1]:
            self._held = None  # free it before encoding the next one
            self._held = self._encode_window(index)
        return self._held[2][:, index - self._held[0]]

    def _encode_window(self, index: int) -> tuple[int, int, Tensor]:
        """Encode the speech around a frame: all of it if it fits one window, else a core between margins.

        One frame more than the core is kept, so that no interpolation spans two windows.
        """
        if self.num_hidden <= self._window:
            first, end, begin, stop = 0, self.num_hidden, 0, self.num_hidden
        else:
            first = index // self._core * self._core
            end = min(first + self._core + 1, self.num_hidden)
            begin, stop = (
                max(first - self._margin, 0),
                min(first + self._core + self._margin, self.num_hidden),
            )
        sample = begin * self._encoder.stride
        last = self._total if stop == self.num_hidden else sample + self._encoder.num_samples(stop - begin)
        states = self._encoder.encode(torch.from_numpy(self._normalised(sample, last)))
        logger.debug("speech window %d..%d of %d frames", begin, stop, self.num_hidden)
        return first, end, states[:, first - begin : end - begin].clone()

    def _normalised(self, start: int, stop: int) -> np.ndarray:
        samples = self._listen(start - self._lead, stop - self._lead).astype(np.float64)
        return ((samples - self._mean) / self._std).astype(np.float32)

    def _level(self) -> tuple[float, float]:
        """Mean and standard deviation of the whole speech with its lead-in, read in chunks."""
        total = square = 0.0
        for start in range(0, self._total, CHUNK_SAMPLES):
            stop = min(start + CHUNK_SAMPLES, self._total)
            piece = self._listen(start - self._lead, stop - self._lead).astype(np.float64)
            total += piece.sum()
            square += np.square(piece).sum()
        mean = total / self._total
        return mean, float(np.sqrt(max(square / self._total - mean * mean, 0.0) + NORMALISE_EPS))


def num_features(num_hidden: int) -> int:
    """Number of 30 Hz features for num_hidden frames at 50 Hz; at least one."""
    return max(int(num_hidden / HIDDEN_HZ * AUDIO_FEATURE_HZ), 1)


def interpolation(index: int, num_features: int, num_hidden: int) -> tuple[int, int, float]:
    """The two hidden frames around a feature, and the interpolation weight of the second, in 0..1."""
    place = index * (num_hidden - 1) / (num_features - 1) if num_features > 1 else 0.0
    low = min(int(place), num_hidden - 1)
    return low, min(low + 1, num_hidden - 1), place - low


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    """Read the tensors under Wav2Vec2Model's names, without the recognition model's prefix and head."""
    if (folder / PICKLED_FILE).is_file() and not (folder / SAFE_FILE).is_file():
        published = read_pth(folder / PICKLED_FILE)
    else:
        with open_safetensors(folder / SAFE_FILE) as tensors:
            published = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
    return _named(published)


def _from_file(path: Path) -> tuple[Wav2Vec2Model, dict[str, Tensor]]:
    """Read ComfyUI's wav2vec2, which has no config: sizes are inferred from the tensors.

    Source: ComfyUI comfy/audio_encoders/{audio_encoders,wav2vec2}.py. Raises: WeightsMissing.
    """
    tensors = _named(dict(StoredTensors(path)))
    stem = "feature_extractor.conv_layers"
    try:
        convs = [tensors[f"{stem}.{index}.conv.weight"].shape for index in range(len(STRIDES))]
        width, group, kernel = tensors[f"{_POSITION}.parametrizations.weight.original1"].shape
        config = Wav2Vec2Config(
            hidden_size=width,
            num_hidden_layers=len({name.split(".")[2] for name in tensors if name.startswith(_LAYERS)}),
            num_attention_heads=width // HEAD_WIDTH,
            intermediate_size=len(tensors["encoder.layers.0.feed_forward.intermediate_dense.weight"]),
            conv_dim=[shape[0] for shape in convs],
            conv_kernel=[shape[2] for shape in convs],
            conv_stride=STRIDES,
            conv_bias=f"{stem}.0.conv.bias" in tensors,
            feat_extract_norm="layer" if f"{stem}.1.layer_norm.weight" in tensors else "group",
            do_stable_layer_norm=True,
            num_conv_pos_embeddings=kernel,
            num_conv_pos_embedding_groups=width // group,
        )
        with torch.device("meta"):
            return Wav2Vec2Model(config), tensors
    except (KeyError, ValueError) as error:
        raise WeightsMissing(f"{path.name} is not wav2vec2-large ({error}).", WRONG_CHECKPOINT) from error


def _named(published: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename published tensors to Wav2Vec2Model's names; drop the recognition head."""
    named = {
        name.removeprefix("wav2vec2."): tensor for name, tensor in published.items() if name[:8] != "lm_head."
    }
    for old, new in WEIGHT_NORM_NAMES.items():
        if old in named:
            named[new] = named.pop(old)
    return named
