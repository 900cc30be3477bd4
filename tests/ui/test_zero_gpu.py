"""The page on a Space with ZeroGPU, with a stand-in for the package `spaces`; nothing changes elsewhere."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from avatar.checkpoints.locations import Checkpoint
from avatar.errors import AvatarError, BadInput
from avatar.hardware.inventory import Inventory, probe
from avatar.planning.verdict import judge
from avatar.preset import load_preset
from avatar.runtime.engine_process import EngineProcess
from avatar.runtime.factory import open_engine
from avatar.runtime.zero_gpu import zero_gpu_of_space
from tests.fixtures.server import Server, start_server

ROOT = Path(__file__).resolve().parents[2]
STAND_IN = ROOT / "tests" / "fixtures" / "zero_gpu"
PORTRAIT = ROOT / "assets" / "portraits" / "astronaut.jpg"
SPEECH = ROOT / "assets" / "speech" / "hello-en.flac"


@dataclass
class Space:
    """A page that runs as on a Space with ZeroGPU. notes: what the stand-in noted."""

    server: Server
    file: Path

    @property
    def notes(self) -> list[dict]:
        return [json.loads(line) for line in self.file.read_text().splitlines()] if self.file.exists() else []

    def generate(self, preset: str, folder: Path) -> int:
        """Make a video as a visitor; returns how many frames it has."""
        client = Client(
            self.server.url, verbose=False, download_files=str(folder), headers={"X-Visitor": "ann"}
        )
        video = client.predict(
            handle_file(str(PORTRAIT)),
            handle_file(str(SPEECH)),
            preset,
            "",
            {},
            None,
            False,
            api_name="/generate",
        )
        path = video["video"] if isinstance(video, dict) else video
        with av.open(path) as made:
            return sum(1 for _ in made.decode(video=0))


@pytest.fixture
def space(tmp_path: Path) -> Iterator:
    running: list[Server] = []

    def start(**environment: str) -> Space:
        notes = tmp_path / "notes.jsonl"
        server = start_server(
            tmp_path / "space",
            *("--host", "127.0.0.1"),
            PYTHONPATH=str(STAND_IN),
            SPACES_ZERO_GPU="true",
            SPACES_STAND_IN=str(notes),
            SPACE_ID="someone/live-avatar",
            **environment,
        )
        running.append(server)
        return Space(server, notes)

    yield start
    for server in running:
        server.stop()


@pytest.mark.slow
def test_the_model_runs_inside_the_decorated_function_alone(space, tmp_path):
    page = space()
    for _ in range(2):
        assert page.generate("self-test", tmp_path) > 25
    calls = [note for note in page.notes if "seconds" in note]
    workers = [note for note in page.notes if "worker" in note]
    assert len(calls) == len(workers) == 2
    assert {call["size"] for call in calls} == {"large"}
    assert {call["visitor"] for call in calls} == {"ann"}, "the quota is the visitor's"
    assert all(50 < call["seconds"] < 90 for call in calls)
    assert calls[0]["page"] == page.server.process.pid
    assert workers[0]["worker"] == workers[1]["worker"] != calls[0]["page"]
    assert "Traceback" not in page.server.log.read_text()


@pytest.mark.slow
def test_the_preview_asks_for_no_gpu(space, tmp_path):
    page = space()
    assert page.generate("cpu-preview", tmp_path) > 25
    assert page.notes == []


@pytest.mark.slow
def test_a_visitor_without_quota_reads_why(space, tmp_path):
    page = space(SPACES_STAND_IN_DOES="refuse")
    with pytest.raises(AppError, match="exceeded your ZeroGPU quota"):
        page.generate("self-test", tmp_path)
    assert page.generate("cpu-preview", tmp_path) > 25


@pytest.mark.slow
def test_a_gpu_taken_away_leaves_a_video_in_the_gallery(space, tmp_path):
    page = space(SPACES_STAND_IN_DOES="abort")
    with pytest.raises(AppError, match="aborted"):
        page.generate("self-test", tmp_path)
    [video] = page.server.videos()
    with av.open(str(video)) as made:
        assert sum(1 for _ in made.decode(video=0)) > 0


def test_elsewhere_nothing_is_imported_or_attached(monkeypatch):
    monkeypatch.delenv("SPACES_ZERO_GPU", raising=False)
    monkeypatch.setitem(sys.modules, "spaces", None)  # importing it fails
    assert zero_gpu_of_space() is None
    engine = open_engine(load_preset("self-test"), zero_gpu=zero_gpu_of_space())
    assert isinstance(engine, EngineProcess)
    engine.close()


def test_a_space_without_the_package_says_what_to_add(monkeypatch):
    monkeypatch.setenv("SPACES_ZERO_GPU", "1")
    monkeypatch.setitem(sys.modules, "spaces", None)
    with pytest.raises(AvatarError, match=r"spaces.*requirements\.txt"):
        zero_gpu_of_space()


def test_plans_are_made_for_the_zero_gpu_card(monkeypatch):
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    taken = {}
    for size in ("large", "xlarge"):
        monkeypatch.setenv("AVATAR_ZERO_GPU_SIZE", size)
        machine = on_a_host(probe())
        taken[size] = judge(load_preset("auto"), machine).preset.name
        assert [shortfall.code for shortfall in judge(load_preset("2x24gb"), machine).shortfalls] == [
            "num_gpus"
        ]
    assert taken == {"large": "48gb", "xlarge": "96gb"}
    monkeypatch.setenv("AVATAR_ZERO_GPU_SIZE", "huge")
    with pytest.raises(BadInput, match="large or xlarge"):
        probe()


def on_a_host(machine: Inventory) -> Inventory:
    """The same cards, with a checkpoint, on a host that is large enough."""
    from dataclasses import replace

    imagined = Inventory.imagine(1, 1.0)
    return replace(
        imagined, gpus=machine.gpus, checkpoint=Checkpoint(complete=True), driver_cuda=machine.driver_cuda
    )
