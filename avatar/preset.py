"""Presets: profiles that a user picks, one TOML file per preset. Unknown keys are errors, never ignored."""

from __future__ import annotations

import tomllib
from collections.abc import Hashable, Mapping
from dataclasses import asdict, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError
from pydantic.dataclasses import dataclass as validated

from avatar.errors import BadInput
from avatar.geometry import Size
from avatar.paths import is_file
from avatar.settings import (
    MOST_GPUS,
    SECTIONS,
    SETTINGS,
    STRICT,
    Generation,
    Memory,
    Parallel,
    refuse_settings,
)
from avatar.sizes import check_size
from avatar.validation import bad_input, nearest, shown

PRESETS_DIR = Path(__file__).resolve().parent.parent / "presets"

MOST_GIB = 2.0**20

Engine = Literal["diffusion", "preview", "auto"]
Rung = Literal["online_decode", "infer_frames", "size", "sample_steps", "offload"]


@validated(frozen=True, config=STRICT)
class Requires:
    """A preset's requirements of a machine.

    num_gpus, compute_capability (as "8.9") and weights are mandatory. vram_gib (per GPU) and host_ram_gib say
    which machines it is meant for; whether it fits is decided by the plan, see planning.verdict.
    """

    num_gpus: Annotated[int, Field(ge=0, le=MOST_GPUS)] = 0
    vram_gib: Annotated[float, Field(ge=0, le=MOST_GIB)] = 0.0
    compute_capability: Annotated[str, Field(pattern=r"^\d+\.\d+$")] = "0.0"
    host_ram_gib: Annotated[float, Field(ge=0, le=MOST_GIB)] = 0.0
    weights: Literal["none", "live-avatar", "tiny"] = "none"


@validated(frozen=True, config=STRICT)
class Fallback:
    """Rungs of the out-of-memory ladder, in the order in which they are taken; empty forbids fallbacks."""

    # Not strict, so that a TOML or JSON list is accepted.
    order: Annotated[tuple[Rung, ...], Field(strict=False)] = (
        "online_decode",
        "infer_frames",
        "size",
        "sample_steps",
        "offload",
    )


@validated(frozen=True, config=STRICT)
class Preset:
    """One profile. name is the file's name without .toml."""

    name: str
    title: str
    summary: str
    engine: Engine
    title_zh: str = ""
    summary_zh: str = ""
    rank: int = 0  # position on the page; for auto's preference see planning.auto_preset_order
    requires: Requires = field(default_factory=Requires)
    generation: Generation = field(default_factory=Generation)
    memory: Memory = field(default_factory=Memory)
    parallel: Parallel = field(default_factory=Parallel)
    fallback: Fallback = field(default_factory=Fallback)

    def __post_init__(self) -> None:
        check_size(self.engine, Size.parse(self.generation.size))

    @property
    def num_gpus(self) -> int:
        """The number of GPUs by its settings, which may differ from requires.num_gpus."""
        return self.parallel.num_gpus_dit + self.parallel.decode_gpu if self.requires.num_gpus else 0

    @property
    def models(self) -> Hashable:
        """Everything that loaded models depend on: presets with an equal value can share them.

        All other settings belong to each run; which layers are offloaded is decided by the run's plan.
        """
        if self.engine != "diffusion":
            return self.engine
        memory = self.memory
        loaded = memory.weight_dtype, memory.text_encoder, memory.decoder, memory.lora
        return self.requires.weights, *loaded, self.parallel

    @property
    def process(self) -> Hashable:
        """Everything that an engine's process depends on: it may serve all presets with an equal value.

        A lone rank loads other models itself, and keeps what both need; several would all have to.
        """
        lone = self.parallel.num_gpus_dit + self.parallel.decode_gpu == 1
        return (self.requires.weights, self.parallel) if self.engine == "diffusion" and lone else self.models

    def with_settings(self, /, **settings: Any) -> Preset:
        """The preset with flat settings (size=…, num_gpus_dit=…) changed; None leaves a setting unchanged.

        Raises: BadInput for an unknown name, a wrong type or a wrong value.
        """
        changes: dict[str, dict[str, Any]] = {}
        for name, value in settings.items():
            if name not in SETTINGS:
                raise BadInput(f"There is no setting {shown(name)}.{nearest(name, SETTINGS)}")
            if value is not None:
                changes.setdefault(SETTINGS[name].section, {})[name] = value
        sections = {}
        for section, values in changes.items():
            sections[section] = _checked(SECTIONS[section], {**asdict(getattr(self, section)), **values})
        return replace(self, **sections)

    def setting(self, name: str) -> Any:
        """The value of a setting by its name."""
        return getattr(getattr(self, SETTINGS[name].section), name)

    def as_dict(self) -> dict[str, Any]:
        """Nested plain data, as in a TOML file."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Preset:
        """The inverse of as_dict, also after a round trip through JSON. Raises: BadInput."""
        return _built(
            {
                key: {name: v for name, v in value.items() if name not in RETIRED} if key in TABLES else value
                for key, value in data.items()
            }
        )


ALLOWED: dict[str, str] = {
    **{name: one.setting.allowed for name, one in SETTINGS.items()},
    "compute_capability": 'written like "8.9"',
    "num_gpus": f"from 0 to {MOST_GPUS}",
    **dict.fromkeys(("vram_gib", "host_ram_gib"), f"from 0 to {MOST_GIB:.0f}"),
}
TABLES: dict[str, type] = {"requires": Requires, **SECTIONS, "fallback": Fallback}
# Former settings with only one legal value, still present in the files of unfinished videos.
RETIRED = ("fps", "sample_guide_scale")


def capability(text: str) -> tuple[int, int]:
    """ "8.9" → (8, 9). Raises: ValueError."""
    major, minor = text.split(".")
    return int(major), int(minor)


def load_preset(name_or_path: str, folder: Path = PRESETS_DIR) -> Preset:
    """A preset by its name in the folder, or by the path of a .toml file.

    Raises: BadInput for an unknown preset or key (naming the nearest), an unreadable file, a wrong type or
    value.
    """
    path = Path(name_or_path)
    if path.suffix != ".toml":
        path = folder / f"{name_or_path}.toml"
    if not is_file(path):
        names = [p.stem for p in sorted(folder.glob("*.toml"))]
        raise BadInput(
            f"There is no preset {shown(name_or_path)}.{nearest(name_or_path, names)}",
            f"Presets: {', '.join(names)}; or give the path of a .toml file.",
        )
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise BadInput(f"Preset {path.name} cannot be read: {reason}.", "Correct the file.") from error
    try:
        return _build(path.stem, data)
    except BadInput as error:
        raise BadInput(f"Preset {path.name}: {error.message}", error.remedy) from error


def load_presets(folder: Path = PRESETS_DIR) -> list[Preset]:
    """Every preset of the folder, by rank then name. Raises: BadInput as load_preset."""
    presets = [load_preset(str(path)) for path in sorted(folder.glob("*.toml"))]
    return sorted(presets, key=lambda preset: (-preset.rank, preset.name))


def _build(name: str, data: dict[str, Any]) -> Preset:
    if "name" in data:
        raise BadInput("unknown key 'name'.", "A preset is named by its file.")
    preset = _built({"name": name, **data})
    refuse_settings(preset.engine, (key for section in SECTIONS for key in data.get(section, {})))
    return preset


def _built(data: Mapping[str, Any]) -> Preset:
    """A preset from nested plain data. Raises: BadInput naming the faulty table."""
    values = dict(data)
    for table in TABLES.keys() & data.keys():
        if not isinstance(data[table], dict):
            raise BadInput(f"{table!r} must be a table.", f"Write [{table}] on a line of its own.")
        values[table] = _checked(TABLES[table], data[table], f"[{table}] ")
    built: Preset = _checked(Preset, values)
    return built


def _checked(holder: type, values: Mapping[str, Any], where: str = "") -> Any:
    try:
        return holder(**values)
    except ValidationError as error:
        raise bad_input(error, holder, ALLOWED, where) from error
