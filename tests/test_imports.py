"""Imports go one way, heavy libraries stay in the packages that own them, and importing does nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = [
    ROOT / "app.py",
    *(
        path
        for folder in ("avatar", "training", "benchmarks")
        for path in sorted((ROOT / folder).rglob("*.py"))
    ),
]

# A package may import those of lower layers, never its own layer's others, never upward.
LAYERS = [
    {"errors", "paths"},
    {"geometry", "validation", "locks"},
    {"settings", "sizes"},
    {"preset"},
    {"checkpoints"},
    {"hardware"},
    {"planning"},
    {"events", "request"},
    {"media"},
    {"speech"},
    {"runtime", "model"},  # who supervises, and what computes: neither knows the other
    {"preview", "pipeline"},
    {"distributed"},
    {"long", "bench", "measures", "compose", "live"},
    {"batch"},
    {"compare"},
    {"commands", "ui"},
    {"cli", "app", "__main__"},
    {"training", "benchmarks"},  # nothing imports these
]
LAYER = {package: number for number, packages in enumerate(LAYERS) for package in packages}
UPWARD = {("__main__", "cli")}
BESIDE = ("app", "training", "benchmarks")  # the others are below avatar/

OWNERS = {  # a library, and where it may be imported: a package, or a part of one
    "torch": ("model", "pipeline", "distributed", "bench", "training", "benchmarks"),
    "torch.distributed": ("distributed",),
    "triton": (
        "model.kernels.attention",
        "model.kernels.qkv",
        "model.kernels.elementwise",
        "model.kernels.products",
        "model.kernels.vae_norm",
    ),
    "accelerate": ("model", "pipeline"),
    "transformers": ("model", "pipeline", "bench"),
    "diffusers": ("model", "pipeline", "bench"),
    "onnxruntime": ("media.onnx", "preview.models", "training"),  # for its type alone in preview.models
    "hibari": ("speech.hibari_voices", "training"),
    "misaki": ("speech.phonemes",),
    "httpx": ("speech.remote", "live.service_address", "live.chat", "live.speech_recognition", "benchmarks"),
    "pyanime4k": ("media.upscale",),
    "cv2": ("preview", "measures", "media.background"),
    "moviepy": ("compose",),
    "gradio": ("ui", "runtime.zero_gpu"),  # there for its error alone, which ZeroGPU raises
    "pynvml": ("hardware.nvml",),
    "rich": ("commands",),
    "ray": ("batch.ray_engine",),
    "aiortc": ("live.transports.webrtc", "benchmarks"),
    "filelock": ("locks",),
}


def module_of(path: Path) -> str:
    """avatar/memory/fit.py → planning.verdict; app.py → app."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in (parts[1:] if parts[0] == "avatar" else parts) if part != "__init__")


def full_name(path: Path) -> str:
    """avatar/planning/plan.py → avatar.planning.plan; app.py → app."""
    return ".".join(part for part in path.relative_to(ROOT).with_suffix("").parts if part != "__init__")


def imported(source: str, type_checking: bool = False) -> Iterator[str]:
    """Full names of all that a source imports. type_checking: also what only type checkers see."""
    waiting: list[ast.AST] = [ast.parse(source)]
    while waiting:
        node = waiting.pop()
        if (
            not type_checking
            and isinstance(node, ast.If)
            and ast.unparse(node.test).endswith("TYPE_CHECKING")
        ):
            waiting.extend(node.orelse)
            continue
        waiting.extend(ast.iter_child_nodes(node))
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def package_of(module: str) -> str:
    """planning.layout → planning."""
    return module.partition(".")[0]


def faults(module: str, source: str) -> list[str]:
    """What a module's imports break, in words."""
    package, found = package_of(module), []
    if package and package not in LAYER:
        return [f"{module}: give the package {package!r} a layer"]
    for name in imported(source):
        first, *rest = name.split(".")
        if first in ("avatar", *BESIDE) and package:
            other = first if first in BESIDE else package_of(".".join(rest))
            if (
                other
                and other != package
                and (package, other) not in UPWARD
                and LAYER.get(other, 99) >= LAYER[package]
            ):
                found.append(f"{module} imports {name}")
        for library, owners in OWNERS.items():
            owned = any(module == owner or module.startswith(f"{owner}.") for owner in owners)
            if (name == library or name.startswith(f"{library}.")) and not owned:
                found.append(f"{module} imports {library}")
    return found


def first_circle(files: dict[str, str]) -> list[str] | None:
    """The modules of one circle of imports among these, by full name; None where there is none.

    files: full module name → source. What only type checkers see counts, too.
    """
    graph: dict[str, set[str]] = {}
    for module, source in files.items():
        named = (name for name in imported(source, type_checking=True))
        graph[module] = {
            found for name in named for found in (name, name.rpartition(".")[0]) if found in files
        } - {module}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return None


def test_no_circle_of_files_imports_itself():
    sources = {path: path.read_text(encoding="utf-8") for path in FILES}
    assert first_circle({full_name(path): source for path, source in sources.items()}) is None


def test_a_circle_of_files_is_found():
    circle = {
        "avatar.a": "def f():\n    from avatar.b import x",
        "avatar.b": "from avatar import c",
        "avatar.c": "if TYPE_CHECKING:\n    from avatar.a import f",
    }
    assert set(first_circle(circle) or ()) == set(circle)
    assert first_circle({**circle, "avatar.c": ""}) is None


def test_no_circle_of_the_pages_folders_imports_itself():
    """Each folder of avatar/ui as one module: state, routes, and the panels' own."""
    folders: dict[str, str] = {}
    for path in sorted((ROOT / "avatar" / "ui").rglob("*.py")):
        own = ".".join(full_name(path).split(".")[:3])
        names = {".".join(name.split(".")[:3]) for name in imported(path.read_text("utf-8"), True)} - {own}
        folders[own] = folders.get(own, "") + "".join(f"import {name}\n" for name in sorted(names))
    assert {"avatar.ui.state", "avatar.ui.generate"} <= folders.keys()
    del folders["avatar.ui"]  # the package itself, which is empty
    assert first_circle(folders) is None


def test_no_class_name_stands_for_two_things():
    homes: dict[str, list[str]] = {}
    for path in FILES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes.setdefault(node.name, []).append(full_name(path))
    assert {name: places for name, places in homes.items() if len(places) > 1} == {}


def test_imports_go_one_way():
    found = [fault for path in FILES for fault in faults(module_of(path), path.read_text(encoding="utf-8"))]
    assert found == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("runtime.stream", "from avatar.ui import page"),
        ("runtime.stream", "from avatar.model import rope"),
        ("model.rope", "from avatar import ui"),
        ("preview.source", "from avatar.pipeline.pipeline import x"),
        ("planning.verdict", "def f():\n    from avatar.runtime.engine import x"),
        ("geometry", "from avatar.preset import Preset"),
        ("ui.page", "import app"),
        ("ui.page", "def f():\n    import torch.cuda"),
        ("model.rope", "from torch import distributed"),
        ("cli", "import gradio as gr"),
        ("preview.eyes", "try:\n    import torch\nexcept ImportError:\n    torch = None"),
        ("planning.gauges", "import pynvml"),
        ("attic.box", "import os"),
        ("planning.plan", "from avatar.distributed.process_groups import x"),
        ("runtime.supervisor", "from avatar.pipeline.pipeline import x"),
        ("runtime.engine_process", "def f():\n    import torch"),
        ("pipeline.pipeline", "from avatar.distributed import init"),
        ("preview.visemes", "from training import fit"),
    ],
)
def test_the_rule_sees_what_breaks_it(module, source):
    assert len(faults(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("ui.page", "from avatar.media.intake import open_request\nimport gradio"),
        ("pipeline.pipeline", "import torch\nfrom avatar.planning.plan import Plan"),
        ("distributed.rank_process", "import torch.distributed as dist"),
        ("distributed.process_groups", "from avatar.pipeline.pipeline import x"),
        ("planning.verdict", "from avatar.planning.layout import Layout"),
        ("training.fit", "import torch\nfrom avatar.preview.visemes import x"),
        ("geometry", "if TYPE_CHECKING:\n    from avatar.preset import Preset"),
        ("planning.verdict", "from avatar.planning.plan import gib\nimport torchless"),
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


def modules_of(*packages: str) -> list[str]:
    names = [full_name(path) for path in FILES]
    return [name for name in names if name.split(".")[1:2] and name.split(".")[1] in packages]


HEAVY = ("torch", "librosa", "onnxruntime", "transformers", "diffusers")
CONTROL = ("checkpoints", "hardware", "planning", "media", "speech", "runtime", "preset", "request", "events")


def test_importing_app_does_nothing_without_torch_and_fast():
    assert import_quietly(["app"], banned=(*HEAVY, "gradio")) < 3


def test_the_page_never_loads_torch():
    import_quietly(["app", *modules_of("ui")], libraries=("gradio",), banned=HEAVY)


def test_the_control_plane_never_loads_torch():
    packages = [*CONTROL, "geometry", "errors", "commands", "long", "batch"]
    import_quietly(["avatar.cli", *modules_of(*packages)], libraries=("cv2",), banned=HEAVY)


def test_comparing_and_composing_never_load_torch():
    modules = modules_of("measures", "compare", "compose")
    assert len(modules) > 12
    import_quietly(modules, libraries=("cv2",), banned=(*HEAVY, "moviepy"))


def test_a_helping_rank_loads_no_side_models_library():
    """Rank 0 has them; each of the others would take twice as long to be there."""
    # PyTorch's compiler names its cache's folder in the environment.
    modules = ["avatar.distributed.rank_process", "avatar.distributed.roles"]
    import_quietly(modules, libraries=("torch._dynamo",), banned=HEAVY[1:])


def test_importing_any_module_does_nothing():
    every = {full_name(path) for path in FILES if path.name != "__main__.py"}
    if find_spec("triton") is None:  # it comes with PyTorch for GPUs
        every -= {f"avatar.{name}" for name in (*OWNERS["triton"], "model.kernels.fused")}
    # What these libraries do at their own import (OpenCV sets LD_LIBRARY_PATH) is theirs.
    libraries = ("torch", "transformers", "diffusers", "gradio", "cv2", "scipy.signal")
    import_quietly(sorted(every), libraries=libraries)
