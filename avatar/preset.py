"""Presets: profiles a user picks, one TOML file each. Accepted means obeyed: unknown keys are errors."""

from __future__ import annotations

import tomllib
from dataclasses import asdict, dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from avatar.abilities import refuse_settings
from avatar.errors import BadInput
from avatar.geometry import FPS, Size, output_size

PRESETS_DIR = Path(__file__).resolve().parent.parent / "presets"

Engine = Literal["diffusion", "preview", "auto"]
Rung = Literal["online_decode", "infer_frames", "size", "sample_steps", "offload"]
WeightDtype = Literal["bf16", "fp8", "fp32"]
RingDtype = Literal["bf16", "fp8", "fp32"]
AttentionDtype = Literal["bf16", "int8"]
TextPlace = Literal["gpu", "cpu", "sharded"]
Layout = Literal["local", "layers", "timesteps", "ulysses", "fsdp"]


@dataclass(frozen=True)
class Requires:
    """What a machine must have. vram_gib is for each GPU; compute_capability as "8.9"."""

    num_gpus: int = 0
    vram_gib: float = 0.0
    compute_capability: str = "0.0"
    host_ram_gib: float = 0.0
    weights: Literal["none", "live-avatar", "tiny"] = "none"


@dataclass(frozen=True)
class Generation:
    """What is generated; at most num_clip clips of infer_frames frames, 0: as long as the speech."""

    size: str = "704*384"
    infer_frames: int = 48
    num_clip: int = 0
    sample_steps: int = 4
    shift: float = 3.0
    sample_guide_scale: float = 0.0
    seed: int = 0
    fps: int = FPS
    prompt: str = ""


@dataclass(frozen=True)
class Memory:
    """Where things live and in which form. text_encoder: "sharded" is over all GPUs of several.

    attention_dtype: "int8" is int8 keys by fp8 values, and rings in that form whatever ring_dtype is; "bf16"
    is the residual stream's own dtype, fp32 where weights are.
    """

    enable_online_decode: bool = True
    offload_model: bool = False
    weight_dtype: WeightDtype = "bf16"
    ring_dtype: RingDtype = "bf16"
    attention_dtype: AttentionDtype = "bf16"
    text_encoder: TextPlace = "gpu"


@dataclass(frozen=True)
class Parallel:
    """How the work is spread over GPUs. decode_gpu: a GPU for the decoder alone."""

    layout: Layout = "local"
    num_gpus_dit: int = 1
    ulysses_size: int = 1
    decode_gpu: bool = False


@dataclass(frozen=True)
class Fallback:
    """Rungs of the out-of-memory ladder in the order in which they are taken; an empty one forbids it."""

    order: tuple[Rung, ...] = ("online_decode", "infer_frames", "size", "sample_steps", "offload")


@dataclass(frozen=True)
class Preset:
    """One profile. name is the file's name without .toml."""

    name: str
    title: str
    summary: str
    engine: Engine
    title_zh: str = ""
    summary_zh: str = ""
    rank: int = 0  # place on the page, and for auto: the highest that fits is taken
    requires: Requires = field(default_factory=Requires)
    generation: Generation = field(default_factory=Generation)
    memory: Memory = field(default_factory=Memory)
    parallel: Parallel = field(default_factory=Parallel)
    fallback: Fallback = field(default_factory=Fallback)

    def __post_init__(self) -> None:
        check(self)

    @property
    def num_gpus(self) -> int:
        """The GPUs that it takes as it is set, which may be more or fewer than it was written for."""
        return self.parallel.num_gpus_dit + self.parallel.decode_gpu if self.requires.num_gpus else 0

    def with_settings(self, **settings: Any) -> Preset:
        """The preset with flat settings (size=…, num_gpus_dit=…) laid over it; None leaves one as it is.

        Raises: BadInput for a name that is no setting, a wrong type or a wrong value.
        """
        out = self
        for name, value in settings.items():
            if value is None:
                continue
            section = SETTINGS.get(name)
            if section is None:
                raise BadInput(f"There is no setting {name!r}.{_nearest(name, SETTINGS)}")
            part = getattr(out, section)
            hint = get_type_hints(type(part))[name]
            out = replace(out, **{section: replace(part, **{name: _typed(value, hint, name)})})
        return out

    def as_dict(self) -> dict[str, Any]:
        """Nested plain data, as it stands in a TOML file."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Preset:
        """What as_dict gave, also by way of JSON. Raises: BadInput, TypeError."""
        sections = {key: _section(key, data[key]) for key in SECTIONS if key in data}
        return cls(**{**data, **sections})


SECTIONS: dict[str, type] = {
    "requires": Requires,
    "generation": Generation,
    "memory": Memory,
    "parallel": Parallel,
    "fallback": Fallback,
}
SETTINGS: dict[str, str] = {
    f.name: section for section in ("generation", "memory", "parallel") for f in fields(SECTIONS[section])
}


def check(preset: Preset) -> None:
    """Refuse values that no engine could honour.

    Raises: BadInput naming the setting, what it may be, and what it was.
    """
    g, p = preset.generation, preset.parallel
    size = Size.parse(g.size)
    if preset.engine == "diffusion":
        output_size(size.width, size.height, size)  # refuses what is too small for the model's grid
    _must(
        g.infer_frames >= 16 and g.infer_frames % 4 == 0,
        "infer_frames",
        g.infer_frames,
        "a multiple of 4 from 16 up",
    )
    _must(g.num_clip >= 0, "num_clip", g.num_clip, "0 (as long as the speech) or more")
    _must(1 <= g.sample_steps <= 8, "sample_steps", g.sample_steps, "from 1 to 8")
    _must(0.1 <= g.shift <= 20, "shift", g.shift, "from 0.1 to 20")
    _must(
        g.sample_guide_scale == 0,
        "sample_guide_scale",
        g.sample_guide_scale,
        "0: the model is distilled, it was trained to run without guidance",
    )
    _must(0 <= g.seed < 2**63, "seed", g.seed, "a whole number from 0 up")
    _must(g.fps == FPS, "fps", g.fps, f"{FPS}: the model knows no other rate")
    _must(p.num_gpus_dit >= 1, "num_gpus_dit", p.num_gpus_dit, "1 or more")
    _must(p.ulysses_size >= 1, "ulysses_size", p.ulysses_size, "1 or more")
    try:
        capability(preset.requires.compute_capability)
    except ValueError:
        _must(False, "compute_capability", preset.requires.compute_capability, 'written like "8.9"')


def capability(text: str) -> tuple[int, int]:
    """ "8.9" → (8, 9). Raises: ValueError."""
    major, minor = text.split(".")
    return int(major), int(minor)


def load_preset(name_or_path: str, folder: Path = PRESETS_DIR) -> Preset:
    """A preset by its name in the folder, or by the path of a .toml file.

    Raises: BadInput: no such preset (the nearest is told), unreadable file, unknown key, wrong type or value.
    """
    path = Path(name_or_path)
    if path.suffix != ".toml":
        path = folder / f"{name_or_path}.toml"
    if not path.is_file():
        names = [p.stem for p in sorted(folder.glob("*.toml"))]
        raise BadInput(
            f"There is no preset {name_or_path!r}.{_nearest(name_or_path, names)}",
            f"Presets: {', '.join(names)}; or give the path of a .toml file.",
        )
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise BadInput(f"Preset {path.name} cannot be read: {error}.", "Correct the file.") from error
    try:
        return _build(path.stem, data)
    except BadInput as error:
        raise BadInput(f"Preset {path.name}: {error.message}", error.remedy) from error


def load_presets(folder: Path = PRESETS_DIR) -> list[Preset]:
    """Every preset of the folder, by rank then name. Raises: BadInput as load_preset."""
    presets = [load_preset(str(path)) for path in sorted(folder.glob("*.toml"))]
    return sorted(presets, key=lambda preset: (-preset.rank, preset.name))


def _build(name: str, data: dict[str, Any]) -> Preset:
    top = {f.name for f in fields(Preset)} - {"name"}
    _known(data, top, "")
    values: dict[str, Any] = {"name": name}
    hints = get_type_hints(Preset)
    for key in ("title", "summary", "engine"):
        if key not in data:
            raise BadInput(f"{key!r} is missing.", f'Add {key} = "…" at the top.')
    for key, value in data.items():
        if key in SECTIONS:
            values[key] = _section(key, value)
        else:
            values[key] = _typed(value, hints[key], key)
    preset = Preset(**values)
    refuse_settings(
        preset.engine, (name for name, section in SETTINGS.items() if name in data.get(section, {}))
    )
    return preset


def _section(key: str, value: Any) -> Any:
    if not isinstance(value, dict):
        raise BadInput(f"{key!r} must be a table.", f"Write [{key}] on a line of its own.")
    hints = get_type_hints(SECTIONS[key])
    _known(value, set(hints), f"[{key}] ")
    return SECTIONS[key](**{k: _typed(v, hints[k], f"[{key}] {k}") for k, v in value.items()})


def _known(data: dict[str, Any], names: set[str], where: str) -> None:
    for key in data:
        if key not in names:
            raise BadInput(f"{where}unknown key {key!r}.{_nearest(key, names)}")


def _nearest(word: str, names: Any) -> str:
    close = get_close_matches(word, list(names), 1, 0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def _must(holds: bool, name: str, value: Any, allowed: str) -> None:
    if not holds:
        raise BadInput(f"{name} is {value!r}.", f"It must be {allowed}.")


def _typed(value: Any, hint: Any, name: str) -> Any:
    """The value, if it is of the hinted type; whole numbers serve as floats, lists as tuples."""
    origin = get_origin(hint)
    if origin is Literal:
        if value in get_args(hint):
            return value
        known = [str(a) for a in get_args(hint)]
        raise BadInput(
            f"{name} is {value!r}.{_nearest(str(value), known)}", f"It must be one of: {', '.join(known)}."
        )
    if origin is tuple:
        if isinstance(value, list | tuple):
            return tuple(_typed(v, get_args(hint)[0], name) for v in value)
        raise BadInput(f"{name} must be a list.", f"It is {value!r}.")
    if origin in (Union, UnionType):
        hint = next(a for a in get_args(hint) if a is not type(None))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not hint:
        kinds = {int: "a whole number", float: "a number", str: "text in quotes", bool: "true or false"}
        raise BadInput(f"{name} must be {kinds.get(hint, hint)}.", f"It is {value!r}.")
    return value
