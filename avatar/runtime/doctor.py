"""Diagnose the machine: what it has, what each preset lacks, and the remedy; for the doctor command."""

from __future__ import annotations

import json
import logging
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from packaging.requirements import InvalidRequirement, Requirement
from PIL import Image

from avatar.errors import AvatarError
from avatar.events import Finished
from avatar.geometry import SOUND_HZ
from avatar.hardware.inventory import Gpu, Inventory, probe
from avatar.media import ffmpeg
from avatar.media.intake import open_request
from avatar.planning.plan import gib
from avatar.planning.verdict import Verdict, judge, within_reach
from avatar.planning.weight_format import faster_format
from avatar.preset import Preset, load_preset, load_presets
from avatar.runtime.child_process import gpu_environment, module_folders
from avatar.runtime.factory import open_engine

log = logging.getLogger(__name__)

SELF_TEST_S = 1.0  # of speech
CHECKER = [sys.executable, "-P", "-m", "avatar.model.device_report"]
CHECKER_S = 180.0  # time limit; on a fast machine it takes 15 s
REQUIREMENTS = Path(__file__).resolve().parents[2] / "requirements.txt"
PREVIEW_REQUIREMENTS = REQUIREMENTS.with_name("requirements-preview.txt")


@dataclass(frozen=True)
class SelfTest:
    """The self-test's number of frames, and how long it took."""

    num_frames: int
    elapsed_s: float


@dataclass(frozen=True)
class DeviceCheck:
    """One fast path. ok: None if the card does not need it. text: the cost of doing without it."""

    code: str
    ok: bool | None
    reason: str
    text: str


@dataclass(frozen=True)
class DeviceTable:
    """The checks on one GPU."""

    name: str
    checks: tuple[DeviceCheck, ...]


@dataclass(frozen=True)
class Diagnosis:
    """The findings. machine: names and values, in words. faults: what the judged preset cannot work with.

    judged: the verdict on the preset in question, or on the one that `auto` chooses. within_reach: the best
    preset that the cards could run if software and checkpoint were complete. devices: checks on each GPU; a
    failed one has a slower fallback, and blocks nothing. device_fault: why no check could run, which blocks
    presets for GPUs.
    """

    inventory: Inventory
    machine: tuple[tuple[str, str], ...]
    presets: tuple[tuple[Preset, Verdict], ...]
    faults: tuple[str, ...]
    judged: Verdict
    within_reach: Verdict | None = None
    devices: tuple[DeviceTable, ...] = ()
    device_fault: str = ""

    @property
    def exit_code(self) -> int:
        stopped = bool(self.device_fault) and self.judged.preset.num_gpus > 0
        return 0 if self.judged.ok and not self.faults and not stopped else 1

    @property
    def verdict(self) -> str:
        """The closing sentence: what runs, or what to do first."""
        if self.faults:
            return "Fix the problems above first."
        name = self.judged.preset.name
        if self.device_fault and self.judged.preset.num_gpus:
            return f"Preset {name} does not run here. {self.device_fault}"
        if self.judged.ok:
            return " ".join([f"Preset {name} runs on this machine.", *self._more])
        missing = " ".join(self.judged.missing)
        if self.judged.preset.engine == "auto":
            return f"{missing} The table above says what each one lacks."
        return f"Preset {name} does not run here. {missing} {self.judged.remedy}"

    @property
    def _more(self) -> list[str]:
        """What prevents the cards from running a better preset."""
        better = self.within_reach
        if better is None:
            return []
        return [f"Its cards could run {better.preset.name}. {' '.join(better.missing)} {better.remedy}"]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "ok": self.exit_code == 0,
            "verdict": self.verdict,
            "faults": list(self.faults),
            "machine": dict(self.machine),
            "inventory": self.inventory.as_dict(),
            "presets": [here.as_dict() for _, here in self.presets],
            "devices": [asdict(device) for device in self.devices],
            "device_fault": self.device_fault,
        }


def examine(ckpt_dir: Path | None = None, preset_name: str | None = None) -> Diagnosis:
    """Look at the machine, the installed libraries and every preset.

    ckpt_dir: where to look for weights first. preset_name: the preset to judge by; None: auto.
    Raises: BadInput for an unknown preset.
    """
    inventory = probe(ckpt_dir)
    presets = load_presets()
    asked = load_preset(preset_name or "auto")
    judged = judge(asked, inventory, presets)
    # In a preview-only installation, the verdicts on other presets say what they lack.
    is_lacking = "not_installed" in {shortfall.code for shortfall in judged.shortfalls}
    needs_model = judged.preset.engine == "diffusion" and not is_lacking
    faults = missing_libraries(REQUIREMENTS if needs_model else PREVIEW_REQUIREMENTS)
    try:
        ffmpeg.put_on_path()
    except AvatarError as error:
        faults.append(str(error))
    devices, device_fault = try_devices(inventory)
    return Diagnosis(
        inventory=inventory,
        machine=tuple(_machine(inventory)),
        presets=tuple((preset, judge(preset, inventory)) for preset in presets if preset.engine != "auto"),
        faults=tuple(faults),
        judged=judged,
        within_reach=within_reach(inventory, presets) if asked.engine == "auto" else None,
        devices=devices,
        device_fault=device_fault,
    )


def try_devices(inventory: Inventory) -> tuple[tuple[DeviceTable, ...], str]:
    """Check the GPUs' fast paths in a subprocess, which may crash; also returns why that was impossible.

    Nothing is checked without a GPU or a PyTorch for it, which the verdicts on presets report.
    """
    able = inventory.torch_cuda and not inventory.imagined and inventory.system in ("linux", "wsl")
    if not inventory.gpus or not able:
        return (), ""
    modules = os.pathsep.join(module_folders(sys.path))
    env = {**os.environ, **gpu_environment(), "PYTHONPATH": modules}
    try:
        done = subprocess.run(CHECKER, env=env, capture_output=True, text=True, timeout=CHECKER_S)
        devices = json.loads(done.stdout)
    except (subprocess.TimeoutExpired, json.JSONDecodeError) as error:
        log.warning("trying the GPUs failed: %s", error)
        return (), "The GPUs could not be tested: PyTorch failed on them. See `nvidia-smi`."
    tables = tuple(
        DeviceTable(device["name"], tuple(DeviceCheck(**check) for check in device["checks"]))
        for device in devices
    )
    return tables, "" if tables else "PyTorch finds no GPU that it can use. See `nvidia-smi`."


def self_test() -> SelfTest:
    """Run the diffusion engine on a toy model, from a portrait and a tone to a video; slow on a CPU.

    Raises: AvatarError when the video is not complete.
    """
    preset = load_preset("self-test")
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="avatar-self-test-") as folder:
        portrait, speech, output = (Path(folder, name) for name in ("portrait.png", "tone.wav", "video.mp4"))
        Image.linear_gradient("L").convert("RGB").save(portrait)
        times = np.arange(round(SELF_TEST_S * SOUND_HZ)) / SOUND_HZ
        soundfile.write(speech, 0.3 * np.sin(2 * np.pi * 220 * times), SOUND_HZ)
        request = open_request(portrait, speech, preset, output=output, work=Path(folder, "work"))
        engine = open_engine(preset)
        try:
            finished = [event for event in engine.stream(request) if isinstance(event, Finished)]
        finally:
            engine.close()
    num_frames = sum(event.num_frames for event in finished)
    if num_frames != request.num_frames:
        raise AvatarError(
            f"The self-test made {num_frames} of {request.num_frames} frames.", "See the log above."
        )
    return SelfTest(num_frames, time.monotonic() - began)


def missing_libraries(requirements: Path) -> list[str]:
    """One line per library of the requirements file that is missing or of another version."""
    lines = []
    for text in requirements.read_text(encoding="utf-8").splitlines() if requirements.is_file() else []:
        try:
            wanted = Requirement(text.partition("#")[0].strip())
        except InvalidRequirement:
            continue  # a blank line, a comment, or an option of pip's
        if wanted.marker is not None and not wanted.marker.evaluate():
            continue
        try:
            version = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            lines.append(f"{wanted.name} is not installed: pip install -r {requirements.name}")
            continue
        if not wanted.specifier.contains(version, prereleases=True):
            lines.append(f"{wanted} is needed, {version} is installed: pip install -r {requirements.name}")
    return lines


def _machine(inventory: Inventory) -> list[tuple[str, str]]:
    host, checkpoint = inventory.host, inventory.checkpoint
    rows = [
        ("system", f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"),
        ("CPU", f"{host.num_cores} cores"),
        ("RAM", f"{gib(host.ram_available_bytes)} available of {gib(host.ram_total_bytes)}"),
        ("disk", f"{gib(host.disk_free_bytes)} free"),
        ("PyTorch", _torch(inventory)),
        ("NVIDIA driver", _driver(inventory)),
    ]
    rows += [(f"GPU {gpu.index}", _gpu(gpu)) for gpu in inventory.gpus]
    if inventory.driver_version and inventory.no_gpu_reason:
        rows.append(("GPUs", inventory.no_gpu_reason))
    if checkpoint.complete:
        rows.append(("checkpoint", f"{checkpoint.base}, {checkpoint.lora}"))
    else:
        rows.append(("checkpoint", f"lacks {', '.join(checkpoint.missing)}"))
        rows.append(("looked in", ", ".join(map(str, checkpoint.places))))
    if checkpoint.tiny_decoder is not None:
        rows.append(("tiny decoder", str(checkpoint.tiny_decoder)))
    return rows


def _torch(inventory: Inventory) -> str:
    if not inventory.torch_build:
        return "not installed"
    built_for = f"CUDA {inventory.torch_cuda}" if inventory.torch_cuda else "the CPU"
    without = f"; not installed: {', '.join(inventory.missing_libraries)}"
    return f"{inventory.torch_build}, for {built_for}{without if inventory.missing_libraries else ''}"


def _driver(inventory: Inventory) -> str:
    if inventory.driver_version is None:
        return inventory.no_gpu_reason
    runs = f", runs CUDA up to {inventory.driver_cuda}" if inventory.driver_cuda else ""
    return f"{inventory.driver_version}{runs}"


def _gpu(gpu: Gpu) -> str:
    words = [gpu.name or "name unknown"]
    if gpu.total_bytes is not None and gpu.free_bytes is not None:
        words.append(f"{gib(gpu.free_bytes)} free of {gib(gpu.total_bytes)}")
    if gpu.compute_capability:
        words.append(f"compute capability {gpu.compute_capability}")
        words.append(f"8-bit weights in {faster_format((gpu,))}")
    return ", ".join([*words, *(f"NVML gives no {error}" for error in gpu.errors)])
