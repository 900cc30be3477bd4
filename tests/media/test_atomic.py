"""Files and folders are whole or not there, whoever writes them: there is one way to do it."""

from __future__ import annotations

import ast
import errno
import os
from contextlib import suppress
from pathlib import Path

import pytest

from avatar.media import atomic

ROOT = Path(__file__).parents[2] / "avatar"
# What renames, but writes nothing that could be half there: moves between the gallery's states and folders.
MOVES = {"runtime/gallery.py", "ui/state/uploads.py"}


def fill(draft: Path, is_folder: bool, text: str) -> None:
    if is_folder:
        draft.mkdir()
        draft = draft / "part"
    draft.write_text(text)


@pytest.mark.parametrize("is_folder", [False, True])
def test_it_appears_when_it_is_whole(tmp_path: Path, is_folder: bool) -> None:
    target = tmp_path / "made"
    with atomic.whole(target) as draft:
        fill(draft, is_folder, "all")
        assert not target.exists()
    assert (target / "part" if is_folder else target).read_text() == "all"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("is_folder", [False, True])
def test_an_error_leaves_nothing_behind(tmp_path: Path, is_folder: bool) -> None:
    with suppress(ZeroDivisionError), atomic.whole(tmp_path / "made") as draft:
        fill(draft, is_folder, "half")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("act", [lambda a, b: atomic.write(b, b"new"), atomic.copy])
def test_what_was_there_stays_when_the_disk_is_full(tmp_path: Path, monkeypatch, act) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_text("new")
    target.write_text("old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            act(source, target)
    assert target.read_text() == "old"
    assert sorted(tmp_path.iterdir()) == [source, target]
    act(source, target)
    assert target.read_text() == "new"


def test_it_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch) -> None:
    synced: list[tuple[str, bool]] = []
    sync, target = atomic.sync, tmp_path / "made"

    def noted(path: Path) -> None:
        synced.append((path.name, target.exists()))
        sync(path)

    monkeypatch.setattr(atomic, "sync", noted)
    atomic.write(target, b"all")
    assert synced == [(atomic.draft_of(target).name, False), (tmp_path.name, True)]


def renames(source: str) -> bool:
    """Whether a source puts files in place by itself."""
    calls = [node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    found = {ast.unparse(call) for call in calls if isinstance(call, ast.Attribute)}
    return bool(found & {"os.replace", "os.rename", "os.fsync"}) or any(
        name.endswith(".rename") for name in found
    )


def test_only_one_module_puts_what_was_written_in_its_place() -> None:
    assert renames("draft.rename(entry)")
    assert renames("os.replace(a, b)")
    assert not renames("text.replace('a', 'b')")
    files = {str(path.relative_to(ROOT)): path.read_text("utf-8") for path in ROOT.rglob("*.py")}
    found = {name for name, source in files.items() if renames(source)} - MOVES
    appended = {"long/ledger.py", "checkpoints/file_download.py"}  # each piece is synced
    assert found == {"media/atomic.py", *appended}
