"""Killed at any moment and resumed, a long video is the one that it would have been."""

from __future__ import annotations

import os
import random
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from avatar.errors import AvatarError
from avatar.long.ledger import LINES
from avatar.media.join import join_parts
from tests.fixtures.checkpoints import tiny_checkpoint  # noqa: F401
from tests.fixtures.sources import Coloured
from tests.long.runs import (
    SELF_TEST,
    job,
    killed_after,
    make,
    packets,
    pictures,
    run_coloured,
    run_diffusion,
)

NUM_KILLS = int(os.environ.get("AVATAR_TEST_KILLS", "4"))
LONG_S = 120.0  # no run takes so long


def kill_and_resume(one, folder: Path, run, *arguments: object) -> None:
    """Kill runs at random moments, resume each, and compare every finished film with an unbroken one."""
    whole = replace(one, output=folder / "whole.mp4", keep_parts=True)
    assert killed_after(LONG_S, run, whole, folder / "w", *arguments)
    begun = time.monotonic()
    assert killed_after(LONG_S, run, replace(whole, resume=False), folder / "w", *arguments)
    takes_s = time.monotonic() - begun
    expected, chance, kills, films = packets(whole.output), random.Random(5), 0, 0
    while kills < NUM_KILLS or not films:
        fresh, begun = not one.parts_folder.exists(), time.monotonic()
        if not killed_after(chance.uniform(0.0, takes_s), run, one, folder / f"w{kills}", *arguments):
            kills += 1
            continue
        if fresh:
            takes_s = time.monotonic() - begun  # the machine may be faster, or slower, by now
        assert packets(one.output) == expected
        assert not one.parts_folder.exists()
        films += 1
        for suffix in (".mp4", ".report.json", ".thumb.jpg"):
            one.output.with_suffix(suffix).unlink()
    parts = sorted(whole.parts_folder.glob("*.mp4"))
    assert np.array_equal(np.concatenate([pictures(part) for part in parts]), pictures(whole.output))
    again = folder / "again.mp4"
    join_parts(parts, again)
    assert packets(again) == expected


@pytest.mark.slow
def test_diffusion_killed_at_random_moments(tmp_path, tiny_checkpoint):  # noqa: F811
    one = job(tmp_path, 2.4, preset=SELF_TEST, checkpoint_every=1, resume=True)
    kill_and_resume(one, tmp_path, run_diffusion, tiny_checkpoint)


def test_any_source_killed_at_random_moments(tmp_path):
    kill_and_resume(job(tmp_path, 3.0, resume=True), tmp_path, run_coloured, 0.002)


@pytest.mark.parametrize("torn", [1, 20])
def test_a_line_that_the_power_cut_short_is_no_line(tmp_path, torn):
    one = job(tmp_path, 5.0, resume=True)
    with pytest.raises(AvatarError, match="lamp"):
        make(one, tmp_path / "w", Coloured(fault="error", at=110))  # in the fifth part
    lines = one.parts_folder / LINES
    assert len(lines.read_text().splitlines()) == 4
    lines.write_bytes(lines.read_bytes()[:-torn])
    make(one, tmp_path / "w", Coloured())
    whole = replace(one, output=tmp_path / "whole.mp4")
    make(whole, tmp_path / "w2", Coloured())
    assert packets(one.output) == packets(whole.output)
