"""A long speech on the page: its parts, a killed server, and resuming from the gallery."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from visiting import SPEECH, start_server, wait_until

SECONDS = 125  # from two minutes on, videos are made in parts


@pytest.fixture
def very_long_speech(tmp_path: Path) -> Path:
    sound, rate = soundfile.read(SPEECH)
    path = tmp_path / "lecture.wav"
    soundfile.write(path, np.tile(sound, 1 + SECONDS * rate // len(sound))[: SECONDS * rate], rate)
    return path


@pytest.mark.slow
def test_a_long_video_survives_its_server(visit, very_long_speech: Path, small_preset: str, tmp_path: Path):
    first = start_server(tmp_path / "server", "--preset", small_preset)
    visitor = visit(first.url)
    visitor.choose(speech=very_long_speech)
    visitor.generate()
    visitor.wait_state("running")
    wait_until(lambda: list(first.outputs.glob(".draft-*/half/parts/part_00000.mp4")), "a part is kept", 120)
    visitor.page.wait_for_selector("#status .figures >> text=Part 2 of", timeout=60_000)
    figures = visitor.page.inner_text("#status .figures")
    assert "1 kept" in figures
    assert "so far" in figures
    assert "left" in figures
    first.process.kill()
    first.process.wait()

    second = start_server(tmp_path / "server", "--preset", small_preset)
    visitor = visit(second.url)
    visitor.page.wait_for_selector(".video .badge:has-text('unfinished')")
    assert visitor.page.locator("#gallery .video").count() == 1
    visitor.page.click(".video button:has-text('Resume')")
    visitor.wait_state("running")
    visitor.page.wait_for_selector("#notices :text('Resumed')")
    visitor.page.wait_for_selector('#status .status[data-state="done"]', timeout=180_000)
    [video] = second.videos()
    with av.open(str(video)) as film:
        assert film.streams.video[0].frames == SECONDS * 25
        assert abs(film.streams.audio[0].duration * film.streams.audio[0].time_base - SECONDS) < 0.04
    visitor.page.wait_for_selector("#gallery .video-buttons a[download]")
    assert visitor.page.locator(".video button:has-text('Resume')").count() == 0
    assert visitor.errors == []
    wait_until(lambda: not second.leftovers(), "temporary files are gone")
    second.stop()
