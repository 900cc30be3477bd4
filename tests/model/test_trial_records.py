"""Trials that worked are recorded for later processes, as long as nothing they depend on has changed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from avatar.model import device_checks, trial_records
from avatar.model.device_checks import missing, remember_trials, works
from avatar.model.trial_records import TrialRecords

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


class Tries:
    """A trial that counts how often it was tried."""

    __name__ = "tries"

    def __init__(self, fails: bool = False) -> None:
        self.count, self.fails = 0, fails

    def __call__(self, device: torch.device) -> None:
        self.count += 1
        if self.fails:
            raise RuntimeError("No execution plans support the graph.")


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(device_checks, "_missing", {})
    monkeypatch.setattr(device_checks, "_records", None)
    forget_facts()
    yield
    forget_facts()


def forget_facts() -> None:
    trial_records.device_facts.cache_clear()
    trial_records.software_facts.cache_clear()


@pytest.fixture
def next_process(tmp_path) -> Callable[[], None]:
    """Begin anew, as another process on this machine does."""

    def begin() -> None:
        forget_facts()
        remember_trials(tmp_path)

    begin()
    return begin


@pytest.fixture
def card(monkeypatch) -> SimpleNamespace:
    """An imagined card with its driver."""
    card = SimpleNamespace(name="NVIDIA H200", major=9, minor=0, total_memory=2**37)
    driver = SimpleNamespace(version="580.65.06", close=lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    monkeypatch.setattr(trial_records, "open_driver", lambda: driver)
    return SimpleNamespace(card=card, driver=driver)


def test_a_recorded_trial_is_not_repeated(next_process):
    trial = Tries()
    for _ in range(3):
        assert works("compile", trial, CPU)
        next_process()
    assert trial.count == 1


def test_each_path_and_each_trial_has_its_own_record(next_process):
    one, other = Tries(), Tries()
    other.__name__ = "others"
    assert works("int8", one, CPU)
    assert works("int8", other, CPU)
    assert works("fp8", one, CPU)
    heads = functools.partial(lambda heads, device: one(device), 40)
    assert works("attention", heads, CPU)
    assert works("attention", functools.partial(heads.func, 24), CPU)
    assert (one.count, other.count) == (4, 1)


def test_a_failure_is_tried_again(next_process):
    trial = Tries(fails=True)
    assert not works("cudnn", trial, CPU)
    next_process()
    trial.fails = False
    assert works("cudnn", trial, CPU)
    assert trial.count == 2


def test_another_driver_or_card_is_tried_again(next_process, card):
    trial = Tries()
    assert works("compile", trial, CUDA)
    card.driver.version = "590.10"
    next_process()
    assert works("compile", trial, CUDA)
    card.card.name = "NVIDIA L40S"
    next_process()
    assert works("compile", trial, CUDA)
    next_process()
    assert works("compile", trial, CUDA)
    assert trial.count == 3


def test_another_torch_is_tried_again(next_process, monkeypatch):
    trial = Tries()
    assert works("compile", trial, CPU)
    monkeypatch.setattr(trial_records.metadata, "version", lambda name: "99.0")
    next_process()
    assert works("compile", trial, CPU)
    assert trial.count == 2


def test_a_compiler_that_is_gone_is_tried_again(next_process, monkeypatch, tmp_path):
    compiler = tmp_path / "gcc"
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    next_process()
    trial = Tries()
    assert works("compile", trial, CPU)
    compiler.unlink()
    next_process()
    assert works("compile", trial, CPU)
    assert trial.count == 2


def test_changed_code_of_ours_is_tried_again(next_process, monkeypatch, tmp_path):
    code = tmp_path / "code"
    code.mkdir()
    (code / "kernel.py").write_text("one")
    monkeypatch.setattr(trial_records, "CODE", code)
    next_process()
    trial = Tries()
    assert works("kernels", trial, CPU)
    (code / "kernel.py").write_text("two")
    next_process()
    assert works("kernels", trial, CPU)
    assert trial.count == 2


def test_a_damaged_record_is_as_good_as_none(next_process, tmp_path):
    trial = Tries()
    assert works("compile", trial, CPU)
    (record,) = (tmp_path / trial_records.FOLDER).iterdir()
    for content in ("", "[1", "{}", "\x00"):
        record.write_text(content)
        assert works("compile", trial, CPU)
    assert trial.count == 5


def test_a_folder_that_cannot_be_written_ends_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    remember_trials(tmp_path / "file")
    trial = Tries()
    assert works("compile", trial, CPU)
    assert works("compile", trial, CPU)
    assert trial.count == 2
    assert missing() == []


def test_a_process_that_was_not_told_to_records_nothing(tmp_path, monkeypatch):
    """`doctor` among them, which tries everything anew."""
    monkeypatch.setattr(TrialRecords, "_file", lambda *_: pytest.fail("a record was looked for"))
    trial = Tries()
    assert works("compile", trial, CPU)
    assert works("compile", trial, CPU)
    assert trial.count == 2


def test_memory_settings_are_applied_in_each_process(next_process, monkeypatch):
    """What a trial leaves behind in its process, a record cannot replace."""
    device_checks.grows_segments.cache_clear()
    tried = []
    monkeypatch.setattr(device_checks, "_try_segments", tried.append)
    for _ in range(2):
        device_checks.grows_segments.cache_clear()
        assert device_checks.grows_segments(CPU)
        next_process()
    device_checks.grows_segments.cache_clear()
    assert tried == [CPU, CPU]


def test_records_lie_below_the_cache_of_weights(tmp_path):
    records = TrialRecords(tmp_path)
    records.add("compile", Tries(), CPU)
    assert [path.name for path in Path(tmp_path).iterdir()] == [trial_records.FOLDER]
    assert records.has("compile", Tries(), CPU)
