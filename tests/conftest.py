"""Fixtures that every test may use; they live in tests/fixtures."""

pytest_plugins = ["tests.fixtures.checkpoints", "tests.fixtures.driver"]
