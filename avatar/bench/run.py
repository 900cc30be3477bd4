"""The benchmark: the whole engine as a user runs it, with its parts timed, then a short warm run."""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from avatar.bench.measure import MemoryHeld, Stopwatch, host_peak_bytes, machine, watched
from avatar.errors import BadInput
from avatar.events import Finished
from avatar.geometry import BLOCK_FRAMES, FPS, LEAD_IN_FRAMES, Geometry, Size
from avatar.media.intake import open_request
from avatar.media.prompt import prompt_for
from avatar.media.sample_inputs import write_sample
from avatar.media.speech_reader import SpeechReader
from avatar.pipeline.components import Components
from avatar.pipeline.conditioning import SpeechTrack, encode_portrait, prepare_portrait
from avatar.pipeline.device_budget import plan_here
from avatar.pipeline.frame_size import video_size
from avatar.pipeline.model_loading import MadeModels
from avatar.pipeline.observer import Observer
from avatar.pipeline.offload.host_layers import Traffic
from avatar.pipeline.pipeline import DiffusionPipeline
from avatar.preset import Fallback, Preset
from avatar.request import Request
from avatar.runtime.report import RunReport, read_report
from avatar.runtime.stream import stream_frames

logger = logging.getLogger(__name__)

FEWEST_MEASURED = 5  # blocks with full rings
SETTLING_BLOCKS = 2  # not measured, although their rings are full
WARM_BLOCKS = 4  # in the second run, which measures the time to its first frame and segment


@dataclass
class RunTrace:
    """Measurements of one run. items: work items in each denoising step. The others: after each block."""

    clock: Stopwatch
    items: list[int] = field(default_factory=list)
    times_s: list[float] = field(default_factory=list)
    held: list[MemoryHeld] = field(default_factory=list)
    carried: list[Traffic] = field(default_factory=list)

    def steps_after(self, num_items: int) -> list[float]:
        """Milliseconds per item, after the first num_items, for steps with the maximum number of items."""
        before = [sum(self.items[:place]) for place in range(len(self.items))]
        times = zip(self.clock.milliseconds("step"), self.items, before, strict=True)
        most = max(self.items)
        return [ms / count for ms, count, done in times if count == most and done >= num_items]


class Timing(Observer):
    """Records what a pipeline does, and the device time that it takes. trace: of the last run."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.trace = RunTrace(Stopwatch(device))

    def run_begins(self) -> None:
        """See Observer."""
        self.trace = RunTrace(Stopwatch(self._device))

    def prefilling(self) -> AbstractContextManager[None]:
        """See Observer."""
        return self.trace.clock.measure("prefill")

    def stepping(self, num_blocks: int) -> AbstractContextManager[None]:
        """See Observer."""
        self.trace.items.append(num_blocks)
        return self.trace.clock.measure("step")

    def denoised(self, traffic: Traffic) -> None:
        """See Observer."""
        self.trace.carried.append(traffic)

    def decoding(self) -> AbstractContextManager[None]:
        """See Observer."""
        return self.trace.clock.measure("decode")

    def decoded(self, frames: Tensor) -> None:
        """See Observer."""
        self.trace.held.append(MemoryHeld.now(frames.device))
        self.trace.times_s.append(time.perf_counter())


def bench(
    preset: Preset, parts: Components, *, num_blocks: int = 16, weights: Path | None = None
) -> dict[str, Any]:
    """Run the engine for num_blocks blocks from cold, then briefly again. Returns plain data for JSON.

    weights: the folder of the checkpoint that the parts are from, if given.
    Raises: BadInput when num_blocks leaves fewer than 5 blocks with full rings.
    """
    generation = preset.generation
    preset = replace(preset, fallback=Fallback(()))  # a preset that does not fit must fail
    speech_s = num_blocks * BLOCK_FRAMES / FPS
    planned = plan_here(
        preset, parts.device, weights=weights, fixed=parts.placement, speech_s=speech_s
    ).as_dict()
    with tempfile.TemporaryDirectory(prefix="avatar-bench-") as name:
        first, second = (
            a_request(preset, Path(name) / run, count)
            for run, count in (("cold", num_blocks), ("warm", min(num_blocks, WARM_BLOCKS)))
        )
        size = video_size(first)
        geometry = Geometry.of(size, generation.infer_frames)
        warm_blocks = warm_up(geometry, num_blocks)
        start = time.perf_counter()
        with watched(parts.device) as load_peaks:
            parts.load_transformer()
        load_s = time.perf_counter() - start
        logger.info("loaded in %.1f s", load_s)
        encoding = time_encoders(first, parts, size)
        timing = Timing(parts.device)
        source = DiffusionPipeline(preset, weights, models=MadeModels.given(parts), observer=timing)
        with watched(parts.device) as peaks:
            cold = finished(source, first)
        logger.info("%d blocks in %.1f s", num_blocks, cold.elapsed_s)
        trace = timing.trace
        figures = figures_of(trace, geometry, generation.sample_steps, num_blocks, warm_blocks)
        warm = finished(source, second)
    return {
        "settings": {
            **preset.as_dict(),
            "width": size.width,
            "height": size.height,
            "num_blocks": num_blocks,
        },
        "placement": asdict(parts.placement),
        "plan": planned,
        "load_transformer_s": load_s,
        "load_memory": asdict(load_peaks),
        "parts": {
            **figures,
            **encoding,
            "first_block_cold_s": cold.first_frame_s,  # including compilation
            "memory": asdict(peaks),
        },
        "end_to_end": {
            "fps": steady_fps(trace, warm_blocks, num_blocks)
            if preset.memory.enable_online_decode
            else figures["denoise_and_decode_fps"],  # blocks are decoded one after another at the end
            "cold_fps": cold.num_frames / cold.elapsed_s,
            "first_frame_s": warm.first_frame_s,
            "first_segment_s": warm.first_segment_s,
            "num_frames": cold.num_frames,
            "elapsed_s": cold.elapsed_s,
            "memory": asdict(peaks),
        },
        "host_peak_bytes": max(host_peak_bytes(), *(held.host_bytes for held in trace.held)),
        "machine": machine(parts.device),
    }


def a_request(preset: Preset, folder: Path, num_blocks: int) -> Request:
    """A request with the sample portrait and speech for num_blocks blocks."""
    folder.mkdir()
    speech_s = (num_blocks * BLOCK_FRAMES - LEAD_IN_FRAMES) / FPS
    inputs = write_sample(folder, Size.parse(preset.generation.size), speech_s)
    return open_request(*inputs, preset, output=folder / "video.mp4", work=folder / "work")


def finished(source: DiffusionPipeline, request: Request) -> RunReport:
    """Run the engine as a user does, including H.264 and files, and return the run's report."""
    ends = [event for event in stream_frames(source, request) if isinstance(event, Finished)]
    return read_report(ends[0].report)


def warm_up(geometry: Geometry, num_blocks: int) -> int:
    """Number of blocks before the first measured one: rings full, anchor refreshed, everything compiled.

    Raises: BadInput when too few blocks are left to measure.
    """
    warm_blocks = geometry.second_clip_block + SETTLING_BLOCKS
    if num_blocks < warm_blocks + FEWEST_MEASURED:
        raise BadInput(
            f"{num_blocks} blocks are too few to measure.", f"Take {warm_blocks + FEWEST_MEASURED} or more."
        )
    return warm_blocks


def time_encoders(request: Request, parts: Components, size: Size) -> dict[str, float]:
    """Milliseconds to encode the portrait and the first block's speech, each the second time.

    Also the number of prompt tokens.
    """
    clock, image = Stopwatch(parts.device), prepare_portrait(request.portrait, size)
    for _ in range(2):
        with clock.measure("portrait"):
            encode_portrait(parts.vae, image)
    with SpeechReader(request.speech) as speech:
        track = SpeechTrack(speech.listen, speech.num_samples_16k)
        for _ in range(2):
            conditions = parts.conditions.encode(request.portrait, prompt_for(request), size, [track])
            with clock.measure("speech"):
                conditions.audio.frames(0, BLOCK_FRAMES)
    times = {f"encode_{name}_ms": clock.milliseconds(name)[-1] for name in ("portrait", "speech")}
    return {**times, "prompt_tokens": len(conditions.text)}


def figures_of(
    trace: RunTrace, geometry: Geometry, num_steps: int, num_blocks: int, warm_blocks: int
) -> dict[str, Any]:
    """Medians over the blocks after the warm-up, bytes copied for offloading, and memory at two moments."""
    steps = trace.steps_after(warm_blocks * num_steps)
    decodes = trace.clock.milliseconds("decode")[warm_blocks:]
    step, decode = statistics.median(steps), statistics.median(decodes)
    return {
        "measured_blocks": num_blocks - warm_blocks,
        "step_ms": step,
        "step_ms_all": [round(ms, 3) for ms in steps],
        "decode_block_ms": decode,
        "prefill_cold_ms": trace.clock.milliseconds("prefill")[0],
        "denoise_fps": BLOCK_FRAMES * 1000 / (num_steps * step),
        "decode_fps": BLOCK_FRAMES * 1000 / decode,
        "denoise_and_decode_fps": BLOCK_FRAMES * 1000 / (num_steps * step + decode),
        "bus": bus(trace.carried[warm_blocks : steady_end(trace, num_blocks)]),
        "held": {"clip_2": asdict(trace.held[geometry.second_clip_block]), "end": asdict(trace.held[-1])},
    }


def steady_end(trace: RunTrace, num_blocks: int) -> int:
    """The block from which on fewer than the maximum number of blocks are in progress."""
    return num_blocks + 1 - max(trace.items)


def steady_fps(trace: RunTrace, warm_blocks: int, num_blocks: int) -> float:
    """Frames per second of wall-clock time, for the blocks between warm-up and the run's end phase."""
    times = trace.times_s[warm_blocks : steady_end(trace, num_blocks)]
    return (len(times) - 1) * BLOCK_FRAMES / (times[-1] - times[0])


def bus(carried: Sequence[Traffic]) -> dict[str, float]:
    """Bytes per frame copied for offloading, from the cumulative counts after each of several blocks."""
    num_frames = (len(carried) - 1) * BLOCK_FRAMES
    first, last = carried[0], carried[-1]
    return {
        "to_device_bytes_per_frame": (last.to_device_bytes - first.to_device_bytes) / num_frames,
        "to_host_bytes_per_frame": (last.to_host_bytes - first.to_host_bytes) / num_frames,
    }
