"""Measuring for a page: in another process, each video once, and no longer than somebody waits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from avatar.cli import main
from avatar.compare.bounded import BoundedMeasuring
from avatar.errors import BadInput, Cancelled

ROOT = Path(__file__).parents[2]
MAKE = ["generate", "--image", str(ROOT / "assets/portraits/astronaut.jpg"), "--preset", "cpu-preview"]

MEASURES = """
import sys
from pathlib import Path
from avatar.compare.bounded import BoundedMeasuring

measuring = BoundedMeasuring()
job = measuring.begin(Path(sys.argv[1]), 3.0)
found = job.result()
measuring.leave(job)
measuring.close()
assert found["num_frames"] > 50 and found["face_share"] == 1.0, found
assert found["lip_sync"]["confidence"] > 0.25, found
assert not {"cv2", "torch", "onnxruntime"} & set(sys.modules)
"""


@pytest.fixture(scope="module")
def talking(tmp_path_factory) -> Path:
    video = tmp_path_factory.mktemp("talking") / "a.mp4"
    speech = str(ROOT / "tests/data/speech/01_flite.flac")
    assert main([*MAKE, "--audio", speech, "--size", "256*256", "--output", str(video)]) == 0
    return video


@pytest.fixture
def measuring():
    made = BoundedMeasuring()
    yield made
    made.close()


def test_the_asking_process_loads_no_opencv(talking):
    subprocess.run([sys.executable, "-c", MEASURES, str(talking)], check=True, cwd=ROOT, timeout=300)


def test_a_video_is_measured_once(measuring, talking, tmp_path):
    copy = tmp_path / "copy.mp4"
    copy.write_bytes(talking.read_bytes())
    first, second = measuring.begin(talking, 3.0), measuring.begin(copy, 3.0)
    assert second is first
    measuring.leave(first)
    assert not first.cancelled.is_set(), "the other still waits"
    assert second.result()["width"] == 256
    measuring.leave(second)
    again = measuring.begin(talking, 3.0)
    assert again is first
    assert again.wait(0)


def test_a_video_that_nobody_waits_for_is_not_measured(measuring, talking):
    job = measuring.begin(talking, 3.0)
    measuring.leave(job)
    with pytest.raises(Cancelled):
        job.result()
    anew = measuring.begin(talking, 3.0)
    assert anew is not job
    assert anew.result()["height"] == 256


def test_a_file_that_is_no_video_is_refused_in_words(measuring, tmp_path):
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video" * 100)
    with pytest.raises(BadInput, match="cannot be read as a video") as error:
        measuring.begin(bad, 1.0).result()
    assert str(tmp_path) not in str(error.value)
