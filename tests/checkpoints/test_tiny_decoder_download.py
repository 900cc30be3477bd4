"""The tiny decoder's file comes from an address outside the hub, whole and checked, or not at all."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from avatar.checkpoints import download as downloads
from avatar.checkpoints.download import TAEHV_BYTES, TAEHV_SHA256, TAEHV_URL, download
from avatar.checkpoints.file_download import LargeFile
from avatar.checkpoints.locations import TINY_DECODER, find_checkpoint, tiny_decoder_home
from avatar.cli import main
from avatar.errors import WeightsMissing
from tests.fixtures.hub_server import Hub, serve

REPO = "somebody/files"
CONTENT = bytes(range(256)) * 4000


@pytest.fixture
def server(tmp_path: Path, no_weights_elsewhere: None) -> Iterator[Hub]:
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / TINY_DECODER).write_bytes(CONTENT)
    with serve(Hub({REPO: tmp_path / "served"})) as hub:
        yield hub


@pytest.fixture
def pinned(server: Hub, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Take the server's file for the published one, with these differences."""

    def pin(**changes: object) -> None:
        monkeypatch.setattr(downloads, "TAEHV_URL", f"{server.endpoint}/{REPO}/resolve/main/{TINY_DECODER}")
        monkeypatch.setattr(downloads, "TAEHV_BYTES", changes.get("num_bytes", len(CONTENT)))
        sha256 = changes.get("sha256", hashlib.sha256(CONTENT).hexdigest())
        monkeypatch.setattr(downloads, "TAEHV_SHA256", sha256)

    return pin


def test_what_is_published_is_pinned() -> None:
    assert TAEHV_URL.startswith("https://raw.githubusercontent.com/madebyollin/taehv/1a88a7dcafa06f4686666")
    assert TAEHV_URL.endswith("/taew2_1.pth")
    assert (len(TAEHV_SHA256), TAEHV_BYTES) == (64, 22_678_901)


def test_it_comes_only_when_asked_for(
    server: Hub, pinned: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned()
    target = tmp_path / "weights"
    assert download((), None, target, lambda *_: None) == []
    assert find_checkpoint(target).tiny_decoder is None
    seen: list[tuple[int, int]] = []
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    folders = download((), None, target, lambda *now: seen.append(now), tiny_decoder=True)
    assert folders == [tiny_decoder_home(target)]
    assert find_checkpoint(target).tiny_decoder == folders[0] / TINY_DECODER
    assert (folders[0] / TINY_DECODER).read_bytes() == CONTENT
    assert seen[0] == (0, len(CONTENT))
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert server.tokens == {None}, "the hub's token goes nowhere else"
    server.fetched.clear()
    download((), None, target, lambda *_: None, tiny_decoder=True)
    assert server.fetched == []


def test_a_file_of_another_size_is_replaced(
    server: Hub, pinned: Callable[..., None], tmp_path: Path
) -> None:
    pinned()
    place = tiny_decoder_home(tmp_path) / TINY_DECODER
    place.parent.mkdir()
    place.write_bytes(CONTENT[:1000])
    download((), None, tmp_path, lambda *_: None, tiny_decoder=True)
    assert place.read_bytes() == CONTENT


def test_a_broken_download_goes_on_where_it_was(
    server: Hub, pinned: Callable[..., None], tmp_path: Path
) -> None:
    pinned()
    place = tiny_decoder_home(tmp_path) / TINY_DECODER
    partial = LargeFile("", "", "", 0, hashlib.sha256(CONTENT).hexdigest(), place).partial
    partial.parent.mkdir()
    partial.write_bytes(CONTENT[:300_000])
    download((), None, tmp_path, lambda *_: None, tiny_decoder=True)
    assert server.fetched == [(TINY_DECODER, "bytes=300000-")]
    assert place.read_bytes() == CONTENT


def test_another_file_than_the_published_one_is_refused(
    server: Hub, pinned: Callable[..., None], tmp_path: Path
) -> None:
    pinned(sha256=64 * "0")
    with pytest.raises(WeightsMissing, match="arrived corrupt twice"):
        download((), None, tmp_path, lambda *_: None, tiny_decoder=True)
    assert find_checkpoint(tmp_path).tiny_decoder is None


def test_a_server_without_it_is_named(server: Hub, pinned: Callable[..., None], tmp_path: Path) -> None:
    pinned()
    (tmp_path / "served" / TINY_DECODER).unlink()
    with pytest.raises(WeightsMissing, match="madebyollin/taehv"):
        download((), None, tmp_path, lambda *_: None, tiny_decoder=True)


def test_the_command_leaves_one_that_lies_elsewhere(
    server: Hub,
    pinned: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pinned()
    monkeypatch.setattr(downloads, "needed_repos", lambda *_, **__: ())
    assert main(["download", "--decoder", "tiny"]) == 0
    assert "madebyollin/taehv" in capsys.readouterr().out
    assert len(server.fetched) == 1
    assert find_checkpoint().tiny_decoder == tiny_decoder_home() / TINY_DECODER
    server.fetched.clear()
    (tmp_path / "cwd" / "ckpt").mkdir()
    own = Path("ckpt") / "lighttaew2_1.safetensors"
    own.write_bytes(b"the user's")
    (tiny_decoder_home() / TINY_DECODER).unlink()
    assert main(["download", "--decoder", "tiny"]) == 0
    assert server.fetched == []
    assert find_checkpoint().tiny_decoder == own
