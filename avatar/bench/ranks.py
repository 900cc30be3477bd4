"""The bench of several GPUs: the engine as a user runs it, over warm ranks; how busy each of them is."""

from __future__ import annotations

import os
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from avatar.engine import Frames
from avatar.events import Finished, Notice, Progress, RankLoad
from avatar.geometry import BLOCK_FRAMES, FPS, Geometry, Size, output_size
from avatar.media.intake import open_request
from avatar.media.report import RunReport, installed_versions, read_report
from avatar.media.sample import write_sample
from avatar.media.stream import stream_frames
from avatar.memory.nvml import open_driver
from avatar.parallel.fleet import Fleet
from avatar.parallel.ranked import ROLES, RankedSource
from avatar.parallel.reports import Pulse
from avatar.preset import Preset
from avatar.request import Request

RANDOM_ROLES = "avatar.bench.rank_roles"
SETTLING_BLOCKS = 2  # that are not measured although their rings are full
NVML_SAMPLE_S = 0.05
ENVIRONMENT = ("NCCL_", "TORCH_NCCL_", "PYTORCH_", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")


class Observed:
    """A RankedSource that notes when each block came, and what the ranks told of their load meanwhile."""

    def __init__(self, source: RankedSource) -> None:
        self._source, self.label = source, source.label
        self.came_s: list[float] = []
        self.loads: list[tuple[float, tuple[RankLoad, ...]]] = []
        self.before: list[Pulse | None] = []
        self.after: list[Pulse | None] = []

    def frames(self, request: Request, cancelled: Callable[[], bool]) -> Iterator[Frames | Notice | Progress]:
        """See FrameSource; one run."""
        self.came_s, self.loads = [], []
        for item in self._source.frames(request, cancelled):
            if isinstance(item, np.ndarray):
                self.came_s.append(time.monotonic())
            elif isinstance(item, Progress) and item.ranks:
                self.loads.append((time.monotonic(), item.ranks))
            yield item

    def close(self) -> None:
        """See FrameSource."""
        self._source.close()

    @property
    def fleet(self) -> Fleet:
        return self._source.fleet


def listen(fleet: Fleet, seconds: float = 2.5) -> list[Pulse | None]:
    """Every rank's heartbeat of just now."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        fleet.receive()
    return fleet.last_pulses


def bench_ranks(preset: Preset, weights: Path | None, *, random: bool, num_blocks: int) -> dict[str, Any]:
    """Run the engine twice over the same ranks; the second run counts. Plain data for JSON."""
    with tempfile.TemporaryDirectory(prefix="avatar-bench-") as name, nvml_peaks() as peaks:
        folder = Path(name)
        size = Size.parse(preset.generation.size)
        inputs = write_sample(folder, size, num_blocks * BLOCK_FRAMES / FPS)
        source = Observed(RankedSource(preset, weights, roles=RANDOM_ROLES if random else ROLES))
        try:
            cold, warm = (_run(source, preset, inputs, folder / run) for run in ("cold", "warm"))
        finally:
            source.close()
    size = output_size(warm.width, warm.height, size)
    settled = Geometry.of(size, preset.generation.infer_frames).second_clip_block + SETTLING_BLOCKS
    layout = source.fleet.layout
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
            "settled_fps": _settled_fps(source.came_s, settled),
            "first_frame_s": warm.first_frame_s,
            "first_segment_s": warm.first_segment_s,
            "first_frame_cold_s": cold.first_frame_s,
            "elapsed_s": warm.elapsed_s,
            "num_frames": warm.num_frames,
        },
        "ranks": _ranks(source, num_blocks, settled, peaks),
        "machine": _machine(),
    }


def _run(source: Observed, preset: Preset, inputs: tuple[Path, Path], folder: Path) -> RunReport:
    folder.mkdir()
    request = open_request(*inputs, preset, output=folder / "out.mp4", work=folder / "work")
    source.before = listen(source.fleet)
    (finished,) = [event for event in stream_frames(source, request) if isinstance(event, Finished)]
    source.after = listen(source.fleet)
    return read_report(finished.report)


def _settled_fps(came_s: list[float], settled: int) -> float | None:
    """Frames a second from the block on with which rings are full and everything is compiled."""
    if len(came_s) < settled + 2:
        return None
    return BLOCK_FRAMES * (len(came_s) - 1 - settled) / (came_s[-1] - came_s[settled])


def _ranks(source: Observed, num_blocks: int, settled: int, peaks: dict[str, int]) -> list[dict[str, Any]]:
    start = source.came_s[min(settled, len(source.came_s) - 1)]
    settled_loads = [loads for at_s, loads in source.loads if start <= at_s <= source.came_s[-1]]
    ranks = []
    for rank, (before, after) in enumerate(zip(source.before, source.after)):
        assert before is not None
        assert after is not None
        busy = [loads[rank].busy_percent for loads in settled_loads]
        known = [percent for percent in busy if percent is not None]
        ranks.append(
            {
                "rank": rank,
                "role": after.role,
                "place": after.place,
                "busy_percent": round(statistics.median(known), 1) if known else None,
                "busy_ms_per_block": 1000 * (after.busy_s - before.busy_s) / num_blocks,
                "sent_bytes_per_block": (after.sent_bytes - before.sent_bytes) / num_blocks,
                "allocated_peak_bytes": after.peak_bytes,
                "nvml_peak_bytes": peaks.get(after.place),
            }
        )
    return ranks


@contextmanager
def nvml_peaks() -> Iterator[dict[str, int]]:
    """The most in use on every GPU from here to the end, other programs' too, by "GPU 0" and so on."""
    peaks: dict[str, int] = {}
    driver, done = open_driver(), threading.Event()

    def sample() -> None:
        while driver.cards and not done.wait(NVML_SAMPLE_S):
            for card in driver.cards:
                memory, name = card.memory(), f"GPU {card.index}"
                if memory is not None:
                    peaks[name] = max(peaks.get(name, 0), memory.used_bytes)

    watcher = threading.Thread(target=sample, name="nvml", daemon=True)
    watcher.start()
    try:
        yield peaks
    finally:
        done.set()
        watcher.join()
        driver.close()


def _machine() -> dict[str, Any]:
    """Versions and names, for whoever reads the figures later."""
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
