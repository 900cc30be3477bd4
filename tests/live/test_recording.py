"""A session's recording: what a full disk leaves of it is kept and plays."""

from __future__ import annotations

import resource
import threading
from pathlib import Path

import av
import numpy as np
import pytest

from avatar.geometry import FPS
from avatar.live.recording import Recording
from avatar.media.timeline import SAMPLES_PER_FRAME
from avatar.runtime.gallery import About, Gallery, GalleryEntry
from avatar.runtime.live_protocol import LiveFrames
from tests.fixtures.server import wait_until

ABOUT = About("me.png", "live", "", "live-preview", "preview", {}, 0, 0.0, False)


def second(number: int) -> LiveFrames:
    """A second of noise, which takes much space."""
    rng = np.random.default_rng(number)
    frames = rng.integers(0, 255, (FPS, 128, 128, 3), np.uint8)
    return LiveFrames(number * FPS, frames, rng.integers(-9000, 9000, FPS * SAMPLES_PER_FRAME, np.int16))


@pytest.fixture
def recorded(tmp_path: Path):
    """A function that records so many seconds; returns the entry."""
    gallery, kept = Gallery(tmp_path / "outputs"), []
    saved = threading.Event()

    def keep(entry: GalleryEntry | None) -> None:
        kept.append(entry)
        saved.set()

    def record(seconds: int) -> GalleryEntry | None:
        recording = Recording(gallery, ABOUT, keep)
        for number in range(seconds):
            wait_until(lambda: recording._frames.qsize() < 3 or saved.is_set(), "the writer")
            recording.show(second(number))
        recording.stop()
        assert saved.wait(60)
        return kept[0]

    return record


def decoded(path: Path) -> tuple[int, int]:
    """The frames and samples of a video that are decoded."""
    with av.open(str(path)) as movie:
        frames = sum(1 for _ in movie.decode(video=0))
    with av.open(str(path)) as movie:
        return frames, sum(frame.samples for frame in movie.decode(audio=0))


def test_a_recording_is_an_ordinary_mp4_in_the_end(recorded):
    entry = recorded(3)
    frames, samples = decoded(entry.video)
    assert frames == entry.about.num_frames == 75
    assert abs(samples - 75 * SAMPLES_PER_FRAME) <= 2048
    data = entry.video.read_bytes()
    assert b"moof" not in data
    assert data.index(b"moov") < data.index(b"mdat")
    assert not [path for path in entry.video.parent.iterdir() if path.name.startswith("recorded")]


def test_what_a_full_disk_leaves_of_a_recording_is_kept(recorded):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, before[1]))
    try:
        entry = recorded(30)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    frames, _ = decoded(entry.video)
    assert 50 <= frames < 30 * FPS
    assert abs(frames - entry.about.num_frames) <= 1
    assert entry.thumbnail.is_file()
