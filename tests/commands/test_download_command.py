"""`download` as a user runs it: from a hub on this machine to a folder that `generate` takes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from avatar.checkpoints.locations import LORA_REPO, OFFICIAL, find_checkpoint, remembered
from avatar.cli import main
from avatar.commands.download import revisions
from avatar.errors import BadInput
from tests.fixtures.hub_server import Hub, serve

ROOT = Path(__file__).parents[2]
NAMES = [OFFICIAL.repo, LORA_REPO]


def command(hub: Hub, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """To its end."""
    process = started(hub, home, *arguments)
    out, err = process.communicate(timeout=120)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def started(hub: Hub, home: Path, *arguments: str) -> subprocess.Popen[str]:
    """In a process of its own: huggingface_hub reads its environment once."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGINGFACE_"))}
    environment = kept | {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home), "PYTHONPATH": str(ROOT)}
    environment["XDG_CONFIG_HOME"] = str(home / "config")
    line = [sys.executable, "-m", "avatar", "download", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(line, env=environment, stdout=pipe, stderr=pipe, text=True)


@pytest.mark.slow
def test_both_repositories_come_and_are_found(checkpoint_copy, tmp_path, monkeypatch):
    target = tmp_path / "weights"
    with serve(
        Hub({OFFICIAL.repo: checkpoint_copy, LORA_REPO: checkpoint_copy.parent / "LiveAvatar"})
    ) as hub:
        done = command(hub, tmp_path / "home", "--ckpt-dir", str(target), "--json")
        assert done.returncode == 0, done.stderr
        *progress, finished = map(json.loads, done.stdout.splitlines())
        assert finished["event"] == "finished"
        assert [Path(folder).parent for folder in finished["folders"]] == [target, target]
        assert {line["event"] for line in progress} == {"progress"}
        assert progress[-1]["done_bytes"] == progress[-1]["total_bytes"] > 0
        assert find_checkpoint(target).complete
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home" / "config"))
        assert remembered() == target

        hub.fetched.clear()
        again = command(hub, tmp_path / "home", "--ckpt_dir", str(target))
        assert again.returncode == 0, again.stderr
        assert f"{LORA_REPO}: {target}" in again.stdout
        assert not [name for name, _ in hub.fetched if name.endswith((".safetensors", ".pth"))]

        unknown = command(hub, tmp_path / "home", "--ckpt_dir", str(tmp_path / "other"), "--revision", "v9")
        assert unknown.returncode == 2
        assert "no revision 'v9'" in unknown.stderr
    alone = command(hub, tmp_path / "home", "--ckpt_dir", str(tmp_path / "other"))
    assert alone.returncode == 3
    assert "Traceback" not in alone.stderr


@pytest.mark.slow
def test_what_is_fetched_again_is_said(checkpoint_copy, tmp_path):
    shard = next(checkpoint_copy.glob("*.safetensors")).name
    repos = {OFFICIAL.repo: checkpoint_copy, LORA_REPO: checkpoint_copy.parent / "LiveAvatar"}
    with serve(Hub(repos, large=(shard,), corrupt={shard: 1})) as hub:
        done = command(hub, tmp_path / "home", "--ckpt_dir", str(tmp_path / "shown"))
        assert done.returncode == 0, done.stderr
        assert f"{shard} arrived corrupt and is fetched again." in done.stderr
        assert "The model is complete." in done.stdout
        hub.corrupt[shard] = 1
        done = command(hub, tmp_path / "home", "--ckpt_dir", str(tmp_path / "listed"), "--json")
        events = [json.loads(line) for line in done.stdout.splitlines()]
        assert [event["text"] for event in events if event["event"] == "notice"] == [
            f"{shard} arrived corrupt and is fetched again."
        ]


@pytest.mark.slow
def test_ctrl_c_says_that_what_is_fetched_is_kept(checkpoint_copy, tmp_path):
    shard = next(checkpoint_copy.glob("*.safetensors")).name
    repos = {OFFICIAL.repo: checkpoint_copy, LORA_REPO: checkpoint_copy.parent / "LiveAvatar"}
    with serve(Hub(repos, large=(shard,), byte_s=1e-3)) as hub:
        process = started(hub, tmp_path / "home", "--ckpt_dir", str(tmp_path / "weights"))
        while shard not in [name for name, _ in hub.fetched]:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Start it again: what has been fetched is kept." in err


def test_a_revision_of_what_is_elsewhere_is_refused(tiny_checkpoint, monkeypatch, capsys):
    monkeypatch.setenv("AVATAR_WEIGHTS", str(tiny_checkpoint))
    assert main(["download", "--revision", f"{LORA_REPO}=v2"]) == 2
    assert "--revision would change nothing" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [[], ["--ckpt_dir", "weights", "--from", "modelscope"]])
def test_only_missing_is_refused_where_it_would_change_nothing(flags, capsys):
    assert main(["download", "--only_missing", *flags]) == 2
    assert "--only_missing" in capsys.readouterr().err


def test_a_folder_with_all_parts_in_some_form_needs_nothing(tiny_checkpoint, monkeypatch, capsys):
    """It is the base model's own folder, and the LoRA lies beside it."""
    monkeypatch.setattr("avatar.checkpoints.download.download", None)  # nothing is asked
    base = tiny_checkpoint / OFFICIAL.repo.split("/")[1]
    assert main(["download", "--ckpt_dir", str(base), "--only_missing"]) == 0
    assert "The model is complete." in capsys.readouterr().out


def test_a_revision_is_for_all_or_for_one():
    assert revisions([], NAMES) == {}
    assert revisions(["main"], NAMES) == dict.fromkeys(NAMES, "main")
    assert revisions([f"{LORA_REPO}=v2", "main"], NAMES) == {OFFICIAL.repo: "main", LORA_REPO: "v2"}
    with pytest.raises(BadInput, match="someone/else"):
        revisions(["someone/else=v2"], NAMES)


def test_another_repositorys_revision_is_refused(capsys):
    assert main(["download", "--revision", "someone/else=v2"]) == 2
    assert LORA_REPO in capsys.readouterr().err


def test_modelscope_gives_the_base_and_the_hub_the_lora(
    checkpoint_copy, tmp_path, monkeypatch, no_weights_elsewhere
):
    asked = {}

    def snapshot_download(name, *, revision, local_dir, allow_patterns):
        asked.update(name=name, revision=revision, patterns=allow_patterns)
        shutil.copytree(checkpoint_copy, local_dir)

    monkeypatch.setitem(sys.modules, "modelscope", SimpleNamespace(snapshot_download=snapshot_download))
    monkeypatch.setattr("avatar.checkpoints.modelscope.BASE_BYTES", 1000)
    fetched = []

    def download(repos, revision, target, progress, *, notify, tiny_decoder):
        fetched.extend(repo.name for repo in repos)
        shutil.copytree(checkpoint_copy.parent / "LiveAvatar", target / "LiveAvatar")
        return [target / "LiveAvatar"]

    monkeypatch.setattr("avatar.checkpoints.download.download", download)
    target = tmp_path / "scope"
    assert main(["download", "--from", "modelscope", "--ckpt_dir", str(target), "--json"]) == 0
    assert (asked["name"], asked["revision"]) == (OFFICIAL.repo, None)
    assert OFFICIAL.vae in asked["patterns"]
    assert fetched == [LORA_REPO]
    assert find_checkpoint(target).complete


def test_without_modelscopes_library_its_install_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "modelscope", None)
    assert main(["download", "--from", "modelscope", "--ckpt_dir", str(tmp_path)]) == 2
    assert "pip install modelscope" in capsys.readouterr().err
