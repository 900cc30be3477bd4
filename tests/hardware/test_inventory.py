"""Inventory against a fake driver library, and imagined machines."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from avatar.checkpoints.locations import find_checkpoint
from avatar.hardware import inventory
from avatar.hardware.inventory import GIB, Inventory, own_processes, probe

MIB = 2**20
PROBE = "from avatar.hardware.inventory import probe; result = probe().as_dict()"


@pytest.mark.parametrize("num_gpus", [1, 4, 8])
def test_every_gpu_is_listed_with_its_memory(with_driver, num_gpus):
    sizes = [24564 + 100 * index for index in range(num_gpus)]
    found = with_driver(PROBE, sizes, processes="0:1:2000")
    assert found["driver_version"] == "999.11"
    assert found["no_gpu_reason"] == ""
    assert [gpu["index"] for gpu in found["gpus"]] == list(range(num_gpus))
    for index, gpu in enumerate(found["gpus"]):
        used = 2000 if index == 0 else 0
        assert gpu["name"] == f"Fake GPU {index}"
        assert gpu["uuid"] == f"GPU-{index + 1000:08d}-fake"
        assert gpu["compute_capability"] == "8.9"
        assert gpu["total_bytes"] == sizes[index] * MIB
        assert gpu["used_bytes"] == used * MIB
        assert gpu["free_bytes"] == (sizes[index] - used - 512) * MIB  # 512: what the driver keeps for itself
        assert gpu["errors"] == []


def test_memory_of_our_own_processes_counts_as_usable(with_driver):
    code = """
os.environ["FAKE_NVML_PROCESSES"] = f"0:{os.getpid()}:3000,0:1:1000"
from avatar.hardware.inventory import probe
gpu = probe().gpus[0]
result = [gpu.ours_bytes, gpu.usable_bytes - gpu.free_bytes]
"""
    assert with_driver(code, [24564]) == [3000 * MIB, 3000 * MIB]


@pytest.mark.parametrize(
    ("processes", "hides", "hidden"),
    [("0:999999999:3000", "", True), ("0:1:3000", "", False), ("0:1:3000", "1", True), ("", "", False)],
)
def test_a_driver_that_hides_processes_is_noticed(with_driver, processes, hides, hidden):
    """By numbers that mean nothing here, or by listing none although memory is in use."""
    more = {"FAKE_NVML_HIDES_PROCESSES": hides} if hides else {}
    gpu = with_driver(PROBE, [24564], processes=processes, **more)["gpus"][0]
    assert gpu["hides_processes"] == hidden


@pytest.mark.parametrize(
    ("function", "lost"),
    [
        ("nvmlDeviceGetName", {"name"}),
        ("nvmlDeviceGetUUID", {"uuid"}),
        ("nvmlDeviceGetCudaComputeCapability", {"compute_capability"}),
        ("nvmlDeviceGetMemoryInfo_v2", {"total_bytes", "free_bytes", "used_bytes"}),
        ("nvmlDeviceGetComputeRunningProcesses_v3", set()),
        (
            "nvmlDeviceGetHandleByIndex_v2",
            {"name", "uuid", "compute_capability", "total_bytes", "free_bytes", "used_bytes"},
        ),
        ("*", {"name", "uuid", "compute_capability", "total_bytes", "free_bytes", "used_bytes"}),
    ],
)
def test_an_error_on_one_gpu_leaves_the_rest_whole(with_driver, function, lost):
    found = with_driver(PROBE, [24564] * 4, errors=f"{function}@2=15")
    whole = with_driver(PROBE, [24564] * 4)
    for index in (0, 1, 3):
        assert found["gpus"][index] == whole["gpus"][index]
    broken = found["gpus"][2]
    assert {key for key, value in broken.items() if value is None} == lost
    assert broken["errors"]
    assert broken["index"] == 2


def test_an_older_driver_is_asked_in_its_own_way(with_driver):
    """13 is "function not found": what a driver says of a question newer than itself."""
    found = with_driver(
        PROBE, [24564], errors="nvmlDeviceGetMemoryInfo_v2=13,nvmlDeviceGetComputeRunningProcesses_v3=13"
    )
    gpu = found["gpus"][0]
    assert gpu["total_bytes"] == 24564 * MIB
    assert gpu["used_bytes"] == 512 * MIB
    assert gpu["errors"] == []


@pytest.mark.parametrize(
    ("errors", "words"),
    [
        ("nvmlInitWithFlags=9", "not loaded"),
        ("nvmlInitWithFlags=4", "may not talk"),
        ("nvmlInitWithFlags=999", "does not answer"),
        ("nvmlDeviceGetCount_v2=999", "does not answer"),
        ("nvmlSystemGetDriverVersion=999", "does not answer"),
    ],
)
def test_a_driver_that_fails_is_a_reason_not_a_crash(with_driver, errors, words):
    found = with_driver(PROBE, [24564], errors=errors)
    assert found["gpus"] == []
    assert words in found["no_gpu_reason"]
    assert found["host"]["ram_total_bytes"] > 0


def test_a_driver_without_gpus_says_so(with_driver):
    found = with_driver(PROBE, [])
    assert found["gpus"] == []
    assert found["no_gpu_reason"] == "The NVIDIA driver sees no GPU."


@pytest.mark.parametrize(
    ("choice", "indices"),
    [
        ("2", [2]),
        ("3,1", [3, 1]),
        ("0,9,1", [0]),  # CUDA stops at the first that is not there
        ("GPU-00001001", [1]),
        ("GPU-0000100", []),  # fits several: none
        ("MIG-3", [4]),  # numbered behind the cards
        ("", []),
    ],
)
def test_cuda_visible_devices_is_obeyed(with_driver, choice, indices):
    found = with_driver(PROBE, [24564] * 4, CUDA_VISIBLE_DEVICES=choice)
    assert [gpu["index"] for gpu in found["gpus"]] == indices
    assert ("CUDA_VISIBLE_DEVICES" in found["no_gpu_reason"]) == (not indices)


@pytest.mark.parametrize(
    ("mig", "choice", "found"),
    [
        ("1:20000,1:20000", None, [(0, 24564), (2, 20000), (3, 20000)]),
        ("0:10000,1:20000", None, [(2, 10000), (3, 20000)]),
        ("1:20000,1:9000", "1", [(2, 20000)]),  # a divided card's number: its first instance
        ("1:20000,1:9000", "MIG-00000108", [(3, 9000)]),
        ("1:20000", "0,1", [(0, 24564), (2, 20000)]),
        ("0:0,1:0", None, []),
    ],
)
def test_instances_of_divided_gpus_are_listed(with_driver, mig, choice, found):
    more = {"FAKE_NVML_MIG": mig} | ({} if choice is None else {"CUDA_VISIBLE_DEVICES": choice})
    machine = with_driver(PROBE, [24564] * 2, **more)
    assert [(gpu["index"], gpu["total_bytes"] // MIB) for gpu in machine["gpus"]] == found
    assert all((gpu["uuid"][:3] == "MIG") == (gpu["index"] > 1) for gpu in machine["gpus"])
    assert bool(machine["no_gpu_reason"]) == (not found)


@pytest.mark.parametrize(("number", "cuda"), [("12040", "12.4"), ("13020", "13.2"), ("11080", "11.8")])
def test_the_drivers_cuda_version(with_driver, number, cuda):
    assert with_driver(PROBE, [24564], FAKE_NVML_CUDA=number)["driver_cuda"] == cuda


def test_a_driver_that_hides_its_cuda_version(with_driver):
    found = with_driver(PROBE, [24564], errors="nvmlSystemGetCudaDriverVersion_v2=13")
    assert found["driver_cuda"] is None
    assert len(found["gpus"]) == 1


@pytest.mark.parametrize(
    ("version", "version_py", "expected"),
    [
        ("2.13.0", "cuda: Optional[str] = '13.0'\nhip: Optional[str] = None\n", "13.0"),
        ("2.11.0+cu126", "cuda = '12.6'\n", "12.6"),
        ("2.13.0+cpu", "cuda: Optional[str] = None\n", ""),
        ("2.13.0", "cuda = None\nhip = '6.4'\n", ""),  # AMD's
        ("2.13.0", "def broken(:", ""),
        ("2.13.0", None, ""),
    ],
)
def test_pytorchs_cuda_is_read_without_importing_it(tmp_path, monkeypatch, version, version_py, expected):
    (tmp_path / "torch").mkdir()
    if version_py is not None:
        (tmp_path / "torch" / "version.py").write_text(version_py)
    (tmp_path / "torch-1.dist-info").mkdir()
    (tmp_path / "torch-1.dist-info" / "METADATA").write_text(f"Name: torch\nVersion: {version}\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = probe()
    assert (found.torch_build, found.torch_cuda) == (version, expected)


def test_libraries_of_the_model_that_are_absent(monkeypatch):
    monkeypatch.setattr(inventory, "MODEL_LIBRARIES", ("numpy", "no-such-library"))
    assert probe().missing_libraries == ("no-such-library",)


@pytest.mark.parametrize(
    ("name", "release", "system"),
    [
        ("linux", "6.8.0-45-generic", "linux"),
        ("linux", "5.15.167.4-microsoft-standard-WSL2", "wsl"),
        ("darwin", "24.1.0", "darwin"),
        ("win32", "11", "windows"),
    ],
)
def test_the_system_is_reported(monkeypatch, name, release, system):
    monkeypatch.setattr(sys, "platform", name)
    monkeypatch.setattr("platform.release", lambda: release)
    assert inventory._system() == system


def test_a_machine_without_a_driver(monkeypatch):
    import pynvml

    def absent(flags: int = 0) -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", absent)
    found = probe()
    assert found.gpus == ()
    assert "No NVIDIA driver" in found.no_gpu_reason
    assert found.host.num_cores >= 1
    assert 0 < found.host.ram_available_bytes <= found.host.ram_total_bytes
    assert found.host.disk_free_bytes > 0


def test_the_dict_is_json_and_tells_no_folder(tmp_path):
    text = json.dumps(probe(ckpt_dir=tmp_path).as_dict())
    assert str(tmp_path) not in text


def test_disk_of_an_outputs_folder_that_is_not_made_yet(tmp_path):
    assert probe(outputs=tmp_path / "a" / "b").host.disk_free_bytes > 0


def test_imagine():
    machine = Inventory.imagine(4, 24, host_ram_gib=32, compute_capability="8.6")
    assert [gpu.index for gpu in machine.gpus] == [0, 1, 2, 3]
    assert all(gpu.usable_bytes == 24 * GIB for gpu in machine.gpus)
    assert machine.gpus[0].compute_capability == "8.6"
    assert machine.host.ram_total_bytes == 32 * GIB
    assert machine.imagined
    assert machine.torch_cuda == machine.driver_cuda == "13.0"
    assert Inventory.imagine(0, 0).no_gpu_reason


def test_own_processes_hold_this_one_and_pass_over_the_dead():
    assert os.getpid() in own_processes()
    assert own_processes([2**22 + 1]) == set()


def test_what_our_engines_hold_on_the_host_may_be_used_again():
    code = "import sys; held = bytearray(200 * 2**20); print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as engine:
        assert engine.stdin is not None
        assert engine.stdout is not None
        engine.stdout.readline()
        host = probe().host
        engine.stdin.close()
    assert host.ours_bytes >= 200 * 2**20
    assert host.usable_bytes == min(host.ram_available_bytes + host.ours_bytes, host.ram_total_bytes)
    assert Inventory.imagine(1, 24).host.ours_bytes == 0


def test_a_home_that_cannot_be_looked_into_holds_no_checkpoint(monkeypatch):
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "AVATAR_WEIGHTS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/" + "x" * 300)  # whose every look-up fails, for root as well
    assert not find_checkpoint().complete
    assert not find_checkpoint(Path("y" * 300)).complete

    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nobody)
    assert not find_checkpoint().complete


def test_a_home_that_may_not_be_searched_is_no_traceback(tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0)

    def bound_by_permissions() -> None:
        """Root, too: without the capabilities to override and to search."""
        for capability in (1, 2):
            ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)

    ended = subprocess.run(
        [sys.executable, "-m", "avatar", "presets"],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "HOME": str(locked / "me")},
        preexec_fn=bound_by_permissions,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    assert "cpu-preview" in ended.stdout
