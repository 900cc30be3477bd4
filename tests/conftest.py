"""Fixtures that every test may use, from tests/fixtures, and which tests may run beside one another."""

import os
import tempfile
from pathlib import Path

import pytest

# Toy tensors: more threads would only wait for one another, in each of the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# What programs remember for their user is not the user's here.
os.environ["XDG_CONFIG_HOME"] = tempfile.mkdtemp(prefix="avatar-tests-")

pytest_plugins = ["tests.fixtures.checkpoints", "tests.fixtures.driver"]


BROWSER = Path(__file__).parent / "browser"


def pytest_itemcollected(item: pytest.Item) -> None:
    """Group tests for `--dist loadgroup`: browser tests, which watch videos play, then the others by file."""
    is_browser = BROWSER in item.path.parents
    if is_browser:
        item.add_marker(pytest.mark.browser)
    item.add_marker(pytest.mark.xdist_group("browser" if is_browser else str(item.path)))
