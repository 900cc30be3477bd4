"""Tensor files on disk: opened safely and compared strictly, with file and tensor named in every error."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from zipfile import is_zipfile

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from avatar.checkpoints.locations import DOWNLOAD_COMMAND
from avatar.checkpoints.tensor_headers import Shape
from avatar.checkpoints.tensor_match import mismatches
from avatar.errors import WeightsMissing

Shapes = dict[str, Shape]


FETCH_AGAIN = f"Run `{DOWNLOAD_COMMAND}`, which fetches only what is missing or broken."
WRONG_CHECKPOINT = f"Check --ckpt_dir, or run `{DOWNLOAD_COMMAND}`."

Model = TypeVar("Model", bound=nn.Module)


@contextmanager
def open_safetensors(path: Path) -> Iterator[Any]:
    """Open one .safetensors file; it is mapped and tensors are read one by one, never all at once.

    Raises: WeightsMissing when it is absent, truncated or not a safetensors file.
    """
    if not path.is_file():
        raise WeightsMissing(f"{path.name} is missing from the checkpoint.", FETCH_AGAIN)
    try:
        with safe_open(path, framework="pt", device="cpu") as tensors:
            yield tensors
    except (SafetensorError, OSError) as error:
        reason = str(error).replace(str(path), path.name)
        raise WeightsMissing(f"{path.name} is truncated or corrupt ({reason}).", FETCH_AGAIN) from error


def safetensors_shapes(path: Path) -> Shapes:
    """Names and shapes of a file's tensors, read only from its header. Raises: WeightsMissing."""
    with open_safetensors(path) as tensors:
        return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118


def read_pth(path: Path) -> dict[str, Tensor]:
    """Map the tensors of a .pth file; only tensors are unpickled.

    Raises: WeightsMissing when it is absent, truncated, corrupt, or contains anything else.
    """
    if not path.is_file():
        raise WeightsMissing(f"{path.name} is missing from the checkpoint.", FETCH_AGAIN)
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path))
    except MemoryError:
        raise
    except Exception as error:  # a file that is not a pickle, such as text, can raise anything
        known = isinstance(error, RuntimeError | pickle.UnpicklingError | EOFError | OSError | ValueError)
        reason = str(error).strip().split("\n")[0].replace(str(path), path.name) if known else ""
        reason = reason or "it cannot be read as one"
        raise WeightsMissing(
            f"{path.name} is truncated, corrupt, or holds more than tensors ({reason}).", FETCH_AGAIN
        ) from error
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise WeightsMissing(f"{path.name} is not a table of named tensors.", FETCH_AGAIN)
    return tensors


def require_match(what: str, expected: Mapping[str, Shape], found: Mapping[str, Shape]) -> None:
    """Check that names and shapes match.

    Raises: WeightsMissing naming every missing, unexpected and mis-shaped tensor.
    """
    if differences := mismatches(expected, found):
        raise WeightsMissing(f"{what} does not match the model. {differences}", WRONG_CHECKPOINT)


def shard_files(folder: Path, stem: str) -> list[Path]:
    """The shards listed in a safetensors checkpoint's index, in order.

    Raises: WeightsMissing when the index is absent or unreadable, or naming every absent shard.
    """
    index = folder / f"{stem}.safetensors.index.json"
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsMissing(
            f"{index.name} is missing, unreadable or not a tensor index.", FETCH_AGAIN
        ) from error
    absent = [name for name in names if not (folder / name).is_file()]
    if absent or not names:
        raise WeightsMissing(
            f"Missing from the checkpoint: {', '.join(absent) or 'every shard'}.", FETCH_AGAIN
        )
    return [folder / name for name in names]


def read_json(path: Path) -> dict[str, Any]:
    """Read a part's config. Raises: WeightsMissing when it is absent or not a JSON object."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsMissing(
            f"{path.parent.name}/{path.name} is missing or unreadable.", FETCH_AGAIN
        ) from error
    if not isinstance(data, dict):
        raise WeightsMissing(f"{path.parent.name}/{path.name} is not a JSON object.", FETCH_AGAIN)
    return data


def build_on_meta(folder: Path, build: Callable[[dict[str, Any]], Model]) -> Model:
    """Build the model of a folder's config.json on the meta device (no memory). Raises: WeightsMissing."""
    config = read_json(folder / "config.json")
    try:
        with torch.device("meta"):
            return build(config)
    except Exception as error:  # each library raises its own errors for a bad config
        reason = str(error).strip().split("\n")[0]
        raise WeightsMissing(
            f"{folder.name}/config.json does not describe a model ({reason}).", WRONG_CHECKPOINT
        ) from error
