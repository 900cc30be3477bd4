"""What this machine has. Only this module probes the machine; everything else reads the Inventory."""

from __future__ import annotations

import ast
import logging
import platform
import shutil
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from avatar.checkpoints.locations import Checkpoint, locate
from avatar.hardware import host
from avatar.hardware.nvml import Card, open_driver
from avatar.hardware.zero_gpu_card import zero_gpu_card
from avatar.paths import is_dir

logger = logging.getLogger(__name__)

GIB = 2**30
HIDDEN_BYTES = 256 * 2**20  # more in use with no process listed: the driver hides processes (containers)
MODEL_LIBRARIES = ("diffusers", "transformers", "accelerate", "ftfy")  # beside PyTorch
IMAGINED_CUDA = "13.0"  # of an imagined machine's driver and PyTorch


@dataclass(frozen=True)
class Gpu:
    """One GPU, or a MIG instance of one; fields that NVML refused are None, and `errors` says why.

    compute_capability as "8.9". ours_bytes: held by our own processes, which a new run may take over.
    hides_processes: some of used_bytes may be ours, but the driver lists no processes, as in a container.
    """

    index: int
    name: str | None
    uuid: str | None
    total_bytes: int | None
    free_bytes: int | None
    used_bytes: int | None
    compute_capability: str | None
    ours_bytes: int = 0
    errors: tuple[str, ...] = ()
    hides_processes: bool = False

    @property
    def usable_bytes(self) -> int | None:
        """What a run could use: free memory, plus what our own processes would release."""
        return None if self.free_bytes is None else self.free_bytes + self.ours_bytes

    @property
    def is_instance(self) -> bool:
        """Whether it is a MIG instance, of which a CUDA process sees at most one."""
        return (self.uuid or "").startswith("MIG-")

    def __str__(self) -> str:
        return f"GPU {self.index} ({self.name})" if self.name else f"GPU {self.index}"


@dataclass(frozen=True)
class Host:
    """RAM in bytes, within any container's limit; disk_free_bytes: on the disk of the outputs.

    ours_bytes: held by our own engines' processes, which a new run may take over.
    """

    ram_total_bytes: int
    ram_available_bytes: int
    num_cores: int
    disk_free_bytes: int
    ours_bytes: int = 0

    @property
    def usable_bytes(self) -> int:
        """What a run could use: available memory, plus what our own engines would release."""
        return min(self.ram_available_bytes + self.ours_bytes, self.ram_total_bytes)


@dataclass(frozen=True)
class Inventory:
    """A machine, real or imagined.

    no_gpu_reason: why gpus is empty. torch_build: like "2.13.0+cpu", empty when torch is not installed.
    torch_cuda: the CUDA that it was built for, like "13.0", empty for none. driver_cuda: the newest CUDA that
    the driver supports, None if it does not report it. system: "linux", "wsl", "darwin" or "windows".
    missing_libraries: those of MODEL_LIBRARIES that are not installed.
    """

    gpus: tuple[Gpu, ...]
    host: Host
    driver_version: str | None = None
    no_gpu_reason: str = ""
    torch_build: str = ""
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    imagined: bool = False
    torch_cuda: str = ""
    driver_cuda: str | None = None
    system: str = "linux"
    missing_libraries: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON; of the checkpoint only what is missing, without folders."""
        data = asdict(self)
        data["checkpoint"] = {"complete": self.checkpoint.complete, "missing": list(self.checkpoint.missing)}
        return data

    @classmethod
    def imagine(
        cls,
        num_gpus: int,
        vram_gib: float,
        *,
        compute_capability: str = "8.9",
        host_ram_gib: float = 64.0,
        num_cores: int = 16,
        with_checkpoint: bool = True,
    ) -> Inventory:
        """A machine with num_gpus empty cards of vram_gib each, to plan for hardware that is not here."""
        memory = round(vram_gib * GIB)
        gpus = tuple(
            Gpu(index, f"imagined {vram_gib:g} GiB", f"GPU-{index}", memory, memory, 0, compute_capability)
            for index in range(num_gpus)
        )
        ram = round(host_ram_gib * GIB)
        return cls(
            gpus=gpus,
            host=Host(ram, ram, num_cores, disk_free_bytes=1000 * GIB),
            no_gpu_reason="" if gpus else "The imagined machine has no GPU.",
            torch_build="imagined",
            torch_cuda=IMAGINED_CUDA,
            driver_cuda=IMAGINED_CUDA,
            checkpoint=Checkpoint(complete=with_checkpoint),
            imagined=True,
        )


def probe(
    ckpt_dir: Path | None = None, outputs: Path | None = None, our_pids: Iterable[int] | None = None
) -> Inventory:
    """Look at this machine: GPUs by NVML, host by the kernel, checkpoints by file name. Takes milliseconds.

    On a ZeroGPU Space the inventory has the card that runs will get, which NVML does not list beforehand.
    ckpt_dir: where to look for weights first; see locate(). outputs: the folder whose disk is measured.
    our_pids: processes whose GPU memory a new run would take over; None: this process and its children.
    """
    driver = open_driver()
    pids = own_processes() if our_pids is None else set(our_pids)
    gpus = tuple(_gpu(card, pids) for card in driver.cards) or _zero_gpu()
    driver.close()
    for gpu in gpus:
        for error in gpu.errors:
            logger.info("GPU %d: NVML gives no %s", gpu.index, error)
    ram = host.ram()
    engines = pids - ({psutil.Process().pid} if our_pids is None else set())
    ours = sum(map(host.held_bytes, engines))
    torch_build, torch_cuda = _torch_build()
    return Inventory(
        gpus=gpus,
        host=Host(ram.total_bytes, ram.available_bytes, host.num_cores(), _disk_free(outputs), ours),
        driver_version=driver.version,
        no_gpu_reason=driver.reason,
        torch_build=torch_build,
        torch_cuda=torch_cuda,
        driver_cuda=driver.cuda,
        system=_system(),
        missing_libraries=tuple(name for name in MODEL_LIBRARIES if not _is_installed(name)),
        checkpoint=locate(ckpt_dir),
    )


def own_processes(roots: Iterable[int] | None = None) -> set[int]:
    """Process ids of the roots (this process when none are given) and of all their descendants."""
    pids: set[int] = set()
    for root in [psutil.Process().pid] if roots is None else roots:
        try:
            process = psutil.Process(root)
            pids |= {root, *(child.pid for child in process.children(recursive=True))}
        except psutil.NoSuchProcess:
            continue  # it has ended and holds nothing
    return pids


def _gpu(card: Card, our_pids: set[int]) -> Gpu:
    memory = card.memory()
    capability = card.compute_capability()
    processes = card.processes() or {}
    ours = sum(size for pid, size in processes.items() if pid in our_pids)
    used = memory.used_bytes if memory else 0
    return Gpu(
        index=card.index,
        name=card.name(),
        uuid=card.uuid(),
        total_bytes=memory.total_bytes if memory else None,
        free_bytes=memory.free_bytes if memory else None,
        used_bytes=memory.used_bytes if memory else None,
        compute_capability=f"{capability[0]}.{capability[1]}" if capability else None,
        ours_bytes=ours,
        errors=tuple(card.errors),
        hides_processes=not ours and used > HIDDEN_BYTES and not any(map(psutil.pid_exists, processes)),
    )


def _zero_gpu() -> tuple[Gpu, ...]:
    """The ZeroGPU card, if this is a ZeroGPU Space."""
    card = zero_gpu_card()
    if card is None:
        return ()
    memory = round(card.free_gib * GIB)
    return (Gpu(0, card.name, None, memory, memory, 0, card.compute_capability),)


def _disk_free(outputs: Path | None) -> int:
    """Free bytes on the disk where the folder is, or will be created."""
    folder = (outputs or Path.cwd()).absolute()
    while not is_dir(folder):
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _torch_build() -> tuple[str, str]:
    """The installed PyTorch's version and the CUDA that it was built for, each empty for none.

    Read from its version.py, since importing it takes seconds. Only wheels of PyTorch's own site have a label
    such as "+cpu" or "+cu126".
    """
    try:
        installed = metadata.distribution("torch")
    except metadata.PackageNotFoundError:
        return "", ""
    version = installed.version
    try:
        source = Path(str(installed.locate_file("torch/version.py"))).read_text(encoding="utf-8")
        return version, _assigned(source).get("cuda") or ""
    except (OSError, SyntaxError) as error:
        logger.warning("PyTorch does not tell the CUDA that it was built for: %s", type(error).__name__)
        return version, ""


def _is_installed(library: str) -> bool:
    try:
        metadata.distribution(library)
    except metadata.PackageNotFoundError:
        return False
    return True


def _assigned(source: str) -> dict[str, str | None]:
    """Names and constant strings (or None) that a module assigns."""
    found: dict[str, str | None] = {}
    for node in ast.parse(source).body:
        targets = node.targets if isinstance(node, ast.Assign) else getattr(node, "target", None)
        value = getattr(node, "value", None)
        for target in targets if isinstance(targets, list) else [targets]:
            if isinstance(target, ast.Name) and isinstance(value, ast.Constant):
                found[target.id] = value.value if isinstance(value.value, str) else None
    return found


def _system() -> str:
    """See Inventory.system. WSL's kernel release names Microsoft."""
    if sys.platform == "linux":
        return "wsl" if "microsoft" in platform.release().lower() else "linux"
    return "windows" if sys.platform == "win32" else sys.platform
