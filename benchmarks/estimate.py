"""Estimate the speed on other cards from counted operations, published rates and measured utilisation.

`python -m benchmarks.estimate` prints benchmarks/ESTIMATES.md. Nothing was measured on the cards named there.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from avatar.checkpoints.transformer_config import ModelConfig
from avatar.geometry import BLOCK_FRAMES, FPS, Geometry, Size
from avatar.planning.layout import Layout, layer_costs, plain_layer_flops
from avatar.planning.planner import largest_geometry
from avatar.preset import Preset, load_preset
from benchmarks.published_cards import (
    A10G,
    A100,
    CARDS,
    H200,
    L4,
    L40S,
    RTX_3090,
    RTX_4090,
    RTX_5090,
    PublishedCard,
)

MEASURED = Path(__file__).resolve().parent
TERA, GIGA = 1e12, 1e9


# Our own int8 kernel beside cuBLAS's fp8 products at this model's sizes on an H200: 1.63 ms and 1.49 for the
# six of a layer (qkv 0.426 and 0.377, three of 5120 by 5120 0.140 and 0.130, the feed-forward's 0.406 and
# 0.359, 0.373 and 0.362).
INT8_OF_FP8 = 1.488 / 1.625


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
    int8: float
    decode_s_per_px: float

    @classmethod
    @cache
    def measured(cls) -> Utilisation:
        """Measured on an H200. Attention is assumed to reach a bf16 step's rate; the rest is fp8 products.

        Steps with int8 weights were not timed: their products alone were; see INT8_OF_FP8.
        """
        bf16, fp8 = _figures("h200-80gb"), _figures("h200-80gb-fp8")
        geometry = Geometry.of(Size(704, 384), 48)
        work = CountedWork.of(range(ModelConfig().num_layers), geometry)
        share = work.tera / (bf16["step_ms"] / 1000) / H200.bf16_tflops
        attention_s = work.attention / TERA / (share * H200.bf16_tflops)
        assert H200.fp8_tflops is not None
        products_s = fp8["step_ms"] / 1000 - attention_s
        decode_s = bf16["decode_block_ms"] / 1000
        area = geometry.width * geometry.height
        fp8_share = work.products / TERA / products_s / H200.fp8_tflops
        return cls(share, fp8_share, fp8_share * INT8_OF_FP8, decode_s / area)

    def parts_s(self, work: CountedWork, card: PublishedCard, dtype: str) -> dict[str, float]:
        """Estimated seconds for an item, by what they are spent on."""
        plain = products = self.bf16 * card.bf16_tflops
        if dtype == "int8":
            products = self.int8 * card.int8_tops
        elif dtype == "fp8" and card.fp8_tflops is not None:
            products = self.fp8 * card.fp8_tflops
        return {
            "linear layers": work.products / TERA / products,
            "attention": work.attention / TERA / plain,
        }

    def item_s(self, work: CountedWork, card: PublishedCard, dtype: str) -> float:
        """Estimated seconds for an item."""
        return sum(self.parts_s(work, card, dtype).values())

    def decode_s(self, geometry: Geometry, card: PublishedCard) -> float:
        """Seconds to decode a block, assumed inversely proportional to the card's bf16 rate."""
        slower = H200.bf16_tflops / card.bf16_tflops
        return self.decode_s_per_px * geometry.width * geometry.height * slower


@dataclass(frozen=True)
class Estimate:
    """The estimate for a preset. parts_s: every rank's seconds per block, by what they are spent on.

    dtype: of the weights. bus_s: of offloading, on one card. hop_bytes: sent from each stage to the next, per
    block.
    """

    preset: Preset
    card: PublishedCard
    dtype: str
    parts_s: tuple[dict[str, float], ...]
    bus_s: float = 0.0
    hop_bytes: int = 0

    @property
    def ranks_s(self) -> tuple[float, ...]:
        """Every rank's seconds per block."""
        return tuple(sum(parts.values()) for parts in self.parts_s)

    @property
    def block_s(self) -> float:
        """Seconds per block of the slowest part: ranks and bus work in parallel."""
        return max(*self.ranks_s, self.bus_s)

    @property
    def fps(self) -> float:
        return BLOCK_FRAMES / self.block_s

    @property
    def weakest(self) -> str:
        """What the time of the slowest part is spent on most, with its share."""
        busiest = max(self.parts_s, key=lambda parts: sum(parts.values()))
        total = sum(busiest.values())
        if self.bus_s > total:
            return "bus"
        name = max(busiest, key=lambda part: busiest[part])
        return f"{name}, {100 * busiest[name] / total:.0f} %"


def estimate(preset: Preset, card: PublishedCard, bus_bytes_per_frame: float = 0.0) -> Estimate:
    """Estimate a preset's speed. bus_bytes_per_frame: measured bytes copied to the GPU for offloading."""
    used, layout, geometry = Utilisation.measured(), Layout.of(preset), largest_geometry(preset)
    steps, asked = preset.generation.sample_steps, preset.memory.weight_dtype
    dtype = card.format if asked == "8bit" else asked
    ranks: list[dict[str, float]] = []
    for rank in range(layout.world_size):
        role = layout.role_of(rank)
        parts: dict[str, float] = {}
        works = [] if role is None else [CountedWork.of(role.layers_at(s), geometry) for s in role.steps]
        for work in works:
            for name, seconds in used.parts_s(work, card, dtype).items():
                parts[name] = parts.get(name, 0.0) + seconds
        if rank == 0:
            parts["decoding"] = used.decode_s(geometry, card)
        ranks.append(parts)
    hop = steps * geometry.block_tokens * layout.config.dim * 2 if layout.num_stages > 1 else 0
    bus_s = BLOCK_FRAMES * bus_bytes_per_frame / GIGA / card.bus_gbs
    return Estimate(preset, card, dtype, tuple(ranks), bus_s, hop)


def estimates() -> list[Estimate]:
    """The rows of the page's main table."""
    rows = [
        estimate(_as_measured(name), card, _bus_bytes(f"h200-{name}"))
        for name, cards in (("12gb", (RTX_4090, RTX_3090)), ("24gb", (RTX_4090, RTX_3090, A10G, L4)))
        for card in cards
    ]
    rows.append(estimate(load_preset("32gb"), RTX_5090, _bus_bytes("h200-auto-30")))
    rows.append(estimate(load_preset("48gb"), L40S))
    rows += [estimate(_with_weights("80gb", dtype), A100) for dtype in ("8bit", "bf16")]
    rows += [estimate(load_preset("2x24gb"), card) for card in (RTX_4090, RTX_3090)]
    rows += [
        estimate(_with_weights("4x4090-low-vram", dtype), card)
        for card in (RTX_4090, RTX_3090)
        for dtype in ("bf16", "8bit")
    ]
    return rows


def in_other_format(row: Estimate) -> Estimate | None:
    """The same with weights in fp8 where they are in int8, and in int8 where they are in fp8."""
    other = {"int8": "fp8", "fp8": "int8"}.get(row.dtype)
    if other is None:
        return None
    bus_bytes = row.bus_s * GIGA * row.card.bus_gbs / BLOCK_FRAMES
    return estimate(row.preset.with_settings(weight_dtype=other), row.card, bus_bytes)


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


def _bus_bytes(name: str) -> float:
    """Bytes that a measured run copied to the GPU for a frame."""
    return float(_figures(name)["bus"]["to_device_bytes_per_frame"])


def _with_weights(name: str, weight_dtype: str) -> Preset:
    """A preset with another format of weights, which its name then says."""
    preset = load_preset(name)
    if preset.memory.weight_dtype == weight_dtype:
        return preset
    changed = preset.with_settings(weight_dtype=weight_dtype)
    return replace(changed, name=f"{name} --weight_dtype {weight_dtype}")


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
        int8_share=100 * used.int8,
        int8_of_fp8=100 * INT8_OF_FP8,
        a3090=_by_hand(RTX_3090),
        a4090=_by_hand(RTX_4090),
        cards="\n".join(map(_card_row, CARDS)),
        columns=_line(COLUMNS) + "\n" + "|---" * len(COLUMNS) + "|",
        rows="\n".join(map(_row, estimates())),
        checks="\n".join(f"| {what} | {guess:.1f} | {fps:.1f} |" for what, guess, fps in checks()),
        real_time=FPS,
    )


PAGE = """# Estimates for cards that were not measured

**Everything here is an estimate.** None of these cards but the H200 has run this code: none was at hand. The
page is printed by `python -m benchmarks.estimate` from the counted work, the cards' published rates, and how
much of its own published rate one H200 reached in the runs beside this page.

## Arithmetic

- A step of a block at 704\\*384, 48 frames, with a full ring: {products:.1f} TFLOP of linear layers and
  {attention:.1f} of attention, {total:.1f} together (two operations for a multiplication and its addition;
  40 layers, audio injections in 12 of them).
- An H200 took {bf16_ms:.1f} ms for it in bf16: {bf16_share:.0f} % of its published rate. With fp8 weights it
  took {fp8_ms:.1f} ms; attention stays in bf16, so its linear layers reached {fp8_share:.0f} % of the fp8
  rate, all that lies between products included.
- int8: the kernel's products alone reach {int8_of_fp8:.0f} % of the fp8 products' speed on an H200, whose
  rates in both are equal; so linear layers are taken to reach {int8_share:.0f} % of the int8 rate. **This is
  the weakest link**: on the cards that use int8 the kernel runs on other tensor-core instructions than an
  H200's, and has run on none of them. The second weakest: their memory is slower beside their arithmetic than
  an H200's, which norms, rotation and quantising feel.
- Other cards are taken to reach the same shares. A block's decoding ({decode_ms:.0f} ms on the H200 at this
  size) is taken to follow the bf16 rate and the picture's area.
- Seconds a block: steps × (operations ÷ rate), of the busiest GPU; decoding adds to the first one, unless it
  has a GPU of its own. Weights and rings that wait on the host come over the bus meanwhile: bytes as
  measured; the slower of both counts. Without fp8 in hardware the product is bf16's.
- By hand, a step at 704\\*384. {a3090}
  {a4090}
- 8-bit attention, which cards since Ada can do, is not counted.
- Stages send tokens on while they work: through the host, as these cards must, at some 12 GB/s, the last
  column takes a hundredth of a second, which delays and does not slow.
- Not counted: a host that is slower than its GPU, heat, a bus with fewer lanes, a desktop on the same card.

| card | bf16 TFLOPS | fp8 TFLOPS | int8 TOPS | 8 bits | bus, in practice | source of the rates |
|---|---|---|---|---|---|---|
{cards}

Dense rates; those of fp8 and bf16 with float32 accumulation. The bus is a rule of thumb for PCIe 4.0 x16, for
the RTX 5090 for PCIe 5.0, and for the H200 what was seen; none is a published rate.

## Estimated speed

{real_time} frames a second is real time. "Most time" is what the slowest part spends most of its time on.

{columns}
{rows}

## The same arithmetic where it can be checked

H200s, with runs that the shares above were not taken from: where layers come from the host, the truth is some
way below the estimate.

| run | estimated fps | measured fps |
|---|---|---|
{checks}
"""


COLUMNS = (
    "preset", "cards", "weights", "each GPU, s a block", "bus, s a block", "most time", "estimated fps",
    "fps in the other 8 bits", "sent a block, each boundary",
)  # fmt: skip


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _by_hand(card: PublishedCard) -> str:
    """The seconds of one step at 704*384 on a card in int8, with the divisions."""
    used, work = Utilisation.measured(), CountedWork.of(range(40), Geometry.of(Size(704, 384), 48))
    parts = used.parts_s(work, card, "int8")
    return (
        f"{card.name}: {work.products / TERA:.1f} ÷ ({used.int8:.2f} × {card.int8_tops:.0f}) = "
        f"{parts['linear layers']:.2f} s of linear layers in int8, {work.attention / TERA:.1f} ÷ "
        f"({used.bf16:.2f} × {card.bf16_tflops:.0f}) = {parts['attention']:.2f} s of attention."
    )


def _card_row(card: PublishedCard) -> str:
    fp8 = "–" if card.fp8_tflops is None else f"{card.fp8_tflops:.1f}"
    rates = f"{card.bf16_tflops:.1f} | {fp8} | {card.int8_tops:.1f}"
    return f"| {card.name} | {rates} | {card.format} | {card.bus_gbs:.0f} GB/s | {card.source} |"


def _row(row: Estimate) -> str:
    ranks = " / ".join(f"{seconds:.2f}" for seconds in row.ranks_s)
    bus = f"{row.bus_s:.2f}" if row.bus_s else "–"
    hop = f"{row.hop_bytes / 1e6:.0f} MB" if row.hop_bytes else "–"
    cards, other = f"{len(row.ranks_s)} × {row.card.name}", in_other_format(row)
    fps = (f"{row.fps:.1f}", "–" if other is None else f"{other.fps:.1f}")
    return _line([f"`{row.preset.name}`", cards, row.dtype, ranks, bus, row.weakest, *fps, hop])


def _figures(name: str) -> dict[str, Any]:
    """The "parts" section of a benchmark's JSON."""
    figures: dict[str, Any] = json.loads((MEASURED / f"{name}.json").read_text(encoding="utf-8"))["parts"]
    return figures


if __name__ == "__main__":
    sys.stdout.write(page())
