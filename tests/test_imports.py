"""Imports go one way, heavy libraries stay in the rooms that own them, and importing does nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = [ROOT / "app.py", *sorted((ROOT / "avatar").rglob("*.py"))]

# A room may import those of lower floors, never its own floor's others, never upward.
FLOORS = [
    {"errors"},
    {"geometry", "abilities", "checkpoint_places"},
    {"preset"},
    {"events", "request", "scratch", "child"},
    {"engine", "service", "parcel"},  # the protocol; open_engine is its one way up
    {"media", "models"},
    {"parallel.layout"},  # pure; the rest of its room is put around the diffusion engine
    {"memory"},
    {"preview", "diffusion", "worker"},
    {"parallel"},
    {"gallery", "doctor", "bench", "long"},
    {"batch"},
    {"commands", "ui"},
    {"cli", "app", "__main__"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
UPWARD = {("engine", "worker"), ("__main__", "cli")}

OWNERS = {  # a library, and where it may be imported: a room, or a part of one
    "torch": (
        "models",
        "diffusion",
        "parallel",
        "memory.host_modules",
        "memory.offload",
        "memory.pinned",
        "bench",
        "preview.train",
    ),
    "torch.distributed": ("parallel",),
    "triton": (
        "models.attention_triton",
        "models.heads_triton",
        "models.rows_triton",
        "models.vae_triton",
    ),
    "transformers": ("models", "diffusion", "bench"),
    "diffusers": ("models", "diffusion", "bench"),
    "onnxruntime": ("preview",),
    "cv2": ("preview",),
    "gradio": ("ui",),
    "pynvml": ("memory.nvml",),
    "rich": ("commands",),
    "ray": ("batch.ray_engine",),
}


def module_of(path: Path) -> str:
    """avatar/memory/fit.py → memory.fit; app.py → app."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in (parts[1:] if parts[0] == "avatar" else parts) if part != "__init__")


def imported(source: str) -> Iterator[str]:
    """Full names of everything that a source imports anywhere, but for what only type checkers see."""
    waiting: list[ast.AST] = [ast.parse(source)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            waiting.extend(node.orelse)
            continue
        waiting.extend(ast.iter_child_nodes(node))
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(module: str) -> str:
    """parallel.layout.Layout → parallel.layout, which has a floor of its own; memory.fit → memory."""
    room, _, rest = module.partition(".")
    inner = f"{room}.{rest.partition('.')[0]}"
    return inner if inner in FLOOR else room


def faults(module: str, source: str) -> list[str]:
    """What a module's imports break, in words."""
    room, found = room_of(module), []
    if room and room not in FLOOR:
        return [f"{module}: give the room {room!r} a floor"]
    for name in imported(source):
        first, *rest = name.split(".")
        if first in ("avatar", "app") and room:
            other = "app" if first == "app" else room_of(".".join(rest))
            if (
                other
                and other != room
                and (room, other) not in UPWARD
                and FLOOR.get(other, 99) >= FLOOR[room]
            ):
                found.append(f"{module} imports {name}")
        for library, owners in OWNERS.items():
            owned = any(module == owner or module.startswith(f"{owner}.") for owner in owners)
            if (name == library or name.startswith(f"{library}.")) and not owned:
                found.append(f"{module} imports {library}")
    return found


def test_imports_go_one_way_and_libraries_stay_with_their_owners():
    found = [fault for path in FILES for fault in faults(module_of(path), path.read_text(encoding="utf-8"))]
    assert found == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("media.stream", "from avatar.ui import page"),
        ("media.stream", "from avatar.models import rope"),
        ("models.rope", "from avatar import memory"),
        ("preview.source", "from avatar.diffusion.source import x"),
        ("memory.fit", "def f():\n    from avatar.engine import x\n    import avatar.cli"),
        ("geometry", "from avatar.preset import Preset"),
        ("ui.page", "import app"),
        ("ui.page", "def f():\n    import torch.cuda"),
        ("models.rope", "from torch import distributed"),
        ("cli", "import gradio as gr"),
        ("preview.eyes", "try:\n    import torch\nexcept ImportError:\n    torch = None"),
        ("memory.gauges", "import pynvml"),
        ("attic.box", "import os"),
        ("memory.plan", "from avatar.parallel.group import x"),
        ("parallel.layout", "from avatar.parallel.group import x"),
        ("diffusion.source", "from avatar.parallel import seat"),
    ],
)
def test_the_rule_sees_what_breaks_it(module, source):
    assert len(faults(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("ui.page", "from avatar.media.intake import open_request\nimport gradio"),
        ("diffusion.source", "import torch\nfrom avatar.memory.plan import Plan"),
        ("parallel.worker", "import torch.distributed as dist"),
        ("parallel.group", "from avatar.diffusion.source import x"),
        ("memory.fit", "from avatar.parallel.layout import Layout"),
        ("engine", "def f():\n    from avatar.worker import EngineProcess"),
        ("abilities", "if TYPE_CHECKING:\n    from avatar.preset import Preset"),
        ("memory.fit", "from avatar.memory.plan import gib\nimport torchless"),
    ],
)
def test_the_rule_lets_pass_what_keeps_it(module, source):
    assert faults(module, source) == []


QUIET = """
import os, sys, threading
for library in {libraries!r}:
    __import__(library)
before, folder, threads = dict(os.environ), os.getcwd(), set(threading.enumerate())
for module in {modules!r}:
    __import__(module)
assert dict(os.environ) == before, "the environment changed"
assert os.getcwd() == folder, "the current folder changed"
assert set(threading.enumerate()) == threads, "threads were started"
heavy = {{"torch", "librosa", "onnxruntime", "transformers", "diffusers"}} & set(sys.modules)
assert not heavy & set({banned!r}), heavy
if "torch" in sys.modules:
    import torch
    assert not torch.cuda.is_initialized(), "CUDA was initialised"
import resource
usage = resource.getrusage(resource.RUSAGE_SELF)
os.write(3, str(usage.ru_utime + usage.ru_stime).encode())
"""


def import_quietly(
    modules: list[str], libraries: tuple[str, ...] = (), banned: tuple[str, ...] = ()
) -> float:
    """Import in a process of its own; nothing may be printed or changed. Returns the CPU seconds it took."""
    script = QUIET.format(modules=modules, libraries=libraries, banned=banned)
    # File 3 carries the time, so that standard output and error can be required to stay empty.
    command = ["sh", "-c", '"$0" -c "$1" 3>&1 1>&2', sys.executable, script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return float(done.stdout)


def modules_of(*rooms: str) -> list[str]:
    names = [module_of(path) for path in FILES]
    return [f"avatar.{name}" for name in names if name.split(".")[0] in rooms]


HEAVY = ("torch", "librosa", "onnxruntime", "transformers", "diffusers")


def test_importing_app_does_nothing_without_torch_and_fast():
    assert import_quietly(["app"], banned=(*HEAVY, "gradio")) < 3


def test_the_page_never_loads_torch():
    import_quietly(["app", *modules_of("ui", "gallery")], libraries=("gradio",), banned=HEAVY)


def test_the_command_line_and_planning_never_load_torch():
    modules = modules_of("memory", "commands", "doctor", "media", "preset")
    modules = [name for name in modules if name.removeprefix("avatar.") not in OWNERS["torch"]]
    import_quietly(["avatar.cli", *modules], banned=HEAVY)


def test_importing_the_engines_process_loads_nothing_heavy():
    import_quietly(modules_of("worker", "engine", "request", "events"), banned=HEAVY)


def test_a_helping_rank_loads_no_side_models_library():
    """Rank 0 has them; each of the others would take twice as long to be there."""
    # PyTorch's compiler names its cache's folder in the environment.
    modules = ["avatar.parallel.worker", "avatar.parallel.roles"]
    import_quietly(modules, libraries=("torch._dynamo",), banned=HEAVY[1:])


def test_importing_any_module_does_nothing():
    every = {module_of(path) for path in FILES if path.name != "__main__.py"} - {""}
    every -= {name for name in every if name.startswith("preview.convert")}  # needs a library of its own
    if find_spec("triton") is None:  # it comes with PyTorch for GPUs
        every = [name for name in every if name not in (*OWNERS["triton"], "models.fused")]
    names = [name if name == "app" else f"avatar.{name}" for name in sorted(every)]
    # What these libraries do at their own import (OpenCV sets LD_LIBRARY_PATH) is theirs.
    import_quietly(names, libraries=("torch", "transformers", "diffusers", "gradio", "cv2", "scipy.signal"))
