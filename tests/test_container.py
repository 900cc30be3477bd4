"""The container's files, as far as they can be tried without a container engine."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml

from avatar.runtime.engine_process import CANCEL_LIMIT_S
from avatar.ui.state.job_queue import CLOSE_LIMIT_S
from tests.fixtures.server import Server, start_server

ROOT = Path(__file__).parents[1]
LIBRARIES = {
    "HF_HOME",
    "HF_TOKEN",
    "NVIDIA_DRIVER_CAPABILITIES",
    "PYTHONUNBUFFERED",
    "TORCHINDUCTOR_CACHE_DIR",
    "TRITON_CACHE_DIR",
}  # read by what is not ours
NEEDED = (
    "app.py",
    "avatar",
    "presets",
    "assets",
    "requirements.txt",
    "requirements-preview.txt",
    "constraints.txt",
)


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions, each with its arguments in one line."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in joined.splitlines() if line.strip()]


def argument(name: str) -> str:
    """Of the last instruction of that name."""
    return [value for found, value in instructions() if found == name][-1]


def sent() -> set[str]:
    """The files that Docker would be sent, by .dockerignore: the last pattern that fits decides."""
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    tracked = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    files = set()
    for name in tracked.stdout.splitlines():
        ignored = False
        for rule in rules:
            pattern = rule.removeprefix("!").removeprefix("**/")
            parts = Path(name).parts
            leading = ["/".join(parts[: count + 1]) for count in range(len(parts))]
            anywhere = parts if "**/" in rule else leading
            if any(fnmatch(part, pattern) for part in anywhere):
                ignored = not rule.startswith("!")
        if not ignored:
            files.add(name)
    return files


def run_installing(device: str, tmp_path: Path) -> tuple[int, list[str]]:
    """The install step with stand-ins for its programs; its exit code, and what it called."""
    script = next(value for name, value in instructions() if name == "RUN" and "pip install" in value)
    calls = tmp_path / "calls"
    calls.touch()
    for name in ("pip", "apt-get", "rm"):
        program = tmp_path / name
        program.write_text(f'#!/bin/sh\necho "{name} $*" >> {calls}\n')
        program.chmod(0o755)
    done = subprocess.run(
        ["/bin/sh", "-c", script], env={"PATH": str(tmp_path), "DEVICE": device}, capture_output=True
    )
    return done.returncode, calls.read_text().splitlines()


def test_the_cpu_image_installs_the_previews_requirements_alone(tmp_path):
    code, calls = run_installing("cpu", tmp_path)
    assert code == 0
    assert calls == ["pip install --no-cache-dir -r requirements-preview.txt -c constraints.txt"]


def test_the_cuda_image_has_all_requirements_and_a_compiler(tmp_path):
    code, calls = run_installing("cuda", tmp_path)
    assert code == 0
    assert any(call.startswith("apt-get install") and " gcc " in call for call in calls)
    assert calls[-1] == "pip install --no-cache-dir -r requirements.txt -c constraints.txt"


def test_another_device_is_refused(tmp_path):
    assert run_installing("tpu", tmp_path) == (1, [])


def test_the_container_does_not_run_as_root():
    order = [name for name, _ in instructions()]
    user = argument("USER")
    assert user.isdecimal(), "Kubernetes' runAsNonRoot refuses a name"
    assert int(user) > 0
    assert (
        f"useradd --create-home --uid {user} "
        in [value for name, value in instructions() if name == "RUN"][-1]
    )
    assert order.index("USER") < order.index("CMD")
    assert "USER" not in order[order.index("USER") + 1 :]


def test_videos_and_weights_lie_in_volumes():
    volumes = json.loads(argument("VOLUME"))
    given = settings()
    assert {given["AVATAR_OUTPUTS"], given["AVATAR_WEIGHTS"]} == set(volumes)
    assert all(
        any(Path(given[name]).is_relative_to(volume) for volume in volumes)
        for name in ("HF_HOME", "AVATAR_CACHE", "AVATAR_LORAS", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
    )
    for service in compose()["services"].values():
        assert {mount.partition(":")[2] for mount in service["volumes"]} == set(volumes)
        assert {mount.partition(":")[0] for mount in service["volumes"]} == set(compose()["volumes"])


def test_what_is_copied_and_run_is_sent_and_nothing_more():
    files = sent()
    for needed in NEEDED:
        assert any(name == needed or name.startswith(f"{needed}/") for name in files), needed
    assert {name.split("/")[0] for name in files} == {*NEEDED, "LICENSE"}
    for source in [word for name, value in instructions() if name == "COPY" for word in value.split()[:-1]]:
        assert source == "." or source in files
    assert json.loads(argument("CMD"))[-1] in files


def test_only_public_base_images_are_named():
    assert re.fullmatch(r"python:3\.1[1-4]-slim-\w+", argument("FROM"))
    for name in ("Dockerfile", ".dockerignore", "compose.yaml"):
        assert not re.search(
            r"https?://(?!127\.0\.0\.1)|--(extra-)?index-url|\w+\.io/", (ROOT / name).read_text()
        ), name


def test_every_setting_of_the_containers_is_read_by_somebody():
    code = "".join(
        path.read_text(encoding="utf-8") for path in [ROOT / "app.py", *(ROOT / "avatar").rglob("*.py")]
    )
    named = {
        *settings(),
        *(name for service in compose()["services"].values() for name in service["environment"]),
    }
    assert {name for name in named - LIBRARIES if f'"{name}"' not in code} == set()


def test_a_stopped_container_has_time_to_keep_its_video():
    """Docker kills after 10 s; the page waits longer for the run that it stops."""
    for service in compose()["services"].values():
        assert service["stop_grace_period"] == "1m"
        assert CLOSE_LIMIT_S + CANCEL_LIMIT_S < 60
        assert service["init"] is True


def test_several_gpus_have_shared_memory():
    """NCCL passes tensors through it where cards cannot reach each other; Docker gives 64 MB."""
    by_hand = next(line for line in (ROOT / "Dockerfile").read_text().splitlines() if "--gpus all" in line)
    assert "--shm-size 1g" in by_hand
    assert compose()["services"]["gpu"]["shm_size"] == "1gb"


def test_compose_builds_each_device_under_its_own_profile():
    services = compose()["services"]
    assert {service["profiles"][0]: service["build"]["args"]["DEVICE"] for service in services.values()} == {
        "cpu": "cpu",
        "gpu": "cuda",
    }
    [asked] = services["gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert asked == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    assert "deploy" not in services["cpu"]
    for service in services.values():
        assert service["ports"] == [f"127.0.0.1:${{AVATAR_PORT:-7860}}:{settings()['GRADIO_SERVER_PORT']}"]
        assert service["environment"]["AVATAR_ADMIN"] == "${AVATAR_ADMIN:-}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = start_server(tmp_path_factory.mktemp("container"), "--host", "0.0.0.0")
    yield running
    running.stop()


def test_the_health_check_tells_a_page_from_none(server):
    command = json.loads(argument("HEALTHCHECK").partition("CMD ")[2])
    answers = {}
    for port in (server.url.rpartition(":")[2], "9"):
        done = subprocess.run(
            [sys.executable, *command[1:]], env={"GRADIO_SERVER_PORT": port}, capture_output=True
        )
        answers[port] = done.returncode
    assert list(answers.values()) == [0, 1]


def settings() -> dict[str, str]:
    """The image's environment."""
    return dict(word.split("=", 1) for word in argument("ENV").split())


def compose() -> dict:
    return yaml.safe_load((ROOT / "compose.yaml").read_text())
