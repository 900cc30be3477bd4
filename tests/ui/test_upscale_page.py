"""Upscaling on the page: its choices, what its owner's program does, and a failure that keeps the video."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from pages import PORTRAIT, Page

from avatar.errors import AvatarError, BadInput
from avatar.events import Event
from avatar.preview.source import PreviewSource
from avatar.request import Request
from avatar.runtime.report import read_report
from avatar.runtime.stream import stream_frames
from avatar.ui.presets import settings_form
from avatar.ui.presets.settings_form import form_choices
from avatar.ui.state import submission
from avatar.ui.state.job_queue import KeptVideo
from tests.commands.test_upscale_command import TWICE


class InProcess:
    """The preview engine, in this process."""

    label = "preview"

    def stream(self, request: Request) -> Iterator[Event]:
        yield from stream_frames(PreviewSource(), request)

    def cancel(self) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.fixture
def page(tmp_path):
    made = Page(tmp_path, InProcess())
    yield made
    made.app_state.close()


@pytest.fixture
def words(tmp_path) -> Path:
    soundfile.write(tmp_path / "s.wav", np.sin(np.arange(24_000) * 0.05).astype(np.float32) * 0.3, 48_000)
    return tmp_path / "s.wav"


def kept(page: Page, words: Path, **settings: str) -> KeptVideo:
    run = submission.submit(page.app_state, PORTRAIT, words, "cpu-preview", {"size": "128*128", **settings})
    [last] = [event for event in run.follow(0.2) if isinstance(event, KeptVideo)]
    return last


def size_of(video: Path) -> tuple[int, int]:
    with av.open(str(video)) as container:
        return container.streams.video[0].width, container.streams.video[0].height


def test_the_video_of_the_gallery_is_1080p(page, words):
    made = kept(page, words, upscale="1080p")
    assert made.error is None
    assert min(size_of(made.entry.video)) == 1080
    assert min(size_of(made.entry.taken)) == 1080
    assert read_report(made.entry.report).upscaled.by == "lanczos"


def test_the_owners_program_takes_the_filters_place(page, words, tmp_path):
    (tmp_path / "twice.py").write_text(TWICE)
    page.job_queue.upscale_with = (sys.executable, str(tmp_path / "twice.py"), "{input}", "{output}")
    made = kept(page, words, upscale="1080p")
    assert read_report(made.entry.report).upscaled.by == "command"
    assert read_report(kept(page, words).entry.report).upscaled is None, "only where it is asked for"


def test_a_program_that_fails_leaves_the_video_in_the_gallery(page, words):
    page.job_queue.upscale_with = ("false", "{input}", "{output}")
    made = kept(page, words, upscale="1080p")
    assert isinstance(made.error, AvatarError)
    assert "false ended with code 1" in str(made.error)
    assert "/" not in str(made.error)
    assert max(size_of(made.entry.video)) < 200


def test_a_visitor_can_name_no_program(page):
    for value in ("cp {input} {output}", ["cp"], "command"):
        with pytest.raises(BadInput, match="off, 1080p, 1080p-arnet"):
            page.app_state.machine.with_settings("cpu-preview", {"upscale": value})
    with pytest.raises(BadInput, match="There is no setting"):
        page.app_state.machine.with_settings("cpu-preview", {"upscale_with": "cp {input} {output}"})


def test_a_package_that_is_not_installed_is_not_offered(monkeypatch):
    monkeypatch.setattr(settings_form, "has_arnet", lambda: False)
    assert form_choices("upscale", "en") == {"choices": [("off", "off"), ("1080p", "1080p")]}
    monkeypatch.setattr(settings_form, "has_arnet", lambda: True)
    assert form_choices("upscale", "zh")["choices"][-1] == ("1080p（ARNet 网络）", "1080p-arnet")
