"""Benchmark of several GPUs: the engine as a user runs it, on warm ranks, and each rank's utilisation."""

from __future__ import annotations

import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from avatar.bench.gpu_peaks import nvml_peaks
from avatar.bench.rank_options import MEASURED, BenchOptions
from avatar.events import Finished, Notice, Progress, RankLoad
from avatar.geometry import BLOCK_FRAMES, FPS, LEAD_IN_FRAMES, Size
from avatar.hardware.nvml import open_driver
from avatar.media.intake import open_request
from avatar.media.sample_inputs import write_sample
from avatar.planning.layout import Layout
from avatar.planning.plan import Plan
from avatar.planning.planner import largest_geometry
from avatar.preset import Fallback, Preset
from avatar.request import Request
from avatar.runtime.engine import FrameItem
from avatar.runtime.local_ranks import SupervisedRanks
from avatar.runtime.protocol import Pulse
from avatar.runtime.ranked_source import RankedSource
from avatar.runtime.report import RunReport, installed_versions, read_report
from avatar.runtime.stream import stream_frames

TIMED_ROLES = "avatar.bench.rank_roles"
SETTLING_BLOCKS = 2  # not measured, although their rings are full
OTHER_BLOCKS = 3  # in the run with another portrait
ENVIRONMENT = ("NCCL_", "TORCH_NCCL_", "PYTORCH_", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")


class ObservedSource:
    """A RankedSource that records when each block arrived, and the loads and heartbeats of the ranks."""

    def __init__(self, source: RankedSource) -> None:
        self._source, self.label = source, source.label
        self.asked_s = 0.0
        self.came_s: list[float] = []
        self.loads: list[tuple[float, tuple[RankLoad, ...]]] = []
        self.before: list[Pulse | None] = []
        self.after: list[Pulse | None] = []
        self.measured: dict[str, Any] = {}  # rank 0's measurements

    def frames(self, request: Request, cancelled: Callable[[], bool]) -> Iterator[FrameItem]:
        """See FrameSource; one run."""
        self.came_s, self.loads, self.asked_s = [], [], time.monotonic()
        for item in self._source.frames(request, cancelled):
            if isinstance(item, np.ndarray):
                self.came_s.append(time.monotonic())
            elif isinstance(item, Progress) and item.ranks:
                self.loads.append((time.monotonic(), item.ranks))
            elif isinstance(item, Notice) and item.code == MEASURED:
                self.measured = item.values
                continue
            yield item

    def close(self) -> None:
        """See FrameSource."""
        self._source.close()

    @property
    def ranks(self) -> SupervisedRanks:
        return self._source.ranks

    @property
    def first_frame_parts(self) -> dict[str, float]:
        """Seconds from the request to the end of each stage of the first frame, in order."""
        moments = {**self.measured["moments"], "received": self.came_s[0]}
        parts = {name: moment - self.asked_s for name, moment in moments.items()}
        return dict(sorted(parts.items(), key=lambda part: part[1]))


def listen(ranks: SupervisedRanks, seconds: float = 2.5) -> list[Pulse | None]:
    """Every rank's latest heartbeat, after waiting long enough for a new one; idle ranks send them too."""
    time.sleep(seconds)
    return ranks.last_pulses


def bench_ranks(preset: Preset, terms: BenchOptions, planned: Plan, *, num_blocks: int) -> dict[str, Any]:
    """Run the engine on ranks until everything is compiled, then num_blocks blocks, then another portrait.

    planned: compared with each rank's memory, rank 0's GPU first. Returns plain data for JSON.
    """
    preset = replace(preset, fallback=Fallback(()))  # a preset that does not fit must fail
    settled, draining = settling(preset)
    with tempfile.TemporaryDirectory(prefix="avatar-bench-") as name, nvml_peaks() as peaks:
        folder = Path(name)
        source = ObservedSource(RankedSource(preset, terms.write(folder / "terms.json"), roles=TIMED_ROLES))
        try:
            asked = partial(_request, preset, folder)
            cold = _run(source, asked("cold", min(num_blocks, settled + 1), 0))
            source.before = listen(source.ranks)
            warm = _run(source, asked("warm", num_blocks, 0))
            source.after = listen(source.ranks)
            fps = settled_fps(source.came_s, settled, draining)
            ranks = _ranks(source, num_blocks, (settled, draining), peaks, planned)
            parts, unshard_bytes = source.first_frame_parts, source.measured["unshard_peak_bytes"]
            other = _run(source, asked("other", OTHER_BLOCKS, 1))
        finally:
            source.close()
    layout = source.ranks.layout
    return {
        "settings": {
            **preset.as_dict(),
            "width": warm.width,
            "height": warm.height,
            "num_blocks": num_blocks,
        },
        "layout": {"kind": layout.kind, "stages": layout.num_stages, "group_size": layout.group_size},
        "end_to_end": {
            "fps": warm.frames_per_s,
            "settled_fps": fps,
            "first_frame_s": warm.first_frame_s,
            "first_frame_parts": parts,
            "first_segment_s": warm.first_segment_s,
            "first_frame_other_portrait_s": other.first_frame_s,
            "first_frame_other_portrait_parts": source.first_frame_parts,
            "first_frame_cold_s": cold.first_frame_s,
            "elapsed_s": warm.elapsed_s,
            "num_frames": warm.num_frames,
        },
        "unshard_peak_bytes": unshard_bytes,
        "ranks": ranks,
        "machine": _machine(),
    }


def _request(preset: Preset, folder: Path, name: str, num_blocks: int, portrait: int) -> Request:
    """A request with a sample portrait and speech for num_blocks blocks."""
    own = folder / name
    own.mkdir()
    speech_s = (num_blocks * BLOCK_FRAMES - LEAD_IN_FRAMES) / FPS
    inputs = write_sample(own, Size.parse(preset.generation.size), speech_s, portrait)
    return open_request(*inputs, preset, output=own / "out.mp4", work=own / "work")


def _run(source: ObservedSource, request: Request) -> RunReport:
    (finished,) = [event for event in stream_frames(source, request) if isinstance(event, Finished)]
    return read_report(finished.report)


def settling(preset: Preset) -> tuple[int, int]:
    """How many blocks settled_fps leaves out at the beginning and at the end of a run."""
    layout, num_steps = Layout.of(preset), preset.generation.sample_steps
    full = max(largest_geometry(preset).second_clip_block, layout.spread_from(num_steps))
    return full + SETTLING_BLOCKS, layout.lag_of(num_steps - 1, num_steps)


def settled_fps(came_s: list[float], settled: int, draining: int) -> float | None:
    """Frames per second while the pipeline is full. came_s: arrival time of each block.

    settled: the first block with full rings, everything compiled and a steady rate. draining: number of last
    blocks, which arrive faster since fewer follow them.
    """
    times = came_s[settled : len(came_s) - draining]
    return BLOCK_FRAMES * (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else None


def _ranks(
    source: ObservedSource, num_blocks: int, ends: tuple[int, int], peaks: dict[int, int], planned: Plan
) -> list[dict[str, Any]]:
    settled, draining = ends
    last = len(source.came_s) - 1
    start, end = source.came_s[min(settled, last)], source.came_s[max(0, last - draining)]
    settled_loads = [loads for at_s, loads in source.loads if start <= at_s <= end]
    ranks = []
    for rank, (before, after) in enumerate(zip(source.before, source.after)):
        assert before is not None
        assert after is not None
        busy = [loads[rank].busy_percent for loads in settled_loads]
        known = [percent for percent in busy if percent is not None]
        plan = planned.gpus[rank] if planned.gpus else None  # a toy model has no GPUs
        nvml = None if plan is None or plan.index is None else peaks.get(plan.index)
        ranks.append(
            {
                "rank": rank,
                "role": after.role,
                "place": after.place,
                "busy_percent": round(statistics.median(known), 1) if known else None,
                "busy_ms_per_block": 1000 * (after.busy_s - before.busy_s) / num_blocks,
                "sent_bytes_per_block": (after.sent_bytes - before.sent_bytes) / num_blocks,
                "allocated_peak_bytes": after.peak_bytes,
                "nvml_peak_bytes": nvml,
                "planned_peak_bytes": None if plan is None else plan.peak_bytes,
                "planned_over_nvml": plan.peak_bytes / nvml if plan and nvml else None,
            }
        )
    return ranks


def _machine() -> dict[str, Any]:
    """Versions and names of hardware and software, to be stored with the figures."""
    driver = open_driver()
    cards = [
        {"name": card.name(), "total_bytes": memory.total_bytes if (memory := card.memory()) else None}
        for card in driver.cards
    ]
    facts = {
        "platform": platform.platform(),
        "driver": driver.version,
        "gpus": cards,
        "versions": installed_versions(),
        "environment": {name: value for name, value in os.environ.items() if name.startswith(ENVIRONMENT)},
    }
    driver.close()
    return facts
