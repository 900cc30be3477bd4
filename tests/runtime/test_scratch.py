"""Scratch folders are removed, also those that others left; nothing of anybody else's is touched."""

from __future__ import annotations

from avatar.runtime.scratch import KEPT_PREFIX, PREFIX, Scratch, keep


def test_what_an_ended_process_left_is_removed(tmp_path):
    left = tmp_path / f"{PREFIX}old"
    left.mkdir()
    (left / ".lock").touch()
    (left / "segment.mp4").touch()
    with Scratch(tmp_path) as folder:
        assert list(tmp_path.iterdir()) == [folder]
    assert list(tmp_path.iterdir()) == []


def test_a_link_of_that_name_leads_nowhere(tmp_path):
    mine = tmp_path / "photos"
    mine.mkdir()
    (mine / ".lock").touch()
    (tmp_path / f"{PREFIX}x").symlink_to(mine)
    (tmp_path / f"{PREFIX}loop").symlink_to(tmp_path / f"{PREFIX}loop")
    with Scratch(tmp_path):
        pass
    assert (mine / ".lock").is_file()
    assert (tmp_path / f"{PREFIX}x").is_symlink()


def test_what_is_kept_outlives_the_scratch_folder(tmp_path):
    with Scratch(tmp_path) as work:
        (work / "whole.mp4").write_bytes(b"film")
        place = keep(work / "whole.mp4", "out.mp4", tmp_path)
    with Scratch(tmp_path):  # sweeps
        pass
    assert place.name == "out.mp4"
    assert place.parent.name.startswith(KEPT_PREFIX)
    assert place.read_bytes() == b"film"
