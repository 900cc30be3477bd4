"""Estimate the speed on other cards from counted operations, published rates and measured utilisation.

`python -m benchmarks.estimate` prints benchmarks/ESTIMATES.md. Nothing was measured on the cards named there.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from avatar.checkpoints.transformer_config import ModelConfig
from avatar.geometry import BLOCK_FRAMES, FPS, Geometry, Size
from avatar.planning.layout import Layout, layer_costs, plain_layer_flops
from avatar.planning.planner import largest_geometry
from avatar.preset import Preset, load_preset

MEASURED = Path(__file__).resolve().parent
TERA, GIGA = 1e12, 1e9


@dataclass(frozen=True)
class PublishedCard:
    """A card's published dense rates with float32 accumulation. bus_gbs: host to GPU, as seen in practice.

    fp8_tflops: None for a card without fp8, which then computes in bf16.
    """

    name: str
    bf16_tflops: float
    fp8_tflops: float | None
    bus_gbs: float
    source: str


H200 = PublishedCard(
    "H200", 989.4, 1978.9, 50.0, "NVIDIA, H200 Tensor Core GPU data sheet: half of the sparse rates"
)
RTX_4090 = PublishedCard(
    "RTX 4090", 165.2, 330.3, 25.0, "NVIDIA, Ada GPU Architecture white paper: FP32 accumulate"
)
RTX_3090 = PublishedCard(
    "RTX 3090",
    71.0,
    None,
    25.0,
    "NVIDIA, Ampere GA102 GPU Architecture white paper, appendix A: FP32 accumulate",
)


@dataclass(frozen=True)
class CountedWork:
    """Floating-point operations of some layers for one item: a block at one step with a full ring."""

    products: float  # linear layers
    attention: float

    @classmethod
    def of(cls, layers: range, geometry: Geometry, config: ModelConfig | None = None) -> CountedWork:
        """Count the work of layers. Omits embeddings, head and norms, less than a thousandth of it."""
        config = config or ModelConfig()
        products, attention = plain_layer_flops(config, geometry)
        costs = layer_costs(config, geometry)
        audio = sum(costs[layer] - 1 for layer in layers) * (products + attention)
        tokens = geometry.block_tokens
        return cls(tokens * (len(layers) * products + audio), tokens * len(layers) * attention)

    @property
    def tera(self) -> float:
        return (self.products + self.attention) / TERA


@dataclass(frozen=True)
class Utilisation:
    """Fractions of the published rates reached. decode_s_per_px: to decode a block on the H200, per pixel."""

    bf16: float
    fp8: float
    decode_s_per_px: float

    @classmethod
    @cache
    def measured(cls) -> Utilisation:
        """Measured on an H200. Attention is assumed to reach a bf16 step's rate; the rest is fp8 products."""
        bf16, fp8 = _figures("h200-80gb"), _figures("h200-80gb-fp8")
        geometry = Geometry.of(Size(704, 384), 48)
        work = CountedWork.of(range(ModelConfig().num_layers), geometry)
        share = work.tera / (bf16["step_ms"] / 1000) / H200.bf16_tflops
        attention_s = work.attention / TERA / (share * H200.bf16_tflops)
        assert H200.fp8_tflops is not None
        products_s = fp8["step_ms"] / 1000 - attention_s
        decode_s = bf16["decode_block_ms"] / 1000
        area = geometry.width * geometry.height
        return cls(share, work.products / TERA / products_s / H200.fp8_tflops, decode_s / area)

    def item_s(self, work: CountedWork, card: PublishedCard, dtype: str) -> float:
        """Estimated seconds for an item."""
        plain = self.bf16 * card.bf16_tflops
        if dtype != "fp8" or card.fp8_tflops is None:
            return work.tera / plain
        return work.attention / TERA / plain + work.products / TERA / (self.fp8 * card.fp8_tflops)

    def decode_s(self, geometry: Geometry, card: PublishedCard) -> float:
        """Seconds to decode a block, assumed inversely proportional to the card's bf16 rate."""
        slower = H200.bf16_tflops / card.bf16_tflops
        return self.decode_s_per_px * geometry.width * geometry.height * slower


@dataclass(frozen=True)
class Estimate:
    """The estimate for a preset. ranks_s: every rank's seconds per block. bus_s: of offloading, on one card.

    hop_bytes: sent from each stage to the next, per block.
    """

    preset: Preset
    card: PublishedCard
    num_cards: int
    ranks_s: tuple[float, ...]
    bus_s: float = 0.0
    hop_bytes: int = 0

    @property
    def block_s(self) -> float:
        """Seconds per block of the slowest part: ranks and bus work in parallel."""
        return max(*self.ranks_s, self.bus_s)

    @property
    def fps(self) -> float:
        return BLOCK_FRAMES / self.block_s


def estimate(preset: Preset, card: PublishedCard, bus_bytes_per_frame: float = 0.0) -> Estimate:
    """Estimate a preset's speed. bus_bytes_per_frame: measured bytes copied to the GPU for offloading."""
    used, layout, geometry = Utilisation.measured(), Layout.of(preset), largest_geometry(preset)
    steps, dtype = preset.generation.sample_steps, preset.memory.weight_dtype
    ranks = []
    for rank in range(layout.world_size):
        role, seconds = layout.role_of(rank), 0.0
        if role is not None:
            items = [CountedWork.of(role.layers_at(step), geometry) for step in role.steps]
            seconds = sum(used.item_s(work, card, dtype) for work in items)
        ranks.append(seconds + (used.decode_s(geometry, card) if rank == 0 else 0.0))
    hop = steps * geometry.block_tokens * layout.config.dim * 2 if layout.num_stages > 1 else 0
    bus_s = BLOCK_FRAMES * bus_bytes_per_frame / GIGA / card.bus_gbs
    return Estimate(preset, card, layout.world_size, tuple(ranks), bus_s, hop)


def estimates() -> list[Estimate]:
    """The rows of the page's main table."""
    rows = []
    for name in ("12gb", "24gb"):
        bus = _figures(f"h200-{name}")["bus"]["to_device_bytes_per_frame"]
        rows += [estimate(_as_measured(name), card, bus) for card in (RTX_4090, RTX_3090)]
    rows.append(estimate(load_preset("2x24gb"), RTX_4090))
    rows += [estimate(load_preset("4x4090-low-vram"), card) for card in (RTX_4090, RTX_3090)]
    return rows


def checks() -> list[tuple[str, float, float]]:
    """H200 runs not used for the utilisation: description, estimated fps and measured fps."""
    rows = []
    for name in ("24gb", "12gb"):
        measured = json.loads((MEASURED / f"h200-{name}.json").read_text())
        bus = measured["parts"]["bus"]["to_device_bytes_per_frame"]
        fps = measured["end_to_end"]["fps"]
        preset = _as_measured(name)
        rows.append((f"`{preset.name}` on an H200, offloading", estimate(preset, H200, bus).fps, fps))
    two = json.loads((MEASURED / "h200x2-2x24gb-no-p2p.json").read_text())["end_to_end"]["settled_fps"]
    rows.append(("`2x24gb` on two H200s, once settled", estimate(load_preset("2x24gb"), H200).fps, two))
    return rows


def _as_measured(name: str) -> Preset:
    """A preset at the size of its benchmark; if the preset's size has changed since, its name says so."""
    size = json.loads((MEASURED / f"h200-{name}.json").read_text())["settings"]["generation"]["size"]
    preset = load_preset(name)
    if preset.generation.size == size:
        return preset
    return replace(preset.with_settings(size=size), name=f"{name} --size {size}")


def page() -> str:
    """The text of benchmarks/ESTIMATES.md."""
    used = Utilisation.measured()
    work = CountedWork.of(range(40), Geometry.of(Size(704, 384), 48))
    return PAGE.format(
        products=work.products / TERA,
        attention=work.attention / TERA,
        total=work.tera,
        bf16_ms=_figures("h200-80gb")["step_ms"],
        fp8_ms=_figures("h200-80gb-fp8")["step_ms"],
        decode_ms=_figures("h200-80gb")["decode_block_ms"],
        bf16_share=100 * used.bf16,
        fp8_share=100 * used.fp8,
        cards="\n".join(_card_row(card) for card in (H200, RTX_4090, RTX_3090)),
        rows="\n".join(map(_row, estimates())),
        checks="\n".join(f"| {what} | {guess:.1f} | {fps:.1f} |" for what, guess, fps in checks()),
        real_time=FPS,
    )


PAGE = """# Estimates for cards that were not measured

**Everything here is an estimate.** No RTX 4090 or 3090 has run this code: none was at hand. The page is
printed by `python -m benchmarks.estimate` from the counted work, the cards' published rates, and how much
of its own published rate one H200 reached in the runs beside this page.

## Arithmetic

- A step of a block at 704\\*384, 48 frames, with a full ring: {products:.1f} TFLOP of linear layers and
  {attention:.1f} of attention, {total:.1f} together (two operations for a multiplication and its addition;
  40 layers, audio injections in 12 of them).
- An H200 took {bf16_ms:.1f} ms for it in bf16: {bf16_share:.0f} % of its published rate. With fp8 weights it
  took {fp8_ms:.1f} ms; attention stays in bf16, so its linear layers reached {fp8_share:.0f} % of the fp8
  rate.
- Other cards are taken to reach the same shares. A block's decoding ({decode_ms:.0f} ms on the H200 at this
  size) is taken to follow the bf16 rate and the picture's area.
- Seconds a block: steps × (operations ÷ rate), of the busiest GPU; decoding adds to the first one, unless it
  has a GPU of its own. Weights and rings that wait on the host come over the bus meanwhile: bytes as
  measured, at 25 GB/s; the slower of both counts. Without fp8 in hardware the product is bf16's.
- Stages send tokens on while they work: through the host, as these cards must, at some 12 GB/s, the last
  column takes a hundredth of a second, which delays and does not slow.
- Not counted: a host that is slower than its GPU, heat, a bus with fewer lanes, a desktop on the same card.

| card | bf16 TFLOPS | fp8 TFLOPS | bus, in practice | source of the rates |
|---|---|---|---|---|
{cards}

The bus is a rule of thumb for PCIe 4.0 x16, and for the H200 what was seen; neither is a published rate.

## Estimated speed

{real_time} frames a second is real time.

| preset | cards | each GPU, s a block | bus, s a block | estimated fps | sent a block, each boundary |
|---|---|---|---|---|---|
{rows}

## The same arithmetic where it can be checked

H200s, with runs that the shares above were not taken from: where layers come from the host, the truth is some
way below the estimate.

| run | estimated fps | measured fps |
|---|---|---|
{checks}
"""


def _card_row(card: PublishedCard) -> str:
    fp8 = "–" if card.fp8_tflops is None else f"{card.fp8_tflops:.1f}"
    return f"| {card.name} | {card.bf16_tflops:.1f} | {fp8} | {card.bus_gbs:.0f} GB/s | {card.source} |"


def _row(row: Estimate) -> str:
    ranks = " / ".join(f"{seconds:.2f}" for seconds in row.ranks_s)
    bus = f"{row.bus_s:.2f}" if row.bus_s else "–"
    hop = f"{row.hop_bytes / 1e6:.0f} MB" if row.hop_bytes else "–"
    cards = f"{row.num_cards} × {row.card.name}"
    return f"| `{row.preset.name}` | {cards} | {ranks} | {bus} | {row.fps:.1f} | {hop} |"


def _figures(name: str) -> dict[str, Any]:
    """The "parts" section of a benchmark's JSON."""
    figures: dict[str, Any] = json.loads((MEASURED / f"{name}.json").read_text(encoding="utf-8"))["parts"]
    return figures


if __name__ == "__main__":
    sys.stdout.write(page())
