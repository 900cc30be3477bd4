"""What a pipeline tells an observer, in which order; and that nobody has to be a pipeline to observe one."""

from __future__ import annotations

import ast
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from avatar.errors import Cancelled
from avatar.events import Notice
from avatar.geometry import FPS, Size
from avatar.media.intake import open_request
from avatar.media.sample_inputs import write_sample
from avatar.pipeline.observer import Observer
from avatar.pipeline.pipeline import DiffusionPipeline
from avatar.preset import load_preset

PRESET = load_preset("self-test")
ROOT = Path(__file__).parents[2]
STEP = ["checked", "stepping 1", "stepped"]


class Diary(Observer):
    """Every call of it, by name; the end of what it was entered for, too."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def run_begins(self) -> None:
        self.calls.append("begins")

    def checked(self) -> None:
        self.calls.append("checked")

    def loading(self) -> None:
        self.calls.append("loading")

    def encoded(self) -> None:
        self.calls.append("encoded")

    def prefilling(self):
        return self._within("prefilling", "prefilled")

    def submitted(self) -> None:
        self.calls.append("submitted")

    def collecting(self) -> None:
        self.calls.append("collecting")

    def stepping(self, num_blocks):
        return self._within(f"stepping {num_blocks}", "stepped")

    def denoised(self, traffic) -> None:
        self.calls.append(f"denoised {traffic.to_device_bytes}")

    def priming(self):
        return self._within("priming", "primed")

    def decoding(self):
        return self._within("decoding", "decoding ends")

    def decoded(self, frames) -> None:
        self.calls.append(f"decoded {len(frames)}")

    def notices(self):
        self.calls.append("ends")
        return [Notice("diary", "It was written.")]

    @contextmanager
    def _within(self, begin, end):
        self.calls.append(begin)
        yield
        self.calls.append(end)


@pytest.fixture
def request_of(tmp_path):
    def build(num_frames: int, **settings):
        inputs = write_sample(tmp_path, Size(96, 96), num_frames / FPS)
        places = {"output": tmp_path / "o.mp4", "work": tmp_path / "w"}
        return open_request(*inputs, PRESET.with_settings(**settings), **places)

    return build


def test_an_observer_is_reported_of_a_run_in_order(request_of, tiny_checkpoint):
    diary = Diary()
    items = list(DiffusionPipeline(PRESET, tiny_checkpoint, observer=diary).frames(request_of(21), bool))
    assert [item.code for item in items if isinstance(item, Notice)] == ["diary"]
    loading = diary.calls[: diary.calls.index("encoded")]
    assert loading[0] == "begins"
    assert loading.count("loading") > 100  # its tensors
    assert set(loading) == {"begins", "loading", "checked"}
    first = ["submitted", "priming", "primed", "collecting", *STEP, *STEP, "denoised 0"]
    second = ["submitted", "collecting", *STEP, *STEP, "denoised 0"]
    assert diary.calls[len(loading) :] == [
        *("encoded", "checked", "prefilling", "prefilled"),
        *(*first, "checked", "decoding", "decoding ends", "decoded 9"),
        *(*second, "checked", "decoding", "decoding ends", "decoded 12"),
        "ends",
    ]


def test_offline_decoding_follows_the_last_block(request_of, tiny_checkpoint):
    diary = Diary()
    request = request_of(21, enable_online_decode=False)
    list(DiffusionPipeline(PRESET, tiny_checkpoint, observer=diary).frames(request, bool))
    reported = [call for call in diary.calls if call in ("denoised 0", "priming", "decoding")]
    assert reported == ["denoised 0", "denoised 0", "priming", "decoding", "decoding"]


def test_an_observer_changes_no_frame(request_of, tiny_checkpoint):
    request, found = request_of(21), []
    for observer in (Observer(), Diary()):
        items = DiffusionPipeline(PRESET, tiny_checkpoint, observer=observer).frames(request, bool)
        found.append(np.concatenate([item for item in items if isinstance(item, np.ndarray)]))
    assert np.array_equal(*found)


def test_a_stopped_run_has_no_notices(request_of, tiny_checkpoint):
    diary = Diary()
    source = DiffusionPipeline(PRESET, tiny_checkpoint, observer=diary)
    with pytest.raises(Cancelled):
        list(source.frames(request_of(21), lambda: "stepped" in diary.calls))
    assert "ends" not in diary.calls


def bases(source: str) -> set[str]:
    """Names of the classes that others derive from."""
    classes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef)]
    return {ast.unparse(base).rpartition(".")[2] for found in classes for base in found.bases}


def test_no_class_derives_from_a_pipeline():
    """Nor from a denoiser, a stage or a coordinator: what differs is given to them."""
    whole = {"DiffusionPipeline", "LocalDenoiser", "ParallelDenoiser", "Stage", "Coordinator"}
    assert bases("class Timed(pipeline.DiffusionPipeline): ...") & whole
    files = [file for folder in ("avatar", "benchmarks", "tests") for file in (ROOT / folder).rglob("*.py")]
    derived = {str(file.relative_to(ROOT)) for file in files if bases(file.read_text("utf-8")) & whole}
    assert derived == set()
