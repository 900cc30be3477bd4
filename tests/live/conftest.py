"""Live sessions over engines that need no time: their routes, and conversations."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.testclient import TestClient

from avatar.live.conversation import Conversation
from avatar.live.session import LiveSession
from avatar.live.state import LiveOptions, LiveState
from avatar.live.voice import SessionVoice
from avatar.media.limits import InputLimits
from avatar.media.readers import Reader
from avatar.media.speech_reader import SpeechReader, write_speech
from avatar.preset import Preset
from avatar.request import LiveRequest
from avatar.runtime.gallery import Gallery
from avatar.ui.routes.live_routes import live_routes
from avatar.ui.routes.request_guard import Guard
from avatar.ui.state.uploads import Uploads
from tests.fixtures.speech_services import SpeechServices
from tests.live.engines import Noting, QuickEngine
from tests.live.services import Deaf, Parrot, Voices
from tests.live.sockets import ROOT

PRESET = Preset("live-test", "Test", "For tests", "preview")
REQUEST = LiveRequest(Path(), Path(), Preset("test", "Test", "For tests", "preview"), "me.png")


@pytest.fixture
def engines():
    return [QuickEngine()]


@pytest.fixture
def state(engines, tmp_path):
    gallery = Gallery(tmp_path / "outputs")
    state = LiveState(LiveOptions(PRESET, Deaf()), engines, gallery, Voices())
    yield state
    state.close()
    gallery.close()


@pytest.fixture
def client(state, tmp_path):
    uploads = Uploads(tmp_path / "uploads")
    app_state = SimpleNamespace(
        uploads=uploads, scratch=tmp_path, limits=InputLimits(), reader=lambda visitor: Reader()
    )
    guard = Middleware(Guard, names={"testserver", "localhost"})
    with TestClient(Starlette(routes=live_routes(app_state, state), middleware=[guard])) as client:
        folder = uploads.stage()
        (folder / "me.png").write_bytes((ROOT / "assets" / "portraits" / "mara.png").read_bytes())
        client.portrait = str(uploads.place(folder / "me.png", "me.png"))
        yield client


@pytest.fixture
def server():
    server = SpeechServices("Nice to ", "hear from you. ", "How is ", "the weather there?")
    yield server
    server.close()


@pytest.fixture
def talk():
    """A function that begins a conversation over an engine that needs no time."""
    begun = []

    def talking(recogniser=None, chat=None, voices=None):
        session, watcher = LiveSession(QuickEngine(), REQUEST), Noting()
        session.watch(watcher)
        voice = SessionVoice(session, voices or Voices())
        conversation = Conversation(session, voice, recogniser or Parrot(), chat)
        begun.append(conversation)
        conversation.set_mode("talk")
        return conversation, watcher

    yield talking
    for conversation in begun:
        conversation.close()
        conversation.session.end()


@pytest.fixture(scope="module")
def speech(tmp_path_factory) -> np.ndarray:
    """Two seconds of somebody speaking, and two of silence; int16 at 48 kHz."""
    path = tmp_path_factory.mktemp("speech") / "speech.wav"
    write_speech(ROOT / "assets" / "speech" / "hello-en.flac", path)
    with SpeechReader(path) as reader:
        spoken = reader.samples(0, 96_000)[:, 0].astype(np.int16)
    return np.concatenate([spoken, np.zeros(96_000, np.int16)])
