"""The planner against every peak that was measured: each JSON of the folder benchmarks, but for `earlier`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from avatar.bench.rank_options import first_layers
from avatar.checkpoints.model_sizes import ModelSizes, Weights
from avatar.geometry import BLOCK_FRAMES, FPS
from avatar.planning.estimates import RankShare, RunShape, gpu_items, host_items
from avatar.planning.per_rank import shares_of
from avatar.planning.placement import ALL_ON_GPU, Placement
from avatar.planning.plan import ALWAYS, DevicePlan, RunPhase
from avatar.planning.planner import largest_geometry
from avatar.preset import Preset, load_preset

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MODEL = ModelSizes.published()
FP32_BYTES = 8e8  # with its audio encoder in fp32 what is not in layers takes 0.89 GB, all in bf16 0.70
NO_PEAKS = {"h200-attention8", "h200-float8", "h200-live", "h200-products8", "h200x2-live"}


@dataclass(frozen=True)
class Measured:
    """A measured run. peaks: of each card, host_peak: of the host, None where it was not measured.

    layers: of each rank, where it reported others than those that it would have today.
    """

    preset: Preset
    speech_s: float
    peaks: tuple[int, ...]
    placement: Placement = ALL_ON_GPU
    sizes: ModelSizes = MODEL
    layers: tuple[range | None, ...] = ()
    host_peak: int | None = None

    @property
    def run(self) -> RunShape:
        return RunShape(self.preset, self.sizes, largest_geometry(self.preset), self.speech_s)

    @property
    def shares(self) -> list[RankShare]:
        """Until stages shared layers, they were cut elsewhere."""
        found = shares_of(self.preset, self.sizes.config)
        for rank, layers in enumerate(self.layers):
            share = found[rank]
            if layers is not None and layers != share.layers:
                found[rank] = replace(share, layers=layers, num_rings=len(layers) * share.num_steps)
        return found

    @property
    def cards(self) -> list[DevicePlan]:
        items = [gpu_items(self.run, share, self.placement) for share in self.shares]
        return [DevicePlan("", 0, one, 0, 0) for one in items]

    @property
    def host(self) -> DevicePlan:
        return DevicePlan("", None, host_items(self.run, self.shares, self.placement), 0, 0)


def measured_runs() -> dict[str, Measured]:
    """By file, and for a comparison by what was varied."""
    found = {}
    for path in sorted(BENCHMARKS.glob("*.json")):
        data = json.loads(path.read_text())
        if "end_to_end" in data:
            found[path.stem] = benched(data)
        for row in data.get("videos", ()):
            found[f"{path.stem} {row['name']}"] = compared(row)
    return found


def benched(data: Mapping[str, Any]) -> Measured:
    """A run of `bench`: on one card, or on several by rank."""
    settings = data["settings"]
    known = {name: settings[name] for name in load_preset("80gb").as_dict() if name in settings}
    speech_s = settings["num_blocks"] * BLOCK_FRAMES / FPS
    num_layers = data.get("layers", {}).get("made", MODEL.config.num_layers)
    sizes = as_held(data.get("plan"), ModelSizes.published(first_layers(MODEL.config, num_layers)))
    if "ranks" in data:
        known["memory"] = known["memory"] | {"text_encoder": "cpu"}  # random weights have none
        return Measured(
            Preset.from_dict(known),
            speech_s,
            tuple(rank["nvml_peak_bytes"] for rank in data["ranks"]),
            sizes=sizes,
            layers=tuple(layers_of(rank["role"]) for rank in data["ranks"]),
        )
    placed = data.get("placement") or (data.get("plan") or {}).get("placement") or {}
    return Measured(
        Preset.from_dict(known),
        speech_s,
        (max(data[part]["memory"]["nvml_bytes"] for part in ("parts", "end_to_end")),),
        Placement(**placed),
        sizes,
        # A checkpoint's mapped pages count as this process's, though the system can take them back.
        host_peak=data.get("host_peak_bytes") if data["random_weights"] else None,
    )


def compared(row: Mapping[str, Any]) -> Measured:
    """A row of `compare --random_weights`: a preset with some settings, on one card."""
    run = row["run"]
    return Measured(
        load_preset(run["preset"]).with_settings(**row["settings"]),
        run["num_frames"] / FPS,
        tuple(gpu["peak_bytes"] for gpu in run["gpus"]),
        host_peak=run["host_peak_bytes"],
    )


def as_held(planned: Mapping[str, Any] | None, sizes: ModelSizes) -> ModelSizes:
    """The sizes of that day: by its own plan, the audio encoder was held in fp32, or as all else is."""
    items = () if planned is None else planned["gpus"][0]["items"]
    if any(item["name"] == "embeddings" and item["num_bytes"] > FP32_BYTES for item in items):
        return sizes
    return replace(sizes, others=Weights(others=sizes.others.others + sizes.others.wide))


def layers_of(role: str) -> range | None:
    """The layers that a rank's role names: "layers 3–17, steps 0–3"."""
    found = re.match(r"layers? (\d+)(?:–(\d+))?", role)
    return range(int(found[1]), int(found[2] or found[1]) + 1) if found else None


RUNS = measured_runs()


@pytest.mark.parametrize("name", RUNS)
def test_within_five_percent_of_every_measured_peak(name: str) -> None:
    measured = RUNS[name]
    assert [card.peak_bytes for card in measured.cards] == pytest.approx(measured.peaks, rel=0.05)


@pytest.mark.parametrize("name", [name for name, run in RUNS.items() if run.host_peak is not None])
def test_the_host_takes_what_waits_there_and_no_more(name: str) -> None:
    """Where nothing waits there, the libraries alone do, for which the plan has some to spare."""
    measured = RUNS[name]
    running = max(measured.host.stage_bytes(stage) for stage in ALWAYS if stage != RunPhase.ENCODE)
    assert measured.host_peak is not None
    assert measured.host_peak <= measured.host.peak_bytes
    if measured.placement.offloads:
        assert running == pytest.approx(measured.host_peak, rel=0.05)


def test_every_file_with_a_peak_in_it_is_planned() -> None:
    """Whatever a file calls it; none is left out by its name or its form."""
    holding = {
        path.stem for path in BENCHMARKS.glob("*.json") if any(peaks_in(json.loads(path.read_text())))
    }
    assert {name.split()[0] for name in RUNS} == holding
    assert {path.stem for path in BENCHMARKS.glob("*.json")} - holding == NO_PEAKS
    assert all(run.peaks and all(run.peaks) for run in RUNS.values())


def peaks_in(data: object) -> Iterator[str]:
    """Names of the values that were measured on a card."""
    if isinstance(data, Mapping):
        for name, value in data.items():
            if name in ("nvml_bytes", "nvml_peak_bytes") or (name == "peak_bytes" and "items" not in data):
                yield name
            yield from peaks_in(value)
    elif isinstance(data, Sequence) and not isinstance(data, str):
        for value in data:
            yield from peaks_in(value)
