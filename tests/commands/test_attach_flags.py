"""What `generate --attach` refuses, since ranks elsewhere would not hear of it."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest

from avatar.commands.generate import check_attached
from avatar.errors import BadInput
from avatar.preset import load_preset
from avatar.runtime.torchrun_client import SECRET


@pytest.mark.parametrize(
    ("given", "preset", "words"),
    [
        ({"attach": "node1"}, "self-test", "is not a valid address"),
        ({}, "cpu-preview", "has no ranks"),
        ({"jobs": 2}, "self-test", "one video at a time"),
        ({"ckpt_dir": Path("weights")}, "self-test", "weights of their own"),
    ],
)
def test_what_attached_ranks_cannot_do_is_refused(given, preset, words, monkeypatch):
    monkeypatch.setenv(SECRET, "a secret of some letters")
    given = {"attach": "node1:7861", "jobs": 1, "ckpt_dir": None} | given
    with pytest.raises(BadInput, match=words):
        check_attached(load_preset(preset), Namespace(**given))


def test_attached_ranks_take_the_rest(monkeypatch):
    monkeypatch.setenv(SECRET, "a secret of some letters")
    check_attached(load_preset("self-test"), Namespace(attach="node1:7861", jobs=1, ckpt_dir=None))
