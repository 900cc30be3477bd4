"""A session in the engine's process: sound in, frames with their samples out, and it ends when asked to."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from avatar.errors import AvatarError, BadInput, WorkerLost
from avatar.media.intake import open_request
from avatar.media.portrait import open_portrait
from avatar.media.timeline import SAMPLES_PER_FRAME
from avatar.preset import Preset, load_preset
from avatar.request import LiveRequest, Request
from avatar.runtime.engine_process import EngineProcess
from avatar.runtime.factory import open_engine
from avatar.runtime.live_protocol import LiveFrames

ROOT = Path(__file__).parents[2]
PATIENCE_S = 60.0


def live_request(folder: Path, portrait: str = "mara.png") -> LiveRequest:
    path = folder / "portrait.png"
    Image.fromarray(open_portrait(ROOT / "assets" / "portraits" / portrait).pixels).save(path)
    preset = Preset("test", "Test", "For tests", "preview").with_settings(size="256*256")
    return LiveRequest(path, folder, preset, portrait, may_skip=False)


def video_request(folder: Path, preset: Preset) -> Request:
    speech = ROOT / "assets" / "speech" / "hello-en.flac"
    work = folder / "work"
    work.mkdir()
    request = open_request(folder / "portrait.png", speech, preset, output=folder / "out.mp4", work=work)
    return replace(request, num_frames=20)


@pytest.fixture(scope="module")
def engine():
    process = EngineProcess("avatar.preview.source:PreviewSource")
    yield process
    process.close()


LOUD = 1000  # of quieter sound, an engine that is still loading leaves out what has waited for long


def spoken(run, num_frames: int, level: int = 0) -> None:
    for index in range(num_frames):
        run.hear(np.full(SAMPLES_PER_FRAME, level + index, np.int16))


def test_frames_have_their_sound_and_the_next_session_is_fresh(engine, tmp_path):
    for _ in range(2):
        run = engine.live(live_request(tmp_path))
        spoken(run, 30)
        found = []
        for said in run.follow():
            if isinstance(said, LiveFrames):
                found.append(said)
            if len(found) == 26:
                run.end()
        assert [one.first_frame for one in found] == list(range(26))
        assert all((one.sound == one.first_frame).all() for one in found)
        assert found[0].frames.dtype == np.uint8


def test_another_background_is_behind_a_session(engine, tmp_path):
    run = engine.live(replace(live_request(tmp_path, "captain.png"), background="#204060"))
    spoken(run, 12)
    found = []
    for said in run.follow():
        if isinstance(said, LiveFrames):
            found.append(said.frames)
        if len(found) == 8:
            run.end()
    assert len(found) == 8
    for frames in found:
        assert (frames[:, :20, :20] == (32, 64, 96)).all()
        assert not (frames[:, 100:120, 120:140] == (32, 64, 96)).all(-1).any(), "the face"


@pytest.mark.slow
def test_ranks_of_the_diffusion_engine_follow_sound_too(tmp_path):
    preset = load_preset("self-test")
    engine = open_engine(preset)
    request = replace(live_request(tmp_path), preset=preset, prompt="a woman speaks")
    run = engine.live(request)
    spoken(run, 50, LOUD)
    found = []
    for said in run.follow():
        if isinstance(said, LiveFrames):
            found.append(said)
        if sum(len(one.frames) for one in found) >= 33:
            run.end()
    assert [(one.first_frame, len(one.frames)) for one in found[:3]] == [(0, 9), (9, 12), (21, 12)]
    assert (found[1].sound[::SAMPLES_PER_FRAME] == LOUD + np.arange(9, 21)).all()
    list(engine.stream(video_request(tmp_path, preset)))  # the ranks are free again
    engine.close()


def test_a_second_session_is_refused_while_one_goes_on(engine, tmp_path):
    run = engine.live(live_request(tmp_path))
    with pytest.raises(AvatarError, match="busy"):
        engine.live(live_request(tmp_path))
    run.end()
    run = engine.live(live_request(tmp_path))
    followed = run.follow()
    next(followed)
    followed.close()


def test_an_ended_session_frees_the_engine_at_once(engine, tmp_path):
    run = engine.live(live_request(tmp_path))
    spoken(run, 10)
    ended = threading.Timer(0.5, run.end)
    ended.start()
    list(run.follow())
    begin = time.monotonic()
    engine.live(live_request(tmp_path)).end()
    assert time.monotonic() - begin < PATIENCE_S


def test_a_killed_process_ends_the_session_in_words(tmp_path):
    engine = EngineProcess("avatar.preview.source:PreviewSource")
    run = engine.live(live_request(tmp_path))
    spoken(run, 10)
    followed = run.follow()
    while not isinstance(next(followed), LiveFrames):
        pass
    os.kill(engine.pid, signal.SIGKILL)
    with pytest.raises(WorkerLost):
        list(followed)
    engine.close()


def test_a_portrait_without_a_face_is_refused_in_words(engine, tmp_path):
    request = live_request(tmp_path)
    Image.fromarray(np.full((300, 300, 3), 128, np.uint8)).save(request.portrait)
    with pytest.raises(BadInput, match="No face"):
        list(engine.live(request).follow())


def test_an_engine_for_whole_speech_alone_says_so(tmp_path):
    engine = EngineProcess("tests.fixtures.sources:Coloured")
    with pytest.raises(AvatarError, match="cannot follow"):
        list(engine.live(live_request(tmp_path)).follow())
    engine.close()
