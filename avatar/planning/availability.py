"""Whether a preset can run on a machine, what is missing if not, and which preset `auto` takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from avatar.errors import AvatarError, BadInput, DoesNotFit, WeightsMissing
from avatar.planning.checkpoint_places import DOWNLOAD_COMMAND, Checkpoint
from avatar.planning.inventory import Inventory
from avatar.planning.ladder import describe, rungs
from avatar.planning.layout import Layout, unsupported
from avatar.planning.loras import check_loras
from avatar.planning.plan import GIB, gib
from avatar.planning.planner import plan
from avatar.preset import Preset, capability, load_presets
from avatar.settings import SETTINGS


@dataclass(frozen=True)
class Lack:
    """One thing that a machine lacks. code: a stable name that the page translates, with its values."""

    code: str
    text: str
    remedy: str
    values: dict[str, Any]


@dataclass(frozen=True)
class Availability:
    """Whether a preset runs here. lacks: what is missing, the most telling first; empty when ok."""

    preset: str
    lacks: tuple[Lack, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.lacks

    @property
    def missing(self) -> list[str]:
        return [lack.text for lack in self.lacks]

    @property
    def remedy(self) -> str:
        """What to do about it; empty when nothing is missing."""
        return self.lacks[0].remedy if self.lacks else ""

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "ok": self.ok, "missing": self.missing, "remedy": self.remedy}


def availability(preset: Preset, inventory: Inventory) -> Availability:
    """What this machine lacks for the preset; `auto` is always there, as some preset always fits."""
    if preset.engine == "auto":
        return Availability(preset.name)
    lacks = [*_unsupported(preset), *_gpus(preset, inventory), *_software(preset, inventory)]
    if not lacks:
        lacks = [*_room(preset, inventory)]
    return Availability(preset.name, tuple(lacks))


def require(preset: Preset, inventory: Inventory, presets: Iterable[Preset] | None = None) -> None:
    """Refuse a preset that cannot run here, before anything loads.

    presets: where to look for one that fits; None: the shipped ones.
    Raises: BadInput (not in this version), WeightsMissing, DoesNotFit, each with what to do.
    """
    own = preset.requires.weights == "tiny"  # a model of its own
    check_loras(preset.memory.lora, Checkpoint() if own else inventory.checkpoint)
    found = availability(preset, inventory)
    if found.ok:
        return
    kinds = {lack.code for lack in found.lacks}
    text = " ".join(found.missing)
    if "unsupported" in kinds:
        raise BadInput(f"Preset {preset.name} cannot run. {text}", found.remedy)
    if kinds == {"weights"}:
        raise WeightsMissing(f"Preset {preset.name} cannot run. {text}", found.remedy)
    if kinds & {"memory", "host_ram"}:
        raise DoesNotFit(f"Preset {preset.name} does not fit. {text}", way_out(preset, inventory, presets))
    raise DoesNotFit(f"Preset {preset.name} cannot run here. {text}", found.remedy)


def resolve(preset: Preset, inventory: Inventory, presets: Iterable[Preset] | None = None) -> Preset:
    """The preset itself, or for `auto` the best that this machine can run.

    Settings in which auto differs from the defaults are laid over the preset taken.
    presets: the candidates; None: the shipped ones.
    Raises: DoesNotFit when none of them runs here.
    """
    if preset.engine != "auto":
        return preset
    for candidate in _by_rank(presets):
        chosen = candidate.with_settings(**_changed(preset))
        if availability(chosen, inventory).ok:
            return chosen
    raise DoesNotFit(
        "No preset runs on this machine.", "Run `python -m avatar doctor`: it says what each one lacks."
    )


def way_out(preset: Preset, inventory: Inventory, presets: Iterable[Preset] | None = None) -> str:
    """What to try instead: the first rungs of its ladder with which it fits, or the best preset that does."""
    taken: list[str] = []
    for rung, lower in rungs(preset):
        taken.append(describe(rung, lower))
        if availability(lower, inventory).ok:
            return f"Set {', '.join(taken)}."
    for candidate in _by_rank(presets):
        if candidate.name != preset.name and availability(candidate, inventory).ok:
            return f"Choose the preset {candidate.name}."
    return "Close other programs, or run it on a larger machine."


def _by_rank(presets: Iterable[Preset] | None) -> list[Preset]:
    """Candidates for auto, best first; the self-test is none, its output is noise."""
    candidates = load_presets() if presets is None else presets
    able = [p for p in candidates if p.engine != "auto" and p.requires.weights != "tiny"]
    return sorted(able, key=lambda preset: -preset.rank)


def _changed(auto: Preset) -> dict[str, Any]:
    """Settings in which `auto` differs from a preset's defaults: the user's own."""
    plain = Preset(name=auto.name, title=auto.title, summary=auto.summary, engine=auto.engine)
    return {name: value for name in SETTINGS if (value := auto.setting(name)) != plain.setting(name)}


def _unsupported(preset: Preset) -> Iterator[Lack]:
    for text in unsupported(preset):
        yield Lack("unsupported", text, "Choose another preset, or cpu-preview.", {})
    if preset.engine == "diffusion":
        try:
            Layout.of(preset)
        except BadInput as error:
            yield Lack("unsupported", error.message, error.remedy, {})


def _gpus(preset: Preset, inventory: Inventory) -> Iterator[Lack]:
    """Number, size and generation of the cards."""
    values: dict[str, Any]
    needs, num_gpus, found = preset.requires, preset.num_gpus, len(inventory.gpus)
    if found < num_gpus:
        size = f"{needs.vram_gib:g} GiB"
        wanted = (
            f"one NVIDIA GPU with {size}" if num_gpus == 1 else f"{num_gpus} NVIDIA GPUs with {size} each"
        )
        why = f" {inventory.no_gpu_reason}" if inventory.no_gpu_reason else ""
        text = f"It needs {wanted}; this machine has {found or 'none'}.{why}"
        remedy = "Choose cpu-preview, or run it on a machine with such GPUs."
        yield Lack("num_gpus", text, remedy, {"needed": num_gpus, "found": found, "vram_gib": needs.vram_gib})
        return
    for gpu in inventory.gpus[:num_gpus]:
        if gpu.total_bytes is None or gpu.free_bytes is None:
            yield Lack(
                "unreadable",
                f"{gpu} does not tell its memory.",
                "See what `nvidia-smi` says.",
                {"gpu": gpu.index},
            )
        elif gpu.total_bytes < needs.vram_gib * GIB:
            text = f"{gpu} has {gib(gpu.total_bytes)}; it needs {needs.vram_gib:g} GiB."
            values = {"gpu": gpu.index, "found_gib": gpu.total_bytes / GIB, "needed_gib": needs.vram_gib}
            yield Lack("vram", text, "Choose a preset for smaller cards.", values)
        has = gpu.compute_capability
        if has is not None and capability(has) < capability(needs.compute_capability):
            text = f"{gpu} has compute capability {has}; it needs {needs.compute_capability}."
            values = {"gpu": gpu.index, "found": has, "needed": needs.compute_capability}
            yield Lack("compute_capability", text, "Choose a preset without fp8.", values)


def _software(preset: Preset, inventory: Inventory) -> Iterator[Lack]:
    """PyTorch for CUDA, and the checkpoint."""
    if preset.num_gpus and inventory.gpus and not inventory.torch_has_cuda:
        build = inventory.torch_build or "none"
        text = f"PyTorch here is not built for CUDA ({build})."
        yield Lack("torch", text, "Install PyTorch's CUDA build.", {"build": build})
    if preset.requires.weights == "live-avatar" and not inventory.checkpoint.complete:
        missing = list(inventory.checkpoint.missing)
        text = f"The checkpoint is not complete here: {', '.join(missing)}."
        remedy = f"Run `{DOWNLOAD_COMMAND}`, or say where it is with --ckpt_dir or $AVATAR_WEIGHTS."
        yield Lack("weights", text, remedy, {"missing": missing})


def _room(preset: Preset, inventory: Inventory) -> Iterator[Lack]:
    """Host RAM as required, then the plan against what is free."""
    ram = inventory.host.ram_total_bytes
    if ram < preset.requires.host_ram_gib * GIB:
        text = f"This machine has {gib(ram)} of RAM; it needs {preset.requires.host_ram_gib:g} GiB."
        values: dict[str, Any] = {"found_gib": ram / GIB, "needed_gib": preset.requires.host_ram_gib}
        yield Lack("host_ram", text, "Choose a preset that needs less RAM.", values)
    try:
        planned = plan(preset, inventory)
    except AvatarError as error:
        yield Lack("unsupported", error.message, error.remedy, {})
        return
    if not planned.fits:
        device = planned.tightest
        values = {
            "device": device.label,
            "needed_gib": device.peak_bytes / GIB,
            "free_gib": None if device.available_bytes is None else device.available_bytes / GIB,
            "largest": device.peak_items[0].name,
        }
        yield Lack(
            "memory", planned.shortfall, "Close other programs that use this memory, or choose less.", values
        )
