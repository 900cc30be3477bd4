"""The presets on this machine: what each would need, which one runs, and with which settings."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from avatar.checkpoints.lora_files import parse_loras
from avatar.errors import AvatarError, BadInput
from avatar.hardware.inventory import Inventory, probe
from avatar.planning.plan import Plan
from avatar.planning.verdict import Verdict, judge, require, resolve
from avatar.preset import Preset
from avatar.settings import FORM, SETTINGS, refusal, refuse_settings

INVENTORY_FRESH_S = 5.0  # probing takes milliseconds; pages that load together share one result


class MachinePresets:
    """The presets on this machine, or on the ranks that the page is attached to.

    weights, outputs: folders, for the probe. attached: the preset that ranks elsewhere serve. held: the plan
    of the last run, whose models stay loaded.
    """

    def __init__(
        self, presets: list[Preset], weights: Path | None, outputs: Path, attached: str = ""
    ) -> None:
        self.presets, self.attached = presets, attached
        self.held: Plan | None = None
        self._folders = weights, outputs
        self._probing = threading.Lock()
        self._probed: tuple[float, Inventory] | None = None

    def preset(self, name: str) -> Preset:
        """The preset of a name. Raises: BadInput if there is none."""
        for preset in self.presets:
            if preset.name == name:
                return preset
        names = ", ".join(preset.name for preset in self.presets)
        raise BadInput(f"There is no preset {name!r}.", f"Presets: {names}.")

    def inventory(self) -> Inventory:
        """This machine, probed at most INVENTORY_FRESH_S ago."""
        with self._probing:
            now = time.monotonic()
            if self._probed is None or now - self._probed[0] > INVENTORY_FRESH_S:
                self._probed = (now, self._with_engine_memory(probe(*self._folders)))
            return self._probed[1]

    def _with_engine_memory(self, machine: Inventory) -> Inventory:
        """The machine; where the driver hides memory per process, the open engine's plan counts as ours.

        Otherwise the second run would be refused because of the memory that the first run's models hold.
        """
        held = self.held
        if held is None:
            return machine
        gpus = tuple(
            replace(gpu, ours_bytes=min(gpu.used_bytes or 0, held.peak_bytes(gpu.index) or 0))
            if gpu.hides_processes
            else gpu
            for gpu in machine.gpus
        )
        return replace(machine, gpus=gpus)

    def verdict(self, preset: Preset, num_speakers: int = 1) -> Verdict:
        """What this machine, or the ranks that the page is attached to, can do with a preset.

        num_speakers, here as below: faces with a voice of their own.
        """
        if preset.name == self.attached:
            return Verdict(preset)
        return judge(preset, self.inventory(), self.presets, num_speakers=num_speakers)

    def verdicts(self, num_speakers: int = 1) -> dict[str, Verdict]:
        """Verdicts by preset name; `auto` has that of the preset which it resolves to here."""
        return {preset.name: self.verdict(preset, num_speakers) for preset in self.presets}

    def resolved(self, name: str, num_speakers: int = 1) -> Preset:
        """The preset that will run when this one is chosen. Raises: BadInput, DoesNotFit."""
        return resolve(self.preset(name), self.inventory(), self.presets, num_speakers=num_speakers)

    def with_settings(self, name: str, settings: Mapping[str, Any], num_speakers: int = 1) -> Preset:
        """The preset that will run, with the user's changes applied.

        settings: by name; None, or the preset's own value, is no change.
        Raises: BadInput for a change that the engine cannot honour, or a wrong value.
        """
        preset = self.resolved(name, num_speakers)
        changes = {key: value for key, value in settings.items() if value is not None}
        own = flat(preset)
        changes = {key: value for key, value in changes.items() if value != own.get(key)}
        refuse_settings(preset.engine, changes)
        if isinstance(lora := changes.get("lora"), str):
            parse_loras(lora, named_only=True)  # visitors must not name files of this machine
        return preset.with_settings(**changes)

    def form_settings(self, name: str, values: Sequence[Any], num_speakers: int = 1) -> dict[str, Any]:
        """The form's values (in FORM's order) by name; settings not offered for the preset are left out."""
        offered = self.honoured(self.resolved(name, num_speakers))
        return {key: value for key, value in zip(FORM, values) if key in offered}

    def honoured(self, preset: Preset) -> set[str]:
        """The names of FORM, and "prompt", that the preset's engine can honour."""
        return {name for name in (*FORM, "prompt") if not refusal(preset.engine, name)}

    def require(self, preset: Preset, num_speakers: int = 1) -> Preset:
        """The preset as it will run here, or on the ranks attached to. Raises: AvatarError if it cannot."""
        if preset.name == self.attached:
            return preset
        return require(preset, self.inventory(), self.presets, num_speakers=num_speakers).preset

    def plan(self, preset: Preset, num_speakers: int = 1) -> tuple[Plan | None, str]:
        """What a preset will hold on each device, and why it cannot run here ("" if it can)."""
        refusal = ""
        try:
            self.require(preset, num_speakers)
        except AvatarError as error:
            refusal = str(error)
        return judge(preset, self.inventory(), self.presets, num_speakers=num_speakers).plan, refusal


def flat(preset: Preset) -> dict[str, Any]:
    """All settings of a preset by name."""
    return {name: preset.setting(name) for name in SETTINGS}
