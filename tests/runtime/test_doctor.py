"""The doctor: libraries, machine, presets, and one verdict."""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib import metadata

import pytest

from avatar.cli import main
from avatar.errors import AvatarError, BadInput
from avatar.hardware.inventory import Gpu, Inventory, probe
from avatar.preset import load_presets
from avatar.runtime import doctor
from avatar.runtime.doctor import examine, missing_libraries
from avatar.runtime.engine_process import EngineProcess


def machine(monkeypatch, inventory):
    monkeypatch.setattr(doctor, "probe", lambda *_: inventory)


def test_libraries_that_are_absent_or_of_another_version(tmp_path):
    here = metadata.version("numpy")
    (tmp_path / "requirements.txt").write_text(
        f"# comment\n\n-r other.txt\nnumpy=={here}\nnumpy<1  # too old\nno-such-library>=2\n"
        'no-such-library; python_version < "3"\n'
    )
    lines = missing_libraries(tmp_path / "requirements.txt")
    assert len(lines) == 2
    assert "numpy<1 is needed" in lines[0]
    assert here in lines[0]
    assert "no-such-library is not installed" in lines[1]
    assert missing_libraries(tmp_path / "none.txt") == []


def test_this_installation_is_whole():
    assert missing_libraries(doctor.REQUIREMENTS) == []


def test_an_installation_for_the_preview_alone_is_whole(monkeypatch):
    without = replace(Inventory.imagine(0, 0), torch_build="", torch_cuda="")
    machine(monkeypatch, without)
    checked = []
    monkeypatch.setattr(doctor, "missing_libraries", lambda path: checked.append(path.name) or [])
    found = examine()
    assert (found.exit_code, found.judged.preset.name) == (0, "cpu-preview")
    asked = examine(preset_name="self-test")
    assert asked.exit_code == 1
    assert "pip install -r requirements.txt -c constraints.txt" in asked.verdict
    assert checked == ["requirements-preview.txt"] * 2, "what else is missing is one shortfall"
    assert doctor.PREVIEW_REQUIREMENTS.is_file()


def test_only_libraries_of_the_judged_preset_are_faults(monkeypatch):
    """PyTorch may be there for something else."""
    without = replace(Inventory.imagine(1, 24), missing_libraries=("diffusers", "ftfy"))
    machine(monkeypatch, without)
    absent = {"requirements.txt": ["diffusers is not installed"], "requirements-preview.txt": []}
    monkeypatch.setattr(doctor, "missing_libraries", lambda path: absent[path.name])
    found = examine()
    assert (found.exit_code, found.judged.preset.name, found.faults) == (0, "cpu-preview", ())
    assert "Its cards could run 24gb. Libraries of the model are not installed here: diffusers, ftfy." in (
        found.verdict
    )
    assert "not installed: diffusers, ftfy" in dict(found.machine)["PyTorch"]
    asked = examine(preset_name="24gb")
    assert (asked.exit_code, asked.faults) == (1, ())
    assert "pip install -r requirements.txt" in asked.verdict
    machine(monkeypatch, Inventory.imagine(1, 24))  # there, but of a version that is refused
    assert (examine().exit_code, examine(preset_name="cpu-preview").exit_code) == (1, 0)


def test_cards_without_pytorch_are_reported_what_to_install(monkeypatch):
    machine(monkeypatch, replace(Inventory.imagine(1, 80), torch_build="", torch_cuda=""))
    found = examine()
    assert found.exit_code == 0
    assert "Its cards could run 80gb" in found.verdict
    assert "pip install -r requirements.txt" in found.verdict


def test_the_verdict_on_a_machine_without_gpu(monkeypatch):
    machine(monkeypatch, replace(probe(), gpus=(), no_gpu_reason="No NVIDIA driver."))
    found = examine()
    assert found.exit_code == 0
    assert found.judged.preset.name == "cpu-preview"
    assert dict(found.machine)["NVIDIA driver"] == "No NVIDIA driver."
    assert "auto" not in [preset.name for preset, _ in found.presets]
    assert len(found.presets) == len(load_presets()) - 1


def test_the_verdict_on_one_preset(monkeypatch):
    machine(monkeypatch, Inventory.imagine(1, 139))
    assert examine(preset_name="80gb").exit_code == 0
    found = examine(preset_name="4x80gb-realtime")
    assert found.exit_code == 1
    assert "4x80gb-realtime does not run here" in found.verdict
    assert found.judged.remedy in found.verdict
    with pytest.raises(BadInput):
        examine(preset_name="81gb")


def test_where_nothing_runs(monkeypatch):
    machine(monkeypatch, Inventory.imagine(0, 0, host_ram_gib=0.2))
    found = examine()
    assert found.exit_code == 1
    assert found.verdict == "No preset runs on this machine. The table above says what each one lacks."


def test_a_fault_that_stops_everything(monkeypatch):
    def absent():
        raise AvatarError("ffmpeg and ffprobe are not installed.", "Install them.")

    monkeypatch.setattr(doctor.ffmpeg, "put_on_path", absent)
    found = examine()
    assert found.exit_code == 1
    assert found.faults == ("ffmpeg and ffprobe are not installed. Install them.",)
    assert not found.as_dict()["ok"]


def test_a_gpu_that_answers_in_part(monkeypatch):
    gpu = Gpu(2, None, None, None, None, None, None, errors=("memory: unknown error",))
    machine(monkeypatch, replace(Inventory.imagine(1, 24), gpus=(gpu,), driver_version="999"))
    rows = dict(examine().machine)
    assert rows["GPU 2"] == "name unknown, NVML gives no memory: unknown error"
    assert rows["NVIDIA driver"] == "999, runs CUDA up to 13.0"


def test_the_preview_is_not_all_that_better_cards_are_offered(monkeypatch):
    old = replace(Inventory.imagine(1, 24), driver_version="550.54", driver_cuda="12.4", torch_build="2.12.1")
    machine(monkeypatch, old)
    found = examine()
    assert found.exit_code == 0
    assert found.verdict.startswith("Preset cpu-preview runs on this machine. Its cards could run 24gb.")
    assert "--index-url https://download.pytorch.org/whl/cu126" in found.verdict
    rows = dict(found.machine)
    assert rows["NVIDIA driver"] == "550.54, runs CUDA up to 12.4"
    assert rows["PyTorch"] == "2.12.1, for CUDA 13.0"
    assert examine(preset_name="24gb").exit_code == 1
    machine(monkeypatch, Inventory.imagine(1, 24))
    assert examine().verdict == "Preset 24gb runs on this machine."


def test_where_weights_were_looked_for(tmp_path):
    rows = dict(examine(ckpt_dir=tmp_path).machine)
    assert rows["checkpoint"].startswith("lacks ")
    assert str(tmp_path) in rows["looked in"]


def test_the_self_test_runs_the_real_engine():
    tested = doctor.self_test()
    assert tested.num_frames == 25
    assert tested.elapsed_s > 0


@pytest.mark.parametrize(("fault", "words"), [("error", "The lamp went out"), ("kill", "SIGKILL")])
def test_a_self_test_that_fails_says_why(monkeypatch, fault, words):
    source = "tests.fixtures.sources:Coloured"
    monkeypatch.setattr(doctor, "open_engine", lambda _: EngineProcess(source, fault=fault, at=10))
    with pytest.raises(AvatarError, match=words):
        doctor.self_test()


def checker(monkeypatch, script: str) -> None:
    """The process that tries the GPUs, played by a script; a card that `auto` would use is there."""
    machine(monkeypatch, replace(Inventory.imagine(1, 24), imagined=False))
    monkeypatch.setattr(doctor, "CHECKER", [sys.executable, "-c", script])


TRIED = """
import json, os
checks = [
    {"code": "compile", "ok": False, "reason": "No [/usr/bin/cc]", "text": "It runs uncompiled."},
    {"code": "fp8", "ok": None, "reason": "", "text": ""},
    {"code": "pinned", "ok": True, "reason": "", "text": ""},
]
print(json.dumps([{"name": "card by " + os.environ["CUDA_DEVICE_ORDER"], "checks": checks}]))
"""


def test_a_fast_path_that_is_missing_is_shown_and_stops_nothing(monkeypatch, capsys):
    checker(monkeypatch, TRIED)
    [device] = examine().devices
    assert device.name == "card by PCI_BUS_ID"
    assert [check.ok for check in device.checks] == [False, None, True]
    assert main(["doctor"]) == main(["doctor", "--preset", "24gb"]) == 0
    table = " ".join(capsys.readouterr().out.split())
    for words in (
        "compiled code",
        "It runs uncompiled.",
        "[/usr/bin/cc]",
        "not on this card",
        "pinned memory",
    ):
        assert words in table


@pytest.mark.parametrize(
    ("script", "words"),
    [("import sys; sys.exit('a crash')", "PyTorch failed on them"), ("print([])", "PyTorch finds no GPU")],
)
def test_gpus_that_pytorch_cannot_use_stop_their_presets_alone(monkeypatch, script, words):
    checker(monkeypatch, script)
    found = examine()
    assert (found.judged.preset.name, found.exit_code) == ("24gb", 1)
    assert words in found.verdict
    assert words in found.as_dict()["device_fault"]
    assert examine(preset_name="24gb").exit_code == 1
    assert examine(preset_name="cpu-preview").exit_code == 0


@pytest.mark.slow
def test_files_of_the_current_folder_are_no_modules_of_the_checker(monkeypatch, tmp_path):
    machine(monkeypatch, replace(Inventory.imagine(1, 24), imagined=False))
    (tmp_path / "json.py").write_text("raise SystemExit('not the standard library')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "PyTorch finds no GPU" in examine().device_fault


def test_a_checker_that_hangs_is_given_up(monkeypatch):
    checker(monkeypatch, "import time; time.sleep(600)")
    monkeypatch.setattr(doctor, "CHECKER_S", 0.5)
    assert "PyTorch failed on them" in examine().verdict
