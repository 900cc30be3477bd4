"""Time cells with random weights, each by `bench` in its own subprocess: memory and speed, no videos."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from avatar.compare.cells import PRESET, Cell
from avatar.compare.result import DONE, FAILED, OOM, STOPPED, Comparison, Row
from avatar.hardware.inventory import Inventory
from avatar.planning.preset_choice import choose
from avatar.settings import SETTINGS

log = logging.getLogger(__name__)

_FULL = ("OutOfMemoryError", "out of memory")  # in error output of PyTorch and CUDA
_NOT_MEASURED = (
    "Random weights make noise: memory and speed are the real model's, there is no video to measure."
)


class TimedRuns:
    """The cells of a comparison, timed one after another; cancel() may be called from another thread."""

    def __init__(
        self,
        comparison: Comparison,
        cells: Sequence[Cell],
        *,
        base_settings: Mapping[str, Any],
        before: Mapping[str, Mapping[str, Any]],
        inventory: Inventory,
        num_blocks: int,
    ) -> None:
        """See Runs; num_blocks: generated per run. inventory: one that assumes a checkpoint to be there."""
        self._comparison, self._num_blocks = comparison, num_blocks
        self._left: list[tuple[Row, dict[str, Any]]] = []
        self._process: subprocess.Popen[str] | None = None
        self._cancelled = threading.Event()
        comparison.notes.append(_NOT_MEASURED)
        for cell in cells:
            own = {**base_settings, **cell.settings}
            settings = {name: value for name, value in own.items() if name in SETTINGS}
            choose(own[PRESET], settings, inventory)  # raises before anything runs
            made_from = _digest([own, num_blocks])
            row = Row(cell.name, cell.label, dict(cell.settings), made_from=made_from)
            comparison.rows.append(row)
            known = before.get(cell.name, {})
            if known.get("made_from") == made_from and known.get("state") in (DONE, OOM):
                row.state, row.error, row.run = known["state"], known.get("error"), known.get("run")
            else:
                self._left.append((row, own))

    def make(self, on_row: Callable[[str], None]) -> None:
        """Time the missing cells; each row is saved when its run has ended. on_row: gets the next label."""
        for row, own in self._left:
            if self._cancelled.is_set():
                row.state = STOPPED
                continue
            on_row(row.label)
            self._time(row, own)
            self._comparison.save()

    def cancel(self) -> None:
        """Stop the current run and start no more."""
        self._cancelled.set()
        process = self._process
        if process is not None:
            process.terminate()

    def _time(self, row: Row, own: Mapping[str, Any]) -> None:
        command = bench_command(own, self._num_blocks)
        log.info("%s", " ".join(command))
        # The subprocess imports the same package as this process, whatever the working directory.
        paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=env)
        out, err = self._process.communicate()
        code, self._process = self._process.returncode, None
        if self._cancelled.is_set():
            row.state = STOPPED
            return
        last = _last_json(out)
        if code == 0 and "end_to_end" in last:
            row.state, row.run = DONE, columns_of(last)
            return
        full = last.get("kind") == "DoesNotFit" or any(words in err for words in _FULL)
        row.state = OOM if full else FAILED
        row.error = " ".join(filter(None, (last.get("message"), last.get("remedy"))))
        if not row.error:
            log.info("bench ended with %d: %s", code, err[-4000:])
            row.error = (
                "Memory ran out." if full else f"The bench failed with exit code {code}; --verbose says more."
            )


def bench_command(own: Mapping[str, Any], num_blocks: int) -> list[str]:
    """The command line that times a cell."""
    command = [sys.executable, "-m", "avatar", "bench", "--random_weights", "--blocks", str(num_blocks)]
    for name, value in own.items():
        flag = "--preset" if name == PRESET else SETTINGS[name].setting.flag or f"--{name}"
        command += [flag, str(value)]
    return command


def columns_of(figures: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of bench, as columns of a run's report."""
    ends = figures["end_to_end"]
    if "ranks" in figures:
        peaks = [rank["nvml_peak_bytes"] or rank["allocated_peak_bytes"] for rank in figures["ranks"]]
    else:
        load = figures["load_memory"]["nvml_bytes"]
        peak = ends["memory"]["nvml_bytes"]
        peaks = [] if peak is None else [max(peak, load or 0)]
    return {
        "preset": figures["settings"]["name"],
        "gpus": [
            {"index": number, "peak_bytes": peak, "card_peak_bytes": peak}
            for number, peak in enumerate(peaks)
        ],
        "host_peak_bytes": figures.get("host_peak_bytes"),
        "out_of_memory": False,
        "average_fps": ends.get("settled_fps") or ends["fps"],
        "first_frame_s": ends["first_frame_s"],
        "num_frames": ends["num_frames"],
    }


def _last_json(out: str) -> dict[str, Any]:
    for line in reversed(out.splitlines()):
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict):
            return found
    return {}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
