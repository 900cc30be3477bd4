"""How much of a device this process may take, and what of a run waits on the host so that it fits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from avatar.planning.estimates import CUDA_CONTEXT_BYTES, SPEECH_WINDOW_S
from avatar.planning.inventory import Gpu, own_processes, probe
from avatar.planning.nvml import open_driver
from avatar.planning.placement import ALL_ON_GPU, Placement
from avatar.planning.plan import Plan
from avatar.planning.planner import plan
from avatar.preset import Preset

SPARE_LAYERS = 3  # so many more on the host than needed are no reason to load the model again


def is_card(uuid: str | None, device: torch.device) -> bool:
    """Whether NVML's UUID is a CUDA device's, which knows it without the kind in front: "GPU-", "MIG-"."""
    return (uuid or "").partition("-")[2] == str(torch.cuda.get_device_properties(device).uuid)


def number_of(device: torch.device) -> int | None:
    """A CUDA device's number by NVML's count, which CUDA may not share; None where NVML does not know it."""
    driver = open_driver()
    number = next((card.index for card in driver.cards if is_card(card.uuid(), device)), None)
    driver.close()
    return number


def place_of(device: torch.device) -> str:
    """A device as the gauges name it: "GPU 2", by NVML's count, or "CPU"."""
    if device.type != "cuda":
        return "CPU"
    number = number_of(device)
    return f"GPU {device.index if number is None else number}"


def room_bytes(device: torch.device, share: float = 1.0) -> int:
    """What is free for us on a CUDA device, or a share of that, what we hold and the context counted in.

    A limit of the process's share (torch.cuda.set_per_process_memory_fraction) counts as the card's end.
    """
    free, total = torch.cuda.mem_get_info(device)
    limit = round(total * torch.cuda.get_per_process_memory_fraction(device))
    room = min(free + torch.cuda.memory_reserved(device), limit)
    return round(share * room) + CUDA_CONTEXT_BYTES


def plan_here(
    preset: Preset,
    device: torch.device,
    weights: Path | None = None,
    placement: Placement | None = None,
    speech_s: float = SPEECH_WINDOW_S,
    share: float = 1.0,
) -> Plan:
    """The plan of a run in this process, on the device that it works on, or on a share of its room.

    weights: the checkpoint named.
    """
    inventory = probe(weights, our_pids=own_processes())
    if device.type == "cuda":
        facts, room = torch.cuda.get_device_properties(device), room_bytes(device, share)
        known = next((gpu for gpu in inventory.gpus if is_card(gpu.uuid, device)), None)
        index, uuid = (device.index or 0, None) if known is None else (known.index, known.uuid)
        used = facts.total_memory - room
        gpu = Gpu(index, facts.name, uuid, facts.total_memory, room, used, f"{facts.major}.{facts.minor}")
        inventory = replace(inventory, gpus=(gpu,))
    return plan(preset, inventory, placement, speech_s)


def placement_on(
    device: torch.device,
    preset: Preset,
    held: Placement | None = None,
    weights: Path | None = None,
    share: float = 1.0,
) -> Placement:
    """What of a run waits on the host; as it is held already where that serves as well.

    held: of the models that are loaded with the preset's [memory]. Loading anew costs more than some layers
    that wait in vain. share: of the device's room that may be counted on.
    """
    if device.type != "cuda" or not preset.memory.offload_model:
        return ALL_ON_GPU
    wanted = plan_here(preset, device, weights, share=share).placement
    if held is None or held.side_models_on_host != wanted.side_models_on_host:
        return wanted
    if wanted.speech_on_cpu and not held.speech_on_cpu:
        return wanted
    if not 0 <= held.layers_on_host - wanted.layers_on_host <= SPARE_LAYERS:
        return wanted
    return replace(held, rings_on_host=wanted.rings_on_host, diagonal=wanted.diagonal)
