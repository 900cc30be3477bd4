"""The planner's arithmetic against published and measured figures, and its monotony."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from gguf import GGMLQuantizationType
from transformers import UMT5EncoderModel

from avatar.checkpoints.locations import Checkpoint, find_checkpoint
from avatar.checkpoints.model_sizes import (
    TEXT_BLOCK_VALUES,
    TEXT_ENCODER_VALUES,
    TINY_DECODER_VALUES,
    ModelSizes,
)
from avatar.checkpoints.transformer_config import ModelConfig
from avatar.errors import BadInput
from avatar.hardware.inventory import GIB, Inventory
from avatar.model.attention_8bit import empty_ring
from avatar.model.quantize import FLOAT8, is_quantised
from avatar.model.transformer import StreamingTransformer
from avatar.model.weights.checkpoint import open_checkpoint
from avatar.model.weights.loading import open_transformer
from avatar.planning.estimates import (
    COMMUNICATION_BYTES,
    GATHERED_TEXT_BLOCKS,
    GGUF_WORKSPACE_BYTES,
    TEXT_WORKSPACE_BYTES,
    RunShape,
    traffic_bytes,
)
from avatar.planning.per_rank import shares_of
from avatar.planning.placement import ALL_ON_GPU, Placement, spread
from avatar.planning.plan import ALWAYS, DevicePlan, MemoryItem, Plan, RunPhase
from avatar.planning.planner import USED_SHARE, largest_geometry, placements, plan
from avatar.preset import load_preset
from tests.fixtures.single_files import XXL, gguf_of_full_size, write_hole

MODEL = ModelSizes.published()
H200 = Inventory.imagine(1, 139)
FULL = load_preset("80gb")
FP8 = FULL.with_settings(weight_dtype="fp8")


def items(preset, inventory=H200):
    return {item.name: item.num_bytes for item in plan(preset, inventory).gpus[0].items}


def ring_bytes(preset):
    """All of them."""
    return items(preset)["kv_rings"]


def weight_bytes(preset):
    return MODEL.transformer.num_bytes(preset.memory.weight_dtype)


def test_published_sizes():
    """16.30 B parameters, 0.1 B of them in float32; 40 layers of 5120.

    At 704*384 1056 tokens a latent frame, and 2640 of condition.
    """
    assert weight_bytes(FULL) == pytest.approx(32.78e9, rel=1e-3)
    assert weight_bytes(FP8) == pytest.approx(16.85e9, rel=1e-3)
    assert items(FULL)["transformer_weights"] + items(FULL)["embeddings"] == weight_bytes(FULL)
    geometry = largest_geometry(FULL)
    assert (geometry.frame_tokens, geometry.condition_tokens) == (1056, 2640)
    whole_window = ring_bytes(FULL) * geometry.window_frames / geometry.past_frames
    assert whole_window == pytest.approx(41.5e9, rel=2e-3)
    assert items(FULL)["condition_kv"] == pytest.approx(2.2e9, rel=2e-2)


def test_a_checkpoints_own_sizes_are_planned_with(tiny_checkpoint):
    checkpoint = find_checkpoint(tiny_checkpoint)
    sizes = ModelSizes.of(checkpoint)
    model = open_transformer(open_checkpoint(tiny_checkpoint))
    assert sizes.transformer.num_bytes("fp32") == sum(
        4 * value.numel() for value in model.state_dict().values()
    )
    assert len(sizes.layers) == model.config.num_layers
    small = plan(FULL, replace(H200, checkpoint=checkpoint))
    assert small.gpus[0].peak_bytes < plan(FULL, H200).gpus[0].peak_bytes
    assert ModelSizes.of(Checkpoint()) == MODEL


def test_the_published_sizes_are_the_models_and_its_fp8_recipes():
    with torch.device("meta"):
        values = StreamingTransformer(ModelConfig()).state_dict()
    quantised = {name: value for name, value in values.items() if is_quantised(name, value.shape)}
    whole = MODEL.transformer
    assert whole.matrices == sum(value.numel() for value in quantised.values())
    assert whole.channels == sum(len(value) for value in quantised.values())
    assert whole.matrices + whole.others + whole.wide == sum(value.numel() for value in values.values())
    audio = sum(value.numel() for name, value in values.items() if name.startswith("casual_audio_encoder."))
    assert whole.wide == audio
    assert MODEL.others.num_bytes("bf16") - 2 * MODEL.others.others == 4 * audio
    third = [value for name, value in values.items() if name.startswith("blocks.3.")]
    assert MODEL.layers[3].num_bytes("bf16") == 2 * sum(value.numel() for value in third)


def test_the_prompt_encoders_size_leaves_out_its_table_of_words():
    with torch.device("meta"):
        model = UMT5EncoderModel(XXL)
    whole, block, words = (num_values(part) for part in (model, model.encoder.block[7], model.shared))
    assert (block, whole - words) == (TEXT_BLOCK_VALUES, TEXT_ENCODER_VALUES)


def num_values(module: torch.nn.Module) -> int:
    return sum(value.numel() for value in module.parameters())


@pytest.mark.parametrize(
    ("settings", "torch_dtype"),
    [
        ({"ring_dtype": "bf16"}, torch.bfloat16),
        ({"ring_dtype": "fp8"}, FLOAT8),
        ({"attention_dtype": "int8"}, torch.int8),
    ],
)
def test_a_rings_bytes_are_those_that_it_takes(settings, torch_dtype):
    preset = FULL.with_settings(**settings)
    geometry = largest_geometry(preset)
    config = ModelConfig()
    ring = empty_ring(geometry, config.num_heads, config.head_dim, torch_dtype, "meta")
    assert RunShape(preset, MODEL, geometry).ring_bytes == sum(tensor.nbytes for tensor in ring.tensors)


@pytest.mark.parametrize(
    ("change", "shrinks"),
    [
        ({"infer_frames": 32}, "kv_rings"),
        ({"size": "384*256"}, "condition_kv"),
        ({"sample_steps": 3}, "kv_rings"),
        ({"weight_dtype": "fp8"}, "transformer_weights"),
        ({"ring_dtype": "fp8"}, "kv_rings"),
        ({"attention_dtype": "int8"}, "kv_rings"),
    ],
)
def test_every_saving_saves(change, shrinks):
    lower = FULL.with_settings(**change)
    assert items(lower)[shrinks] < items(FULL)[shrinks]
    assert plan(lower, H200).gpus[0].peak_bytes < plan(FULL, H200).gpus[0].peak_bytes


def test_rings_follow_the_number_of_steps_and_the_past():
    one = ring_bytes(FULL.with_settings(sample_steps=1))
    assert ring_bytes(FULL) == 4 * one
    assert ring_bytes(FULL.with_settings(sample_steps=1, infer_frames=24)) == one // 3  # 9 of 12, 3 of 6


def test_the_transformer_leaves_before_it_decodes_all_at_once():
    later = plan(FULL.with_settings(enable_online_decode=False), H200).gpus[0]
    assert later.stage_bytes(RunPhase.DECODE) < 9 * GIB
    assert later.stage_bytes(RunPhase.DENOISE) < plan(FULL, H200).gpus[0].stage_bytes(RunPhase.DECODE)


OFFLOAD = FP8.with_settings(ring_dtype="fp8", offload_model=True, text_encoder="cpu")


def placed(vram_gib, preset=OFFLOAD):
    return plan(preset, Inventory.imagine(1, vram_gib)).placement


def test_what_moves_least_leaves_first():
    assert placed(48) == ALL_ON_GPU
    assert placed(41.5) == Placement(side_models_on_host=True)
    some = placed(36)
    assert 2 < some.layers_on_host < 40
    assert (some.rings_on_host, some.diagonal, some.side_models_on_host) == (False, True, True)
    assert placed(27) == Placement(side_models_on_host=True, rings_on_host=True)
    counts = [placed(vram).layers_on_host for vram in (24, 22, 20, 18, 16, 14)]
    assert counts == sorted(counts)
    assert counts[0] > 2
    assert placed(48, OFFLOAD.with_settings(offload_model=False)) == ALL_ON_GPU
    assert placed(5, OFFLOAD.with_settings(offload_model=False)) == ALL_ON_GPU


@pytest.mark.parametrize("vram_gib", [12, 14, 18, 22, 26, 30, 34, 40, 44])
def test_no_more_traffic_than_must_be(vram_gib):
    machine, limit = Inventory.imagine(1, vram_gib), vram_gib * GIB * USED_SHARE
    planned = plan(OFFLOAD, machine)
    assert planned.gpus[0].peak_bytes <= limit
    run = RunShape(OFFLOAD, MODEL, largest_geometry(OFFLOAD))
    shares = shares_of(OFFLOAD, MODEL.config)
    least = traffic_bytes(run, shares, planned.placement)
    for other in placements(run, shares):
        if traffic_bytes(run, shares, other) < least and not other.speech_on_cpu:
            assert plan(OFFLOAD, machine, other).gpus[0].peak_bytes > limit


def test_traffic_of_a_block():
    run = RunShape(OFFLOAD, MODEL, largest_geometry(OFFLOAD))
    shares = shares_of(OFFLOAD, MODEL.config)
    layers = sum(layer.num_bytes("fp8") for layer in MODEL.layers)
    rings = ring_bytes(OFFLOAD.with_settings(offload_model=False))
    assert traffic_bytes(run, shares, ALL_ON_GPU) == 0
    assert traffic_bytes(run, shares, Placement(rings_on_host=True)) == rings
    assert traffic_bytes(run, shares, Placement(layers_on_host=40)) == 4 * layers
    assert traffic_bytes(run, shares, Placement(layers_on_host=40, diagonal=True)) == layers


def test_the_speech_encoder_goes_to_the_cpu_last_of_all():
    machine = Inventory.imagine(1, 9)
    small = OFFLOAD.with_settings(size="512*320")
    tight = plan(small, machine)
    assert tight.placement.speech_on_cpu
    assert tight.fits
    on_gpu = plan(small, machine, replace(tight.placement, speech_on_cpu=False))
    assert not {"speech_encoder", "speech_workspace"} & {item.name for item in tight.gpus[0].items}
    assert on_gpu.gpus[0].peak_bytes > machine.gpus[0].total_bytes * USED_SHARE
    assert tight.host.stage_bytes(RunPhase.LISTEN) > on_gpu.host.stage_bytes(RunPhase.LISTEN)
    assert not any(placed(vram).speech_on_cpu for vram in (12, 16, 24, 48))


def test_where_nothing_fits_the_plan_offloads_all_and_says_no():
    planned = plan(OFFLOAD, Inventory.imagine(1, 6))
    smallest = Placement(40, rings_on_host=True, side_models_on_host=True, speech_on_cpu=True)
    assert planned.placement == smallest
    assert not planned.fits


def test_what_is_offloaded_lies_on_the_host():
    here, there = plan(OFFLOAD, Inventory.imagine(1, 48)), plan(OFFLOAD, Inventory.imagine(1, 6))
    gained = there.host.stage_bytes(RunPhase.DENOISE) - here.host.stage_bytes(RunPhase.DENOISE)
    layers = weight_bytes(OFFLOAD) - MODEL.others.num_bytes("fp8")
    assert gained > layers + ring_bytes(OFFLOAD.with_settings(offload_model=False))
    names = {item.name for item in there.gpus[0].items}
    assert {"layer_slots", "ring_slots"} <= names
    assert "kv_rings" not in names
    moved = FULL.with_settings(text_encoder="cpu")
    assert "text_encoder_block" not in items(moved)
    assert "text_encoder_block" in {item.name for item in plan(moved, H200).host.items}


def test_the_placement_does_not_depend_on_how_long_the_speech_is():
    machine = Inventory.imagine(1, 16)
    short, long = plan(OFFLOAD, machine, speech_s=5), plan(OFFLOAD, machine, speech_s=3600)
    assert short.placement == long.placement == plan(OFFLOAD, machine).placement
    assert short.gpus[0].stage_bytes(RunPhase.LISTEN) < long.gpus[0].stage_bytes(RunPhase.LISTEN)
    assert long.gpus[0] == plan(OFFLOAD, machine).gpus[0]


@pytest.fixture(scope="module")
def in_q4(tmp_path_factory):
    """A full-sized checkpoint in GGUF Q4_0."""
    return gguf_of_full_size(tmp_path_factory.mktemp("Q4_0"), GGMLQuantizationType.Q4_0)


def test_a_gguf_files_layers_are_counted_as_they_are_stored(in_q4):
    """Matrices in 4.5 bits, the rest in float32, and the LoRA's pairs of rank 128 in bf16."""
    sizes = ModelSizes.of(in_q4)
    assert replace(sizes, blocks=None) == MODEL
    width, wide = MODEL.config.dim, MODEL.config.ffn_dim
    pairs = 128 * 2 * (8 * 2 * width + 2 * (width + wide))
    plain = MODEL.layers[1]
    assert sizes.blocks.layers[1] == plain.matrices * 18 // 32 + 4 * plain.others + pairs
    assert sizes.blocks.largest == width * wide * 18 // 32 + 128 * 2 * (width + wide)
    assert sizes.blocks.layers[0] > sizes.blocks.layers[1]  # with its injection


def test_the_users_loras_count_as_well(in_q4, tmp_path):
    one = {
        f"blocks.3.ffn.0.lora_{side}.weight": ("F32", shape)
        for side, shape in (("A", (8, 5120)), ("B", (13824, 8)))
    }
    write_hole(tmp_path / "mine.safetensors", one)
    before = ModelSizes.of(in_q4).blocks.layers
    after = ModelSizes.of(in_q4, str(tmp_path / "mine.safetensors")).blocks.layers
    assert [more - less for more, less in zip(after, before, strict=True)] == [
        4 * 8 * (5120 + 13824) if index == 3 else 0 for index in range(40)
    ]
    assert ModelSizes.of(in_q4, "nowhere.safetensors").blocks.layers == before  # refused elsewhere, by name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "vram_gib", "weight_dtype"),
    [("12gb", 11.2, "fp8"), ("16gb", 15, "fp8"), ("24gb", 22, "bf16"), ("10gb", 9.2, "bf16")],
)
def test_layers_stay_blocks_exactly_where_only_that_fits(name, vram_gib, weight_dtype, in_q4):
    """For every size of the host: the dequantised layers if they fit, else the blocks, else nothing."""
    preset = load_preset(name).with_settings(weight_dtype=weight_dtype)
    seen = []
    for ram_gib in range(8, 64):
        machine = Inventory.imagine(1, vram_gib, host_ram_gib=ram_gib)
        official, blocks = plan(preset, machine), plan(preset, replace(machine, checkpoint=in_q4))
        assert not official.placement.layers_in_blocks
        assert blocks.placement.layers_in_blocks is (blocks.fits and not official.fits)
        assert official.fits <= blocks.fits
        seen.append((official.fits, blocks.fits))
        if not blocks.placement.layers_in_blocks:
            assert blocks == official
            continue
        gpu, host = (
            {item.name: item.num_bytes for item in device.items} for device in (blocks.gpus[0], blocks.host)
        )
        sizes = ModelSizes.of(in_q4).blocks
        away = spread(40, blocks.placement.layers_on_host)
        assert host["gguf_blocks"] == sum(sizes.layers[index] for index in away)
        assert "transformer_weights" not in host
        assert gpu["gguf_workspace"] == GGUF_WORKSPACE_BYTES + sizes.largest
    assert set(seen) == {(False, False), (False, True), (True, True)}


def test_blocks_are_for_gguf_files_alone(in_q4):
    placement = Placement(layers_on_host=20, layers_in_blocks=True)
    with pytest.raises(BadInput, match="GGUF"):
        plan(OFFLOAD, H200, placement)
    run = RunShape(OFFLOAD, ModelSizes.of(in_q4), largest_geometry(OFFLOAD))
    shares = shares_of(OFFLOAD, MODEL.config)
    assert placements(replace(run, sizes=MODEL), shares, in_blocks=True) == []
    choices = placements(run, shares, in_blocks=True)
    assert all(choice.layers_in_blocks and choice.layers_on_host for choice in choices)
    near = [traffic_bytes(run, shares, choice) for choice in choices if not choice.speech_on_cpu]
    assert near == sorted(near)
    stays = replace(run, preset=OFFLOAD.with_settings(offload_model=False))
    assert placements(stays, shares, in_blocks=True) == []


def test_a_host_without_room_gets_another_placement_first():
    """Most layers, copied once for four blocks, cross the bus less often than the rings, but are larger."""
    roomy, tight = (plan(OFFLOAD, Inventory.imagine(1, 30, host_ram_gib=ram)) for ram in (64, 20))
    assert (roomy.placement.layers_on_host > 30, roomy.placement.rings_on_host) == (True, False)
    assert roomy.host.peak_bytes > 20 * GIB
    assert tight.fits
    assert tight.placement == Placement(side_models_on_host=True, rings_on_host=True)


@pytest.mark.parametrize(
    ("name", "vram_gib", "ram_gib"),
    [
        ("96gb", 93, 24),
        ("80gb", 79, 24),
        ("48gb", 44.5, 16),
        ("32gb", 30, 30),
        ("24gb", 22.15, 28),
        ("16gb", 15.2, 36),
        ("12gb", 11.2, 40),
        ("10gb", 9.2, 32),
        ("8gb", 7.2, 32),
    ],
)
def test_each_preset_fits_the_card_it_is_named_after(name, vram_gib, ram_gib):
    machine = Inventory.imagine(1, vram_gib, host_ram_gib=ram_gib)
    planned = plan(load_preset(name), machine)
    assert planned.fits, planned.shortfall
    assert not plan(load_preset(name), Inventory.imagine(1, 5)).fits


def test_memory_that_others_hold_counts_against_the_plan():
    busy = replace(H200.gpus[0], free_bytes=60 * GIB, used_bytes=79 * GIB)
    planned = plan(FULL, replace(H200, gpus=(busy,)))
    assert planned.gpus[0].available_bytes == 60 * GIB
    assert not planned.fits
    ours = replace(busy, ours_bytes=79 * GIB)  # our own engine, still warm, would make room
    assert plan(FULL, replace(H200, gpus=(ours,))).fits


def test_unknown_free_memory_is_no_promise():
    blind = replace(H200.gpus[0], free_bytes=None)
    planned = plan(FULL, replace(H200, gpus=(blind,)))
    assert not planned.fits
    assert "unknown" in planned.shortfall


def test_no_gpu_is_a_plan_that_does_not_fit():
    planned = plan(FULL, Inventory.imagine(0, 0))
    assert not planned.fits
    assert "not here" in planned.shortfall


@pytest.mark.parametrize("name", ["cpu-preview", "self-test"])
def test_presets_without_gpu_plan_the_host_alone(name):
    planned = plan(load_preset(name), Inventory.imagine(0, 0, host_ram_gib=8))
    assert planned.gpus == ()
    assert planned.fits
    assert planned.host.peak_bytes > 0
    assert not plan(load_preset(name), Inventory.imagine(0, 0, host_ram_gib=0.25)).fits


def test_auto_and_wrong_layouts_are_refused_by_name():
    with pytest.raises(BadInput, match="ulysses_size 2"):
        plan(load_preset("4x4090-low-vram").with_settings(ulysses_size=2), Inventory.imagine(4, 24))
    with pytest.raises(BadInput, match="auto"):
        plan(load_preset("auto"), H200)


@pytest.mark.parametrize(
    ("name", "num_gpus", "vram_gib"),
    [
        ("4x4090-low-vram", 4, 22.15),
        ("2x24gb", 2, 22.15),
        ("3x24gb", 3, 22.15),
        ("4x16gb", 4, 15.2),
        ("2x32gb", 2, 30),
        ("3x32gb", 3, 30),
        ("4x32gb", 4, 30),
        ("2x48gb", 2, 44.5),
        ("4x80gb-realtime", 4, 79),
        ("5x80gb-tpp", 5, 79),
    ],
)
def test_presets_for_several_gpus_fit_them(name, num_gpus, vram_gib):
    planned = plan(load_preset(name), Inventory.imagine(num_gpus, vram_gib))
    assert len(planned.gpus) == num_gpus
    assert planned.fits, planned.shortfall
    missing = plan(load_preset(name), Inventory.imagine(num_gpus - 1, vram_gib))
    assert not missing.fits
    assert f"GPU {num_gpus - 1} (not here)" in missing.shortfall


def layers_held(planned):
    return [
        next((i.num_bytes for i in gpu.items if i.name == "transformer_weights"), 0) for gpu in planned.gpus
    ]


def test_layouts_divide_what_they_say():
    eight = Inventory.imagine(8, 80)
    whole = layers_held(plan(FULL, eight))[0]
    stages = plan(FULL.with_settings(layout="layers", num_gpus_dit=3, decode_gpu=True), eight)
    shares = shares_of(FULL.with_settings(layout="layers", num_gpus_dit=3, decode_gpu=True), MODEL.config)
    twice = [a.layers[-1] for a, b in pairwise(shares[1:]) if a.layers[-1] == b.layers[0]]
    assert sum(layers_held(stages)) == whole + sum(MODEL.layers[index].num_bytes("bf16") for index in twice)
    assert sum(share.num_rings for share in shares) == 40 * 4
    assert layers_held(stages)[0] == 0  # rank 0 decodes
    assert sum("decode_workspace" in {i.name for i in gpu.items} for gpu in stages.gpus) == 1
    steps = plan(FULL.with_settings(layout="timesteps", num_gpus_dit=2), eight)
    assert layers_held(steps) == [whole, whole]
    rings = [next(i.num_bytes for i in gpu.items if i.name == "kv_rings") for gpu in steps.gpus]
    assert rings == [ring_bytes(FULL) // 2] * 2
    heads = plan(FULL.with_settings(layout="ulysses", num_gpus_dit=3, ulysses_size=3), eight)
    assert layers_held(heads) == [whole] * 3
    ring = next(i.num_bytes for i in heads.gpus[0].items if i.name == "kv_rings")
    assert ring == round(ring_bytes(FULL) * 14 / 40)  # 14, 13 and 13 heads
    sharded = plan(FULL.with_settings(layout="fsdp", num_gpus_dit=4), eight)
    assert layers_held(sharded) == [round(whole / 4)] * 4
    for kind in ("fsdp", "ulysses", "layers"):
        alone = plan(FULL.with_settings(layout=kind, num_gpus_dit=1, decode_gpu=True), eight)
        assert not any("communication" in {item.name for item in gpu.items} for gpu in alone.gpus)
    with pytest.raises(BadInput, match="5 stages, 4 steps"):
        plan(FULL.with_settings(layout="timesteps", num_gpus_dit=5), eight)


@pytest.mark.parametrize("layout", ["layers", "timesteps", "ulysses", "fsdp"])
@pytest.mark.parametrize("decode_gpu", [False, True])
def test_a_sharded_prompt_encoder_is_divided_among_all_gpus(layout, decode_gpu):
    several = FULL.with_settings(layout=layout, num_gpus_dit=3, decode_gpu=decode_gpu)
    eight = Inventory.imagine(8, 80)
    planned = plan(several.with_settings(text_encoder="sharded"), eight)
    assert len(planned.gpus) == 3 + decode_gpu
    for gpu in planned.gpus:
        items = {item.name: item for item in gpu.items}
        text = [items[name] for name in ("text_encoder", "gathered_text_blocks", "text_communication")]
        assert [item.num_bytes for item in text] == [
            round(2 * TEXT_ENCODER_VALUES / len(planned.gpus)),
            2 * GATHERED_TEXT_BLOCKS * TEXT_BLOCK_VALUES,
            COMMUNICATION_BYTES,
        ]
        assert {item.stages for item in text} == {(RunPhase.ENCODE,)}
    assert not any(item.name.startswith("text_encoder") for item in planned.host.items)
    alone = plan(several, eight)
    names = [{item.name for item in gpu.items} for gpu in alone.gpus]
    assert ["text_encoder_block" in found for found in names] == [True] + [False] * (len(names) - 1)
    assert not any({"text_encoder", "gathered_text_blocks", "text_communication"} & found for found in names)


def test_one_block_of_the_prompt_encoder_is_planned_wherever_it_runs():
    """Of every file, GGUF or not: all are read block by block."""
    for place in ("gpu", "cpu"):
        planned = plan(FULL.with_settings(text_encoder=place), H200)
        devices = {"gpu": planned.gpus[0], "cpu": planned.host}
        found = {
            name: [item for item in device.items if item.name.startswith("text_encoder")]
            for name, device in devices.items()
        }
        num_bytes = 2 * TEXT_BLOCK_VALUES + TEXT_WORKSPACE_BYTES
        assert found.pop(place) == [MemoryItem("text_encoder_block", num_bytes, (RunPhase.ENCODE,))]
        assert list(found.values()) == [[]]


def made(**sizes: int) -> Plan:
    stages = {"rings": (RunPhase.DENOISE,), "workspace": (RunPhase.DECODE,)}
    parts = tuple(MemoryItem(name, size * GIB, stages.get(name, ALWAYS)) for name, size in sizes.items())
    gpu = DevicePlan("GPU 3 (Card)", 3, parts, 10 * GIB, 12 * GIB)
    return Plan("mine", "diffusion", (gpu,), DevicePlan("the host", None, (), GIB, GIB))


def test_the_peak_is_the_fullest_stage_not_the_sum():
    gpu = made(weights=5, rings=4, workspace=3).gpus[0]
    assert gpu.peak_stage == RunPhase.DENOISE
    assert gpu.peak_bytes == 9 * GIB
    assert [item.name for item in gpu.peak_items] == ["weights", "rings"]


def test_peaks_are_found_by_nvmls_index():
    planned = made(weights=5)
    assert planned.peak_bytes(3) == 5 * GIB
    assert planned.peak_bytes(0) is None


def test_the_shortfall_names_the_device_and_the_largest_item():
    planned = made(weights=5, rings=7)
    assert not planned.fits
    for words in ("12.0 GiB", "GPU 3 (Card)", "2.0 GiB short", "rings, 7.0 GiB"):
        assert words in planned.shortfall
    assert made(weights=10).fits
    assert made(weights=10).shortfall == ""


def test_a_plan_is_json():
    data = json.loads(json.dumps(plan(FULL, H200).as_dict()))
    assert data["is_estimate"] is True
    assert data["fits"] is True
    assert data["gpus"][0]["peak_bytes"] == plan(FULL, H200).gpus[0].peak_bytes
    assert {"name", "num_bytes", "stages"} == set(data["gpus"][0]["items"][0])


def test_the_tiny_decoders_items_are_its_arithmetic():
    """A block leaves a frame per memory block, in half precision, at each of three sizes."""
    tiny = FULL.with_settings(decoder="tiny")
    for preset in (tiny, tiny.with_settings(weight_dtype="fp32", ring_dtype="fp32")):
        items = {item.name: item for item in plan(preset, H200).gpus[0].items}
        pixels = largest_geometry(preset).width * largest_geometry(preset).height
        kept = 2 * 3 * (256 * pixels // 64 + 128 * pixels // 16 + 64 * pixels // 4)
        assert items["decode_pasts"].num_bytes == kept
        assert items["tiny_decoder"].num_bytes == 2 * TINY_DECODER_VALUES
        assert items["decode_workspace"].stages == (RunPhase.DECODE,)
        at_once = 2 * 64 * (12 * pixels // 4 + 2 * 4 * pixels)  # half-size frames; 4 whole ones, in and out
        assert at_once < items["decode_workspace"].num_bytes < 1.25 * at_once
    assert plan(tiny, H200).gpus[0].peak_bytes < plan(FULL, H200).gpus[0].peak_bytes
