"""Fixtures that every test may use; they live in tests/fixtures."""

import os
import tempfile

# Toy tensors: more threads would only wait for one another, in each of the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# What programs remember for their user is not the user's here.
os.environ["XDG_CONFIG_HOME"] = tempfile.mkdtemp(prefix="avatar-tests-")

pytest_plugins = ["tests.fixtures.checkpoints", "tests.fixtures.driver"]
