"""What `generate` refuses: by name, with its exit code, and before an engine opens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from avatar.cli import main
from avatar.hardware.inventory import Inventory
from tests.commands.surroundings import H200, NO_GPU

REFUSED_BY_PREVIEW = [
    ("--sample_steps", "3", "no denoising steps"),
    ("--sample-steps", "3", "no denoising steps"),
    ("--shift", "5", "no denoising steps"),
    ("--infer_frames", "32", "without clips"),
    ("--num_clip", "100", "without clips"),
    ("--enable_online_decode", None, "no transformer"),
    ("--offload_model", "True", "no transformer"),
    ("--offload_model", "False", "no transformer"),
    ("--weight_dtype", "fp8", "no transformer"),
    ("--ring_dtype", "fp8", "no transformer"),
    ("--attention_dtype", "int8", "no transformer"),
    ("--text_encoder", "cpu", "no transformer"),
    ("--num_gpus_dit", "3", "CPU alone"),
    ("--ulysses_size", "3", "CPU alone"),
    ("--prompt", "a man", "reads no prompt"),
    ("--ckpt_dir", ".", "no checkpoint"),
]


@pytest.mark.parametrize(("flag", "value", "reason"), REFUSED_BY_PREVIEW)
@pytest.mark.parametrize("preset", ["cpu-preview", "auto"])
def test_what_the_preview_cannot_honour_is_refused_by_name(
    inputs, machine, engine, capsys, flag, value, reason, preset
):
    opened = engine()
    assert main([*inputs, "--preset", preset, flag, *([value] if value else [])]) == 2
    reported = capsys.readouterr().err
    assert flag[2:].replace("-", "_") in reported
    assert reason in reported
    assert ("auto takes the preset cpu-preview" in reported) == (preset == "auto")
    assert opened == []


def test_points_are_refused_by_the_diffusion_engine(inputs, machine, engine, capsys):
    machine(H200)
    Path("points.json").write_text("{}")
    assert main([*inputs, "--points", "points.json"]) == 2
    assert "points" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (["--ulysses_size", "3"], "ulysses_size 3"),
        (["--num_gpus_dit", "4", "--ulysses_size", "3"], "num_gpus_dit 4"),
        (["--parallel", "fsdp", "--num_gpus_dit", "4", "--ulysses_size", "2"], "fsdp"),
        (["--parallel", "timesteps", "--num_gpus_dit", "5"], "timesteps"),
        (["--parallel", "rows", "--num_gpus_dit", "4"], "rows"),
        (["--num_gpus_dit", "2", "--offload_model", "True"], "offload_model True"),
        (["--t5_fsdp"], "--t5_fsdp"),
        (["--text_encoder", "sharded"], "text_encoder sharded"),
    ],
)
def test_what_this_version_cannot_do_is_refused_by_name(inputs, machine, engine, capsys, flags, name):
    machine(Inventory.imagine(4, 139))
    opened = engine()
    assert main([*inputs, "--preset", "80gb", *flags]) == 2
    assert name in capsys.readouterr().err
    assert opened == []


@pytest.mark.parametrize(
    "flags",
    [
        ["--t5_fsdp", "--t5_cpu"],
        ["--t5_fsdp", "--text_encoder", "sharded"],
        ["--sample_solver", "unipc"],
        ["--task", "t2v-14B"],
        ["--training_config", "mine.yaml"],
        ["--lora_path_dmd", "mine/lora"],
        ["--dit_fsdp", "--parallel", "layers"],
        ["--start_from_ref"],
    ],
)
def test_published_flags_that_cannot_be_honoured_are_refused_by_name(inputs, machine, engine, capsys, flags):
    opened = engine()
    with pytest.raises(SystemExit) as left:
        main([*inputs, *flags])
    assert left.value.code == 2
    assert flags[0] in capsys.readouterr().err
    assert opened == []


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--preset", "80g"], 2, "Did you mean '80gb'"),
        (["--size", "abc"], 2, "abc"),
        (["--size", "4096*4096"], 2, "cannot make size 4096*4096"),
        (["--preset", "cpu-preview", "--size", "2*2"], 2, "cannot make size 2*2"),
        (["--seed", "-1"], 2, "seed"),
        (["--preset", "80gb"], 4, "NVIDIA"),
        (["--preset", "4x4090-low-vram"], 4, "4 NVIDIA GPUs"),
        (["--image", "none.png"], 2, "none.png"),
        (["--audio", "p.png"], 2, "p.png"),
        (["--points", "none.json"], 2, "none.json"),
        (["--points", "n" * 300 + ".json"], 2, "There is no points file nnnn"),
        (["--preset", "n" * 300], 2, "There is no preset"),
        (["--image", "n" * 300 + ".png"], 2, "nnnn"),
        (["--output", "n" * 300 + ".mp4"], 2, "shorter, plain name"),
        (["--output", "out.avi"], 2, "out.avi"),
        (["--max_duration", "0"], 2, "--max_duration is 0"),
        (["--max_duration", "nan"], 2, "--max_duration is nan"),
        (["--max_duration", "inf"], 2, "--max_duration is inf"),
    ],
)
def test_each_refusal_has_its_code_and_its_words(inputs, machine, engine, capsys, flags, code, words):
    opened = engine()
    assert main([*inputs, *flags]) == code
    reported = capsys.readouterr().err
    assert reported.startswith("error: ")
    assert words in reported
    assert "Traceback" not in reported
    assert opened == []
    assert not Path("outputs").exists()


def test_missing_weights_have_their_own_code(inputs, machine, engine):
    machine(replace(H200, checkpoint=NO_GPU.checkpoint))
    assert main([*inputs, "--preset", "80gb"]) == 3


@pytest.mark.parametrize("more", [["--jobs", "2"], ["--checkpoint_every", "1", "--jobs", "0"]])
def test_engines_without_parts_for_them_are_refused(inputs, machine, engine, capsys, more):
    opened = engine()
    assert main([*inputs, "--output", "out.mp4", *more]) == 2
    assert "--jobs" in capsys.readouterr().err
    assert opened == []
