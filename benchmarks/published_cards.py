"""Cards and their makers' published rates, for estimates."""

from __future__ import annotations

from dataclasses import dataclass

from avatar.hardware.inventory import Gpu
from avatar.planning.weight_format import faster_format


@dataclass(frozen=True)
class PublishedCard:
    """A card's published dense rates, floating-point ones with float32 accumulation.

    fp8_tflops: None for a card without fp8, which then computes in bf16. bus_gbs: host to GPU, as seen in
    practice.
    """

    name: str
    compute_capability: str
    bf16_tflops: float
    fp8_tflops: float | None
    int8_tops: float
    bus_gbs: float
    source: str

    @property
    def format(self) -> str:
        """The format of weights in 8 bits that it multiplies faster."""
        return faster_format((Gpu(0, self.name, None, None, None, None, self.compute_capability),))


ADA, BLACKWELL = "NVIDIA, Ada GPU Architecture white paper", "NVIDIA, RTX Blackwell Architecture white paper"
H200 = PublishedCard(
    "H200", "9.0", 989.4, 1978.9, 1978.9, 50.0, "NVIDIA, H200 data sheet: half of the sparse rates"
)
RTX_3090 = PublishedCard(
    "GeForce RTX 3090", "8.6", 71.0, None, 284.0, 25.0, "NVIDIA, Ampere GA102 white paper, appendix A"
)
RTX_4090 = PublishedCard("GeForce RTX 4090", "8.9", 165.2, 330.3, 660.6, 25.0, ADA)
RTX_5090 = PublishedCard("GeForce RTX 5090", "12.0", 209.5, 419.0, 838.0, 50.0, BLACKWELL)
A100 = PublishedCard("A100", "8.0", 312.0, None, 624.0, 25.0, "NVIDIA, A100 data sheet")
A10G = PublishedCard("A10G", "8.6", 70.0, None, 140.0, 25.0, "NVIDIA, A10G data sheet")
L40S = PublishedCard("L40S", "8.9", 362.0, 733.0, 733.0, 25.0, "NVIDIA, L40S data sheet")
L4 = PublishedCard("L4", "8.9", 121.0, 242.5, 242.5, 25.0, "NVIDIA, L4 data sheet: half of the sparse rates")
CARDS = (H200, RTX_3090, RTX_4090, RTX_5090, A100, A10G, L40S, L4)
