"""The bench over ranks: every figure there, sane, and of the rank that it describes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from avatar.bench.rank_options import BenchOptions
from avatar.bench.ranks import settled_fps, settling
from avatar.checkpoints.transformer_config import ModelConfig
from avatar.cli import main
from avatar.commands.bench import BLOCKS
from avatar.geometry import BLOCK_FRAMES, Geometry, Size
from avatar.model.weights.tiny import CONFIG
from avatar.planning.estimates import COMMUNICATION_BYTES, CUDA_CONTEXT_BYTES
from avatar.preset import load_presets

LAST = ["taken", "conditions", "begun", "speech", "primed", "denoised", "decoded", "received"]


def bench(flags: list[str], output: Path, capsys) -> dict:
    assert main(["bench", "--preset", "self-test", "--random_weights", *flags, "--output", str(output)]) == 0
    figures = json.loads(output.read_text())
    assert json.loads(capsys.readouterr().out) == figures
    return figures


@pytest.mark.slow
def test_a_layout_is_timed_end_to_end_and_rank_by_rank(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    flags = ["--parallel", "timesteps", "--num_gpus_dit", "2", "--enable_vae_parallel", "--blocks", "18"]
    figures = bench(flags, tmp_path / "figures.json", capsys)
    assert figures["layout"] == {"kind": "timesteps", "stages": 2, "group_size": 1}
    assert figures["layers"] == {"made": 3, "of": 3}
    whole, ranks = figures["end_to_end"], figures["ranks"]
    assert whole["num_frames"] == 213  # without the lead-in
    assert 0 < whole["first_frame_s"] < whole["first_segment_s"] < whole["elapsed_s"]
    assert whole["first_frame_s"] < whole["first_frame_cold_s"]
    assert whole["settled_fps"] > 0
    assert figures["unshard_peak_bytes"] is None
    assert [(rank["rank"], rank["role"]) for rank in ranks] == [(0, "decode"), (1, "step 0"), (2, "step 1")]
    assert all(rank["busy_ms_per_block"] > 0 for rank in ranks)
    assert all(rank["sent_bytes_per_block"] > 3 * 16 * 8 * 8 * 4 for rank in ranks)  # latents at least
    for parts in (whole["first_frame_parts"], whole["first_frame_other_portrait_parts"]):
        assert sorted(parts) == sorted(LAST)
        moments = [parts[name] for name in LAST]
        assert moments == sorted(moments)
        assert moments[0] > 0
    assert abs(parts["received"] - whole["first_frame_other_portrait_s"]) < 1.0  # by two clocks


@pytest.mark.slow
def test_a_slice_of_a_pipeline_is_what_the_whole_one_has_there(tmp_path: Path, monkeypatch, capsys):
    """Two of three layers over two ranks; each block's tokens cross once a step, with all that goes along."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    flags = ["--parallel", "layers", "--num_gpus_dit", "2", "--layers", "2", "--vram", "4", "--blocks", "10"]
    figures = bench(flags, tmp_path / "figures.json", capsys)
    assert figures["layers"] == {"made": 2, "of": 3}
    assert figures["vram_gib"] == 4
    assert [rank["role"] for rank in figures["ranks"]] == ["layer 0, decode", "layer 1"]
    tokens = Geometry.of(Size(64, 64), figures["settings"]["generation"]["infer_frames"]).block_tokens
    steps = figures["settings"]["generation"]["sample_steps"]
    assert figures["ranks"][0]["sent_bytes_per_block"] > steps * tokens * CONFIG.dim * 4  # float32


@pytest.mark.slow
def test_shards_are_gathered_before_a_run_is_timed(tmp_path: Path, monkeypatch, capsys):
    """One block is enough for that; nothing is settled by then, and that is said."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    flags = ["--parallel", "fsdp", "--num_gpus_dit", "2", "--blocks", "1"]
    figures = bench(flags, tmp_path / "figures.json", capsys)
    assert figures["layout"] == {"kind": "fsdp", "stages": 1, "group_size": 2}
    assert figures["unshard_peak_bytes"] is None  # there is no GPU whose allocator would tell
    assert figures["end_to_end"]["num_frames"] == 9
    assert figures["end_to_end"]["settled_fps"] is None


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--layers", "2"], "part of a pipeline"),
        (["--layers", "0", "--random_weights", "--num_gpus_dit", "2"], "--layers is 0; the model has 3"),
        (["--layers", "4", "--random_weights", "--num_gpus_dit", "2"], "the model has 3"),
        (["--layers", "1", "--random_weights", "--num_gpus_dit", "2", "--parallel", "layers"], "1 layers"),
        (["--layers", "2", "--num_gpus_dit", "2"], "model of its own"),
    ],
)
def test_a_slice_that_cannot_be_is_refused(flags, words, capsys):
    assert main(["bench", "--preset", "self-test", *flags]) == 2
    assert words in json.loads(capsys.readouterr().out)["message"]


def test_what_ranks_are_timed_under_reaches_them(tmp_path: Path):
    terms = BenchOptions(random=True, num_layers=14, vram_bytes=24 * 2**30, prompt_tokens=72)
    assert BenchOptions.read(terms.write(tmp_path / "terms.json")) == terms
    config = terms.config_of(ModelConfig())
    assert (config.num_layers, config.audio_inject_layers) == (14, (0, 4, 8, 12))
    assert terms.tensor_bytes(2) == 24 * 2**30 - CUDA_CONTEXT_BYTES - 2 * COMMUNICATION_BYTES
    assert BenchOptions().tensor_bytes(0) is None
    assert BenchOptions().config_of(ModelConfig()) == ModelConfig()


def test_a_pipeline_that_drains_is_not_settled():
    """A block a second; the last two twice as fast."""
    came_s = [5.0, 6.0, 7.0, 8.0, 8.5, 9.0]
    assert settled_fps(came_s, 1, 2) == pytest.approx(BLOCK_FRAMES)
    assert settled_fps(came_s, 3, 0) == pytest.approx(2 * BLOCK_FRAMES)
    assert settled_fps(came_s, 3, 2) is None


def test_presets_of_several_gpus_settle_within_default_blocks():
    presets = [preset for preset in load_presets() if preset.requires.num_gpus > 1]
    assert len(presets) >= 4
    for preset in presets:
        settled, draining = settling(preset)
        assert BLOCKS - draining - settled >= 8
