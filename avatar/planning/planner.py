"""What a preset needs in bytes, before anything loads, and what is offloaded to the host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, lru_cache

from avatar.checkpoints.model_sizes import ModelSizes
from avatar.errors import BadInput
from avatar.geometry import SIDE_MULTIPLE, Geometry, Size
from avatar.hardware.inventory import Gpu, Inventory
from avatar.planning.estimates import (
    SPEECH_WINDOW_S,
    TORCH_RUNTIME_BYTES,
    RankShare,
    RunShape,
    gpu_items,
    host_items,
    traffic_bytes,
)
from avatar.planning.per_rank import shares_of
from avatar.planning.placement import ALL_ON_GPU, Placement
from avatar.planning.plan import GIB, DevicePlan, MemoryItem, Plan, bytes_by_stage
from avatar.planning.weight_format import settled
from avatar.preset import Preset

MIB = 2**20
TINY_BYTES = GIB // 2  # the self-test's whole model and its caches
MOST_AHEAD = 4  # offloaded layers on the GPU at a time, where memory allows
USED_SHARE = 0.96  # of a GPU's memory, where the planner may choose
STEP_BYTES = 32 * MIB  # free memory is rounded down to multiples of this, so that the choice is stable

# Measured on two cores with the shipped portraits, with the page, which takes more than the command line.
PREVIEW_RUNTIME_BYTES = 180 * MIB  # the page
PREVIEW_MODELS_BYTES = 150 * MIB  # the engine's process with its networks
PREVIEW_BYTES_PER_PX = 110  # source layers, warp grids, frames waiting for the encoder


def plan(
    preset: Preset,
    inventory: Inventory,
    placement: Placement | None = None,
    speech_s: float = SPEECH_WINDOW_S,
    sizes: ModelSizes | None = None,
    num_speakers: int = 1,
    pose: bool = False,
) -> Plan:
    """What the preset will hold on every device, compared with what is free there.

    placement: that of an existing run; None: with offload_model, the one that fits with the least traffic.
    speech_s: the length of the speech; beyond one window it makes no difference. sizes: the model's; None:
    those of the machine's checkpoint. num_speakers: faces with a voice of their own. pose: whether a pose
    video leads the run. What the cards decide of the preset is settled for the machine's first ones.
    Raises: BadInput for "auto", which must be resolved first, and for an impossible layout.
    """
    if preset.engine == "auto":
        raise BadInput(
            f"Preset {preset.name} must be resolved first.", "Resolve it to a preset of this machine first."
        )
    if preset.engine == "preview":
        return Plan(preset.name, preset.engine, (), _host(inventory, _preview_items(preset, num_speakers)))
    if preset.requires.weights == "tiny":
        items = (MemoryItem("runtime", TORCH_RUNTIME_BYTES), MemoryItem("toy_model", TINY_BYTES))
        return Plan(preset.name, preset.engine, (), _host(inventory, items))
    model = sizes or ModelSizes.of(inventory.checkpoint, preset.memory.lora)
    preset = settled(preset, inventory.gpus[: preset.num_gpus])
    run = RunShape(preset, model, largest_geometry(preset), speech_s, num_speakers, pose)
    shares = shares_of(preset, run.sizes.config)
    if placement is not None:
        return _planned(run, inventory, shares, placement)
    present = (*inventory.gpus, *[None] * len(shares))
    there = [gpu for gpu, _ in zip(present, shares, strict=False)]
    usable_bytes = tuple(_in_steps((gpu.usable_bytes or 0) if gpu else 0) for gpu in there)
    least = _planned(run, inventory, shares, _chosen(run, usable_bytes, tuple(shares)))
    if not (least.placement.offloads and least.host.shortfall_bytes):
        return least
    # Traffic matters less than that the host has room: for other parts, or for the layers as they are stored.
    smaller = _chosen(run, usable_bytes, tuple(shares), _in_steps(inventory.host.usable_bytes))
    planned = _planned(run, inventory, shares, smaller)
    return planned if planned.fits else least


def _in_steps(num_bytes: int) -> int:
    return num_bytes // STEP_BYTES * STEP_BYTES


@lru_cache(maxsize=256)
def _chosen(
    run: RunShape,
    usable_bytes: tuple[int, ...],
    shares: tuple[RankShare, ...],
    host_bytes: int | None = None,
) -> Placement:
    """The placement with the least traffic that fits with some memory to spare, or else the smallest one.

    It is chosen for the longest window of speech, so that a model, once loaded, serves every request.
    usable_bytes: those that a run could use on each share's GPU. host_bytes: likewise on the host; with None
    any host will do. Layers are kept in blocks only where nothing else fits there.
    """
    run = replace(run, speech_s=SPEECH_WINDOW_S)
    peaks = _peaks(run, shares)

    def fits(placement: Placement) -> bool:
        if host_bytes is not None:
            on_host = bytes_by_stage(host_items(run, list(shares), placement))
            if max(on_host.values()) > host_bytes:
                return False
        limits = (usable * USED_SHARE for usable in usable_bytes)
        return all(peak <= limit for peak, limit in zip(peaks(placement), limits, strict=True))

    choices = placements(run, list(shares))
    in_blocks = [] if host_bytes is None else placements(run, list(shares), in_blocks=True)
    chosen = next(filter(fits, [*choices, *in_blocks]), None)
    if chosen is None:
        return min(choices, key=lambda placement: max(peaks(placement)))
    for layers_ahead in range(chosen.layers_ahead + 1, min(MOST_AHEAD, chosen.layers_on_host - 1) + 1):
        if fits(more := replace(chosen, layers_ahead=layers_ahead)):
            chosen = more
    return chosen


@lru_cache(maxsize=64)
def _peaks(run: RunShape, shares: tuple[RankShare, ...]) -> Callable[[Placement], list[int]]:
    """What each share's GPU holds at most with a placement: the same on every machine, so remembered."""

    @cache
    def peaks(placement: Placement) -> list[int]:
        return [max(bytes_by_stage(gpu_items(run, share, placement)).values()) for share in shares]

    return peaks


def placements(run: RunShape, shares: list[RankShare], *, in_blocks: bool = False) -> list[Placement]:
    """Candidate placements, least bus traffic first; side models, which seldom move, are offloaded first.

    The speech encoder runs on the CPU only where nothing else fits. in_blocks: those that keep layers as GGUF
    blocks; none for a model in other files.
    """
    if in_blocks and run.sizes.blocks is None:
        return []
    if not run.memory.offload_model:
        return [] if in_blocks else [ALL_ON_GPU]
    sides = replace(ALL_ON_GPU, side_models_on_host=True, layers_in_blocks=in_blocks)
    most = max(len(share.layers) for share in shares)
    fewest = min(sides.layers_ahead + 1, most)  # fewer would save nothing
    choices = [
        replace(sides, layers_on_host=count, rings_on_host=rings, diagonal=diagonal)
        for rings in (False, True)
        for count in (*([] if in_blocks else [0]), *range(fewest, most + 1))
        for diagonal in ((False, True) if count else (False,))
    ]
    choices.sort(key=lambda placement: traffic_bytes(run, shares, placement))
    last = [replace(placement, speech_on_cpu=True) for placement in choices]
    return [*([] if in_blocks else [ALL_ON_GPU]), *choices, *last]


def largest_geometry(preset: Preset) -> Geometry:
    """The largest geometry that any portrait's shape gives: the size's area as one row of 64-pixel squares.

    Raises: BadInput when the area is smaller than one square.
    """
    size = Size.parse(preset.generation.size)
    squares = size.area // SIDE_MULTIPLE**2
    return Geometry.of(Size(SIDE_MULTIPLE * squares, SIDE_MULTIPLE), preset.generation.infer_frames)


def _planned(run: RunShape, inventory: Inventory, shares: list[RankShare], placement: Placement) -> Plan:
    present = (*inventory.gpus, *[None] * len(shares))
    gpus = tuple(
        _device(index, gpu, gpu_items(run, share, placement))
        for index, (gpu, share) in enumerate(zip(present, shares, strict=False))
    )
    host = _host(inventory, host_items(run, shares, placement))
    weights = run.memory.weight_dtype
    return Plan(run.preset.name, run.preset.engine, gpus, host, placement=placement, weight_dtype=weights)


def _preview_items(preset: Preset, num_faces: int) -> tuple[MemoryItem, ...]:
    return (
        MemoryItem("runtime", PREVIEW_RUNTIME_BYTES),
        MemoryItem("preview_models", PREVIEW_MODELS_BYTES),
        MemoryItem("frames", num_faces * PREVIEW_BYTES_PER_PX * Size.parse(preset.generation.size).area),
    )


def _device(index: int, gpu: Gpu | None, items: tuple[MemoryItem, ...]) -> DevicePlan:
    if gpu is None:
        return DevicePlan(f"GPU {index} (not here)", index, items, 0, 0)
    return DevicePlan(str(gpu), gpu.index, items, gpu.usable_bytes, gpu.total_bytes)


def _host(inventory: Inventory, items: tuple[MemoryItem, ...]) -> DevicePlan:
    host = inventory.host
    return DevicePlan("the host", None, items, host.usable_bytes, host.ram_total_bytes)
