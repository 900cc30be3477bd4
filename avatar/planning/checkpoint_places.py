"""Where checkpoints may lie, and whether their files are all there by name. No tensor is opened."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from avatar.paths import is_file

LORA_REPO = "Quark-Vision/Live-Avatar"
LORA_FILE = "liveavatar.safetensors"
ENVIRONMENT = "AVATAR_WEIGHTS"
DEFAULT_FOLDER = "ckpt"
DOWNLOAD_COMMAND = "python -m avatar download"


@dataclass(frozen=True)
class CheckpointLayout:
    """One way in which the base model is published: paths within its repository.

    transformer: the folder of config.json, shards and index. text_encoder, vae: a .pth file, or a folder.
    indexes: those that name further files beside them. others: what must be there besides.
    """

    repo: str
    transformer: str
    text_encoder: str
    tokenizer: str
    vae: str
    speech_encoder: str
    indexes: tuple[str, ...]
    others: tuple[str, ...]

    @property
    def config(self) -> str:
        return f"{self.transformer}/config.json".removeprefix("./")

    def marks(self, folder: Path) -> bool:
        """Whether a folder is, or was meant to be, this layout's."""
        return any(is_file(folder / name) for name in (*self.indexes, self.text_encoder))


SHARD_STEM = "diffusion_pytorch_model"
SHARD_INDEX = f"{SHARD_STEM}.safetensors.index.json"

OFFICIAL = CheckpointLayout(
    repo="Wan-AI/Wan2.2-S2V-14B",
    transformer=".",
    text_encoder="models_t5_umt5-xxl-enc-bf16.pth",
    tokenizer="google/umt5-xxl",
    vae="Wan2.1_VAE.pth",
    speech_encoder="wav2vec2-large-xlsr-53-english",
    indexes=(SHARD_INDEX,),
    others=(
        "config.json",
        "models_t5_umt5-xxl-enc-bf16.pth",
        "google/umt5-xxl/tokenizer.json",
        "Wan2.1_VAE.pth",
        "wav2vec2-large-xlsr-53-english/config.json",
        "wav2vec2-large-xlsr-53-english/preprocessor_config.json",
    ),
)
DIFFUSERS = CheckpointLayout(
    repo="FastVideo/Wan2.2-S2V-14B-Diffusers",
    transformer="transformer",
    text_encoder="text_encoder",
    tokenizer="tokenizer",
    vae="vae",
    speech_encoder="audio_encoder",
    indexes=(f"transformer/{SHARD_INDEX}", "text_encoder/model.safetensors.index.json"),
    others=(
        "transformer/config.json",
        "text_encoder/config.json",
        "tokenizer/tokenizer.json",
        "vae/config.json",
        f"vae/{SHARD_STEM}.safetensors",
        "audio_encoder/config.json",
        "audio_encoder/preprocessor_config.json",
    ),
)
LAYOUTS = (OFFICIAL, DIFFUSERS)


@dataclass(frozen=True)
class Checkpoint:
    """What was found: folders that hold the base model and the LoRA.

    missing: names of files that should be there. places: every folder that was looked at, in order.
    """

    base: Path | None = None
    lora: Path | None = None
    missing: tuple[str, ...] = ()
    places: tuple[Path, ...] = ()
    complete: bool = False
    layout: CheckpointLayout = OFFICIAL

    @property
    def tokenizer(self) -> Path | None:
        """The folder of the prompt's tokenizer; None where there is no checkpoint."""
        return self.base / self.layout.tokenizer if self.base is not None and self.complete else None


def checkpoint_places(ckpt_dir: Path | None = None) -> list[Path]:
    """Folders to look in, in order: ckpt_dir, $AVATAR_WEIGHTS, ./ckpt. The hub's cache comes after them."""
    named = [ckpt_dir, os.environ.get(ENVIRONMENT), DEFAULT_FOLDER]
    return [Path(place) for place in named if place]


def find_checkpoint(ckpt_dir: Path | None = None) -> Checkpoint:
    """The first place with the base model in any layout, and the first with the LoRA."""
    places, hub = checkpoint_places(ckpt_dir), hub_cache()
    bases = [
        (folder, layout) for place in places for layout in LAYOUTS for folder in _homes(place, layout.repo)
    ]
    bases += [(snapshot, layout) for layout in LAYOUTS for snapshot in _snapshots(hub, layout.repo)]
    loras = [folder for place in places for folder in _homes(place, LORA_REPO)] + _snapshots(hub, LORA_REPO)
    base, layout = next(
        ((folder, layout) for folder, layout in bases if layout.marks(folder)), (None, OFFICIAL)
    )
    lora = next((folder for folder in loras if is_file(folder / LORA_FILE)), None)
    missing = [layout.repo] if base is None else _missing(base, layout)
    if lora is None:
        missing.append(f"{LORA_REPO}/{LORA_FILE}")
    return Checkpoint(base, lora, tuple(missing), (*places, hub), complete=not missing, layout=layout)


def hub_cache() -> Path:
    """The Hugging Face hub's cache folder, by its own environment variables."""
    if cache := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(cache)
    if home := os.environ.get("HF_HOME"):
        return Path(home) / "hub"
    return user_cache() / "huggingface" / "hub"


def user_cache() -> Path:
    """Where programs of this user keep what can be had again; ./.cache for a user without a home."""
    if cache := os.environ.get("XDG_CACHE_HOME"):
        return Path(cache)
    try:
        return Path.home() / ".cache"
    except RuntimeError:  # no $HOME, and a user whom the system does not know: common in containers
        return Path(".cache")


def _homes(place: Path, repo: str) -> list[Path]:
    """A place may be the repository's folder, or hold it, or lie beside it, under its name or owner/name."""
    owner, name = repo.split("/")
    folders = [name, f"{owner}/{name}", name.replace("-", "")]
    return [place, *(place / folder for folder in folders), *(place.parent / folder for folder in folders)]


def _snapshots(hub: Path, repo: str) -> list[Path]:
    folder = hub / f"models--{repo.replace('/', '--')}"
    try:
        main = (folder / "refs" / "main").read_text().strip()
    except OSError:
        main = ""
    try:
        snapshots = list((folder / "snapshots").iterdir())
    except OSError:
        return []
    return sorted(snapshots, key=lambda path: (path.name != main, path.name))


def _missing(base: Path, layout: CheckpointLayout) -> list[str]:
    """Names of the base model's files that are absent, shards by their index."""
    names, broken = list(layout.others), []
    for index in layout.indexes:
        path = base / index
        if not is_file(path):
            names.append(index)
            continue
        try:
            shards = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            broken.append(f"{index} (unreadable)")
            continue
        folder = str(Path(index).parent)
        names += [shard if folder == "." else f"{folder}/{shard}" for shard in shards]
    return broken + [name for name in names if not is_file(base / name)]
