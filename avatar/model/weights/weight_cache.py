"""On-disk cache of merged, quantised weights: built once per checkpoint; later starts read half the bytes.

An entry is a folder that is created atomically. Without an entry, weights are quantised as they load.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from avatar.checkpoints.download import SPARE_BYTES
from avatar.errors import WeightsMissing
from avatar.locks import take
from avatar.media import atomic
from avatar.model.linear_8bit import Quantiser
from avatar.model.quantize import FLOAT8, INT8, is_quantised
from avatar.model.transformer import StreamingTransformer, held_dtype
from avatar.model.weights.checkpoint import CheckpointFiles
from avatar.model.weights.loading import Settle, load_transformer, load_weights, open_transformer, stay
from avatar.model.weights.lora import ALPHA
from avatar.model.weights.tensor_files import read_json

logger = logging.getLogger(__name__)

RECIPES = {FLOAT8: "e4m3-rows-2", INT8: "int8-hadamard-rows-1"}  # rename whenever a format's output changes
FILE_BYTES = 2**30  # buffered on the host before a file is written; smaller checkpoints are not cached
KEEP_S = 30 * 24 * 3600.0  # an entry unused for this long is deleted when another is built
SAMPLE_BYTES = 2**16
LOCK_POLL_S = 0.2
INDEX, SCALES, WEIGHTS = "index.json", "scales.safetensors", "weights-*.safetensors"

Check = Callable[[], None]


class CacheUnusable(Exception):
    """The cache folder cannot be written; the run continues without it."""


def load_quantised(
    files: CheckpointFiles,
    device: torch.device | str,
    dtype: torch.dtype,
    format: torch.dtype,
    *,
    folder: Path | None = None,
    select: Callable[[str], bool] = lambda name: True,
    settle: Settle = stay,
    check: Check = lambda: None,
) -> StreamingTransformer:
    """The transformer with LoRAs merged and 8-bit weights, from the cache, which is filled first if needed.

    dtype: of the tensors that are not quantised. format: of those that are, fp8 or int8. folder: the cache's;
    None for no cache. select, settle: see load_transformer. check: called between
    tensors; it may raise to stop the load.
    Raises: WeightsMissing if the checkpoint itself is broken.
    """
    for _ in range(2):
        entry = None if folder is None else cached(files, folder, device, dtype, format, check)
        if entry is None:
            break
        try:
            return load_entry(files, entry, device, dtype, format, select, check, settle)
        except WeightsMissing as error:
            logger.warning("the cache of quantised weights is corrupt and will be rebuilt: %s", error.message)
            shutil.rmtree(entry, ignore_errors=True)
    quantiser = Quantiser(format)

    def place(name: str, tensor: Tensor) -> nn.Parameter | None:
        check()
        return quantiser.place(name, tensor)

    model = load_transformer(files, device, dtype, select=select, place=place, settle=settle)
    quantiser.install(model)
    return model


def cached(
    files: CheckpointFiles,
    folder: Path,
    device: torch.device | str,
    dtype: torch.dtype,
    format: torch.dtype,
    check: Check,
) -> Path | None:
    """The cache entry for a checkpoint, built now if absent; None when it cannot be written.

    The tensors are quantised on the device, one at a time. A checkpoint below FILE_BYTES gets no entry.
    Raises: WeightsMissing.
    """
    try:
        with _unless_unwritable():
            if sum(shard.stat().st_size for shard in files.shards) < FILE_BYTES:
                return None
            entry = folder / key(files, dtype, format)
            folder.mkdir(parents=True, exist_ok=True)
        if not entry.is_dir():
            with locked(folder, check):
                if not entry.is_dir():  # another process may have built it in the meantime
                    build(files, entry, device, dtype, format, check)
        if os.access(entry, os.W_OK):
            os.utime(entry)  # marks it as used
    except CacheUnusable as error:
        logger.warning("quantised weights are not cached, each start quantises again: %s", error)
        return None
    return entry


def is_cached(files: CheckpointFiles, folder: Path, dtype: torch.dtype, format: torch.dtype) -> bool:
    """Whether there is an entry for a checkpoint, so that loading it need not quantise."""
    return (folder / key(files, dtype, format)).is_dir()


def key(files: CheckpointFiles, dtype: torch.dtype, format: torch.dtype) -> str:
    """An entry's name, unique per checkpoint, LoRAs, format, and dtype of the unquantised tensors."""
    recipe = RECIPES[format]
    facts: list[object] = [recipe, str(dtype), str(ALPHA), *map(_fingerprint, (*files.shards, files.lora))]
    facts += [[*_fingerprint(lora.path), lora.weight, lora.alpha] for lora in files.loras]
    return f"{recipe}-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]}"


def _fingerprint(file: Path) -> list[str | int]:
    """A file's name, size, time and three samples; reading all of it would cost what the cache saves."""
    stat, sample = file.stat(), hashlib.sha256()
    with file.open("rb") as data:
        for offset in (0, stat.st_size // 2, max(0, stat.st_size - SAMPLE_BYTES)):
            data.seek(offset)
            sample.update(data.read(SAMPLE_BYTES))
    return [file.name, stat.st_size, stat.st_mtime_ns, sample.hexdigest()]


def build(
    files: CheckpointFiles,
    entry: Path,
    device: torch.device | str,
    dtype: torch.dtype,
    format: torch.dtype,
    check: Check,
) -> None:
    """Write an entry under a temporary name, then rename it. Raises: CacheUnusable, WeightsMissing."""
    model = open_transformer(files)
    _make_room(entry.parent, model, dtype)
    logger.info("quantising the transformer for the cache: once for this checkpoint")

    def place(name: str, tensor: Tensor) -> nn.Parameter:
        check()
        writer.add(name, tensor)
        return nn.Parameter(tensor.to("meta"), requires_grad=False)

    with _unless_unwritable(), atomic.whole(entry) as draft:
        draft.mkdir()
        writer = EntryWriter(draft, dtype, Quantiser(format))
        load_weights(model, files.shards, (files.lora, *files.loras), device, dtype, place=place)
        writer.finish()


def _make_room(folder: Path, model: nn.Module, dtype: torch.dtype) -> None:
    """Delete killed processes' drafts and unused entries. Raises: CacheUnusable when the disk is too full."""
    with _unless_unwritable():
        for other in folder.iterdir():
            unused = (other / INDEX).is_file() and time.time() - other.stat().st_mtime > KEEP_S
            if unused or other.name.endswith(atomic.DRAFT):
                shutil.rmtree(other)
        free = shutil.disk_usage(folder).free
    need = sum(
        value.numel() * (1 if is_quantised(name, value.shape) else held_dtype(name, dtype).itemsize)
        for name, value in model.state_dict().items()
    )
    if free < need + SPARE_BYTES:
        raise CacheUnusable(f"they need {need / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB free")


@dataclass
class EntryWriter:
    """Writes an entry's files into a folder, FILE_BYTES of tensors at a time."""

    folder: Path
    dtype: torch.dtype
    quantiser: Quantiser
    sums: dict[str, int] = field(default_factory=dict)
    num_files: int = 0
    waiting: dict[str, Tensor] = field(default_factory=dict)

    def add(self, name: str, tensor: Tensor) -> None:
        """Add a merged tensor of the checkpoint. Raises: CacheUnusable."""
        placed = self.quantiser.place(name, tensor)
        kept = tensor.to(held_dtype(name, self.dtype)) if placed is None else placed.data
        self.waiting[name] = kept.cpu()
        self.sums[name] = byte_sum(kept)
        if sum(waiting.nbytes for waiting in self.waiting.values()) >= FILE_BYTES:
            self._flush()

    def finish(self) -> None:
        """Write the rest; the index comes last. Raises: CacheUnusable."""
        if self.waiting:
            self._flush()
        scales = {name: scale.cpu() for name, scale in self.quantiser.scales.items()}
        self._write(SCALES, scales)
        self.sums |= {f"{name} scale": byte_sum(scale) for name, scale in scales.items()}
        with _unless_unwritable():
            index = {"recipe": RECIPES[self.quantiser.dtype], "sums": self.sums}
            (self.folder / INDEX).write_text(json.dumps(index))
            atomic.sync(self.folder / INDEX)

    def _flush(self) -> None:
        self.num_files += 1
        self._write(WEIGHTS.replace("*", f"{self.num_files:05d}"), self.waiting)
        self.waiting = {}

    def _write(self, name: str, tensors: dict[str, Tensor]) -> None:
        with _unless_unwritable():
            save_file(tensors, self.folder / name)
            atomic.sync(self.folder / name)


def load_entry(
    files: CheckpointFiles,
    entry: Path,
    device: torch.device | str,
    dtype: torch.dtype,
    format: torch.dtype,
    select: Callable[[str], bool] = lambda name: True,
    check: Check = lambda: None,
    settle: Settle = stay,
) -> StreamingTransformer:
    """Load the transformer from a cache entry; only the config is read from the checkpoint.

    Raises: WeightsMissing for an entry that is incomplete, truncated or altered.
    """
    model, sums = open_transformer(files), read_json(entry / INDEX).get("sums", {})

    def intact(name: str, tensor: Tensor) -> Tensor:
        if sums.get(name) != byte_sum(tensor):
            raise WeightsMissing(f"{name} is corrupt (checksum mismatch).")
        return tensor

    try:
        scales = load_file(entry / SCALES)
    except (SafetensorError, OSError) as error:
        raise WeightsMissing(f"{SCALES} cannot be read.") from error
    wanted = [name for name in model.state_dict() if name in scales and select(name)]
    quantiser = Quantiser(
        format, {name: intact(f"{name} scale", scales[name]).to(device) for name in wanted}
    )

    def place(name: str, tensor: Tensor) -> nn.Parameter | None:
        check()
        return quantiser.place(name, intact(name, tensor))

    shards = sorted(entry.glob(WEIGHTS))
    load_weights(model, shards, (), device, dtype, select=select, place=place, settle=settle, widen=False)
    quantiser.install(model)
    return model


def byte_sum(tensor: Tensor) -> int:
    """A checksum at memory speed, computed on the tensor's device: the sum of its bytes as 8-byte words."""
    data = tensor.reshape(-1).view(torch.uint8)
    if data.numel() % 8:
        return int(data.sum(dtype=torch.int64))
    aligned = data.clone() if data.storage_offset() % 8 else data
    return int(aligned.view(torch.int64).sum())


@contextmanager
def locked(folder: Path, check: Check) -> Iterator[None]:
    """Lock the cache against other processes, waiting if needed; the OS frees a dead process's lock."""
    while True:
        with _unless_unwritable():
            lock = take(folder / ".lock")
        if lock is not None:
            break
        check()
        time.sleep(LOCK_POLL_S)
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _unless_unwritable() -> Iterator[None]:
    """Turn OS and file errors into CacheUnusable, without the folder's path. Raises: CacheUnusable."""
    try:
        yield
    except OSError as error:
        raise CacheUnusable(error.strerror or type(error).__name__) from error
    except SafetensorError as error:
        raise CacheUnusable("a file could not be written") from error
