"""Users' LoRAs: which files a setting names, where they are, and whether they fit this model."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from avatar.checkpoints.locations import Checkpoint
from avatar.checkpoints.lora_keys import Change, read_changes, shapes_of
from avatar.checkpoints.tensor_headers import Shape, read_header
from avatar.checkpoints.tensor_match import mismatches
from avatar.checkpoints.tensor_names import transformer_shapes
from avatar.errors import BadInput, WeightsMissing
from avatar.paths import is_dir, is_file
from avatar.settings import LORA_SEPARATOR
from avatar.validation import shown

ENVIRONMENT = "AVATAR_LORAS"
DEFAULT_FOLDER = "loras"
SUFFIX = ".safetensors"
PEFT_CONFIG = "adapter_config.json"
MOST_WEIGHT = 10.0


@dataclass(frozen=True)
class UserLora:
    """A LoRA file and the weight with which it is merged."""

    path: Path
    weight: float = 1.0

    @property
    def alpha(self) -> float | None:
        """The alpha by PEFT's config beside the file; None without one: equal to the rank."""
        config = self.path.parent / PEFT_CONFIG
        if not is_file(config):
            return None
        try:
            settings = json.loads(config.read_text(encoding="utf-8"))
            alpha, rank = float(settings["lora_alpha"]), float(settings["r"])
            return alpha * math.sqrt(rank) if settings.get("use_rslora") else alpha
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BadInput(
                f"{PEFT_CONFIG} beside {self.path.name} cannot be read.", "Correct it, or take it away."
            ) from error

    def facts(self) -> list[str | float | None]:
        """What identifies the LoRA, for fingerprints."""
        with self.path.open("rb") as file:
            return [hashlib.file_digest(file, "sha256").hexdigest(), self.weight, self.alpha]


def lora_folder() -> Path:
    """The folder where LoRAs are looked up by file name: $AVATAR_LORAS, else ./loras."""
    return Path(os.environ.get(ENVIRONMENT) or DEFAULT_FOLDER)


def known_loras() -> list[str]:
    """Names of the files in lora_folder()."""
    folder = lora_folder()
    return sorted(path.name for path in folder.iterdir() if path.suffix == SUFFIX) if is_dir(folder) else []


def parse_loras(text: str, *, named_only: bool = False) -> tuple[UserLora, ...]:
    """The LoRAs that a setting names: FILE[:WEIGHT], separated by ";".

    named_only: accept only files in lora_folder(), for users who may not name other files of this machine.
    Raises: BadInput for a file that does not exist, or a weight that is not a number.
    """
    return tuple(_parse(part.strip(), named_only) for part in text.split(LORA_SEPARATOR) if part.strip())


def _parse(text: str, named_only: bool) -> UserLora:
    name, colon, number = text.rpartition(":")
    if not colon or "/" in number or "\\" in number or number.endswith(SUFFIX):
        name, number = text, "1"
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    if not -MOST_WEIGHT <= weight <= MOST_WEIGHT:  # refuses nan, too
        raise BadInput(
            f"The weight of the LoRA {shown(_plain(name))} is {shown(number)}.",
            f"It must be a number from -{MOST_WEIGHT:g} to {MOST_WEIGHT:g}.",
        )
    known = lora_folder() / name
    is_plain = Path(name).name == name and "\\" not in name
    path = known if is_plain and is_file(known) else Path(name)
    if not is_file(path) or (named_only and path is not known):
        near = f" Here are: {', '.join(known_loras())}." if known_loras() else ""
        where = f"Put it into the folder {DEFAULT_FOLDER}, or ${ENVIRONMENT}"
        raise BadInput(
            f"There is no LoRA {shown(_plain(name))}.{near}",
            f"{where}{'' if named_only else ', or give its path'}.",
        )
    return UserLora(path, weight)


def _plain(name: str) -> str:
    """A path's file name, which may be shown to users; its folders may not."""
    return name.replace("\\", "/").rpartition("/")[2]


def check_lora(lora: UserLora, base: Mapping[str, Shape]) -> dict[str, Change]:
    """A LoRA's changes to the base model with these tensors, by tensor name.

    Raises: BadInput naming every key without a tensor, and every missing half or wrong shape.
    """
    name, remedy = lora.path.name, "Choose a LoRA of Wan2.2-S2V-14B, or of a model with the same layers."
    try:
        shapes = read_header(lora.path).shapes
    except WeightsMissing as error:
        raise BadInput(error.message, "Give a LoRA as a .safetensors file.") from error
    changes, fault = read_changes(shapes, base)
    if fault:
        raise BadInput(f"The LoRA {name} cannot be used: {fault}", "Choose another LoRA.")
    if differences := mismatches(*shapes_of(changes, shapes, base)):
        raise BadInput(f"The LoRA {name} does not match the model. {differences}", remedy)
    if not any(change.down or change.difference for change in changes.values()):
        raise BadInput(f"{name} contains no LoRA.", remedy)
    return changes


def check_loras(text: str, checkpoint: Checkpoint) -> None:
    """Refuse LoRAs that do not exist or do not fit this checkpoint's model, before anything loads.

    Without a complete checkpoint, only the files themselves are checked. Raises: BadInput.
    """
    loras = parse_loras(text)
    base = transformer_shapes(checkpoint.shards) if loras and checkpoint.complete else {}
    for lora in loras:
        if base:
            check_lora(lora, base)


def loras_digest(text: str) -> str:
    """A fingerprint of the LoRAs that a setting names, by file content. Raises: BadInput."""
    facts = [lora.facts() for lora in parse_loras(text)]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
