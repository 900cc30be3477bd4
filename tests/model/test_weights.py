"""Loading: strict, whole, shard by shard; every fault in one error that names it."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from avatar.checkpoints.locations import DIFFUSERS, ENVIRONMENT, LORA_FILE, OFFICIAL, SHARD_INDEX
from avatar.checkpoints.tensor_match import fold_layers
from avatar.errors import WeightsMissing
from avatar.model.transformer import held_dtype
from avatar.model.weights import weight_formats
from avatar.model.weights.checkpoint import CheckpointFiles, open_checkpoint
from avatar.model.weights.loading import load_transformer, load_weights
from avatar.model.weights.lora import ALPHA
from avatar.model.weights.tiny import LORA_RANK, write_shards

SHARD = "diffusion_pytorch_model-00002-of-00003.safetensors"


def published(files: CheckpointFiles) -> dict[str, Tensor]:
    return {name: tensor for shard in files.shards for name, tensor in load_file(shard).items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_tensor_is_the_published_one_with_the_lora_added(
    tiny_checkpoint: Path, dtype: torch.dtype
) -> None:
    files = open_checkpoint(tiny_checkpoint)
    base, adapter = published(files), load_file(files.lora)
    loaded = load_transformer(files, "cpu", dtype).state_dict()
    assert loaded.keys() == base.keys()
    num_adapted = 0
    for name, tensor in base.items():
        pair = [f"base_model.model.{name.removesuffix('weight')}lora_{side}.weight" for side in "AB"]
        if pair[0] in adapter:
            down, up = (adapter[key].float() for key in pair)
            expected = tensor.float() + ALPHA / LORA_RANK * (up @ down)
            assert torch.allclose(loaded[name], expected.to(dtype), atol=1e-6, rtol=2**-7)
            num_adapted += 1
        else:
            wide = name.startswith("casual_audio_encoder.")
            assert torch.equal(loaded[name], tensor if wide else tensor.to(dtype))
            assert loaded[name].dtype == (torch.float32 if wide else dtype)
    assert num_adapted == len(adapter) // 2


def test_both_layouts_give_the_same_model(tiny_checkpoint: Path, tiny_diffusers_checkpoint: Path) -> None:
    ours, theirs = (
        load_transformer(open_checkpoint(folder), "cpu", torch.float32).state_dict()
        for folder in (tiny_checkpoint, tiny_diffusers_checkpoint)
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_place_decides_what_is_installed(tiny_checkpoint: Path) -> None:
    """Quantising at load: place gets each merged tensor once, and may answer with a parameter of its own."""
    files, seen = open_checkpoint(tiny_checkpoint), {}

    def place(name: str, tensor: Tensor) -> nn.Parameter | None:
        seen[name] = tensor.dtype
        return nn.Parameter(tensor.half(), requires_grad=False) if name.endswith("ffn.0.weight") else None

    loaded = load_transformer(files, "cpu", torch.bfloat16, place=place).state_dict()
    assert seen.keys() == loaded.keys()
    assert seen["blocks.0.ffn.0.weight"] == torch.float32  # merged, not yet rounded
    for name, tensor in loaded.items():
        usual = held_dtype(name, torch.bfloat16)
        assert tensor.dtype == (torch.float16 if name.endswith("ffn.0.weight") else usual)


def test_what_is_not_selected_stays_on_meta(tiny_checkpoint: Path) -> None:
    files = open_checkpoint(tiny_checkpoint)
    loaded = load_transformer(files, "cpu", torch.float32, select=lambda name: name.startswith("blocks.1."))
    for name, parameter in loaded.named_parameters():
        assert parameter.is_meta != name.startswith("blocks.1.")


def test_a_tensor_that_is_not_selected_is_still_checked(checkpoint_copy: Path) -> None:
    rewrite(checkpoint_copy, lose)
    with pytest.raises(WeightsMissing, match=r"missing: blocks\.2\.ffn\.0\.bias"):
        load_transformer(
            open_checkpoint(checkpoint_copy), "cpu", torch.float32, select=lambda name: "blocks.1." in name
        )


def test_no_more_than_one_tensor_is_held_beyond_what_is_placed(tiny_checkpoint: Path) -> None:
    """With place throwing every tensor away, at most the one at hand and its merge are alive."""
    alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
    most = 0

    def place(name: str, tensor: Tensor) -> nn.Parameter:
        nonlocal most
        alive.add(tensor)
        most = max(most, len(alive))
        return nn.Parameter(torch.empty(1).expand(tensor.shape), requires_grad=False)

    load_transformer(open_checkpoint(tiny_checkpoint), "cpu", torch.float32, place=place)
    assert most <= 2


def test_one_shard_is_open_at_a_time(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []
    open_file = weight_formats.safe_open

    class Counted:
        """Counts itself as long as anybody holds it."""

        def __init__(self, *args: object, **options: object) -> None:
            self.file = open_file(*args, **options)
            opened.append((opened or [0])[-1] + 1)

        def get_tensor(self, name: str) -> Tensor:
            return self.file.get_tensor(name)

        def __del__(self) -> None:
            opened.append(opened[-1] - 1)

    monkeypatch.setattr(weight_formats, "safe_open", Counted)
    load_transformer(open_checkpoint(tiny_checkpoint), "cpu", torch.float32)
    assert opened == [1, 0] * 3


def lose(tensors: dict[str, Tensor]) -> None:
    del tensors["blocks.2.ffn.0.bias"]


def gain(tensors: dict[str, Tensor]) -> None:
    tensors["blocks.3.ffn.0.bias"] = torch.zeros(160)


def reshape(tensors: dict[str, Tensor]) -> None:
    tensors["head.head.bias"] = torch.zeros(65)


def everything(tensors: dict[str, Tensor]) -> None:
    lose(tensors)
    gain(tensors)
    reshape(tensors)


def rewrite(base: Path, damage: Callable[[dict[str, Tensor]], None]) -> None:
    tensors = published(open_checkpoint(base))
    damage(tensors)
    write_shards(base, "diffusion_pytorch_model", tensors, 3)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lose, ["missing: blocks.2.ffn.0.bias"]),
        (gain, ["unexpected: blocks.3.ffn.0.bias"]),
        (reshape, ["wrong shape: head.head.bias is 65 instead of 64"]),
        (everything, ["missing: blocks.2", "unexpected: blocks.3", "wrong shape: head.head.bias"]),
    ],
)
def test_tensors_that_differ_are_named_in_one_error(
    damage: Callable[[dict[str, Tensor]], None], words: list[str], checkpoint_copy: Path
) -> None:
    rewrite(checkpoint_copy, damage)
    with pytest.raises(WeightsMissing) as refused:
        load_transformer(open_checkpoint(checkpoint_copy), "cpu", torch.float32, place=never)
    for word in words:
        assert word in str(refused.value)


def never(name: str, tensor: Tensor) -> None:
    raise AssertionError(f"{name} was read before the check was over")


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
@pytest.mark.parametrize("name", [SHARD, f"../LiveAvatar/{LORA_FILE}"])
def test_a_truncated_file_is_named_before_anything_is_read(
    name: str, keep: int, checkpoint_copy: Path
) -> None:
    file = checkpoint_copy / name
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(WeightsMissing, match=f"{file.name} is truncated or corrupt") as refused:
        load_transformer(open_checkpoint(checkpoint_copy), "cpu", torch.float32, place=never)
    assert str(checkpoint_copy.parent) not in str(refused.value)
    assert "python -m avatar download" in refused.value.remedy


def test_a_corrupt_header_is_named(checkpoint_copy: Path) -> None:
    file = checkpoint_copy / SHARD
    data = bytearray(file.read_bytes())
    data[8:40] = bytes(32)
    file.write_bytes(data)
    with pytest.raises(WeightsMissing, match=SHARD):
        load_transformer(open_checkpoint(checkpoint_copy), "cpu", torch.float32, place=never)


def test_a_tensor_in_two_shards_is_refused(checkpoint_copy: Path) -> None:
    tensors = load_file(checkpoint_copy / SHARD)
    other = checkpoint_copy / SHARD.replace("00002-of", "00003-of")
    save_file(load_file(other) | {min(tensors): tensors[min(tensors)]}, other)
    with pytest.raises(WeightsMissing, match=f"{min(tensors)} is in both"):
        load_transformer(open_checkpoint(checkpoint_copy), "cpu", torch.float32)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"num_layers": 4}, "missing: blocks.3"),
        ({"dim": 128}, "instead of"),
        ({"num_heads": 3}, "heads"),
        ({"adain_mode": "none"}, "adain_mode"),
        ({"dim": "wide"}, "dim"),
        ({"dim": None}, "dim"),
    ],
)
def test_a_wrong_config_is_refused(change: dict, word: str, checkpoint_copy: Path) -> None:
    config = checkpoint_copy / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(WeightsMissing, match=word):
        load_transformer(open_checkpoint(checkpoint_copy), "cpu", torch.float32, place=never)


def test_layers_are_folded() -> None:
    names = [f"blocks.{layer}.ffn.0.weight" for layer in (0, 1, 2, 3, 7, 10)] + ["a.weight", "blocks.4.x"]
    assert fold_layers(names) == ["a.weight", "blocks.4.x", "blocks.{0..3,7,10}.ffn.0.weight"]


def test_a_model_that_lives_elsewhere_is_filled_as_well(tmp_path: Path) -> None:
    """Any module on meta: parameters and buffers, without a LoRA."""
    with torch.device("meta"):
        model = nn.BatchNorm1d(3)
    tensors = {"weight": torch.ones(3), "bias": torch.zeros(3), "running_mean": torch.full((3,), 2.0)}
    tensors |= {"running_var": torch.ones(3), "num_batches_tracked": torch.tensor(0)}
    save_file(tensors, tmp_path / "model.safetensors")
    load_weights(model, [tmp_path / "model.safetensors"], (), "cpu", torch.float32)
    assert torch.equal(model.eval()(torch.full((1, 3), 2.0)), torch.zeros(1, 3))


@pytest.mark.usefixtures("no_weights_elsewhere")
class TestPlaces:
    """Where weights are looked for, and what is said when they are not there."""

    def test_nothing_anywhere_lists_the_places_and_the_command(self, tmp_path: Path) -> None:
        with pytest.raises(WeightsMissing) as refused:
            open_checkpoint()
        for word in ("--ckpt_dir (not given)", f"${ENVIRONMENT} (not set)", "./ckpt", "Hugging Face cache"):
            assert word in refused.value.message
        assert "python -m avatar download" in refused.value.remedy
        assert str(tmp_path) not in str(refused.value)

    @pytest.mark.parametrize("inside", [True, False])
    def test_ckpt_dir_may_be_the_folder_or_hold_it(self, inside: bool, tiny_checkpoint: Path) -> None:
        folder = tiny_checkpoint / OFFICIAL.repo.split("/")[1]
        assert open_checkpoint(folder if inside else tiny_checkpoint).config == folder / "config.json"

    def test_the_environment_then_the_working_folder(
        self, tiny_checkpoint: Path, tiny_diffusers_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        Path("ckpt").symlink_to(tiny_diffusers_checkpoint)
        assert open_checkpoint().vae.name == DIFFUSERS.vae
        monkeypatch.setenv(ENVIRONMENT, str(tiny_checkpoint))
        assert open_checkpoint().vae.name == OFFICIAL.vae
        assert open_checkpoint(tiny_diffusers_checkpoint).vae.name == DIFFUSERS.vae

    @pytest.mark.parametrize("layout", [OFFICIAL, DIFFUSERS], ids=["official", "diffusers"])
    def test_the_hubs_cache(
        self,
        layout,
        tiny_checkpoint: Path,
        tiny_diffusers_checkpoint: Path,
        tmp_path: Path,  # type: ignore[no-untyped-def]
    ) -> None:
        root = tiny_checkpoint if layout is OFFICIAL else tiny_diffusers_checkpoint
        for repo, folder in (
            (layout.repo, root / layout.repo.split("/")[1]),
            ("Quark-Vision/Live-Avatar", root / "LiveAvatar"),
        ):
            cached = tmp_path / "no-hub" / f"models--{repo.replace('/', '--')}"
            (cached / "refs").mkdir(parents=True)
            (cached / "refs" / "main").write_text("abc")
            (cached / "snapshots").mkdir()
            (cached / "snapshots" / "abc").symlink_to(folder)
        files = open_checkpoint()
        assert load_transformer(files, "cpu", torch.float32).dtype == torch.float32

    @pytest.mark.parametrize(
        "name",
        [
            SHARD,
            "config.json",
            "Wan2.1_VAE.pth",
            "google/umt5-xxl/tokenizer.json",
            f"../LiveAvatar/{LORA_FILE}",
        ],
    )
    def test_a_file_that_is_missing_is_named(self, name: str, checkpoint_copy: Path) -> None:
        (checkpoint_copy / name).unlink()
        with pytest.raises(WeightsMissing, match=Path(name).name) as refused:
            open_checkpoint(checkpoint_copy)
        assert str(checkpoint_copy.parent) not in str(refused.value)

    @pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": 3}'])
    def test_a_broken_index_is_named(self, text: str, checkpoint_copy: Path) -> None:
        (checkpoint_copy / SHARD_INDEX).write_text(text)
        with pytest.raises(WeightsMissing, match="index"):
            open_checkpoint(checkpoint_copy)
