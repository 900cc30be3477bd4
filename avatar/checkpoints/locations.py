"""Find the model's parts, and check by name that all their files exist. No tensor is opened.

A part is the transformer, the prompt encoder or its tokenizer, the VAE, the speech encoder, or the LoRA.
Each is searched for separately: in a layout of the base model, or as a single ComfyUI or GGUF file.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from avatar.checkpoints.tensor_headers import GGUF, SAFETENSORS
from avatar.checkpoints.tensor_names import holds_tokenizer, part_of
from avatar.paths import is_dir, is_file

logger = logging.getLogger(__name__)

LORA_REPO = "Quark-Vision/Live-Avatar"
LORA_FILE = "liveavatar.safetensors"
ENVIRONMENT = "AVATAR_WEIGHTS"
CACHE_ENVIRONMENT = "AVATAR_CACHE"
DEFAULT_FOLDER = "ckpt"
REMEMBERED = "weights-folder"  # the file that stores the folder named by the user
TOY_BYTES = 2**29  # a smaller transformer is a toy
DOWNLOAD_COMMAND = "python -m avatar download"

# The tiny decoder's published files for Wan 2.1, TAEHV's first; lightx2v/Autoencoders has all four.
TINY_DECODER = "taew2_1.pth"
TINY_DECODER_FILES = (
    TINY_DECODER,
    "taew2_1.safetensors",
    "lighttaew2_1.safetensors",
    "lighttaew2_1.pth",
)
TINY_DECODER_FOLDER = "TinyDecoder"  # below a download's folder, or the user's cache folder
TINY_DECODER_REPOS = ("lightx2v/Autoencoders", "Kijai/WanVideo_comfy")  # of the hub's cache
TINY_DECODER_REMEDY = (
    f"Run `{DOWNLOAD_COMMAND} --decoder tiny`, put it into the folder of the weights, or take decoder full."
)


PARTS = ("transformer", "text_encoder", "tokenizer", "vae", "speech_encoder")


@dataclass(frozen=True)
class CheckpointLayout:
    """One way in which the base model is published: paths within its repository.

    transformer: the folder of config.json, shards and index. text_encoder, vae: a .pth file, or a folder.
    indexes: shard indexes, which name further files beside them. others: further files that must exist.
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

    @property
    def speech_weights(self) -> tuple[str, ...]:
        """File names of which at least one must exist."""
        return tuple(f"{self.speech_encoder}/{name}" for name in SPEECH_WEIGHTS)

    def marks(self, folder: Path) -> bool:
        """Whether a folder has, or was meant to have, this layout."""
        return any(is_file(folder / name) for name in (*self.indexes, self.text_encoder))

    def part_of(self, name: str) -> str:
        """The part to which a file of the repository belongs."""
        for part in PARTS[1:]:
            path = getattr(self, part)
            if name == path or name.startswith(f"{path}/"):
                return part
        return "transformer"

    def missing(self, folder: Path, part: str) -> list[str]:
        """Names of a part's missing files, with the shards that its index names."""
        names = [name for name in self.others if self.part_of(name) == part]
        broken = []
        for index in self.indexes:
            if self.part_of(index) != part:
                continue
            shards = indexed(folder / index)
            if shards is None and is_file(folder / index):
                broken.append(f"{index} (unreadable)")
                continue
            inside = str(Path(index).parent)
            names += [shard if inside == "." else f"{inside}/{shard}" for shard in shards or ()]
            names += [index] if shards is None else []
        absent = broken + [name for name in names if not is_file(folder / name)]
        if part == "speech_encoder" and not any(is_file(folder / name) for name in self.speech_weights):
            absent.append(self.speech_weights[0])
        return absent


def indexed(index: Path) -> list[str] | None:
    """The files that an index names; None if it is missing or unreadable."""
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


SPEECH_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
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
# Where users of ComfyUI and GGUF keep their files, in the hub's cache and in ComfyUI's folder.
SINGLE_FILE_REPOS = (
    "Comfy-Org/Wan_2.2_ComfyUI_Repackaged",
    "Comfy-Org/Wan_2.1_ComfyUI_repackaged",
    "QuantStack/Wan2.2-S2V-14B-GGUF",
    "city96/umt5-xxl-encoder-gguf",
)
TINY_DECODER_PLACES = ("", TINY_DECODER_FOLDER, "Autoencoders", "vae_approx", "vae")
COMFYUI_FOLDERS = ("diffusion_models", "unet", "text_encoders", "clip", "vae", "audio_encoders", "VAE")


@dataclass(frozen=True)
class Checkpoint:
    """What was found.

    base, lora: folders of the base model, in any layout, and of the LoRA. parts: each part's folder or file,
    by part name. missing: names of missing files. places: every folder that was searched, in order.
    tiny_decoder: its file, if there is one; the model is complete without it.
    """

    base: Path | None = None
    lora: Path | None = None
    missing: tuple[str, ...] = ()
    places: tuple[Path, ...] = ()
    complete: bool = False
    layout: CheckpointLayout = OFFICIAL
    parts: Mapping[str, Path] = field(default_factory=dict)
    tiny_decoder: Path | None = None

    @property
    def lacks_tiny_decoder(self) -> bool:
        """Whether a run with the tiny decoder must be refused; an imagined checkpoint has every file."""
        imagined = self.complete and self.base is None and not self.parts
        return self.tiny_decoder is None and not imagined

    @property
    def tokenizer(self) -> Path | None:
        """The folder or file of the prompt tokenizer; None without a complete checkpoint."""
        return self._part("tokenizer") if self.complete else None

    @property
    def config(self) -> Path | None:
        """The transformer's config.json, or the file whose tensor shapes give the sizes."""
        found = self._part("transformer")
        return found / "config.json" if found is not None and is_dir(found) else found

    @property
    def shards(self) -> list[Path]:
        """The transformer's files; empty if its index cannot be read."""
        found = self._part("transformer")
        if found is None or not is_dir(found):
            return [] if found is None else [found]
        return [found / name for name in indexed(found / SHARD_INDEX) or ()]

    def _part(self, name: str) -> Path | None:
        if name in self.parts or self.base is None:
            return self.parts.get(name)
        return self.base / getattr(self.layout, name)


def checkpoint_places(ckpt_dir: Path | None = None) -> list[Path]:
    """Folders to search, in order: ckpt_dir, $AVATAR_WEIGHTS, ./ckpt, the remembered one.

    The hub's cache comes after them.
    """
    named = [ckpt_dir, os.environ.get(ENVIRONMENT), DEFAULT_FOLDER, remembered()]
    return [Path(place) for place in named if place]


def remembered() -> Path | None:
    """The folder that remember() stored; None if there is none."""
    try:
        text = (user_settings() / REMEMBERED).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None
    return Path(text) if text else None


def remember(folder: Path) -> None:
    """Search this folder from now on, whatever the current folder of later runs.

    If it cannot be stored, the error is ignored: the user can name the folder again.
    """
    file = user_settings() / REMEMBERED
    if remembered() == folder.resolve():
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{folder.resolve()}\n", encoding="utf-8")
    except OSError as error:
        logger.info("the folder of the weights is not remembered: %s", error.strerror)


def locate(ckpt_dir: Path | None = None) -> Checkpoint:
    """find_checkpoint(), for all that a user starts: a folder that is named once is remembered.

    Only with a complete model of which a part is there; not a toy's, which is for the self-test, and not the
    environment's, which may change.
    """
    found = find_checkpoint(ckpt_dir)
    if ckpt_dir is None or str(ckpt_dir) == os.environ.get(ENVIRONMENT) or not found.complete:
        return found
    home = (ckpt_dir.parent if is_file(ckpt_dir) else ckpt_dir).absolute()
    parts = [*found.parts.values(), *([] if found.lora is None else [found.lora])]
    is_toy = sum(shard.stat().st_size for shard in found.shards if is_file(shard)) <= TOY_BYTES
    if not is_toy and any(part.absolute().is_relative_to(home) for part in parts):
        remember(ckpt_dir)
    return found


def find_checkpoint(ckpt_dir: Path | None = None) -> Checkpoint:
    """Each part from the first place that has it, in any layout or as a single file; likewise the LoRA."""
    places, hub = checkpoint_places(ckpt_dir), hub_cache()
    bases = list(_bases(places, hub))
    base, layout = next(
        ((folder, layout) for folder, layout in bases if layout.marks(folder)), (None, OFFICIAL)
    )
    parts: dict[str, Path] = {}
    for place in (*places, hub):
        for folder, kind in _bases_of(place, hub):
            for part in PARTS:
                if part not in parts and not kind.missing(folder, part):
                    parts[part] = folder / getattr(kind, part)
        for part, file in _single_files(place, hub).items():
            parts.setdefault(part, file)
    if "tokenizer" not in parts and "text_encoder" in parts and holds_tokenizer(parts["text_encoder"]):
        parts["tokenizer"] = parts["text_encoder"]
    lora = next((folder for folder in _lora_folders(places, hub) if is_file(folder / LORA_FILE)), None)
    lacking = [part for part in PARTS if part not in parts]
    missing = [name for part in lacking for name in layout.missing(base or Path(), part)]
    if base is None and len(lacking) == len(PARTS):
        missing = [layout.repo]
    if lora is None:
        missing.append(f"{LORA_REPO}/{LORA_FILE}")
    whole = parts.get("transformer")
    home = base or (None if whole is None else whole.parent)
    places = [*places, hub]
    small = _tiny_decoder(places, hub)
    return Checkpoint(home, lora, tuple(missing), tuple(places), not missing, layout, parts, small)


def _bases(places: Sequence[Path], hub: Path) -> Iterator[tuple[Path, CheckpointLayout]]:
    for place in (*places, hub):
        yield from _bases_of(place, hub)


def _bases_of(place: Path, hub: Path) -> Iterator[tuple[Path, CheckpointLayout]]:
    """Folders of a place that may hold the base model, each with its expected layout."""
    for layout in LAYOUTS:
        if place != hub:
            yield from ((folder, layout) for folder in _homes(place, layout.repo))
        yield from ((snapshot, layout) for snapshot in _snapshots(place, layout.repo))


def _lora_folders(places: Sequence[Path], hub: Path) -> Iterator[Path]:
    """Folders that may hold the LoRA; the public code keeps a hub cache in ckpt/LiveAvatar."""
    for named in places:
        place = named.parent.parent if is_file(named) else named
        homes = [*_homes(place, LORA_REPO), place / "loras", place / "models" / "loras", named.parent]
        homes += _homes(named.parent, LORA_REPO) if is_file(named) else []  # where a download puts it
        yield from homes
        for home in homes:
            yield from _snapshots(home, LORA_REPO)
    yield from _snapshots(hub, LORA_REPO)


def _tiny_decoder(places: Sequence[Path], hub: Path) -> Path | None:
    """The tiny decoder's file, by its name: those of the first place that has any, TAEHV's first."""
    folders: list[Path] = []
    for place in places:
        home = place.parent if is_file(place) else place
        roots = (home, home / "models", home / "split_files")
        folders += [root / name for root in roots for name in TINY_DECODER_PLACES]
        folders += [home.parent / name for name in TINY_DECODER_PLACES if name]  # beside a single part
    folders.append(tiny_decoder_home())
    folders += [snapshot for repo in TINY_DECODER_REPOS for snapshot in _snapshots(hub, repo)]
    found = (folder / name for folder in folders for name in TINY_DECODER_FILES)
    return next(filter(is_file, found), None)


def tiny_decoder_home(target: Path | None = None) -> Path:
    """Where the tiny decoder is downloaded to. target: a download's folder; None: the user's cache."""
    return (user_cache() / "live-avatar" if target is None else target) / TINY_DECODER_FOLDER


def _single_files(place: Path, hub: Path) -> dict[str, Path]:
    """The largest file per part. place: one file, a folder of them, ComfyUI's folder, or its `models`."""
    if place == hub:
        folders = [folder for repo in SINGLE_FILE_REPOS for folder in _snapshots(hub, repo)]
        folders += [inner for folder in folders for inner in (folder / "split_files",)]
    elif is_file(place):
        folders = [place.parent, place.parent.parent]
    else:
        folders = [place, place / "models", place / "split_files"]
    folders += [folder / name for folder in list(folders) for name in COMFYUI_FOLDERS]
    found: dict[str, Path] = {}
    files = sorted(_tensor_files(folders), key=lambda file: -file.stat().st_size)
    for file in [place, *files] if is_file(place) else files:
        if part := part_of(file):
            found.setdefault(part, file)
    return found


def _tensor_files(folders: Iterable[Path]) -> Iterator[Path]:
    """Files that may be a whole part each; shards are left out."""
    for folder in folders:
        try:
            files = [file for file in folder.iterdir() if file.suffix in (SAFETENSORS, GGUF)]
        except (OSError, ValueError):
            continue
        yield from (file for file in files if SHARD_STEM not in file.name and is_file(file))


def hub_cache() -> Path:
    """The Hugging Face hub's cache folder, by the hub's environment variables."""
    if cache := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(cache)
    if home := os.environ.get("HF_HOME"):
        return Path(home) / "hub"
    return user_cache() / "huggingface" / "hub"


def user_settings() -> Path:
    """This program's folder for the user's settings; below ./.config for a user without a home."""
    if config := os.environ.get("XDG_CONFIG_HOME"):
        return Path(config) / "live-avatar"
    try:
        return Path.home() / ".config" / "live-avatar"
    except RuntimeError:
        return Path(".config") / "live-avatar"


def user_cache() -> Path:
    """The user's cache folder; ./.cache for a user without a home."""
    if cache := os.environ.get("XDG_CACHE_HOME"):
        return Path(cache)
    try:
        return Path.home() / ".cache"
    except RuntimeError:  # no $HOME, and a user unknown to the system: common in containers
        return Path(".cache")


def cache_folder() -> Path:
    """Where what is made once per machine is kept: $AVATAR_CACHE, else a folder of the user's cache."""
    if named := os.environ.get(CACHE_ENVIRONMENT):
        return Path(named)
    return user_cache() / "live-avatar"


def _homes(place: Path, repo: str) -> list[Path]:
    """The place itself, and folders in it and beside it with the repository's name or owner/name."""
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
