"""Fixtures that every test may use; they live in tests/fixtures."""

import os

# Toy tensors: more threads would only wait for one another, in each of the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

pytest_plugins = ["tests.fixtures.checkpoints", "tests.fixtures.driver"]
