"""The bench over ranks: every figure there, sane, and of the rank that it is told of."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from avatar.cli import main


@pytest.mark.parametrize(
    "flags", [["--parallel", "timesteps", "--num_gpus_dit", "2", "--enable_vae_parallel"]]
)
def test_a_layout_is_timed_end_to_end_and_rank_by_rank(tmp_path: Path, monkeypatch, capsys, flags):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    output = tmp_path / "figures.json"
    command = ["bench", "--preset", "self-test", "--random_weights", "--blocks", "18", *flags]
    assert main([*command, "--output", str(output)]) == 0
    figures = json.loads(output.read_text())
    assert json.loads(capsys.readouterr().out) == figures
    assert figures["layout"] == {"kind": "timesteps", "stages": 2, "group_size": 1}
    whole, ranks = figures["end_to_end"], figures["ranks"]
    assert whole["num_frames"] == 216
    assert 0 < whole["first_frame_s"] < whole["first_segment_s"] < whole["elapsed_s"]
    assert whole["first_frame_s"] < whole["first_frame_cold_s"]
    assert whole["settled_fps"] > 0
    assert [(rank["rank"], rank["role"]) for rank in ranks] == [(0, "decode"), (1, "step 0"), (2, "step 1")]
    assert all(rank["busy_ms_per_block"] > 0 for rank in ranks)
    assert all(rank["sent_bytes_per_block"] > 3 * 16 * 8 * 8 * 4 for rank in ranks)  # latents at least
