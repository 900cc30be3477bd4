"""Fixtures that every test may use, from tests/fixtures, and how tests are spread over workers."""

import os
import tempfile
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

# Toy tensors: more threads would only wait for one another, in each of the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# What programs remember for their user is not the user's here.
os.environ["XDG_CONFIG_HOME"] = tempfile.mkdtemp(prefix="avatar-tests-")
os.environ["AVATAR_CACHE"] = tempfile.mkdtemp(prefix="avatar-tests-cache-")

TESTS = count()

pytest_plugins = ["tests.fixtures.checkpoints", "tests.fixtures.driver"]


@pytest.fixture(autouse=True)
def nothing_remembered_between_tests(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of weights that one test names is not searched in the next."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.getbasetemp() / "settings" / str(next(TESTS))))


def pytest_itemcollected(item: pytest.Item) -> None:
    if Path(__file__).parent / "browser" in item.path.parents:
        item.add_marker(pytest.mark.browser)


class ByFile(LoadFileScheduling):
    """Files go to whichever worker is free; browser tests, which watch videos play, all go to one."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return "tests/browser" if file.startswith("tests/browser/") else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile | None:
    return ByFile(config, log) if config.getvalue("dist") == "loadfile" else None
