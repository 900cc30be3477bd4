"""Where checkpoints may lie, and whether their files are all there by name. Opens no tensor."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

BASE_REPO = "Wan-AI/Wan2.2-S2V-14B"
LORA_REPO = "Quark-Vision/Live-Avatar"
LORA_FILE = "liveavatar.safetensors"
TRANSFORMER_INDEX = "diffusion_pytorch_model.safetensors.index.json"
BASE_FILES = (
    "config.json",
    TRANSFORMER_INDEX,
    "models_t5_umt5-xxl-enc-bf16.pth",
    "google/umt5-xxl/tokenizer.json",
    "Wan2.1_VAE.pth",
    "wav2vec2-large-xlsr-53-english/config.json",
)
ENVIRONMENT = "AVATAR_WEIGHTS"
DEFAULT_FOLDER = "ckpt"


@dataclass(frozen=True)
class Checkpoint:
    """Folders that hold the base model and the LoRA, where they were found.

    missing: names of files that should be there.
    places: every folder that was looked at, in order, for the error that lists them.
    """

    base: Path | None = None
    lora: Path | None = None
    missing: tuple[str, ...] = ()
    places: tuple[Path, ...] = ()
    complete: bool = False


def checkpoint_places(ckpt_dir: Path | None = None) -> list[Path]:
    """Folders to look in, in order: ckpt_dir, $AVATAR_WEIGHTS, ./ckpt. The hub's cache comes after them."""
    named = [ckpt_dir, os.environ.get(ENVIRONMENT), DEFAULT_FOLDER]
    return [Path(place) for place in named if place]


def find_checkpoint(ckpt_dir: Path | None = None) -> Checkpoint:
    """The first place with the base model, the first with the LoRA, and which files are missing."""
    places = checkpoint_places(ckpt_dir)
    base = next((folder for place in places for folder in _homes(place, BASE_REPO) if _is_base(folder)), None)
    lora = next(
        (folder for place in places for folder in _homes(place, LORA_REPO) if (folder / LORA_FILE).is_file()),
        None,
    )
    hub = hub_cache()
    base = base or next(filter(_is_base, _snapshots(hub, BASE_REPO)), None)
    lora = lora or next((s for s in _snapshots(hub, LORA_REPO) if (s / LORA_FILE).is_file()), None)
    missing = [BASE_REPO] if base is None else _missing(base)
    if lora is None:
        missing.append(f"{LORA_REPO}/{LORA_FILE}")
    return Checkpoint(base, lora, tuple(missing), (*places, hub), complete=not missing)


def hub_cache() -> Path:
    """The Hugging Face hub's cache folder, by its own environment variables."""
    if cache := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(cache)
    if home := os.environ.get("HF_HOME"):
        return Path(home) / "hub"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface" / "hub"


def _homes(place: Path, repo: str) -> list[Path]:
    """A place may be the repository's folder itself, or hold it under its name, with or without the owner."""
    owner, name = repo.split("/")
    return [place, place / name, place / owner / name, place / name.replace("-", "")]


def _snapshots(hub: Path, repo: str) -> list[Path]:
    folder = hub / f"models--{repo.replace('/', '--')}"
    try:
        main = (folder / "refs" / "main").read_text().strip()
    except OSError:
        main = ""
    snapshots = list((folder / "snapshots").glob("*"))
    return sorted(snapshots, key=lambda path: (path.name != main, path.name))


def _is_base(folder: Path) -> bool:
    return (folder / TRANSFORMER_INDEX).is_file() or (folder / "models_t5_umt5-xxl-enc-bf16.pth").is_file()


def _missing(base: Path) -> list[str]:
    """Names of the base model's files that are absent, the transformer's shards by its index."""
    names = list(BASE_FILES)
    index = base / TRANSFORMER_INDEX
    if index.is_file():
        try:
            names += sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError):
            return [f"{TRANSFORMER_INDEX} (unreadable)"]
    return [name for name in names if not (base / name).is_file()]
