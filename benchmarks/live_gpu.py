"""Latency of the diffusion engine in a live session on this machine's GPUs, with random weights at full size.

    python -m benchmarks.live_gpu --seconds 60 --preset live-2gpu

Sound arrives in real time, four seconds of it and one of silence. A block's delay is that of its first frame,
which waits longest: from when its sound was spoken until its decoded picture is on the host.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from avatar.bench.random_parts import random_parts
from avatar.bench.rank_options import BenchOptions
from avatar.bench.ranks import TIMED_ROLES
from avatar.errors import Cancelled
from avatar.events import Notice
from avatar.geometry import BLOCK_FRAMES, FPS, Size
from avatar.live.portrait_intake import live_preset
from avatar.media.sample_inputs import write_sample
from avatar.media.timeline import SAMPLES_PER_FRAME
from avatar.model.live_wav2vec2 import LOOK_AHEAD_S
from avatar.pipeline.model_loading import MadeModels
from avatar.pipeline.pipeline import DiffusionPipeline
from avatar.planning.layout import Layout
from avatar.preset import Preset
from avatar.request import LiveRequest
from avatar.runtime.live_protocol import LiveFrames
from avatar.runtime.ranked_source import RankedSource

BLOCKS_A_MINUTE = 60 * FPS // BLOCK_FRAMES
WARM_UP_S = 10.0  # of a session that is not measured: it builds the graphs


def main() -> None:
    """Measure the latency and print it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--preset", default="live", help="a live preset, or a .toml file")
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--size", default=None)
    parser.add_argument("--decoder", default=None, help="full or tiny")
    parser.add_argument(
        "--sessions", type=int, default=3, help="one after another"
    )
    args = parser.parse_args()
    changes = {"sample_steps": args.steps, "size": args.size, "decoder": args.decoder}
    preset = live_preset(args.preset).with_settings(**changes)
    with tempfile.TemporaryDirectory() as folder:
        source = source_of(preset, Path(folder))
        portrait, _ = write_sample(Path(folder), Size(704, 384), 1.0)
        request = LiveRequest(portrait, Path(folder), preset, "sample.png")
        # What the first session had to fall back to, while graphs were built, is remembered by preset.
        session(source, replace(request, preset=replace(preset, title="warm-up")), WARM_UP_S)
        found = [session(source, request, args.seconds) for _ in range(args.sessions)]
        source.close()
    json.dump({"sessions": found}, sys.stdout, indent=1)


def source_of(preset: Preset, folder: Path) -> DiffusionPipeline | RankedSource:
    """The engine with random weights: in this process for one GPU, else with a process per GPU."""
    if Layout.of(preset).world_size == 1:
        return DiffusionPipeline(preset, models=MadeModels.given(random_parts(preset)))
    options = BenchOptions(random=True).write(folder / "options.json")
    return RankedSource(preset, options, roles=TIMED_ROLES)


def session(
    source: DiffusionPipeline | RankedSource, request: LiveRequest, seconds: float
) -> dict[str, object]:
    """Run one session for some seconds from its first frame on, in real time, and return its figures."""
    spoken_at: list[float] = []
    is_over = threading.Event()

    def sound() -> Iterator[np.ndarray]:
        rng = np.random.default_rng(0)
        due = time.monotonic()
        while not is_over.is_set():
            speaks = len(spoken_at) / FPS % 5 < 4
            yield (speaks * 3000 * rng.standard_normal(SAMPLES_PER_FRAME)).astype(np.int16)
            due += 1 / FPS
            time.sleep(max(0.0, due - time.monotonic()))
            spoken_at.append(time.monotonic())

    delays, arrivals, notices, left_out = [], [], [], 0
    since = time.monotonic()
    with suppress(Cancelled):
        for one in source.live(request, sound(), is_over.is_set):
            if isinstance(one, Notice):
                notices.append(one.text)
            if not isinstance(one, LiveFrames):
                continue
            now = time.monotonic()
            arrivals.append((now, len(one.frames)))
            left_out = one.num_left_out
            sound_frame = one.first_frame + one.num_left_out
            if sound_frame < len(spoken_at):
                delays.append(now - (spoken_at[sound_frame] - 1 / FPS))
            if len(arrivals) % BLOCKS_A_MINUTE == 0:
                sys.stderr.write(f"{now - arrivals[0][0]:.0f} s: a block came {delays[-1]:.2f} s late\n")
            if now - arrivals[0][0] > seconds:
                is_over.set()
    settled = delays[len(delays) // 3 :]
    frames = sum(count for _, count in arrivals[1:])
    return {
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "size": request.preset.generation.size,
        "steps": request.preset.generation.sample_steps,
        "first_frame_s": arrivals[0][0] - since,
        "seconds_left_out": left_out / FPS,
        "fps": frames / (arrivals[-1][0] - arrivals[0][0]),
        "longest_gap_s": float(np.diff([at for at, _ in arrivals]).max()),
        "delay_s": {name: float(np.percentile(settled, q)) for name, q in (("p50", 50), ("p95", 95))},
        "delay_by_third_s": [float(np.median(third)) for third in np.array_split(delays, 3)],
        "of_it_gathering_s": BLOCK_FRAMES / FPS,
        "of_it_look_ahead_s": LOOK_AHEAD_S,
        "notices": notices,
    }


if __name__ == "__main__":
    main()
