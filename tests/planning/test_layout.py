"""Which rank does what, and which combinations are refused with the one that is meant."""

from __future__ import annotations

from itertools import pairwise

import pytest

from avatar.checkpoints.transformer_config import ModelConfig
from avatar.errors import BadInput
from avatar.planning.layout import DECODE_LAYERS, Layout, balance, even_parts, layer_costs
from avatar.preset import Preset, load_preset


def of(steps: int = 4, **parallel) -> Layout:
    preset = Preset("made", "Made", "", "diffusion").with_settings(sample_steps=steps, **parallel)
    return Layout.of(preset)


def test_one_gpu_is_local():
    layout = of()
    assert (layout.kind, layout.world_size, layout.num_stages, layout.group_size) == ("local", 1, 1, 1)
    assert layout.describe(0) == "all layers, decode"


def test_the_guides_command_is_ulysses_over_three():
    layout = of(3, num_gpus_dit=3, ulysses_size=3)
    assert layout.kind == "ulysses"
    assert [layout.role_of(rank).heads for rank in range(3)] == [range(14), range(14, 27), range(27, 40)]
    with_decode = of(3, num_gpus_dit=3, ulysses_size=3, decode_gpu=True)
    assert with_decode.world_size == 4
    assert with_decode.role_of(0) is None
    assert with_decode.describe(0) == "decode"
    assert with_decode.describe(1) == "heads 0–13"


def test_the_five_gpu_preset_gives_each_of_four_a_step():
    layout = Layout.of(load_preset("5x80gb-tpp"))
    assert layout.world_size == 5
    assert [layout.role_of(rank).steps for rank in layout.workers] == [range(i, i + 1) for i in range(4)]
    assert layout.describe(2) == "step 1"


def test_several_gpus_without_a_layout_are_as_in_the_public_code():
    assert of(num_gpus_dit=4, decode_gpu=True).kind == "timesteps"
    assert of(num_gpus_dit=4, ulysses_size=4).kind == "ulysses"


def test_stages_of_groups():
    layout = of(layout="layers", num_gpus_dit=4, ulysses_size=2)
    roles = [layout.role_of(rank) for rank in range(4)]
    assert [role.stage for role in roles] == [0, 0, 1, 1]
    assert roles[0].layers == roles[1].layers != roles[2].layers == roles[3].layers
    assert [role.heads for role in roles] == [range(20), range(20, 40)] * 2
    assert layout.describe(3) == f"layers {roles[3].layers.start}–39, heads 20–39"


@pytest.mark.parametrize("stages", range(1, 9))
@pytest.mark.parametrize("decodes_apart", [False, True])
@pytest.mark.parametrize("weight_dtype", ["bf16", "fp8"])
def test_stages_share_all_layers_evenly_by_cost(stages, decodes_apart, weight_dtype):
    layout = of(weight_dtype=weight_dtype, layout="layers", num_gpus_dit=stages, decode_gpu=decodes_apart)
    decode = 0 if decodes_apart else DECODE_LAYERS[weight_dtype]
    roles = [layout.role_of(rank) for rank in layout.workers]
    for step in range(4):
        done = [index for role in roles for index in role.layers_at(step)]
        assert done == list(range(40))
        assert all(set(role.layers_at(step)) <= set(role.layers) for role in roles)
    costs = layer_costs(ModelConfig())
    loads = [sum(costs[index] for step in range(4) for index in role.layers_at(step)) for role in roles]
    loads[0] += decode
    least = 4 * costs[0] + decode  # a stage has a layer at least
    assert max(loads) < max(sum(loads) / stages + max(costs), least + max(costs))


@pytest.mark.parametrize("num_steps", range(1, 8))
@pytest.mark.parametrize("stages", [3, 6, 7])
def test_neighbours_may_share_a_layer_at_any_number_of_steps(stages, num_steps):
    """They hold what they hold for the preset's four."""
    layout = of(layout="layers", num_gpus_dit=stages, decode_gpu=True)
    roles = [layout.role_of(rank, num_steps) for rank in layout.workers]
    assert [role.layers for role in roles] == [layout.role_of(rank).layers for rank in layout.workers]
    for step in range(num_steps):
        assert [index for role in roles for index in role.layers_at(step)] == list(range(40))
        assert all(set(role.layers_at(step)) <= set(role.layers) for role in roles)
    for role, behind in pairwise(roles):
        assert behind.layers[0] == (role.layers[-1] if role.shares_last else role.layers[-1] + 1)
    assert not roles[-1].shares_last
    assert sum(role.num_rings for role in roles) == 40 * num_steps
    assert any(role.shares_last for role in roles)


def test_layers_that_inject_audio_cost_a_little_more():
    config = ModelConfig()
    costs = layer_costs(config)
    assert {costs[layer] for layer in range(40) if layer not in config.audio_inject_layers} == {1.0}
    (dear,) = {costs[layer] for layer in config.audio_inject_layers}
    assert 1.03 < dear < 1.15


def test_balance_finds_the_cheapest_cut():
    assert balance([1, 1, 1, 1], 2) == [range(2), range(2, 4)]
    assert balance([1, 1, 1, 1], 2, first_extra=2) == [range(1), range(1, 4)]
    assert balance([5, 1, 1, 1], 3) == [range(1), range(1, 2), range(2, 4)]
    assert balance([1.0], 1) == [range(1)]
    assert balance([1, 1, 1, 1, 1], 2, first_extra=9, least=2) == [range(2), range(2, 5)]
    assert balance([9, 1, 1, 1], 2, least=2) == [range(2), range(2, 4)]


def test_even_parts():
    assert even_parts(40, 3) == [range(14), range(14, 27), range(27, 40)]
    assert even_parts(2, 3) == [range(1), range(1, 2), range(2, 2)]


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_timesteps_split_any_number_of_steps(stages):
    layout = of(layout="timesteps", num_gpus_dit=stages)
    steps = [layout.role_of(rank, 4).steps for rank in range(stages)]
    assert [step for part in steps for step in part] == [0, 1, 2, 3]
    assert [layout.chain_of(step, 4)[0] for step in range(4)] == sorted(
        stage for stage, part in enumerate(steps) for _ in part
    )


@pytest.mark.parametrize(
    ("settings", "message", "remedy"),
    [
        (
            {"num_gpus_dit": 3, "ulysses_size": 2},
            "groups of ulysses_size 2",
            "num_gpus_dit 4, or ulysses_size 1",
        ),
        (
            {"layout": "ulysses", "num_gpus_dit": 4, "ulysses_size": 2},
            "among all 4 GPUs",
            "Take ulysses_size 4",
        ),
        ({"layout": "fsdp", "num_gpus_dit": 4, "ulysses_size": 2}, "among all 4 GPUs", "Take ulysses_size 4"),
        ({"layout": "timesteps", "num_gpus_dit": 5}, "5 stages, 4 steps", "Take num_gpus_dit 4"),
        ({"num_gpus_dit": 5}, "5 stages, 4 steps", "the layout layers"),
        ({"text_encoder": "sharded"}, "prompt encoder over several GPUs", "Take num_gpus_dit 2 or more"),
        ({"layout": "layers", "num_gpus_dit": 41}, "over 41 stages", "num_gpus_dit 40 or less"),
        ({"num_gpus_dit": 41, "ulysses_size": 41}, "shared by 41 GPUs", "ulysses_size 40 or less"),
    ],
)
def test_what_cannot_be_is_refused_with_what_is_meant(settings, message, remedy):
    with pytest.raises(BadInput) as refused:
        of(**settings)
    assert message in refused.value.message
    assert remedy in refused.value.remedy


def test_another_model_may_be_too_small():
    with pytest.raises(BadInput, match="3 layers"):
        of(layout="layers", num_gpus_dit=4).for_model(ModelConfig(num_layers=3, audio_inject_layers=(0,)))
    assert of(layout="layers", num_gpus_dit=4) == of(layout="layers", num_gpus_dit=4, steps=3)
