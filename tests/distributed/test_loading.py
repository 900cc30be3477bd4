"""What each rank loads: its own tensors and no other's, the same values as a whole model's."""

from __future__ import annotations

import pytest
import torch

from avatar.checkpoints.transformer_config import ModelConfig
from avatar.distributed.fsdp import layer_of
from avatar.distributed.loading import is_needed, load_share, random_share
from avatar.distributed.p2p import MessageChannel
from avatar.distributed.process_groups import Group
from avatar.distributed.rank_meter import RankMeter
from avatar.errors import Cancelled
from avatar.model.linear_8bit import Float8Linear, Int8Linear
from avatar.model.transformer import StreamingTransformer
from avatar.model.weights.checkpoint import CheckpointFiles, open_checkpoint
from avatar.model.weights.loading import load_transformer, open_transformer
from avatar.model.weights.tiny import CONFIG
from avatar.planning.layout import Layout
from avatar.settings import Memory

CPU = torch.device("cpu")
FLOAT = torch.float32


@pytest.fixture(scope="module")
def files(tiny_checkpoint) -> CheckpointFiles:
    return open_checkpoint(tiny_checkpoint)


def group_of(layout: Layout, rank: int) -> Group:
    return Group(layout, rank, CPU, RankMeter(CPU), MessageChannel())


def here(model: StreamingTransformer) -> set[str]:
    """Names of the tensors that are not on the meta device."""
    return {name for name, tensor in model.state_dict().items() if not tensor.is_meta}


@pytest.mark.parametrize("decodes_apart", [False, True])
def test_stages_of_layers_load_each_tensor_once(files, decodes_apart):
    layout = Layout("layers", 3, 1, decodes_apart, config=CONFIG)
    whole = load_transformer(files, CPU, FLOAT).fuse().state_dict()
    seen: set[str] = set()
    for rank in layout.workers:
        group = group_of(layout, rank)
        share = load_share(files, Memory(weight_dtype="fp32"), group, FLOAT)
        assert not seen & here(share)
        seen |= here(share)
        assert group.meter.ticks == sum(
            is_needed(layout.role_of(rank), CONFIG, name) for name in open_transformer(files).state_dict()
        )
        for name in here(share):
            assert torch.equal(share.state_dict()[name], whole[name]), name
    assert seen == set(whole)


def test_a_rank_that_only_decodes_loads_nothing(files):
    layout = Layout("layers", 3, 1, True, config=CONFIG)
    assert load_share(files, Memory(), group_of(layout, 0), FLOAT) is None


@pytest.mark.parametrize(
    "layout", [Layout("timesteps", 2, config=CONFIG), Layout("ulysses", 1, 2, config=CONFIG)]
)
def test_where_steps_or_heads_are_shared_every_rank_has_all(files, layout):
    for rank in layout.workers:
        share = load_share(files, Memory(weight_dtype="fp32"), group_of(layout, rank), FLOAT)
        assert here(share) == set(share.state_dict())


@pytest.mark.parametrize(("weight_dtype", "kind"), [("fp8", Float8Linear), ("int8", Int8Linear)])
def test_shares_in_8_bits(files, weight_dtype, kind):
    layout = Layout("layers", 3, config=CONFIG)
    for rank in layout.workers:
        share = load_share(files, Memory(weight_dtype=weight_dtype), group_of(layout, rank), torch.bfloat16)
        for index in layout.role_of(rank).layers:
            assert isinstance(share.layer(index).self_attn.qkv, kind)
            assert isinstance(share.layer(index).ffn[0], kind)


@pytest.mark.parametrize("weight_dtype", ["bf16", "fp8", "int8"])
def test_random_shares_are_as_large_as_loaded_ones(files, weight_dtype):
    layout, memory = Layout("layers", 2, config=CONFIG), Memory(weight_dtype=weight_dtype)
    for rank in layout.workers:
        group = group_of(layout, rank)
        made = random_share(CONFIG, memory, group, torch.bfloat16).state_dict()
        loaded = load_share(files, memory, group, torch.bfloat16).state_dict()
        assert {name: (t.shape, t.dtype, t.is_meta) for name, t in made.items()} == {
            name: (t.shape, t.dtype, t.is_meta) for name, t in loaded.items()
        }


def test_a_stopped_load_ends_between_two_tensors(files):
    def stop() -> None:
        raise Cancelled("Stopped.")

    group = group_of(Layout("layers", 2, config=CONFIG), 1)
    with pytest.raises(Cancelled):
        load_share(files, Memory(), group, FLOAT, stop)
    assert group.meter.ticks == 1


def test_a_tensors_layer_by_its_name():
    config = ModelConfig()
    assert layer_of("blocks.12.ffn.0.weight", config.audio_inject_layers) == 12
    assert layer_of("audio_injector.injector.7.q.weight", config.audio_inject_layers) == 27
    assert layer_of("audio_injector.injector_adain_layers.11.linear.bias", config.audio_inject_layers) == 39
    assert layer_of("head.head.weight", config.audio_inject_layers) is None


def test_the_checkpoint_has_no_tensor_outside_those_groups(files):
    """A new group of tensors would be loaded with the first stage alone; this says to think of it."""
    groups = {name.split(".")[0] for name in open_transformer(files).state_dict()}
    assert groups == {
        "patch_embedding",
        "cond_encoder",
        "frame_packer",
        "trainable_cond_mask",
        "text_embedding",
        "time_embedding",
        "time_projection",
        "casual_audio_encoder",
        "blocks",
        "audio_injector",
        "head",
    }
