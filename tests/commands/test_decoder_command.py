"""`--decoder tiny`: a video from the command line, refusals, plans, batches, live pages, reports."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
from PIL import Image

from avatar.batch.jobs import read_jobs
from avatar.checkpoints.locations import TINY_DECODER, Checkpoint, tiny_decoder_home
from avatar.cli import main
from avatar.commands import live
from avatar.compare.cells import read_vary
from avatar.media.intake import open_request
from avatar.preset import load_preset
from avatar.runtime.fingerprint import origin
from avatar.runtime.report import read_report
from avatar.runtime.report_columns import configuration
from tests.commands.surroundings import H200, NO_GPU, lines

SELF_TEST = ("--preset", "self-test", "--output", "o.mp4")


def pictures(video: str) -> np.ndarray:
    with av.open(video) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_a_video_is_made_with_it(inputs, tiny_checkpoint):
    assert main([*inputs, *SELF_TEST, "--ckpt_dir", str(tiny_checkpoint), "--decoder", "tiny"]) == 0
    assert pictures("o.mp4").shape == (75, 64, 64, 3)
    report = read_report(Path("o.report.json"))
    assert report.preset["memory"]["decoder"] == "tiny"
    assert "tiny decoder" in configuration(report)


def test_the_preview_refuses_it_by_name(inputs, capsys):
    assert main([*inputs, "--preset", "cpu-preview", "--decoder", "tiny", "--output", "o.mp4"]) == 2
    assert "cannot honour decoder" in capsys.readouterr().err
    assert main([*inputs, *SELF_TEST, "--decoder", "huge"]) == 2
    assert "full, tiny" in capsys.readouterr().err


def test_without_its_file_nothing_loads(inputs, machine, tiny_checkpoint, tmp_path, capsys):
    """The model is complete without it, and runs with the full decoder."""
    base = tiny_checkpoint / "Wan2.2-S2V-14B"
    machine(replace(H200, checkpoint=Checkpoint(base=base, complete=True)))
    wanted = [*inputs, "--preset", "80gb", "--output", "o.mp4"]
    assert main([*wanted, "--decoder", "tiny"]) == 3
    said = capsys.readouterr().err
    assert f"{TINY_DECODER}, is not here" in said
    assert "python -m avatar download --decoder tiny" in said


def test_a_plan_counts_the_small_decoder(machine, capsys):
    machine(H200)
    plans = []
    for decoder in ("full", "tiny"):
        assert main(["plan", "--preset", "80gb", "--decoder", decoder, "--json"]) == 0
        (planned,) = lines(capsys)
        plans.append({item["name"]: item["num_bytes"] for item in planned["gpus"][0]["items"]})
    full, tiny = plans
    assert "vae_decoder" not in tiny
    assert tiny["tiny_decoder"] == 2 * 9_844_611
    assert tiny["decode_pasts"] * 20 < full["decode_pasts"]
    assert tiny["decode_workspace"] * 4 < full["decode_workspace"]


def test_a_batch_and_a_comparison_take_it(inputs, tmp_path):
    jobs = tmp_path / "jobs.toml"
    jobs.write_text('[[job]]\nimage = "p.png"\naudio = "s.wav"\npreset = "self-test"\ndecoder = "tiny"\n')
    (entry,) = read_jobs(jobs).entries
    assert entry.job(tmp_path, NO_GPU, False).preset.memory.decoder == "tiny"
    assert [cell.settings["decoder"] for cell in read_vary(["decoder=full,tiny"])] == ["full", "tiny"]


def test_an_unfinished_video_of_an_earlier_version_goes_on(inputs, tmp_path):
    """Its fingerprint knows no decoder; the full one is the same video, the tiny one another."""

    def asked(**settings: str) -> dict[str, str]:
        preset = load_preset("self-test").with_settings(**settings)
        places = {"output": tmp_path / "o.mp4", "work": tmp_path / "work"}
        return origin(open_request(Path("p.png"), Path("s.wav"), preset, **places))

    assert asked() == asked(decoder="full")
    assert {key for key in asked() if asked()[key] != asked(decoder="tiny")[key]} == {"preset"}


def test_a_live_page_is_told_the_decoder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.full((96, 96, 3), 90, np.uint8)).save("p.png")
    begun = []

    def stop(command, **_):
        begun.extend(command)
        raise KeyboardInterrupt

    monkeypatch.setattr(live.subprocess, "Popen", stop)
    main(["live", "--image", "p.png", "--preset", "live", "--decoder", "tiny"])
    assert begun[begun.index("--live-decoder") + 1] == "tiny"
    begun.clear()
    assert main(["live", "--image", "p.png", "--decoder", "tiny"]) == 2
    assert "preview engine cannot honour decoder" in capsys.readouterr().err
    assert begun == []


def test_a_report_of_an_earlier_version_has_no_decoder(inputs, tiny_checkpoint):
    assert main([*inputs, *SELF_TEST, "--ckpt_dir", str(tiny_checkpoint)]) == 0
    path = Path("o.report.json")
    data = json.loads(path.read_text())
    del data["preset"]["memory"]["decoder"]
    path.write_text(json.dumps(data))
    assert "decoder" not in configuration(read_report(path))
    assert tiny_decoder_home(tiny_checkpoint).is_dir()
