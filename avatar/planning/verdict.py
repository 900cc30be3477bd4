"""What runs on a machine, on which cards, what is missing if not, and what `auto` chooses.

`plan`, `doctor`, `presets`, `generate`, `batch`, the page and the engine itself all call judge().
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from avatar.checkpoints.locations import Checkpoint
from avatar.checkpoints.lora_files import check_loras
from avatar.errors import AvatarError, BadInput, DoesNotFit, WeightsMissing
from avatar.geometry import Size
from avatar.hardware.inventory import IMAGINED_CUDA, Gpu, Inventory
from avatar.planning.auto_preset_order import preference
from avatar.planning.fallback_ladder import describe, rungs
from avatar.planning.plan import GIB, Plan
from avatar.planning.planner import plan
from avatar.planning.shortfalls import (
    Shortfall,
    missing_cards,
    missing_memory,
    missing_software,
    refused,
    usable_cards,
)
from avatar.planning.weight_format import settled
from avatar.preset import Preset, capability, load_presets
from avatar.settings import SETTINGS

ALIKE_BYTES = 2 * GIB  # cards whose free memory differs by less count as equal; the newer one comes first


@dataclass(frozen=True)
class Verdict:
    """Whether a preset runs on a machine.

    preset: as it will run; `auto` is replaced by the best that does, and what its cards decide is settled
    (see weight_format). shortfalls: what is missing, the most important first; empty when it runs. plan: what
    it will hold, None where there is nothing to plan. gpus: those that it uses, rank 0's first.
    """

    preset: Preset
    shortfalls: tuple[Shortfall, ...] = ()
    plan: Plan | None = None
    gpus: tuple[Gpu, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.shortfalls

    @property
    def missing(self) -> list[str]:
        return [shortfall.text for shortfall in self.shortfalls]

    @property
    def remedy(self) -> str:
        """The first thing to do; empty when nothing is missing."""
        return self.shortfalls[0].remedy if self.shortfalls else ""

    @property
    def uuids(self) -> list[str] | None:
        """The cards as CUDA_VISIBLE_DEVICES names them; None if none are needed or NVML hides a UUID."""
        known = [gpu.uuid for gpu in self.gpus if gpu.uuid is not None]
        return known if known and len(known) == len(self.gpus) else None

    @property
    def size(self) -> Size:
        """The preset's size, parsed."""
        return Size.parse(self.preset.generation.size)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON; without the plan, which is long."""
        return {
            "preset": self.preset.name,
            "ok": self.ok,
            "missing": self.missing,
            "remedy": self.remedy,
            "lacks": [asdict(shortfall) for shortfall in self.shortfalls],
            "gpus": [gpu.index for gpu in self.gpus],
        }


def judge(
    preset: Preset,
    inventory: Inventory,
    presets: Iterable[Preset] | None = None,
    *,
    num_speakers: int = 1,
) -> Verdict:
    """The verdict on a preset with its settings, for a machine in its present state.

    presets: what `auto` chooses from; None: the shipped ones. num_speakers: faces with a voice of their own.
    """
    if preset.engine == "auto":
        return _best(preset, inventory, presets, num_speakers)
    shortfalls = [*refused(preset, inventory)]
    gpus: tuple[Gpu, ...] = ()
    planned: Plan | None = None
    if not shortfalls:
        shortfalls += missing_cards(preset, inventory)
        try:
            gpus, planned = _on_the_best_cards(preset, inventory, num_speakers)
        except AvatarError as error:
            shortfalls.append(Shortfall("unsupported", error.message, error.remedy))
    shortfalls += missing_software(preset, inventory, gpus or inventory.gpus)
    if planned is not None and len(gpus) == preset.num_gpus:
        shortfalls += missing_memory(planned)
    return Verdict(settled(preset, gpus), tuple(shortfalls), planned, gpus)


def require(
    preset: Preset,
    inventory: Inventory,
    presets: Iterable[Preset] | None = None,
    *,
    num_speakers: int = 1,
) -> Verdict:
    """Refuse a preset that cannot run here, before anything loads; otherwise return its verdict.

    presets: where to look for one that fits; None: the shipped ones. num_speakers: see judge.
    Raises: BadInput (not in this version), WeightsMissing, DoesNotFit, each with a remedy.
    """
    own = preset.requires.weights == "tiny"  # has a model of its own
    check_loras(preset.memory.lora, Checkpoint() if own else inventory.checkpoint)
    found = judge(preset, inventory, presets, num_speakers=num_speakers)
    if found.ok:
        return found
    kinds = {shortfall.code for shortfall in found.shortfalls}
    text = " ".join(found.missing)
    if "unsupported" in kinds:
        raise BadInput(f"Preset {preset.name} cannot run. {text}", found.remedy)
    if kinds <= {"weights", "tiny_decoder"}:
        raise WeightsMissing(f"Preset {preset.name} cannot run. {text}", found.remedy)
    if kinds & {"memory", "host_ram"}:
        raise DoesNotFit(
            f"Preset {preset.name} does not fit. {text}",
            what_to_try(preset, inventory, presets, num_speakers=num_speakers),
        )
    raise DoesNotFit(f"Preset {preset.name} cannot run here. {text}", found.remedy)


def cards_of_each(preset: Preset, inventory: Inventory, count: int) -> list[list[str] | None]:
    """The cards of so many engines at a time, as CUDA_VISIBLE_DEVICES names them; no card is in two of them.

    None: see Verdict.uuids. Raises: DoesNotFit where there are not enough cards for more than one.
    """
    found: list[list[str] | None] = []
    for _ in range(count):
        verdict = judge(preset, inventory)
        found.append(verdict.uuids)
        if count > 1 and preset.num_gpus and not (verdict.ok and verdict.uuids):
            able = len(found) - 1
            text = f"There are cards for {able} sessions of {preset.name} at a time, not for {count}."
            missing = " ".join(verdict.missing) if not able else ""
            raise DoesNotFit(
                f"{text} {missing}".strip(), "Ask for fewer sessions, or choose a preset that needs less."
            )
        rest = tuple(gpu for gpu in inventory.gpus if gpu not in verdict.gpus)
        inventory = replace(inventory, gpus=rest)
    return found


def resolve(
    preset: Preset,
    inventory: Inventory,
    presets: Iterable[Preset] | None = None,
    *,
    num_speakers: int = 1,
) -> Preset:
    """The preset itself, or for `auto` the best that this machine can run.

    Settings of auto that differ from the defaults override those of the chosen preset. num_speakers: see
    judge.
    Raises: DoesNotFit when none of them runs here.
    """
    if preset.engine != "auto":
        return preset
    found = judge(preset, inventory, presets, num_speakers=num_speakers)
    if not found.ok:
        raise DoesNotFit(" ".join(found.missing), found.remedy)
    return found.preset


def what_to_try(
    preset: Preset,
    inventory: Inventory,
    presets: Iterable[Preset] | None = None,
    *,
    num_speakers: int = 1,
) -> str:
    """What to try instead: the first rungs of the ladder with which it fits, or the best preset that does."""
    taken: list[str] = []
    for rung, lower in rungs(preset):
        taken.append(describe(rung, lower))
        if judge(lower, inventory, num_speakers=num_speakers).ok:
            return f"Set {', '.join(taken)}."
    others = [other for other in _candidates(presets) if other.name != preset.name]
    for found in _able(others, inventory, num_speakers):
        return f"Choose the preset {found.preset.name}."
    return "Close other programs, or run it on a larger machine."


def within_reach(inventory: Inventory, presets: Iterable[Preset] | None = None) -> Verdict | None:
    """The best preset that the cards could run, were PyTorch, driver and checkpoint there; its shortfalls.

    None where `auto` chooses that already, or the cards could run only the preview.
    """
    presets = _candidates(presets)
    whole = Checkpoint(complete=True)
    mended = replace(
        inventory,
        torch_build=inventory.torch_build or "none yet",
        missing_libraries=(),
        torch_cuda=IMAGINED_CUDA,
        driver_cuda=IMAGINED_CUDA,
        checkpoint=whole,
    )
    best = next(iter(_able(presets, mended)), None)
    if best is None or best.preset.engine == "preview":
        return None
    found = judge(best.preset, inventory)
    return None if found.ok else found


def _best(auto: Preset, inventory: Inventory, presets: Iterable[Preset] | None, num_speakers: int) -> Verdict:
    """The preset that `auto` chooses, with the settings of `auto` applied to it."""
    changed = _changed(auto)
    able_ones = [preset.with_settings(**changed) for preset in _candidates(presets)]
    for found in _able(able_ones, inventory, num_speakers):
        return found
    nothing = Shortfall(
        "nothing",
        "No preset runs on this machine.",
        "Run `python -m avatar doctor`: it says what each one lacks.",
    )
    return Verdict(auto, (nothing,))


def _candidates(presets: Iterable[Preset] | None) -> list[Preset]:
    """The presets that auto chooses from; not the self-test, whose output is noise."""
    all_of_them = load_presets() if presets is None else presets
    return [p for p in all_of_them if p.engine != "auto" and p.requires.weights != "tiny"]


def _able(presets: Iterable[Preset], inventory: Inventory, num_speakers: int = 1) -> list[Verdict]:
    """The verdicts of the presets that run, the best first; where cards are missing nothing is planned."""
    with_cards = (preset for preset in presets if not any(missing_cards(preset, inventory)))
    judged = (judge(preset, inventory, num_speakers=num_speakers) for preset in with_cards)
    able_ones = [(found, found.plan) for found in judged if found.ok]
    ordered = sorted(
        (preference(found.preset, planned, found.gpus), place)
        for place, (found, planned) in enumerate(able_ones)
        if planned is not None
    )
    return [able_ones[place][0] for _, place in ordered]


def _changed(auto: Preset) -> dict[str, Any]:
    """Settings in which `auto` differs from a preset's defaults: those that the user set."""
    plain = Preset(name=auto.name, title=auto.title, summary=auto.summary, engine=auto.engine)
    return {name: value for name in SETTINGS if (value := auto.setting(name)) != plain.setting(name)}


def _on_the_best_cards(
    preset: Preset, inventory: Inventory, num_speakers: int
) -> tuple[tuple[Gpu, ...], Plan]:
    """The cards to use and the plan on them; fewer cards if there are not enough. Raises: AvatarError."""
    count, cards = preset.num_gpus, usable_cards(preset, inventory)

    def plan_on(gpus: tuple[Gpu, ...]) -> Plan:
        return plan(preset, replace(inventory, gpus=gpus), num_speakers=num_speakers)

    if count != 1:
        gpus = _in_order(sorted(cards, key=_worth)[:count])
        planned = plan_on(gpus)
        if not planned.fits and len(gpus) == count:
            gpus = _largest_for_the_fullest(planned, gpus)
            planned = plan_on(gpus)
        return gpus, planned
    if not cards:
        return (), plan_on(())
    first_of_its_kind: dict[object, Gpu] = {}
    for gpu in sorted(cards, key=_worth):
        first_of_its_kind.setdefault((gpu.usable_bytes, gpu.total_bytes, gpu.compute_capability), gpu)
    tried = [((gpu,), plan_on((gpu,))) for gpu in first_of_its_kind.values()]
    return min(tried, key=lambda one: (*_ease(one[1]), *_worth(one[0][0])))


def _ease(planned: Plan) -> tuple[bool, bool, bool, int]:
    """Sort key: cards on which a plan fits come first, then those where less is offloaded."""
    placed = planned.placement
    return not planned.fits, placed.layers_in_blocks, placed.rings_on_host, placed.layers_on_host


def _worth(gpu: Gpu) -> tuple[int, tuple[int, ...], int]:
    """Sort key: more usable memory first; among equals, the newer card, then the lower index."""
    newness = capability(gpu.compute_capability or "0.0")
    return -((gpu.usable_bytes or 0) // ALIKE_BYTES), tuple(-part for part in newness), gpu.index


def _in_order(gpus: Sequence[Gpu]) -> tuple[Gpu, ...]:
    """Cards by index, so that neighbours on the bus stay neighbours in a pipeline."""
    return tuple(sorted(gpus, key=lambda gpu: gpu.index))


def _largest_for_the_fullest(planned: Plan, gpus: Sequence[Gpu]) -> tuple[Gpu, ...]:
    """Cards reordered so that the rank that needs most memory gets the card with the most."""
    by_memory = sorted(gpus, key=lambda gpu: -(gpu.usable_bytes or 0))
    fullest = sorted(range(len(gpus)), key=lambda rank: -planned.gpus[rank].peak_bytes)
    placed = dict(zip(fullest, by_memory, strict=True))
    return tuple(placed[rank] for rank in range(len(gpus)))
