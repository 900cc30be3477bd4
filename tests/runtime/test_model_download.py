"""The page's download: begun, paused, gone on with and finished against a hub on this machine."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from avatar.checkpoints.locations import LORA_FILE, LORA_REPO, OFFICIAL, find_checkpoint
from avatar.runtime.model_download import FetchReading, ModelFetch, fetch_command
from tests.fixtures.hub_server import Hub, serve

SHARD = "diffusion_pytorch_model-00003-of-00003.safetensors"


@pytest.fixture
def hub(checkpoint_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A slow one, with a shard of 48 MiB."""
    (checkpoint_copy / SHARD).write_bytes(os.urandom(48 * 2**20))
    hub = Hub({OFFICIAL.repo: checkpoint_copy, LORA_REPO: checkpoint_copy.parent / "LiveAvatar"})
    hub.large, hub.byte_s = (SHARD,), 2e-7
    with serve(hub):
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
        yield hub


def until(fetch: ModelFetch, holds: Callable[[FetchReading], bool]) -> FetchReading:
    deadline = time.monotonic() + 90
    while not holds(reading := fetch.reading()):
        assert time.monotonic() < deadline, reading
        time.sleep(0.02)
    return reading


@pytest.mark.slow
def test_it_is_paused_and_goes_on_where_it_was(hub: Hub, tmp_path: Path) -> None:
    target = tmp_path / "page" / "weights"  # not beside the hub's own files, which are a whole model
    fetch = ModelFetch(fetch_command(target))
    assert fetch.reading() == FetchReading()
    fetch.start()
    fetch.start()  # once more changes nothing
    begun = until(fetch, lambda now: now.done_bytes > 10 * 2**20)
    assert begun.state == "running"
    assert begun.total_bytes > 48 * 2**20
    fetch.pause()
    paused = fetch.reading()
    assert (paused.state, paused.rate) == ("paused", None)
    hub.fetched.clear()
    hub.byte_s = 0.0
    fetch.start()
    done = until(fetch, lambda now: now.state != "running")
    assert done.state == "done", done.error
    (resumed,) = [asked for name, asked in hub.fetched if name == SHARD]
    assert resumed is not None
    assert find_checkpoint(target).complete
    fetch.start()
    assert fetch.reading().state == "done"


def test_what_went_wrong_is_reported(hub: Hub, tmp_path: Path) -> None:
    hub.unauthorised = True
    fetch = ModelFetch(fetch_command(tmp_path / "page" / "weights"))
    fetch.start()
    failed = until(fetch, lambda now: now.state != "running")
    assert failed.state == "failed"
    assert "HF_TOKEN" in failed.error
    assert str(tmp_path) not in failed.error
    hub.unauthorised, hub.byte_s = False, 0.0
    fetch.start()  # tried again
    assert until(fetch, lambda now: now.state != "running").state == "done"


def test_rate_and_time_that_is_left_are_measured() -> None:
    lines = [
        "import json, time",
        "for done in range(0, 60, 10):",
        "    print(json.dumps({'event': 'progress', 'done_bytes': done, 'total_bytes': 100}), flush=True)",
        "    time.sleep(0.1)",
        "time.sleep(60)",
    ]
    fetch = ModelFetch([sys.executable, "-c", "\n".join(lines)])
    fetch.start()
    reading = until(fetch, lambda now: now.done_bytes == 50)
    assert reading.rate is not None
    assert 0 < reading.rate < 1000  # 10 every tenth of a second
    assert reading.remaining_s == pytest.approx(50 / reading.rate)
    fetch.close()
    assert fetch.reading().state == "paused"


def test_the_button_fetches_what_its_panel_counts(
    hub: Hub, checkpoint_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside parts that the user has: a file in the folder of the page, and the rest elsewhere."""
    hub.byte_s = 0.0
    monkeypatch.setenv("AVATAR_WEIGHTS", str(checkpoint_copy.parent))
    shutil.rmtree(checkpoint_copy.parent / "LiveAvatar")  # the hub has it no more, and it was never here
    hub.repos[LORA_REPO] = tmp_path / "published"
    (tmp_path / "published").mkdir()
    (tmp_path / "published" / LORA_FILE).write_bytes(b"numbers")
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "part.safetensors").write_bytes(b"")
    assert fetch_command(None) == fetch_command(folder)[:-3]
    assert fetch_command(folder / "part.safetensors") == fetch_command(folder)
    fetch = ModelFetch(fetch_command(folder / "part.safetensors"))
    fetch.start()
    done = until(fetch, lambda now: now.state != "running")
    assert done.state == "done", done.error
    assert {name for name, _ in hub.fetched} == {LORA_FILE}
    assert (folder / "LiveAvatar" / LORA_FILE).read_bytes() == b"numbers"
    assert find_checkpoint(folder / "part.safetensors").lora == folder / "LiveAvatar"
