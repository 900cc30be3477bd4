"""The device budget: how much memory this process may use, and what to offload so that a run fits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from avatar.checkpoints.model_sizes import ModelSizes
from avatar.hardware.inventory import Gpu, Inventory, own_processes, probe
from avatar.hardware.nvml import open_driver
from avatar.planning.estimates import CUDA_CONTEXT_BYTES, SPEECH_WINDOW_S
from avatar.planning.placement import ALL_ON_GPU, Placement
from avatar.planning.plan import Plan
from avatar.planning.planner import plan
from avatar.preset import Preset

SPARE_LAYERS = 3  # up to this many more offloaded layers than needed do not justify reloading the model


def is_card(uuid: str | None, device: torch.device) -> bool:
    """Whether NVML's UUID is a CUDA device's; CUDA's lacks NVML's prefix, "GPU-" or "MIG-"."""
    return (uuid or "").partition("-")[2] == str(torch.cuda.get_device_properties(device).uuid)


def number_of(device: torch.device) -> int | None:
    """A CUDA device's NVML index, which may differ from CUDA's; None if NVML does not know the device."""
    driver = open_driver()
    number = next((card.index for card in driver.cards if is_card(card.uuid(), device)), None)
    driver.close()
    return number


def place_of(device: torch.device) -> str:
    """A device's name in the memory gauges: "GPU 2", with the NVML index, or "CPU"."""
    if device.type != "cuda":
        return "CPU"
    number = number_of(device)
    return f"GPU {device.index if number is None else number}"


def usable_bytes(device: torch.device, share: float = 1.0) -> int:
    """Bytes that we may use on a CUDA device, times share, including what we hold and the CUDA context.

    A per-process limit (torch.cuda.set_per_process_memory_fraction) counts as the card's size.
    """
    free, total = torch.cuda.mem_get_info(device)
    limit = round(total * torch.cuda.get_per_process_memory_fraction(device))
    usable = min(free + torch.cuda.memory_reserved(device), limit)
    return round(share * usable) + CUDA_CONTEXT_BYTES


def inventory_here(device: torch.device, weights: Path | None = None, share: float = 1.0) -> Inventory:
    """This machine's inventory, whose only GPU is this process's device, with a share of its free memory.

    weights: the checkpoint's folder, if given by the user.
    """
    inventory = probe(weights, our_pids=own_processes())
    if device.type != "cuda":
        return inventory
    facts, usable = torch.cuda.get_device_properties(device), usable_bytes(device, share)
    known = next((gpu for gpu in inventory.gpus if is_card(gpu.uuid, device)), None)
    index, uuid = (device.index or 0, None) if known is None else (known.index, known.uuid)
    used = facts.total_memory - usable
    gpu = Gpu(index, facts.name, uuid, facts.total_memory, usable, used, f"{facts.major}.{facts.minor}")
    return replace(inventory, gpus=(gpu,))


def plan_here(
    preset: Preset,
    device: torch.device,
    *,
    weights: Path | None = None,
    held: Placement | None = None,
    fixed: Placement | None = None,
    speech_s: float = SPEECH_WINDOW_S,
    share: float = 1.0,
    sizes: ModelSizes | None = None,
    num_speakers: int = 1,
    pose: bool = False,
) -> Plan:
    """Plan a run in this process, keeping the placement of models that are already loaded if it will do.

    Reloading costs more than a few needlessly offloaded layers. weights: the checkpoint's folder, if given.
    held: the placement of the loaded models. fixed: a placement to use without choice. speech_s: length of
    the speech. share: fraction of the device's free memory that may be used. sizes: the model's, None for the
    checkpoint's. num_speakers, pose: see plan.
    """
    inventory = inventory_here(device, weights, share)
    if fixed is None and (device.type != "cuda" or not preset.memory.offload_model):
        fixed = ALL_ON_GPU
    if fixed is not None:
        return plan(preset, inventory, fixed, speech_s, sizes, num_speakers, pose)
    # For a speech of any length: the next may be longer.
    planned = plan(preset, inventory, sizes=sizes, num_speakers=num_speakers)
    placement = planned.placement if held is None else _kept(held, planned.placement)
    if placement == planned.placement and speech_s >= SPEECH_WINDOW_S and not pose:
        return planned
    kept = plan(preset, inventory, placement, speech_s, sizes, num_speakers, pose)
    if kept.fits or not planned.fits:
        return kept
    return plan(preset, inventory, planned.placement, speech_s, sizes, num_speakers, pose)


def _kept(held: Placement, wanted: Placement) -> Placement:
    """The held placement if it can be used instead of the wanted one, else the wanted one."""
    if held.side_models_on_host != wanted.side_models_on_host:
        return wanted
    if wanted.speech_on_cpu and not held.speech_on_cpu:
        return wanted
    if not 0 <= held.layers_on_host - wanted.layers_on_host <= SPARE_LAYERS:
        return wanted
    if wanted.layers_in_blocks and not held.layers_in_blocks:
        return wanted  # the host has no room any more
    return replace(held, rings_on_host=wanted.rings_on_host, diagonal=wanted.diagonal)
