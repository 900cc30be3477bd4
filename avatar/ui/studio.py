"""What the page works with: presets, machine, desk, gallery. No Gradio; one object made by app.py."""

from __future__ import annotations

import logging
import shutil
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from avatar.abilities import REFUSES, refuse_settings
from avatar.errors import AvatarError, BadInput
from avatar.gallery import HALF, Gallery, video_name
from avatar.long import half
from avatar.media.intake import open_request
from avatar.media.limits import Limits
from avatar.memory.fit import Verdict, judge, require, resolve
from avatar.memory.gauges import Gauges
from avatar.memory.inventory import Inventory, probe
from avatar.memory.ladder import rungs
from avatar.memory.plan import Plan
from avatar.preset import SETTINGS, Preset
from avatar.request import Request
from avatar.ui.desk import Desk, Run, about_request
from avatar.ui.examples import Examples

log = logging.getLogger(__name__)

LONG_S = 120.0  # from here on a speech is made in parts, which are kept whatever happens
INVENTORY_FRESH_S = 5.0  # probing takes milliseconds; pages that load together share one look

# What the page lets a user change, in its order; the rest of a preset is its own.
FORM = (
    "size",
    "seed",
    "num_clip",
    "infer_frames",
    "sample_steps",
    "shift",
    "enable_online_decode",
    "offload_model",
    "layout",
    "num_gpus_dit",
    "ulysses_size",
    "decode_gpu",
)


@dataclass
class Studio:
    """Made once, by app.py.

    root: the path under which a proxy shows the page, "" for none. shared: everybody sees all videos.
    scratch: a folder for what lives no longer than a run. attached: the preset that ranks elsewhere serve.
    """

    desk: Desk
    gallery: Gallery
    presets: list[Preset]
    preset_name: str
    scratch: Path
    limits: Limits = field(default_factory=Limits)
    weights: Path | None = None
    root: str = ""
    shared: bool = True
    attached: str = ""
    examples: Examples = field(default_factory=Examples)
    gauges: Gauges = field(default_factory=Gauges)

    def __post_init__(self) -> None:
        self._probing = threading.Lock()
        self._probed: tuple[float, Inventory] | None = None
        self._held: Plan | None = None  # of the last run, whose models stay loaded
        self.desk.on_start, self.desk.on_rung = self._begin_gauges, self._lower_gauges
        self.gauges.pinned = lambda: self.desk.pinned_bytes

    def preset(self, name: str) -> Preset:
        """Raises: BadInput when there is none of that name."""
        for preset in self.presets:
            if preset.name == name:
                return preset
        names = ", ".join(preset.name for preset in self.presets)
        raise BadInput(f"There is no preset {name!r}.", f"Presets: {names}.")

    def inventory(self) -> Inventory:
        """This machine, looked at a moment ago at most."""
        with self._probing:
            now = time.monotonic()
            if self._probed is None or now - self._probed[0] > INVENTORY_FRESH_S:
                self._probed = (now, self._with_own(probe(self.weights, self.gallery.folder)))
            return self._probed[1]

    def _with_own(self, machine: Inventory) -> Inventory:
        """The machine, where the driver hides whose memory is whose: the open engine holds what was planned.

        Else the second run would be refused for want of what the first one's models hold.
        """
        held = self._held
        if held is None:
            return machine
        gpus = tuple(
            replace(gpu, ours_bytes=min(gpu.used_bytes or 0, held.peak_bytes(gpu.index) or 0))
            if gpu.hides_processes
            else gpu
            for gpu in machine.gpus
        )
        return replace(machine, gpus=gpus)

    def verdict(self, preset: Preset) -> Verdict:
        """What this machine, or the ranks that the page is attached to, can do with a preset."""
        if preset.name == self.attached:
            return Verdict(preset)
        return judge(preset, self.inventory(), self.presets)

    def verdicts(self) -> dict[str, Verdict]:
        """By preset name; `auto` stands for what it takes here."""
        return {preset.name: self.verdict(preset) for preset in self.presets}

    def resolved(self, name: str) -> Preset:
        """The preset that will run when this one is chosen. Raises: BadInput, DoesNotFit."""
        return resolve(self.preset(name), self.inventory(), self.presets)

    def with_settings(self, name: str, settings: Mapping[str, Any]) -> Preset:
        """The preset that will run, with the user's changes laid over it.

        settings: by name; what equals the preset's own value, or None, is no change.
        Raises: BadInput for a change that the engine cannot honour, or a wrong value.
        """
        preset = self.resolved(name)
        changes = {key: value for key, value in settings.items() if value is not None}
        own = flat(preset)
        changes = {key: value for key, value in changes.items() if value != own.get(key)}
        refuse_settings(preset.engine, changes)
        return preset.with_settings(**changes)

    def form_settings(self, name: str, values: Sequence[Any]) -> dict[str, Any]:
        """The form's values, in FORM's order, by name; what is not offered for the preset is left out."""
        offered = self.honoured(self.resolved(name))
        return {key: value for key, value in zip(FORM, values) if key in offered}

    def honoured(self, preset: Preset) -> set[str]:
        """The names of FORM, and "prompt", that the preset's engine can honour."""
        return {name for name in (*FORM, "prompt") if name not in REFUSES[preset.engine]}

    def _require(self, preset: Preset) -> None:
        """Refuse what cannot run here, nor on ranks that the page is attached to. Raises: AvatarError."""
        if preset.name != self.attached:
            require(preset, self.inventory(), self.presets)

    def plan(self, preset: Preset) -> tuple[Plan | None, str]:
        """What it will hold where, and why it cannot run here ("" when it can)."""
        refusal = ""
        try:
            self._require(preset)
        except AvatarError as error:
            refusal = str(error)
        return judge(preset, self.inventory(), self.presets).plan, refusal

    def submit(
        self,
        portrait: Path,
        speech: Path,
        name: str,
        settings: Mapping[str, Any],
        *,
        prompt: str = "",
        face_points: Mapping[str, tuple[float, float]] | None = None,
        head_only: bool = False,
        portrait_name: str | None = None,
        speech_name: str | None = None,
        owner: str = "",
    ) -> Run:
        """Check everything that can be checked, and put the request in line. Raises: AvatarError."""
        self.desk.check_room()
        preset = self.with_settings(name, settings)
        self._require(preset)
        prompt = prompt.strip() or preset.generation.prompt  # the page shows the preset's own in an empty box
        draft = self.gallery.draft()
        work = Path(tempfile.mkdtemp(prefix="run-", dir=self.scratch))
        try:
            request = open_request(
                portrait,
                speech,
                preset,
                output=draft / video_name(draft.name),
                work=work,
                prompt=prompt if "prompt" in self.honoured(preset) else "",
                face_points=face_points if preset.engine == "preview" else None,
                head_only=head_only and preset.engine == "preview",
                limits=self.limits,
                portrait_name=portrait_name,
                speech_name=speech_name,
            )
            settings = used_settings(name, request)
            ledger = None
            if request.duration_s >= LONG_S:
                request, ledger = half.begin(draft / HALF, request)
                self.gallery.describe(draft, about_request(request, settings, owner))
            return self.desk.submit(request, draft, settings, owner, ledger)
        except BaseException:
            self.gallery.discard(draft)
            shutil.rmtree(work)
            raise

    def resume(self, id: str, owner: str = "") -> Run:
        """Put an unfinished video of the gallery in line again. Raises: AvatarError."""
        self.desk.check_room()
        draft = self.gallery.reopen(id, None if self.shared else owner)
        if draft is None:
            raise BadInput("This video cannot be resumed.", "It is finished, being made, or deleted.")
        work = Path(tempfile.mkdtemp(prefix="run-", dir=self.scratch))
        ledger = None
        try:
            request, ledger = half.resume(draft / HALF, work=work, output=draft / video_name(draft.name))
            self._require(request.preset)
            about = self.gallery.about(draft)
            return self.desk.submit(request, draft, about.settings, about.owner, ledger)
        except BaseException:
            if ledger is not None:
                ledger.close()
            self.gallery.discard(draft)
            shutil.rmtree(work)
            raise

    def _begin_gauges(self, request: Request) -> None:
        """Show this run's plan, and its own peaks, from now on."""
        planned, _ = self.plan(request.preset)
        self._held = planned
        self.gauges.set_plan(planned)
        self.gauges.reset_peak()

    def _lower_gauges(self, request: Request, taken: str) -> None:
        """Show the plan of the rung that a run has stepped down to."""
        lower = next((preset for rung, preset in rungs(request.preset) if rung == taken), None)
        if lower is not None:
            self.gauges.set_plan(self.plan(lower)[0])

    def warm(self) -> None:
        """Open the engine for the preset that the page begins with: the first run will not wait for it."""
        try:
            self.desk.warm(self.resolved(self.preset_name))
        except AvatarError as error:  # told on the page as well, by the preset's card
            log.warning("nothing to warm: %s", error)

    def close(self) -> None:
        self.desk.close()
        self.gauges.close()
        self.gallery.close()


def flat(preset: Preset) -> dict[str, Any]:
    """All settings of a preset by name."""
    return {name: getattr(getattr(preset, section), name) for name, section in SETTINGS.items()}


def used_settings(name: str, request: Request) -> dict[str, Any]:
    """What "use these settings" fills in: the preset as it was chosen, and every setting of the form."""
    values = flat(request.preset)
    return {"preset": name, "prompt": request.prompt, **{key: values[key] for key in FORM}}
