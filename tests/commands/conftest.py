"""What tests of commands share: a machine to imagine, an engine of plain colours, and inputs."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile
from PIL import Image

from avatar.commands import doctor, generate, plan, presets
from avatar.hardware.inventory import Inventory
from avatar.runtime.engine_process import EngineProcess
from tests.commands.surroundings import NO_GPU


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    """A portrait and 3 s of sound in the current folder."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.full((96, 96, 3), 90, np.uint8)).save("p.png")
    soundfile.write("s.wav", np.sin(np.arange(48_000 * 3) * 0.05).astype(np.float32) * 0.3, 48_000)
    return ["generate", "--image", "p.png", "--audio", "s.wav"]


@pytest.fixture
def machine(monkeypatch):
    """Make every command see this inventory."""

    def become(inventory: Inventory) -> None:
        monkeypatch.setattr(generate, "probe", lambda *_, **__: inventory)
        monkeypatch.setattr(presets, "probe", lambda *_, **__: inventory)
        monkeypatch.setattr(plan, "probe", lambda *_, **__: inventory)
        monkeypatch.setattr(doctor.doctor, "probe", lambda *_, **__: inventory)

    become(NO_GPU)
    return become


@pytest.fixture
def engine(monkeypatch):
    """A real engine process whose frames are plain colours; records the presets it is opened with.

    In the end no process may be left.
    """
    opened, processes = [], []

    def become(**options: object):
        def open_engine(preset, **_):
            opened.append(preset)
            processes.append(EngineProcess("tests.fixtures.sources:Coloured", **options))
            return processes[-1]

        monkeypatch.setattr(generate, "open_engine", open_engine)
        return opened

    yield become
    assert [process.pid for process in processes if process.pid] == []
