"""Downloading from a hub on this machine: what is fetched, what is not fetched twice, what is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from avatar.checkpoints.download import COMMITS, base_repo, lacking_bytes, needed_repos
from avatar.checkpoints.download import REPOS as REPOS_FETCHED
from avatar.checkpoints.locations import (
    DIFFUSERS,
    ENVIRONMENT,
    LORA_REPO,
    OFFICIAL,
    PARTS,
    Checkpoint,
    CheckpointLayout,
    find_checkpoint,
)
from tests.fixtures.hub_server import COMMIT, Hub, serve

LORA_FOLDER = "LiveAvatar"
SHARDS = [f"diffusion_pytorch_model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
UNWANTED = ("assets/logo.png", "wav2vec2-large-xlsr-53-english/flax_model.msgpack", "README.md")

PROGRAM = """
import json, pathlib, sys
from avatar.errors import AvatarError
from avatar.checkpoints.download import DIFFUSERS_REPOS, REPOS, download
asked, seen = json.loads(sys.argv[1]), []
options = {"repos": DIFFUSERS_REPOS if asked.get("diffusers") else REPOS, "revision": asked.get("revision")}
options["target"] = pathlib.Path(asked["target"]) if "target" in asked else None
try:
    folders = download(progress=lambda done, total: seen.append((done, total)), **options)
    used = {"folders": [str(path) for path in folders], "progress": seen, "torch": "torch" in sys.modules}
    print(json.dumps(used))
except AvatarError as error:
    print(json.dumps({"error": type(error).__name__, "text": str(error)}))
"""


@pytest.fixture
def hub(checkpoint_copy: Path) -> Iterator[Hub]:
    for name in UNWANTED:
        (checkpoint_copy / name).parent.mkdir(exist_ok=True)
        (checkpoint_copy / name).write_bytes(b"not needed")
    with serve(Hub({OFFICIAL.repo: checkpoint_copy, LORA_REPO: checkpoint_copy.parent / LORA_FOLDER})) as hub:
        yield hub


def start(hub: Hub, home: Path, token: str = "", **asked: Any) -> subprocess.Popen[str]:
    """download() in a process of its own, as huggingface_hub reads its environment once."""
    hub.fetched.clear()
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("HF_", "HUGGINGFACE_", ENVIRONMENT))
    }
    environment = kept | {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home), "HF_HUB_DOWNLOAD_TIMEOUT": "5"}
    environment |= {"HF_HUB_ETAG_TIMEOUT": "5"} | ({"HF_TOKEN": token} if token else {})
    arguments = [sys.executable, "-c", PROGRAM, json.dumps(asked)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(arguments, env=environment, text=True, **pipes)  # type: ignore[call-overload]


def run(hub: Hub, home: Path, **asked: Any) -> dict[str, Any]:
    """To its end."""
    process = start(hub, home, **asked)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return json.loads(out.strip().splitlines()[-1])


def names(hub: Hub) -> set[str]:
    return {name for name, _ in hub.fetched}


def test_a_target_holds_all_that_is_needed_and_nothing_else(hub: Hub, tmp_path: Path) -> None:
    target = tmp_path / "weights"
    answer = run(hub, tmp_path / "home", target=str(target))
    assert answer["folders"] == [str(target / "Wan2.2-S2V-14B"), str(target / LORA_FOLDER)]
    assert find_checkpoint(target).complete
    assert not names(hub) & set(UNWANTED)
    for name, path in hub.files(OFFICIAL.repo).items():
        fetched = target / "Wan2.2-S2V-14B" / name
        assert fetched.exists() == (name not in UNWANTED)
        assert name in UNWANTED or fetched.read_bytes() == path.read_bytes()
    assert not answer["torch"]


def test_progress_goes_from_nothing_to_all(hub: Hub, tmp_path: Path) -> None:
    answer = run(hub, tmp_path / "home", target=str(tmp_path / "weights"))
    wanted = [path.stat().st_size for name, path in hub.files(OFFICIAL.repo).items() if name not in UNWANTED]
    total = sum(wanted) + sum(path.stat().st_size for path in hub.files(LORA_REPO).values())
    done = [done for done, _ in answer["progress"]]
    assert done == sorted(done)
    assert answer["progress"][-1] == [total, total]


def test_the_cache_of_hf_home_is_found_again(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    answer = run(hub, home)
    assert all(
        folder.startswith(str(home / "hub")) and folder.endswith(tuple(COMMITS.values()))
        for folder in answer["folders"]
    )
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", ENVIRONMENT):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(home))
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    found = find_checkpoint()
    assert found.complete
    assert [str(found.base), str(found.lora)] == answer["folders"]


def test_the_diffusers_layout_comes_whole(tiny_diffusers_checkpoint: Path, tmp_path: Path) -> None:
    base, lora = (tiny_diffusers_checkpoint / name for name in (DIFFUSERS.repo.split("/")[1], LORA_FOLDER))
    with serve(Hub({DIFFUSERS.repo: base, LORA_REPO: lora})) as hub:
        run(hub, tmp_path / "home", target=str(tmp_path / "weights"), diffusers=True)
    found = find_checkpoint(tmp_path / "weights")
    assert found.complete
    assert found.layout is DIFFUSERS


def test_what_is_there_is_not_fetched_again(hub: Hub, tmp_path: Path) -> None:
    target = str(tmp_path / "weights")
    run(hub, tmp_path / "home", target=target)
    assert SHARDS[1] in names(hub)
    (tmp_path / "weights" / "Wan2.2-S2V-14B" / SHARDS[1]).unlink()
    run(hub, tmp_path / "home", target=target)
    assert names(hub) == {SHARDS[1]}


@pytest.mark.parametrize("in_cache", [True, False])
def test_a_truncated_file_is_fetched_again_and_no_other(hub: Hub, tmp_path: Path, in_cache: bool) -> None:
    asked = {} if in_cache else {"target": str(tmp_path / "weights")}
    base = Path(run(hub, tmp_path / "home", **asked)["folders"][0])
    whole = (base / SHARDS[1]).read_bytes()
    (base / SHARDS[1]).write_bytes(whole[:1000])
    answer = run(hub, tmp_path / "home", **asked)
    assert names(hub) == {SHARDS[1]}
    assert (base / SHARDS[1]).read_bytes() == whole
    assert answer["progress"][-1] == [len(whole), len(whole)]


@pytest.mark.slow
def test_a_broken_connection_goes_on_where_it_broke(hub: Hub, tmp_path: Path) -> None:
    """The library keeps what it has by whole chunks of 10 MiB."""
    file = hub.files(OFFICIAL.repo)[SHARDS[2]]
    file.write_bytes(os.urandom(35 * 2**20))
    hub.break_after = {SHARDS[2]: [12 * 2**20, 13 * 2**20]}
    run(hub, tmp_path / "home", target=str(tmp_path / "weights"))
    ranges = [asked for name, asked in hub.fetched if name == SHARDS[2]]
    starts = [int(asked.removeprefix("bytes=").split("-")[0]) for asked in ranges[1:] if asked]
    assert ranges[0] is None
    assert len(starts) == 2
    assert 0 < starts[0] < starts[1]
    assert (tmp_path / "weights" / "Wan2.2-S2V-14B" / SHARDS[2]).read_bytes() == file.read_bytes()


@pytest.mark.slow
def test_a_download_that_breaks_for_good_says_so_and_goes_on_later(hub: Hub, tmp_path: Path) -> None:
    target = str(tmp_path / "weights")
    hub.break_after = {SHARDS[2]: [0] * 100}
    broken = run(hub, tmp_path / "home", target=target)
    assert broken["error"] == "WeightsMissing"
    assert "again" in broken["text"]
    assert str(tmp_path) not in broken["text"]
    finished = names(hub) - {SHARDS[2]}
    hub.break_after = {}
    run(hub, tmp_path / "home", target=target)
    assert SHARDS[2] in names(hub)
    assert len(names(hub) & finished) <= 8  # the files that were under way beside it when it broke
    assert find_checkpoint(Path(target)).complete


def test_a_disk_without_room_is_refused_before_anything_is_fetched(hub: Hub, tmp_path: Path) -> None:
    hub.sizes = {SHARDS[0]: 10**16}
    refused = run(hub, tmp_path / "home", target=str(tmp_path / "weights"))
    assert refused["error"] == "DoesNotFit"
    assert "10000000.0 GB are still to be fetched" in refused["text"]
    assert not hub.fetched


def test_a_revision_is_asked_for(hub: Hub, tmp_path: Path) -> None:
    hub.revisions += ("v2",)
    assert "folders" in run(hub, tmp_path / "home", revision="v2")
    assert (tmp_path / "home/hub/models--Wan-AI--Wan2.2-S2V-14B/refs/v2").read_text() == COMMIT
    refused = run(hub, tmp_path / "home", revision={LORA_REPO: "v9"})
    assert refused["error"] == "BadInput"
    assert f"{LORA_REPO} has no revision 'v9'" in refused["text"]


@pytest.mark.slow
def test_an_unknown_repository_and_a_silent_hub_are_distinguished(hub: Hub, tmp_path: Path) -> None:
    del hub.repos[LORA_REPO]
    unknown = run(hub, tmp_path / "home")
    assert f"{LORA_REPO} is not on the hub" in unknown["text"]
    hub.endpoint = "http://127.0.0.1:9"
    silent = run(hub, tmp_path / "home")
    assert silent["error"] == "WeightsMissing"
    assert "cannot be reached" in silent["text"]


@pytest.mark.parametrize("layout", [OFFICIAL, DIFFUSERS], ids=["official", "diffusers"])
def test_patterns_cover_the_layout(layout: CheckpointLayout) -> None:
    from fnmatch import fnmatch

    patterns = base_repo(layout).patterns
    shard = f"{layout.transformer}/{SHARDS[0]}".removeprefix("./")
    for name in (*layout.others, *layout.indexes, shard, f"{layout.speech_encoder}/model.safetensors"):
        assert any(fnmatch(name, pattern) for pattern in patterns), name


@pytest.fixture
def large_hub(hub: Hub) -> Hub:
    """A hub that keeps a shard of 64 MiB by its sha256."""
    hub.files(OFFICIAL.repo)[SHARDS[2]].write_bytes(os.urandom(64 * 2**20))
    hub.large = (SHARDS[2],)
    return hub


@pytest.mark.slow
@pytest.mark.parametrize("in_cache", [True, False])
def test_a_download_that_is_killed_three_times_goes_on(
    large_hub: Hub, tmp_path: Path, in_cache: bool
) -> None:
    """Over a slow link; each time it goes on with what is on the disk, by whole chunks of 10 MiB."""
    target, home = tmp_path / "weights", tmp_path / "home"
    asked = {} if in_cache else {"target": str(target)}
    large_hub.byte_s = 1e-8  # 64 MiB in 0.7 s
    kept = 0
    for _ in range(3):
        process = start(large_hub, home, **asked)
        before = kept
        deadline = time.monotonic() + 60
        while kept <= before and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
            kept = sum(file.stat().st_size for file in tmp_path.rglob("*.part"))
        process.kill()
        process.wait()
        assert kept > before
    base = Path(run(large_hub, home, **asked)["folders"][0])
    (resumed,) = [asked for name, asked in large_hub.fetched if name == SHARDS[2]]
    assert resumed is not None
    assert int(resumed.removeprefix("bytes=").split("-")[0]) >= kept
    assert (base / SHARDS[2]).read_bytes() == large_hub.files(OFFICIAL.repo)[SHARDS[2]].read_bytes()
    assert not [*tmp_path.rglob("*.part")]
    assert run(large_hub, home, **asked)["folders"][0] == str(base)
    assert not names(large_hub) & {SHARDS[2]}


def begun(hub: Hub, tmp_path: Path, target: Path) -> subprocess.Popen[str]:
    """A download over a slow link that has written its first bytes of the shard."""
    hub.byte_s = 2e-7  # 64 MiB in 13 s
    process = start(hub, tmp_path / "home", target=str(target))
    deadline = time.monotonic() + 60
    while not sum(file.stat().st_size for file in tmp_path.rglob("*.part")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


def test_ctrl_c_does_not_wait_for_the_rest_of_a_file(large_hub: Hub, tmp_path: Path) -> None:
    process = begun(large_hub, tmp_path, tmp_path / "weights")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode
    (partial,) = tmp_path.rglob("*.part")
    assert 0 < partial.stat().st_size < 64 * 2**20


def test_a_folder_that_cannot_be_written_is_said_so(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    refused = run(hub, tmp_path / "home", target=str(tmp_path / "file" / "weights"))
    assert refused["error"] == "WeightsMissing"
    assert "weights cannot be the folder of the weights: it is a file, or" in refused["text"]
    assert str(tmp_path) not in refused["text"]


def test_two_downloads_do_not_write_the_same_file(large_hub: Hub, tmp_path: Path) -> None:
    target = tmp_path / "weights"
    first = begun(large_hub, tmp_path, target)
    refused = run(large_hub, tmp_path / "home", target=str(target))
    assert refused["error"] == "WeightsMissing"
    assert "Another program" in refused["text"]
    large_hub.byte_s = 0.0
    out, err = first.communicate(timeout=120)
    assert "folders" in json.loads(out), err
    assert find_checkpoint(target).complete


@pytest.mark.parametrize("in_cache", [True, False])
def test_a_file_with_a_wrong_sha256_is_fetched_again(large_hub: Hub, tmp_path: Path, in_cache: bool) -> None:
    asked = {} if in_cache else {"target": str(tmp_path / "weights")}
    large_hub.corrupt = {SHARDS[2]: 1}
    answer = run(large_hub, tmp_path / "home", **asked)
    base = Path(answer["folders"][0])
    assert (base / SHARDS[2]).read_bytes() == large_hub.files(OFFICIAL.repo)[SHARDS[2]].read_bytes()
    assert [name for name, _ in large_hub.fetched].count(SHARDS[2]) == 2
    done, total = answer["progress"][-1]
    assert done == total


def test_a_file_that_is_always_wrong_is_refused(large_hub: Hub, tmp_path: Path) -> None:
    large_hub.corrupt = {SHARDS[2]: 100}
    refused = run(large_hub, tmp_path / "home", target=str(tmp_path / "weights"))
    assert refused["error"] == "WeightsMissing"
    assert f"{SHARDS[2]} of {OFFICIAL.repo} arrived corrupt twice" in refused["text"]
    assert not (tmp_path / "weights" / "Wan2.2-S2V-14B" / SHARDS[2]).exists()


def test_who_asks_is_named_when_the_hub_wants_to_know(hub: Hub, tmp_path: Path) -> None:
    hub.unauthorised = True
    refused = run(hub, tmp_path / "home")
    assert refused["error"] == "WeightsMissing"
    assert "HF_TOKEN" in refused["text"]


def test_a_token_goes_to_the_hub(large_hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(large_hub, tmp_path / "home", token="hf_secret")
    assert large_hub.tokens == {"Bearer hf_secret"}


def test_commits_are_pinned(hub: Hub, tmp_path: Path) -> None:
    run(hub, tmp_path / "home")
    refs = [*(tmp_path / "home" / "hub").glob("models--*/refs/*")]
    assert {repo.revision for repo in REPOS_FETCHED} == set(COMMITS.values())
    assert "main" not in {ref.name for ref in refs}


def test_parts_that_lie_elsewhere_are_not_fetched(tiny_checkpoint: Path) -> None:
    found = find_checkpoint(tiny_checkpoint)
    assert needed_repos(found) == ()
    assert lacking_bytes(found) == 0
    parts = {part: path for part, path in found.parts.items() if part != "vae"}
    (base, lora) = needed_repos(replace(found, parts=parts, lora=None))
    assert base.patterns == (OFFICIAL.vae,)
    assert lora.name == LORA_REPO
    assert round(lacking_bytes(Checkpoint()) / 1e9, 1) == 47.1


FLOAT8_FILE = "diffusion_models/wan2.2_s2v_14B_fp8_scaled.safetensors"


@pytest.mark.parametrize(
    ("transformer", "lora", "only_missing", "expected"),
    [
        ("target/Wan2.2-S2V-14B", "target/LiveAvatar", False, [OFFICIAL.repo, LORA_REPO]),  # checked again
        (f"target/{FLOAT8_FILE}", "target/loras", False, []),
        (f"target/{FLOAT8_FILE}", None, False, [LORA_REPO]),
        ("target", None, True, [LORA_REPO]),  # the folder is the base model itself
        ("other/Wan2.2-S2V-14B", "other/LiveAvatar", False, [OFFICIAL.repo, LORA_REPO]),
        ("other/Wan2.2-S2V-14B", "other/LiveAvatar", True, []),
        (None, "other/LiveAvatar", True, [OFFICIAL.repo]),
    ],
)
def test_a_folder_gets_what_is_not_in_it_in_some_form(
    transformer: str | None, lora: str | None, only_missing: bool, expected: list[str], tmp_path: Path
) -> None:
    parts = {} if transformer is None else dict.fromkeys(PARTS, tmp_path / transformer)
    found = Checkpoint(parts=parts, lora=None if lora is None else tmp_path / lora)
    repos = needed_repos(found, OFFICIAL, tmp_path / "target", only_missing=only_missing)
    assert [repo.name for repo in repos] == expected


def test_the_hub_is_reached_through_a_proxy(
    large_hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's server is the proxy of a name that nobody resolves."""
    monkeypatch.setenv("HTTP_PROXY", large_hub.endpoint)
    monkeypatch.setenv("NO_PROXY", "")
    large_hub.endpoint = "http://models.invalid"
    run(large_hub, tmp_path / "home", target=str(tmp_path / "weights"))
    assert SHARDS[2] in names(large_hub)
    assert find_checkpoint(tmp_path / "weights").complete
