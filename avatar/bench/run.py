"""The bench: a preset's parts over blocks with full rings, then the whole engine as a user runs it."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from avatar.bench.measure import Held, Stopwatch, host_peak_bytes, machine, watched
from avatar.diffusion.conditions import SpeechTrack, encode_portrait, prepare_portrait
from avatar.diffusion.decode import StreamingDecoder
from avatar.diffusion.denoise import Conditions, LocalDenoiser, OpenBlock
from avatar.diffusion.parts import Parts
from avatar.diffusion.rollout import rollout
from avatar.diffusion.room import plan_here
from avatar.diffusion.source import DiffusionSource, local_denoiser, pieces_for, video_size
from avatar.errors import BadInput
from avatar.events import Finished
from avatar.geometry import BLOCK_FRAMES, FPS, Geometry, Size
from avatar.media.intake import open_request
from avatar.media.report import read_report
from avatar.media.sample import write_sample
from avatar.media.speech import SpeechReader
from avatar.media.stream import stream_frames
from avatar.memory.offload import Traffic
from avatar.preset import Fallback, Preset
from avatar.request import Request

FEWEST_MEASURED = 5  # blocks with full rings
SETTLING_BLOCKS = 2  # that are not measured although their rings are full


class TimedDenoiser(LocalDenoiser):
    """A LocalDenoiser that times its own steps and the prefill. items: how many each measured step had."""

    clock: Stopwatch
    items: list[int]

    def begin(self, conditions: Conditions) -> None:
        with self.clock.measure("prefill"):
            super().begin(conditions)

    def advance(self, due: Sequence[OpenBlock]) -> None:
        self.items.append(len(due))
        with self.clock.measure("step"):
            super().advance(due)

    def steps_after(self, num_items: int) -> list[float]:
        """Milliseconds of each item after the first so many, of those times when as many as ever were due."""
        before = [sum(self.items[:place]) for place in range(len(self.items))]
        times = zip(self.clock.milliseconds("step"), self.items, before, strict=True)
        most = max(self.items)
        return [ms / count for ms, count, done in times if count == most and done >= num_items]


def bench(preset: Preset, parts: Parts, *, num_blocks: int = 16) -> dict[str, Any]:
    """Time a preset's parts over num_blocks blocks, then the whole engine; plain data for JSON.

    Raises: BadInput when num_blocks leaves fewer than 5 blocks with full rings.
    """
    generation = preset.generation
    preset = replace(preset, fallback=Fallback(()))  # what does not fit is to be seen
    speech_s = num_blocks * BLOCK_FRAMES / FPS
    planned = plan_here(preset, parts.device, placement=parts.placement, speech_s=speech_s).as_dict()
    with tempfile.TemporaryDirectory(prefix="avatar-bench-") as name:
        folder = Path(name)
        inputs = write_sample(folder, Size.parse(generation.size), speech_s)
        first, second = (
            open_request(*inputs, preset, output=folder / f"{run}.mp4", work=folder / run)
            for run in ("first", "second")
        )
        size = video_size(first)
        warm_blocks = warm_up(Geometry.of(size, generation.infer_frames), num_blocks)
        start = time.perf_counter()
        with watched(parts.device) as load_peaks:
            parts.load_transformer()
        load_s = time.perf_counter() - start
        with watched(parts.device) as peaks:
            separate = time_parts(first, parts, size, num_blocks, warm_blocks)
        with watched(parts.device) as whole_peaks:
            whole = time_engine(parts, first, second)
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
        "parts": {**separate, "memory": asdict(peaks)},
        "end_to_end": {**whole, "memory": asdict(whole_peaks)},
        "host_peak_bytes": host_peak_bytes(),
        "machine": machine(parts.device),
    }


def warm_up(geometry: Geometry, num_blocks: int) -> int:
    """Blocks before the first that is measured: rings full, anchor refreshed, everything compiled.

    Raises: BadInput when too few are left.
    """
    warm_blocks = geometry.second_clip_block + SETTLING_BLOCKS
    if num_blocks < warm_blocks + FEWEST_MEASURED:
        raise BadInput(
            f"{num_blocks} blocks are too few to measure.", f"Take {warm_blocks + FEWEST_MEASURED} or more."
        )
    return warm_blocks


def time_parts(
    request: Request, parts: Parts, size: Size, num_blocks: int, warm_blocks: int
) -> dict[str, Any]:
    """Medians over the blocks after the warm-up; the first of everything is told apart."""
    clock = Stopwatch(parts.device)
    image = prepare_portrait(request.portrait, size)
    for _ in range(2):
        with clock.measure("encode portrait"):
            encode_portrait(parts.vae, image)
    with SpeechReader(request.speech) as speech:
        track = SpeechTrack(speech.listen, speech.num_samples_16k)
        conditions = parts.conditions.encode(request.portrait, request.prompt, size, [track])
        for _ in range(2):
            again = parts.conditions.encode(request.portrait, request.prompt, size, [track])
            with clock.measure("encode speech"):
                again.audio.frames(0, BLOCK_FRAMES)
        denoiser = local_denoiser(request.preset, parts, size, pieces_for(parts.device), TimedDenoiser)
        assert isinstance(denoiser, TimedDenoiser)
        denoiser.clock, denoiser.items = clock, []
        held, carried = [], []
        decoder = StreamingDecoder(parts.vae, compile=parts.device.type == "cuda")
        start, first_block_s = time.perf_counter(), 0.0
        decoder.prime(conditions.motion)
        for latents in rollout(conditions, denoiser, num_blocks=num_blocks, seed=request.seed):
            with clock.measure("decode"):
                frames = decoder.decode(latents)
            if not first_block_s:
                frames.cpu()
                first_block_s = time.perf_counter() - start
            held.append(Held.now(parts.device))
            carried.append(denoiser.traffic)
    num_steps = denoiser.schedule.num_steps
    steps = denoiser.steps_after(warm_blocks * num_steps)
    step, decode = statistics.median(steps), statistics.median(clock.milliseconds("decode")[warm_blocks:])
    return {
        "measured_blocks": num_blocks - warm_blocks,
        "step_ms": step,
        "step_ms_all": [round(ms, 3) for ms in steps],
        "decode_block_ms": decode,
        "encode_portrait_ms": clock.milliseconds("encode portrait")[-1],
        "encode_speech_ms": clock.milliseconds("encode speech")[-1],
        "prefill_cold_ms": clock.milliseconds("prefill")[0],
        "first_block_cold_s": first_block_s,  # with all compiling
        "denoise_fps": BLOCK_FRAMES * 1000 / (num_steps * step),
        "decode_fps": BLOCK_FRAMES * 1000 / decode,
        "denoise_and_decode_fps": BLOCK_FRAMES * 1000 / (num_steps * step + decode),
        "bus": bus(carried[warm_blocks : num_blocks + 1 - max(denoiser.items)]),  # then fewer are under way
        "held": {"clip_2": asdict(held[denoiser.geometry.second_clip_block]), "end": asdict(held[-1])},
    }


def bus(carried: Sequence[Traffic]) -> dict[str, float]:
    """What offloading sends over the bus for each frame, from its counts after each of several blocks."""
    num_frames = (len(carried) - 1) * BLOCK_FRAMES
    first, last = carried[0], carried[-1]
    return {
        "to_device_bytes_per_frame": (last.to_device_bytes - first.to_device_bytes) / num_frames,
        "to_host_bytes_per_frame": (last.to_host_bytes - first.to_host_bytes) / num_frames,
    }


def time_engine(parts: Parts, first: Request, second: Request) -> dict[str, Any]:
    """The engine as a user runs it, H.264 and files included; the second run counts."""
    source = DiffusionSource.of(parts, first.preset)
    for request in (first, second):
        finished = [event for event in stream_frames(source, request) if isinstance(event, Finished)]
    report = read_report(finished[0].report)
    return {
        "fps": report.frames_per_s,
        "first_frame_s": report.first_frame_s,
        "first_segment_s": report.first_segment_s,
        "num_frames": report.num_frames,
        "elapsed_s": report.elapsed_s,
    }
