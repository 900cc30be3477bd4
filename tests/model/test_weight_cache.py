"""The cache of quantised weights: same bits as without it, whole or absent, never another checkpoint's."""

from __future__ import annotations

import functools
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from avatar.checkpoints.locations import CACHE_ENVIRONMENT, LORA_FILE, cache_folder
from avatar.errors import Cancelled, WeightsMissing
from avatar.model.linear_8bit import Int8Linear, Quantiser
from avatar.model.quantize import FLOAT8, INT8, is_quantised, quantise_weight
from avatar.model.transformer import StreamingTransformer, held_dtype
from avatar.model.weights import weight_cache
from avatar.model.weights.checkpoint import CheckpointFiles, open_checkpoint
from avatar.model.weights.loading import load_transformer
from avatar.model.weights.weight_cache import (
    INDEX,
    KEEP_S,
    SCALES,
    load_quantised,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture
def files(tiny_checkpoint: Path) -> CheckpointFiles:
    return open_checkpoint(tiny_checkpoint)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def _small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that an entry of a toy model has several."""
    monkeypatch.setattr(weight_cache, "FILE_BYTES", 100_000)


def load(files: CheckpointFiles, folder: Path | None, **options) -> StreamingTransformer:
    return load_quantised(files, "cpu", torch.bfloat16, FLOAT8, folder=folder, **options)


def entries(folder: Path) -> list[Path]:
    """Everything in a cache but its lock."""
    return sorted(path for path in folder.iterdir() if path.name != ".lock")


def same_bits(first: StreamingTransformer, second: StreamingTransformer) -> bool:
    tensors, others = first.state_dict(), second.state_dict()
    assert tensors.keys() == others.keys()
    return all(
        tensor.dtype == others[name].dtype and torch.equal(bits(tensor), bits(others[name]))
        for name, tensor in tensors.items()
    )


def bits(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def test_every_weight_is_the_merged_one_quantised(files: CheckpointFiles) -> None:
    """From float32, not from what bf16 leaves of the merged weight."""
    merged = load_transformer(files, "cpu", torch.float32).state_dict()
    loaded = load(files, None).state_dict()
    for name, tensor in merged.items():
        if is_quantised(name, tensor.shape):
            weight, scale = quantise_weight(tensor)
            assert torch.equal(bits(loaded[name]), bits(weight))
            assert torch.equal(loaded[f"{name.removesuffix('weight')}scale"], scale)
        else:
            expected = tensor.to(held_dtype(name, torch.bfloat16))
            assert loaded[name].dtype == expected.dtype
            assert torch.equal(loaded[name], expected)


def test_filling_reading_and_going_without_give_the_same_bits(files: CheckpointFiles, folder: Path) -> None:
    without, filling, reading = load(files, None), load(files, folder), load(files, folder)
    assert same_bits(without, filling)
    assert same_bits(filling, reading)


def test_a_second_start_reads_only_the_cache(
    files: CheckpointFiles, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load(files, folder)
    (entry,) = entries(folder)
    kept = {path.name: path.stat().st_mtime_ns for path in entry.iterdir()}
    assert len(kept) > 4
    monkeypatch.setattr(Quantiser, "place", keep_only(Quantiser.place))
    monkeypatch.setattr(weight_cache, "load_transformer", never)
    monkeypatch.setattr(weight_cache, "build", never)
    assert same_bits(load(files, folder), first)
    assert {path.name: path.stat().st_mtime_ns for path in entry.iterdir()} == kept


def keep_only(place):  # type: ignore[no-untyped-def]
    def checked(self: Quantiser, name: str, tensor: Tensor):  # type: ignore[no-untyped-def]
        assert tensor.dtype == (
            FLOAT8 if is_quantised(name, tensor.shape) else held_dtype(name, torch.bfloat16)
        )
        return place(self, name, tensor)

    return checked


def never(*args: object, **options: object) -> None:
    raise AssertionError("the checkpoint was read")


def test_an_entry_is_as_large_as_the_model(files: CheckpointFiles, folder: Path) -> None:
    model = load(files, folder)
    (entry,) = entries(folder)
    stored = sum(path.stat().st_size for path in entry.glob("*.safetensors"))
    held = sum(tensor.nbytes for tensor in model.state_dict().values())
    assert held <= stored < held + 20_000  # headers


def test_a_stage_reads_its_own_tensors(files: CheckpointFiles, folder: Path) -> None:
    whole = load(files, folder).state_dict()
    for place in (folder, None):
        stage = load(files, place, select=lambda name: name.startswith("blocks.1."))
        for name, tensor in stage.state_dict().items():
            assert tensor.is_meta != name.startswith("blocks.1.")
            assert tensor.is_meta or torch.equal(bits(tensor), bits(whole[name]))


def test_no_more_than_one_file_waits_in_memory(
    files: CheckpointFiles, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    monkeypatch.setattr(
        weight_cache,
        "save_file",
        lambda tensors, path: (
            written.append(sum(t.nbytes for t in tensors.values())) or save_file(tensors, path)
        ),
    )
    load(files, folder)
    largest = max(value.numel() * 2 for value in load_transformer(files, "cpu", torch.bfloat16).parameters())
    assert len(written) > 3
    assert max(written) < weight_cache.FILE_BYTES + largest


class TestKeys:
    """What gets an entry of its own."""

    def key(
        self, root: Path, dtype: torch.dtype = torch.bfloat16, format: torch.dtype = FLOAT8
    ) -> str:
        return weight_cache.key(open_checkpoint(root), dtype, format)

    def test_the_same_checkpoint_again(self, checkpoint_copy: Path) -> None:
        assert self.key(checkpoint_copy) == self.key(checkpoint_copy)

    @pytest.mark.parametrize(
        "name", ["diffusion_pytorch_model-00002-of-00003.safetensors", f"../LiveAvatar/{LORA_FILE}"]
    )
    @pytest.mark.parametrize("same_time", [True, False])
    def test_a_changed_shard_or_lora(self, name: str, same_time: bool, checkpoint_copy: Path) -> None:
        """Of the same size, and even of the same time."""
        file, before = checkpoint_copy / name, self.key(checkpoint_copy)
        stat = file.stat()
        tensors = load_file(file)
        save_file({key: tensor + 1 for key, tensor in tensors.items()}, file, metadata={"format": "pt"})
        if same_time:
            os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert self.key(checkpoint_copy) != before

    def test_another_dtype_or_recipe(self, checkpoint_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        before = self.key(checkpoint_copy)
        assert self.key(checkpoint_copy, torch.float32) != before
        assert self.key(checkpoint_copy, format=INT8) != before
        monkeypatch.setitem(weight_cache.RECIPES, FLOAT8, "e4m3-rows-0")
        assert self.key(checkpoint_copy) != before

    def test_a_changed_lora_gives_changed_weights(self, checkpoint_copy: Path, folder: Path) -> None:
        """The stale entry stays, for whoever goes back, and is not read."""
        before = load(open_checkpoint(checkpoint_copy), folder)
        lora = checkpoint_copy.parent / "LiveAvatar" / LORA_FILE
        save_file({key: 3 * tensor for key, tensor in load_file(lora).items()}, lora)
        after = load(open_checkpoint(checkpoint_copy), folder)
        assert not same_bits(before, after)
        assert same_bits(after, load(open_checkpoint(checkpoint_copy), None))
        assert len(entries(folder)) == 2

    def test_entries_that_nobody_uses_go_when_another_is_made(
        self, files: CheckpointFiles, folder: Path
    ) -> None:
        load(files, folder)
        (unused,) = entries(folder)
        in_use = folder / "e4m3-rows-0-abc"
        shutil.copytree(unused, in_use)
        (folder / "notes").mkdir()
        for path, age_s in ((unused, KEEP_S + 60), (in_use, KEEP_S - 60), (folder / "notes", 9 * KEEP_S)):
            os.utime(path, (time.time() - age_s,) * 2)
        load_quantised(files, "cpu", torch.float32, FLOAT8, folder=folder)
        assert not unused.exists()
        assert in_use.exists()
        assert (folder / "notes").exists()

    def test_each_start_marks_what_it_uses(self, files: CheckpointFiles, folder: Path) -> None:
        load(files, folder)
        (entry,) = entries(folder)
        os.utime(entry, (0, 0))
        load(files, folder)
        assert time.time() - entry.stat().st_mtime < 60


def replace(file: Path, data: bytes) -> None:
    """A new file under the old name: models that are loaded on the CPU still read the old one."""
    file.unlink()
    file.write_bytes(data)


def truncate(file: Path) -> None:
    replace(file, file.read_bytes()[:-3])


def empty(file: Path) -> None:
    replace(file, b"")


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-5] ^= 0x08
    replace(file, bytes(data))


def remove(file: Path) -> None:
    file.unlink()


@pytest.mark.parametrize("damage", [truncate, empty, flip, remove])
@pytest.mark.parametrize("name", ["weights-00002.safetensors", SCALES, INDEX])
def test_a_broken_entry_is_made_again(
    damage, name: str, files: CheckpointFiles, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = load(files, folder)
    (entry,) = entries(folder)
    damage(entry / name)
    with caplog.at_level(logging.WARNING):
        assert same_bits(load(files, folder), first)
    (line,) = caplog.messages
    assert line.startswith("the cache of quantised weights is corrupt and will be rebuilt: ")
    assert str(folder) not in line
    caplog.clear()
    assert same_bits(load(files, folder), first)
    assert not caplog.messages


def test_zeroed_pages_are_noticed(files: CheckpointFiles, folder: Path) -> None:
    """What a loss of power may leave of a file whose size is right."""
    first = load(files, folder)
    (entry,) = entries(folder)
    file = entry / "weights-00001.safetensors"
    replace(file, file.read_bytes()[:-4096] + bytes(4096))
    assert same_bits(load(files, folder), first)


def test_a_fault_of_the_checkpoint_is_no_fault_of_the_cache(checkpoint_copy: Path, folder: Path) -> None:
    shard = checkpoint_copy / "diffusion_pytorch_model-00002-of-00003.safetensors"
    truncate(shard)
    with pytest.raises(WeightsMissing, match=shard.name):
        load(open_checkpoint(checkpoint_copy), folder)
    assert entries(folder) == []


def test_a_stopped_start_leaves_nothing(files: CheckpointFiles, folder: Path) -> None:
    asked = 0

    def check() -> None:
        nonlocal asked
        asked += 1
        if asked == 40:
            raise Cancelled("The run was stopped.")

    with pytest.raises(Cancelled):
        load(files, folder, check=check)
    assert entries(folder) == []


KILLED = """
import sys, torch
from pathlib import Path
from avatar.model.weights import weight_cache
from avatar.model.weights.checkpoint import open_checkpoint
weight_cache.FILE_BYTES = 100_000
asked = 0
def check():
    global asked
    asked += 1
    if asked == 90:
        print("half way", flush=True)
        sys.stdin.read()
files = open_checkpoint(Path(sys.argv[1]))
weight_cache.load_quantised(
    files, "cpu", torch.bfloat16, torch.float8_e4m3fn, folder=Path(sys.argv[2]), check=check
)
"""


def test_a_killed_process_leaves_no_entry_and_others_wait_for_it(
    tiny_checkpoint: Path, files: CheckpointFiles, folder: Path
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tiny_checkpoint), str(folder)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout
    assert process.stdout.readline() == b"half way\n"
    (draft,) = entries(folder)
    assert list(draft.glob("*.safetensors"))
    waited = threading.Event()
    loaded: list[StreamingTransformer] = []
    other = threading.Thread(target=lambda: loaded.append(load(files, folder, check=waited.set)))
    other.start()
    assert waited.wait(60)
    assert not loaded
    assert entries(folder) == [draft]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    other.join(60)
    assert same_bits(loaded[0], load(files, None))
    (entry,) = entries(folder)
    assert entry.name == weight_cache.key(files, torch.bfloat16, FLOAT8)


def test_two_at_once_fill_it_once(
    files: CheckpointFiles, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[Path] = []
    build = weight_cache.build
    monkeypatch.setattr(weight_cache, "build", lambda *args: built.append(args[1]) or build(*args))
    loaded: list[StreamingTransformer] = []
    threads = [threading.Thread(target=lambda: loaded.append(load(files, folder))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1
    assert all(same_bits(loaded[0], other) for other in loaded)


class TestWithout:
    """A cache that cannot be written is logged, and does not stop anything."""

    def loads(self, files: CheckpointFiles, folder: Path, log: pytest.LogCaptureFixture) -> str:
        with log.at_level(logging.WARNING):
            assert same_bits(load(files, folder), load(files, None))
        (line,) = log.messages
        assert line.startswith("quantised weights are not cached, each start quantises again: ")
        assert str(folder) not in line
        return line

    def test_a_folder_that_is_a_file(self, files: CheckpointFiles, folder: Path, caplog) -> None:  # type: ignore[no-untyped-def]
        folder.write_text("")
        assert "exists" in self.loads(files, folder, caplog)

    def test_a_folder_that_is_read_only(self, files: CheckpointFiles, caplog) -> None:  # type: ignore[no-untyped-def]
        assert Path("/proc").is_dir()
        self.loads(files, Path("/proc/cache"), caplog)

    def test_a_full_disk_by_arithmetic(
        self,
        files: CheckpointFiles,
        folder: Path,
        caplog,
        monkeypatch: pytest.MonkeyPatch,  # type: ignore[no-untyped-def]
    ) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**10, 0, 10**9))
        assert "the disk has 1.0 GB free" in self.loads(files, folder, caplog)
        assert entries(folder) == []

    def test_a_disk_that_fills_up_meanwhile(
        self,
        files: CheckpointFiles,
        folder: Path,
        caplog,
        monkeypatch: pytest.MonkeyPatch,  # type: ignore[no-untyped-def]
    ) -> None:
        def save_some(tensors: dict[str, Tensor], path: Path) -> None:
            save_file(tensors, path)
            if "3" in path.name:
                raise OSError(28, "No space left on device", str(path))

        monkeypatch.setattr(weight_cache, "save_file", save_some)
        assert "No space left on device" in self.loads(files, folder, caplog)
        assert entries(folder) == []

    def test_an_entry_that_cannot_be_written_is_read_all_the_same(
        self,
        files: CheckpointFiles,
        folder: Path,
        caplog,
        monkeypatch: pytest.MonkeyPatch,  # type: ignore[no-untyped-def]
    ) -> None:
        """As it is in a container's image."""
        first = load(files, folder)
        monkeypatch.setattr(os, "access", lambda path, mode: False)
        monkeypatch.setattr(os, "utime", never)
        monkeypatch.setattr(weight_cache, "build", never)
        assert same_bits(load(files, folder), first)
        assert not caplog.messages


def test_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(CACHE_ENVIRONMENT, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "live-avatar"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "live-avatar"
    monkeypatch.setenv(CACHE_ENVIRONMENT, str(tmp_path / "here"))
    assert cache_folder() == tmp_path / "here"


def test_a_toy_checkpoint_is_not_cached(
    files: CheckpointFiles, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.undo()
    load(files, folder)
    assert not folder.exists()
    assert not caplog.messages


def test_int8_has_an_entry_of_its_own(files: CheckpointFiles, folder: Path) -> None:
    """Built once, and read with the same bits; that of fp8 stays beside it."""
    load(files, folder)
    quantised = functools.partial(load_quantised, files, "cpu", torch.bfloat16, INT8)
    without, filling = quantised(folder=None), quantised(folder=folder)
    (entry,) = folder.glob("int8-*")
    index = json.loads((entry / INDEX).read_text())
    assert index["recipe"] == weight_cache.RECIPES[INT8]
    made = (entry / INDEX).stat().st_mtime_ns
    reading = quantised(folder=folder)
    assert (entry / INDEX).stat().st_mtime_ns == made
    assert isinstance(reading.layer(0).ffn[0], Int8Linear)
    assert reading.layer(0).ffn[0].weight.dtype == INT8
    assert same_bits(without, filling)
    assert same_bits(without, reading)
    assert len(entries(folder)) == 2


def test_the_index_tells_the_recipe(files: CheckpointFiles, folder: Path) -> None:
    load(files, folder)
    (entry,) = entries(folder)
    index = json.loads((entry / INDEX).read_text())
    assert index["recipe"] == weight_cache.RECIPES[FLOAT8]
    assert entry.name.startswith(index["recipe"])
