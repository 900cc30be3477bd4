"""The doctor: libraries, machine, presets, and one verdict."""

from __future__ import annotations

from dataclasses import replace
from importlib import metadata

import pytest

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
    assert checked == ["requirements-preview.txt"] * 2
    assert doctor.PREVIEW_REQUIREMENTS.is_file()


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
