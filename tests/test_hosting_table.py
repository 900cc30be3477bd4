"""docs/hosting.md: which hardware of Hugging Face Spaces runs which preset is what the planner says of it.

Source of the hardware: docs/hub/spaces-gpus.md, spaces-zerogpu.md, jobs-pricing.md of huggingface/hub-docs,
whose GB are GiB (spaces-overview.md: $MEMORY is 15Gi where the table says 15 GB). Free memory of a card: what
nvidia-smi shows of an empty one of its kind, or less.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from avatar.hardware.inventory import GIB, Inventory
from avatar.hardware.zero_gpu_card import CARDS
from avatar.planning.verdict import Verdict, judge
from avatar.preset import load_preset, load_presets

ROOT = Path(__file__).parents[1]
SYSTEM_GIB = 2  # of the RAM, what the system and the page hold


@dataclass(frozen=True)
class Hardware:
    """count cards of gib each, and the host. ram_gib: None where it is not published."""

    name: str
    count: int
    gib: float
    compute_capability: str
    ram_gib: int | None
    num_cores: int

    def machine(self) -> Inventory:
        """With the checkpoint and a driver that is new enough. Unpublished RAM is taken to be enough."""
        ram = self.ram_gib or 64
        machine = Inventory.imagine(
            self.count,
            self.gib,
            compute_capability=self.compute_capability,
            host_ram_gib=ram,
            num_cores=self.num_cores,
        )
        return replace(machine, host=replace(machine.host, ram_available_bytes=(ram - SYSTEM_GIB) * GIB))

    @property
    def cards(self) -> str:
        return f"{self.count} × {self.gib:g} GiB" if self.count else "none"

    @property
    def ram(self) -> str:
        return f"{self.ram_gib} GiB" if self.ram_gib else "not published"


L4, A10G, L40S, A100, H200 = (22.15, "8.9"), (22.15, "8.6"), (44.5, "8.9"), (79.0, "8.0"), (139.5, "9.0")
SPACES = [
    Hardware("CPU Basic", 0, 0, "0.0", 16, 2),
    Hardware("L4 ×1", 1, *L4, 30, 8),
    Hardware("L4 ×4", 4, *L4, 186, 48),
    Hardware("A10G small", 1, *A10G, 15, 4),
    Hardware("A10G large", 1, *A10G, 46, 12),
    Hardware("A10G large ×4", 4, *A10G, 184, 48),
    Hardware("L40S ×1", 1, *L40S, 62, 8),
    Hardware("L40S ×4", 4, *L40S, 382, 48),
    Hardware("L40S ×8", 8, *L40S, 1534, 192),
    Hardware("A100 large", 1, *A100, 142, 12),
    Hardware("H200", 1, *H200, 256, 23),
    *(
        Hardware(f"ZeroGPU `{card.size}`", 1, card.free_gib, card.compute_capability, None, 8)
        for card in CARDS.values()
    ),
]


def runs(preset: str, hardware: Hardware) -> Verdict:
    return judge(load_preset(preset), hardware.machine())


def row(hardware: Hardware) -> str:
    """The table's row, by the planner."""
    best = runs("auto", hardware)
    assert best.plan is not None
    peak = max((gpu.peak_bytes for gpu in best.plan.gpus), default=0)
    held = f"{peak / GIB:.1f} + {best.plan.host.peak_bytes / GIB:.1f} GiB"
    others = [
        f"`{preset.name}`"
        for preset in load_presets()
        if preset.engine == "diffusion"
        and preset.requires.weights == "live-avatar"
        and preset.name != best.preset.name
        and runs(preset.name, hardware).ok
    ]
    cells = [
        hardware.name,
        hardware.cards,
        hardware.ram,
        f"`{best.preset.name}`",
        held,
        " ".join(others) or "–",
    ]
    return f"| {' | '.join(cells)} |"


def test_the_table_of_spaces_is_what_the_planner_says():
    page = (ROOT / "docs" / "hosting.md").read_text(encoding="utf-8")
    section = page.partition("## Which Space runs what")[2].partition("\n## ")[0]
    rows = [
        line for line in section.splitlines() if re.match(r"\| (?!hardware|---)", line) and "---" not in line
    ]
    expected = [row(hardware) for hardware in SPACES]
    assert rows == expected, "\n".join(expected)


def test_too_little_host_memory_changes_a_row():
    """Else the RAM of a Space would not count: the same card, and less beside it."""
    small, large = (next(one for one in SPACES if one.name == f"A10G {size}") for size in ("small", "large"))
    assert (small.gib, runs("auto", small).preset.name) == (large.gib, "8gb")
    assert [shortfall.code for shortfall in runs("24gb", small).shortfalls] == ["host_ram"]
    assert runs("24gb", large).ok


def test_the_zero_gpu_card_is_planned_as_in_the_table(monkeypatch):
    from avatar.hardware import inventory

    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    for size, card in CARDS.items():
        monkeypatch.setenv("AVATAR_ZERO_GPU_SIZE", size)
        [gpu] = inventory.probe().gpus
        assert (gpu.free_bytes, gpu.compute_capability) == (
            round(card.free_gib * GIB),
            card.compute_capability,
        )
