"""How fast a machine is and how much memory it takes: the engine's own parts, timed apart and end to end.

Without a checkpoint the weights are random and made on the device, at full size: speed and memory are those
of the real model, the picture is noise.
"""

from __future__ import annotations

import logging
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from PIL import Image
from torch import nn
from transformers import Wav2Vec2Config, Wav2Vec2Model

from avatar.diffusion.conditions import (
    REFERENCE,
    AudioFeatures,
    SpeechTrack,
    encode_portrait,
    prepare_portrait,
)
from avatar.diffusion.decode import StreamingDecoder
from avatar.diffusion.denoise import Conditions, LocalDenoiser
from avatar.diffusion.parts import DTYPES, Parts, best_device
from avatar.diffusion.rollout import rollout
from avatar.diffusion.schedule import Schedule
from avatar.diffusion.source import DiffusionSource
from avatar.errors import AvatarError
from avatar.events import Finished
from avatar.geometry import BLOCK_FRAMES, FPS, SPEECH_HZ, Geometry, Size, output_size
from avatar.media.intake import open_request
from avatar.media.report import read_report
from avatar.media.stream import stream_frames
from avatar.memory.nvml import open_driver
from avatar.models.config import ModelConfig
from avatar.models.random_weights import random_transformer
from avatar.models.speech_encoder import SpeechEncoder, SpeechFeatures
from avatar.models.vae import VideoVAE, lay_out_channels_last
from avatar.preset import Preset

log = logging.getLogger(__name__)

PROMPT_TOKENS = 128  # of the random prompt
NVML_SAMPLE_S = 0.05


@dataclass
class RandomConditions:
    """A ConditionEncoder without a prompt encoder: the prompt is random, the rest is encoded."""

    vae: VideoVAE
    speech: SpeechEncoder
    text_dim: int

    def encode(self, portrait: Path, prompt: str, size: Size, speech: Sequence[SpeechTrack]) -> Conditions:
        """See ConditionEncoder.encode."""
        motion = encode_portrait(self.vae, prepare_portrait(portrait, size))
        text = torch.randn(PROMPT_TOKENS, self.text_dim, generator=torch.Generator().manual_seed(0))
        tracks = [SpeechFeatures(self.speech, track.listen, track.num_samples) for track in speech]
        return Conditions(text, motion[:, REFERENCE], motion, AudioFeatures(tracks))


def random_parts(preset: Preset, config: ModelConfig | None = None) -> Parts:
    """The full-size model with random weights, on the best device."""
    device, dtype = best_device(), DTYPES[preset.memory.weight_dtype]
    config = config or ModelConfig()
    torch.manual_seed(0)
    with torch.device(device):
        vae = AutoencoderKLWan().to(device, dtype)
        speech = Wav2Vec2Model(
            Wav2Vec2Config(
                hidden_size=config.audio_dim,
                num_hidden_layers=24,
                num_attention_heads=16,
                intermediate_size=4096,
                do_stable_layer_norm=True,
                feat_extract_norm="layer",
                conv_bias=True,
            )
        )
    if device.type == "cuda":
        lay_out_channels_last(vae)
    video = VideoVAE(vae)
    nn.Module.to(speech, device)  # one of its tensors is made on the CPU whatever the default is
    conditions = RandomConditions(video, SpeechEncoder(speech), config.text_dim)
    transformer = random_transformer(config, device, dtype).fuse()
    return Parts(device, dtype, video, conditions, transformer=transformer)


@dataclass
class Peaks:
    """The most in use. nvml_bytes: everything on the card; allocator_bytes: torch's tensors alone."""

    nvml_bytes: int | None = None
    allocator_bytes: int | None = None
    reserved_bytes: int | None = None


@contextmanager
def watched(device: torch.device) -> Iterator[Peaks]:
    """Peaks of memory while the block runs, NVML asked every NVML_SAMPLE_S."""
    peaks, done = Peaks(), threading.Event()
    if device.type != "cuda":
        yield peaks
        return
    card = open_driver().cards[device.index or 0]

    def sample() -> None:
        while not done.wait(NVML_SAMPLE_S):
            memory = card.memory()
            if memory is not None:
                peaks.nvml_bytes = max(peaks.nvml_bytes or 0, memory.used_bytes)

    torch.cuda.reset_peak_memory_stats(device)
    watcher = threading.Thread(target=sample, daemon=True)
    watcher.start()
    try:
        yield peaks
    finally:
        done.set()
        watcher.join()
        peaks.allocator_bytes = torch.cuda.max_memory_allocated(device)
        peaks.reserved_bytes = torch.cuda.max_memory_reserved(device)


@dataclass
class Stopwatch:
    """Milliseconds of device work between two points, without waiting for it in between."""

    device: torch.device
    marks: dict[str, list[tuple[Any, Any]]] = field(default_factory=dict)

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        start = self._now()
        yield
        self.marks.setdefault(name, []).append((start, self._now()))

    def milliseconds(self, name: str) -> list[float]:
        """Every measured time of that name, in order."""
        if self.device.type != "cuda":
            return [(end - start) * 1000 for start, end in self.marks.get(name, [])]
        torch.cuda.synchronize(self.device)
        return [start.elapsed_time(end) for start, end in self.marks.get(name, [])]

    def _now(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def bench(preset: Preset, parts: Parts, *, num_blocks: int = 16) -> dict[str, Any]:
    """Time a preset's parts over num_blocks blocks, then the whole engine; JSON-able.

    Raises: AvatarError when num_blocks leaves fewer than 5 blocks with full rings.
    """
    generation = preset.generation
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        portrait, speech = _inputs(Path(folder), Size.parse(generation.size), num_blocks)
        size = output_size(*Image.open(portrait).size, generation.size)
        geometry = Geometry.of(size, generation.infer_frames)
        warm_blocks = 2 + -(-geometry.window_frames // 3)
        if num_blocks - warm_blocks < 5:
            raise AvatarError(
                f"{num_blocks} blocks are too few to measure.", f"Take {warm_blocks + 5} or more."
            )
        with watched(parts.device) as peaks:
            separate = _time_parts(preset, parts, geometry, portrait, num_blocks, warm_blocks)
        with watched(parts.device) as whole_peaks:
            whole = _time_engine(preset, parts, portrait, speech, Path(folder))
    return {
        "settings": {
            **preset.as_dict(),
            "width": size.width,
            "height": size.height,
            "num_blocks": num_blocks,
            "random_weights": parts.files is None,
        },
        "parts": {**separate, **vars(peaks)},
        "end_to_end": {**whole, **vars(whole_peaks)},
        "machine": machine(parts.device),
    }


def _inputs(folder: Path, size: Size, num_blocks: int) -> tuple[Path, Path]:
    """A portrait of the preset's shape and babble that lasts num_blocks blocks."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 255, (12, 12, 3), np.uint8))
    coarse.resize((size.width, size.height), Image.Resampling.BICUBIC).save(folder / "portrait.png")
    seconds = num_blocks * BLOCK_FRAMES / FPS
    t = np.arange(int(seconds * SPEECH_HZ)) / SPEECH_HZ
    babble = np.sin(2 * np.pi * 130 * t) * np.abs(np.sin(2 * np.pi * 2 * t)) + 0.02 * rng.normal(size=t.size)
    soundfile.write(folder / "speech.wav", 0.4 * babble / np.abs(babble).max(), SPEECH_HZ)
    return folder / "portrait.png", folder / "speech.wav"


def _time_parts(
    preset: Preset, parts: Parts, geometry: Geometry, portrait: Path, num_blocks: int, warm_blocks: int
) -> dict[str, Any]:
    generation, clock = preset.generation, Stopwatch(parts.device)
    size = Size(geometry.width, geometry.height)
    image = prepare_portrait(portrait, size)
    for _ in range(2):  # the first warms up
        with clock.measure("encode portrait"):
            encode_portrait(parts.vae, image)
    conditions = parts.conditions.encode(portrait, "", size, [_babble(num_blocks)])
    source = DiffusionSource.of(parts, preset)
    denoiser = LocalDenoiser(
        parts.load_transformer(),
        geometry,
        Schedule.flow_match(generation.sample_steps, generation.shift),
        pieces=source.pieces,
    )
    _timed(denoiser, "advance", clock, "step")
    _timed(denoiser, "begin", clock, "prefill")
    decoder = StreamingDecoder(parts.vae, compile=parts.device.type == "cuda")
    decoder.prime(conditions.motion)
    first_block_s, start = 0.0, time.perf_counter()
    for index, latents in enumerate(
        rollout(conditions, denoiser, num_blocks=num_blocks, seed=generation.seed)
    ):
        with clock.measure("decode"):
            frames = decoder.decode(latents)
        if index == 0:
            frames.cpu()
            first_block_s = time.perf_counter() - start
    steps = clock.milliseconds("step")[warm_blocks * generation.sample_steps :]
    decode = clock.milliseconds("decode")[warm_blocks:]
    return {
        "first_block_cold_s": first_block_s,  # with all compiling
        "step_ms": statistics.median(steps),
        "step_ms_all": [round(ms, 2) for ms in steps],
        "decode_block_ms": statistics.median(decode),
        "encode_portrait_ms": clock.milliseconds("encode portrait")[-1],
        "prefill_cold_ms": clock.milliseconds("prefill")[0],
        "measured_blocks": num_blocks - warm_blocks,
    }


def _time_engine(preset: Preset, parts: Parts, portrait: Path, speech: Path, folder: Path) -> dict[str, Any]:
    """The engine as a user runs it, H.264 and files included, once to warm up and once for the record."""
    source = DiffusionSource.of(parts, preset)
    for run in ("warm", "timed"):
        work = folder / run
        work.mkdir()
        request = open_request(portrait, speech, preset, output=folder / f"{run}.mp4", work=work)
        finished = [event for event in stream_frames(source, request) if isinstance(event, Finished)]
    report = read_report(finished[0].report)
    return {
        "fps": report.frames_per_s,
        "first_frame_s": report.first_frame_s,
        "first_segment_s": report.first_segment_s,
        "num_frames": report.num_frames,
        "elapsed_s": report.elapsed_s,
    }


def _timed(target: Any, method: str, clock: Stopwatch, name: str) -> None:
    """Measure every call of a method of this one object."""
    original: Callable[..., Any] = getattr(target, method)

    def measured(*args: Any) -> Any:
        with clock.measure(name):
            return original(*args)

    setattr(target, method, measured)


def _babble(num_blocks: int) -> SpeechTrack:
    """Seeded noise as speech: what matters here is its length."""
    num_samples = num_blocks * BLOCK_FRAMES * SPEECH_HZ // FPS

    def listen(start: int, stop: int) -> np.ndarray:
        return np.random.default_rng((7, max(start, 0))).normal(0, 0.1, stop - start).astype(np.float32)

    return SpeechTrack(listen, num_samples)


def machine(device: torch.device) -> dict[str, Any]:
    """Versions and names, for whoever reads the figures later."""
    packages = ("torch", "diffusers", "transformers", "numpy", "av")
    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: version(name) for name in packages},
    }
    if device.type == "cuda":
        facts |= {
            "device": torch.cuda.get_device_name(device),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "total_bytes": torch.cuda.get_device_properties(device).total_memory,
        }
    return facts
