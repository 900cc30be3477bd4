"""What a machine lacks for a preset, each item with its remedy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from avatar.checkpoints.locations import DOWNLOAD_COMMAND, TINY_DECODER, TINY_DECODER_REMEDY
from avatar.errors import BadInput
from avatar.hardware.inventory import Gpu, Inventory
from avatar.planning.layout import Layout, unsupported
from avatar.planning.plan import GIB, DevicePlan, Plan
from avatar.preset import Preset, capability

SYSTEMS = {"darwin": "macOS", "windows": "Windows"}  # only the preview runs on these
BLACKWELL = (10, 0)  # from this compute capability on, kernels need CUDA 12.8
BLACKWELL_CUDA = (12, 8)
# PyTorch 2.11 has wheels for CUDA 12.6, 12.8 and 13.0, 2.12 and 2.13 for 12.6 and 13; those for 12.6 do not
# support Blackwell. Source: "CUDA support matrix", pytorch/pytorch issues 172663 and 178665.
NEWER_DRIVER = "580"  # the first that runs CUDA 13
INSTALL = "pip install -r requirements.txt -c constraints.txt"  # after requirements-preview.txt alone


@dataclass(frozen=True)
class Shortfall:
    """One thing that a machine lacks. code: a stable name that the page translates, with its values."""

    code: str
    text: str
    remedy: str
    values: dict[str, Any] = field(default_factory=dict)


def refused(preset: Preset, inventory: Inventory) -> Iterator[Shortfall]:
    """What no machine of this kind supports."""
    for text in unsupported(preset):
        yield Shortfall("unsupported", text, "Choose another preset, or cpu-preview.")
    if preset.engine == "diffusion":
        try:
            Layout.of(preset)
        except BadInput as error:
            yield Shortfall("unsupported", error.message, error.remedy)
    system = SYSTEMS.get(inventory.system)
    if system and preset.num_gpus:
        remedy = "Install it in WSL2." if inventory.system == "windows" else "Run it on a machine with Linux."
        text = f"GPUs are used on Linux and in WSL2; this is {system}."
        yield Shortfall("system", text, f"{remedy} The preset cpu-preview runs here.", {"system": system})


def usable_cards(preset: Preset, inventory: Inventory) -> list[Gpu]:
    """The cards that the preset may use, however much memory is free on them."""
    return [gpu for gpu in inventory.gpus if not _unable(gpu, preset, inventory)]


def missing_cards(preset: Preset, inventory: Inventory) -> Iterator[Shortfall]:
    """Why fewer cards can be used than the preset needs; nothing where there are enough."""
    num_gpus, found = preset.num_gpus, len(inventory.gpus)
    if len(usable_cards(preset, inventory)) >= num_gpus:
        return
    if found < num_gpus:
        wanted = "one NVIDIA GPU" if num_gpus == 1 else f"{num_gpus} NVIDIA GPUs"
        why = f" {inventory.no_gpu_reason}" if inventory.no_gpu_reason else ""
        text = f"It needs {wanted}; this machine has {found or 'none'}.{why}"
        remedy = "Choose cpu-preview, or run it on a machine with such GPUs."
        yield Shortfall("num_gpus", text, remedy, {"needed": num_gpus, "found": found})
        return
    shortfalls = (shortfall for gpu in inventory.gpus for shortfall in _unable(gpu, preset, inventory))
    yield from {shortfall.code: shortfall for shortfall in shortfalls}.values()


def _unable(gpu: Gpu, preset: Preset, inventory: Inventory) -> list[Shortfall]:
    """Why a preset cannot use a card."""
    needed, has = preset.requires.compute_capability, gpu.compute_capability
    if gpu.total_bytes is None or gpu.free_bytes is None:
        text = f"{gpu} does not report its memory."
        return [Shortfall("unreadable", text, "Check `nvidia-smi`.", {"gpu": gpu.index})]
    if has is not None and capability(has) < capability(needed):
        text = f"{gpu} has compute capability {has}; it needs {needed}."
        values = {"gpu": gpu.index, "found": has, "needed": needed}
        remedy = "Choose cpu-preview, or run it on a newer card (Ampere or later)."
        return [Shortfall("compute_capability", text, remedy, values)]
    if gpu.is_instance and preset.num_gpus > 1:
        text = f"{gpu} is an instance of a divided card (MIG); only one of them can be used at a time."
        remedy = "Choose a preset for one GPU, or disable MIG on the card."
        return [Shortfall("instance", text, remedy, {"gpu": gpu.index})]
    built = inventory.torch_cuda
    if built and has is not None and capability(has) >= BLACKWELL and capability(built) < BLACKWELL_CUDA:
        build = inventory.torch_build
        text = f"PyTorch {build} is built for CUDA {built}, which does not support {gpu}."
        remedy = install_command(inventory.driver_cuda, capability(has))
        return [
            Shortfall(
                "torch_arch",
                text,
                remedy,
                {"gpu": gpu.index, "build": build, "cuda": built, "remedy": remedy},
            )
        ]
    return []


def missing_software(preset: Preset, inventory: Inventory, gpus: Sequence[Gpu]) -> Iterator[Shortfall]:
    """The model's libraries, PyTorch and the driver for these cards, and the checkpoint."""
    if preset.engine == "diffusion" and (inventory.missing_libraries or not inventory.torch_build):
        text = "PyTorch and the model's other libraries are not installed here."
        if inventory.torch_build:
            text = f"Libraries of the model are not installed here: {', '.join(inventory.missing_libraries)}."
        yield Shortfall("not_installed", text, f"Run `{INSTALL}`.", {"remedy": INSTALL})
    elif preset.num_gpus and gpus:
        yield from _torch(inventory, gpus)
    if preset.requires.weights == "live-avatar" and not inventory.checkpoint.complete:
        missing = list(inventory.checkpoint.missing)
        text = f"The checkpoint is not complete here: {', '.join(missing)}."
        remedy = f"Run `{DOWNLOAD_COMMAND}`, or say where it is with --ckpt_dir or $AVATAR_WEIGHTS."
        yield Shortfall("weights", text, remedy, {"missing": missing})
    if (
        preset.requires.weights == "live-avatar"
        and preset.memory.decoder == "tiny"
        and inventory.checkpoint.lacks_tiny_decoder
    ):
        text = f"The tiny decoder's file, {TINY_DECODER}, is not here."
        yield Shortfall("tiny_decoder", text, TINY_DECODER_REMEDY, {"missing": [TINY_DECODER]})


def _torch(inventory: Inventory, gpus: Sequence[Gpu]) -> Iterator[Shortfall]:
    """Whether the installed PyTorch works with the driver."""
    built, runs = inventory.torch_cuda, inventory.driver_cuda
    capabilities = [capability(gpu.compute_capability) for gpu in gpus if gpu.compute_capability]
    remedy = install_command(runs, max(capabilities, default=(0, 0)))
    driver = f"The NVIDIA driver {inventory.driver_version or 'here'}"
    build = inventory.torch_build or "none"
    values = {"build": build, "cuda": built, "runs": runs, "remedy": remedy}
    if not built:
        text = f"PyTorch here is not built for CUDA ({build})."
        yield Shortfall("torch", text, remedy, values)
    elif runs is not None and capability(runs)[0] < capability(built)[0]:
        text = f"{driver} runs CUDA up to {runs}; PyTorch {inventory.torch_build} needs CUDA {built}."
        yield Shortfall("driver", text, remedy, values)


def install_command(runs: str | None, newest: tuple[int, int]) -> str:
    """How to install a PyTorch for the driver's CUDA and the newest card's capability, in a sentence."""
    newer = f"update the NVIDIA driver to {NEWER_DRIVER} or newer"
    cuda = (13, 0) if runs is None else capability(runs)
    if cuda >= (13, 0):
        return f"Run `{_pip('torch>=2.11,<2.14', 'cu130')}`."
    if newest >= BLACKWELL and cuda >= BLACKWELL_CUDA:
        return f"Run `{_pip('torch>=2.11,<2.12', 'cu128')}`, or {newer}."
    if newest < BLACKWELL and cuda >= (12, 0):
        return f"Run `{_pip('torch>=2.11,<2.14', 'cu126')}`, or {newer}."
    return f"{newer[0].upper()}{newer[1:]}."


def _pip(torch: str, index: str) -> str:
    """The install command, forced: pip would keep an installed build of the same version for another CUDA."""
    return f'pip install --force-reinstall "{torch}" --index-url https://download.pytorch.org/whl/{index}'


def missing_memory(plan: Plan) -> Iterator[Shortfall]:
    """Where the plan exceeds the free memory: on the GPU that lacks most, and in RAM."""
    short = [gpu for gpu in plan.gpus if gpu.shortfall_bytes]
    if short:
        yield _short_of("memory", max(short, key=lambda gpu: gpu.shortfall_bytes), plan)
    if plan.host.shortfall_bytes:
        yield _short_of("host_ram", plan.host, plan)


def _short_of(code: str, device: DevicePlan, plan: Plan) -> Shortfall:
    total, free = device.total_bytes, device.available_bytes
    if total is not None and device.peak_bytes > total:
        remedy = "Choose a smaller size, or a preset that needs less."
    else:
        remedy = "Close other programs that use this memory, or choose a preset that needs less."
    values = {
        "device": device.label,
        "needed_gib": device.peak_bytes / GIB,
        "free_gib": None if free is None else free / GIB,
        "largest": device.peak_items[0].name,
    }
    return Shortfall(code, plan.shortfall_on(device), remedy, values)
