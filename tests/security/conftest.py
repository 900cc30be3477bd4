"""Servers for strangers to attack, one for each module."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from visits import Stranger

from tests.fixtures.server import Server, start_server


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running server, with the module's ARGUMENTS."""
    running = start_server(tmp_path_factory.mktemp("server"), *request.module.ARGUMENTS)
    yield running
    running.stop()


@pytest.fixture
def stranger(server: Server) -> Iterator[Callable[..., Stranger]]:
    """A function that makes a visitor."""
    made: list[Stranger] = []

    def make(address: str = "203.0.113.7") -> Stranger:
        made.append(Stranger(server.url, address))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture(scope="session")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds of a buzz in syllables."""
    return _buzz(tmp_path_factory.mktemp("speech") / "buzz.flac", 2)


@pytest.fixture(scope="session")
def ten_seconds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, longer."""
    return _buzz(tmp_path_factory.mktemp("speech") / "ten.flac", 10)


@pytest.fixture(scope="session")
def twenty_seconds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, longer still."""
    return _buzz(tmp_path_factory.mktemp("speech") / "twenty.flac", 20)


def _buzz(path: Path, seconds: int) -> Path:
    t = np.arange(seconds * 16_000) / 16_000
    soundfile.write(path, 0.4 * np.sin(2 * np.pi * 140 * t) * (np.sin(2 * np.pi * 3 * t) > 0), 16_000)
    return path
