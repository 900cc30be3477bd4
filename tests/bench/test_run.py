"""The bench on a toy model: every figure is there and agrees with the others; nothing depends on a timing."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import pytest
import torch

from avatar.bench.measure import Stopwatch, watched
from avatar.bench.random_parts import random_parts
from avatar.bench.run import a_request, bench, time_encoders, warm_up
from avatar.checkpoints.prompt_tokens import token_ids
from avatar.cli import main
from avatar.errors import BadInput
from avatar.geometry import BLOCK_FRAMES, BLOCK_LATENT_FRAMES, Geometry, Size
from avatar.hardware import inventory
from avatar.model.kv_cache import Ring
from avatar.model.quantize import FLOAT8
from avatar.model.weights import tiny
from avatar.model.weights.checkpoint import open_checkpoint
from avatar.pipeline.components import Components
from avatar.pipeline.decode import StreamingDecoder
from avatar.planning.placement import Placement
from avatar.preset import load_preset

PRESET = load_preset("self-test")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def figures() -> dict:
    return bench(PRESET, random_parts(PRESET), num_blocks=10)


def test_every_part_is_timed_over_blocks_with_full_rings(figures):
    parts = figures["parts"]
    assert parts["measured_blocks"] == 10 - 4
    assert len(parts["step_ms_all"]) == 6 * PRESET.generation.sample_steps
    assert min(parts["step_ms_all"]) <= parts["step_ms"] <= max(parts["step_ms_all"])
    for name in (
        "decode_block_ms",
        "encode_portrait_ms",
        "encode_speech_ms",
        "prefill_cold_ms",
        "first_block_cold_s",
    ):
        assert parts[name] > 0
    assert parts["denoise_fps"] == pytest.approx(12_000 / (2 * parts["step_ms"]))
    assert parts["decode_fps"] == pytest.approx(12_000 / parts["decode_block_ms"])
    both = 1 / (1 / parts["denoise_fps"] + 1 / parts["decode_fps"])
    assert parts["denoise_and_decode_fps"] == pytest.approx(both)


def test_the_prompts_tokens_are_reported_and_not_guessed(figures, tiny_checkpoint, tmp_path):
    """Random weights take the longest short prompt; a checkpoint's tokenizer counts."""
    assert figures["parts"]["prompt_tokens"] == tiny.CONFIG.short_text_tokens - 1
    words, files = 20 * "face ", open_checkpoint(tiny_checkpoint)
    preset = PRESET.with_settings(prompt=words)
    request = a_request(preset, tmp_path / "request", 1)
    for parts, expected in (
        (random_parts(preset), figures["parts"]["prompt_tokens"]),
        (random_parts(preset, prompt_tokens=12), 12),
        (Components.load(preset.memory, files), len(token_ids(words, files.tokenizer))),
    ):
        assert time_encoders(request, parts, Size(64, 64))["prompt_tokens"] == expected


def test_the_whole_engine_is_timed_too(figures):
    whole = figures["end_to_end"]
    assert whole["num_frames"] == 10 * 12 - 3  # without the lead-in
    assert 0 < whole["first_frame_s"] <= whole["first_segment_s"] <= whole["elapsed_s"]
    assert whole["fps"] > 0
    assert whole["cold_fps"] == pytest.approx(117 / whole["elapsed_s"], rel=0.05)


def test_without_online_decode_the_rate_counts_the_denoising():
    preset = PRESET.with_settings(enable_online_decode=False)
    found = bench(preset, random_parts(preset), num_blocks=10)
    assert found["end_to_end"]["fps"] == found["parts"]["denoise_and_decode_fps"]


def test_made_up_pictures_are_no_noise_that_slows_the_encoder():
    decoder, geometry = StreamingDecoder(random_parts(PRESET).vae), Geometry(64, 64, 4)
    random = partial(torch.randn, generator=torch.Generator().manual_seed(1))
    decoder.prime(random(16, 19, *geometry.block_shape[2:]))
    frames = decoder.decode(random(geometry.block_shape)).float()
    assert 0 < frames.std(dim=(0, 1, 2)).max() < 6  # of 255 levels


def test_what_waits_on_the_host_is_reported():
    """Everything away and diagonals: per-item times, what crosses the bus, memory at two moments."""
    preset = PRESET.with_settings(ring_dtype="fp8", weight_dtype="fp8")
    placement = Placement(layers_on_host=3, rings_on_host=True, side_models_on_host=True, diagonal=True)
    parts = random_parts(preset, placement)
    figures = bench(preset, parts, num_blocks=10)
    assert figures["placement"] == asdict(placement)
    reported = figures["parts"]
    steps = preset.generation.sample_steps
    assert reported["step_ms"] > 0
    assert 0 < len(reported["step_ms_all"]) <= 10 - 4
    config, geometry = tiny.CONFIG, Geometry(64, 64, preset.generation.infer_frames // 4)
    held = Ring.allocate(geometry, config.num_heads, config.head_dim, FLOAT8, "meta")
    ring = sum(tensor.nbytes for tensor in held.tensors)
    own = BLOCK_LATENT_FRAMES * ring // geometry.past_frames
    assert (
        reported["bus"]["to_host_bytes_per_frame"]
        == min(own, ring) * steps * config.num_layers / BLOCK_FRAMES
    )
    weights = parts.host_layers.host_bytes  # come once for a block: as many blocks are under way as steps
    rings = ring * steps * config.num_layers
    assert reported["bus"]["to_device_bytes_per_frame"] == (weights + rings) / BLOCK_FRAMES
    for moment in ("clip_2", "end"):
        assert reported["held"][moment]["host_bytes"] > 0
        assert reported["held"][moment]["pinned_bytes"] == 0  # there is no GPU to pin anything for
    assert figures["host_peak_bytes"] >= reported["held"]["end"]["host_bytes"]
    assert figures["plan"]["preset"] == preset.name
    assert figures["end_to_end"]["num_frames"] == 117


def test_what_was_measured_is_reported(figures):
    settings, machine = figures["settings"], figures["machine"]
    assert settings["generation"]["sample_steps"] == PRESET.generation.sample_steps
    assert (settings["width"], settings["height"], settings["num_blocks"]) == (64, 64, 10)
    assert machine["device"] == "cpu"
    assert {"python", "torch", "diffusers", "transformers"} <= machine["versions"].keys()
    none = {"nvml_bytes": None, "allocator_bytes": None, "reserved_bytes": None}  # there is no GPU
    assert figures["parts"]["memory"] == figures["end_to_end"]["memory"] == none
    assert figures["load_transformer_s"] >= 0
    json.dumps(figures)


def test_too_few_blocks_are_refused():
    geometry = Geometry(64, 64, 12)
    assert warm_up(geometry, 11) == 6
    with pytest.raises(BadInput, match="11 or more") as caught:
        warm_up(geometry, 10)
    assert "10 blocks" in caught.value.message


@pytest.mark.parametrize("num_blocks", [8, 3, 1])
def test_as_few_blocks_as_a_second_run_has_are_refused(num_blocks):
    with pytest.raises(BadInput, match=f"{num_blocks} blocks are too few"):
        bench(PRESET, random_parts(PRESET), num_blocks=num_blocks)


def test_a_stopwatch_keeps_every_time_in_order():
    clock = Stopwatch(CPU)
    for _ in range(3):
        with clock.measure("a"):
            torch.ones(10).sum()
    assert len(clock.milliseconds("a")) == 3
    assert all(ms > 0 for ms in clock.milliseconds("a"))
    assert clock.milliseconds("b") == []
    with watched(CPU) as peaks:
        pass
    assert peaks.allocator_bytes is None


def test_the_command_times_a_checkpoint_and_writes_the_figures(
    tiny_checkpoint, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    command = ["bench", "--preset", "self-test", "--ckpt_dir", str(tiny_checkpoint), "--sample_steps", "1"]
    assert main([*command, "--blocks", "9", "--output", "figures.json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert json.loads(Path("figures.json").read_text()) == figures
    assert figures["random_weights"] is False
    assert figures["settings"]["generation"]["sample_steps"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--preset", "cpu-preview"], 2, "no model to time"),
        (["--preset", "self-test", "--sample_steps", "0"], 2, "sample_steps"),
        (["--preset", "self-test", "--random_weights", "--ckpt_dir", "x"], 2, "no checkpoint is read"),
        (["--preset", "self-test", "--random_weights", "--t5_fsdp"], 2, "no prompt encoder"),
        (["--preset", "self-test", "--random_weights", "--prompt", "A fox."], 2, "no prompt is read"),
        (["--preset", "self-test", "--random_weights", "--prompt_tokens", "513"], 2, "is 513"),
        (["--preset", "self-test", "--prompt_tokens", "9"], 2, "makes a prompt up"),
        (["--preset", "self-test", "--output", "no/such/place.json"], 2, "place.json"),
        (["--preset", "80gb", "--random_weights"], 4, "NVIDIA GPU"),
        (["--preset", "80gb", "--num_gpus_dit", "2"], 4, "2 NVIDIA GPUs"),
    ],
)
def test_what_cannot_be_timed_is_refused(flags, code, words, capsys, monkeypatch):
    without = replace(inventory.probe(), gpus=(), no_gpu_reason="No NVIDIA driver.")
    monkeypatch.setattr("avatar.commands.bench.probe", lambda *_: without)
    assert main(["bench", *flags]) == code
    reported = json.loads(capsys.readouterr().out)
    assert words in reported["message"]
