"""Programs and pages at a session's WebSocket: what they are sent, what they may send, and whose it is."""

from __future__ import annotations

import io
import json
import struct
import time
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from avatar.errors import AvatarError
from avatar.live.service_address import ServiceAddress, ServiceDown
from avatar.live.state import OFFERS_PER_MINUTE, LiveOptions, LiveState
from avatar.live.transports import websocket
from avatar.live.transports.webrtc import IceServer
from avatar.media.limits import InputLimits
from avatar.media.readers import Reader
from avatar.preset import Preset
from avatar.runtime.gallery import Gallery, owner_hash
from avatar.speech.catalogue import Catalogue
from avatar.speech.voices import Voice
from avatar.ui.routes.live_routes import live_routes
from avatar.ui.routes.request_guard import Guard
from avatar.ui.state.uploads import Uploads
from tests.fixtures.server import wait_until
from tests.live.engines import QuickEngine

ROOT = Path(__file__).parents[2]
PRESET = Preset("live-test", "Test", "For tests", "preview")


class Beeps:
    """See SpeechEngine: a beep for each letter, at once."""

    hz = 24_000

    def voices(self):
        return [Voice("heart", "en-US", (), "Beeps")]

    def load(self, voice):
        pass

    def synthesise(self, text, voice, speed=1.0):
        places = np.arange(len(text) * 1200)
        yield (0.3 * np.sin(places * 0.1)).astype(np.float32)


class Voices(Catalogue):
    engines = (Beeps(),)


class Deaf:
    """See Recogniser: always down."""

    def load(self):
        pass

    def words(self, samples):
        raise ServiceDown("The recogniser is down.", why="silent", service="recognition", host="here")


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


def begin(client, **more) -> str:
    answer = client.post("/live/sessions", json={"portrait": client.portrait, **more})
    assert answer.status_code == 200, answer.text
    return answer.json()["socket"]


def reported(socket, kind: str) -> dict:
    """The next message of a kind; what comes before it is left aside."""
    for _ in range(2000):
        message = socket.receive()
        if message.get("text"):
            said = json.loads(message["text"])
            if said["type"] == kind:
                return said
        assert message["type"] != "websocket.close", message
    raise AssertionError(f"no {kind}")


def data(socket) -> bytes:
    while True:
        message = socket.receive()
        if message.get("bytes"):
            return message["bytes"]


def test_sound_in_gives_raw_frames_with_that_sound(client):
    with client.websocket_connect(begin(client)) as socket:
        assert reported(socket, "begun")["fps"] == 25
        socket.send_json({"type": "hello", "rate": 48_000, "video": "raw"})
        spoken = np.arange(1, 48_001, dtype="<i2")
        for piece in np.split(spoken[:13_440], 7):  # less than is dropped for being late
            socket.send_bytes(piece.tobytes())
        heard, numbers = [], []
        while sum(bool(piece.any()) for piece in heard) < 4 and len(heard) < 200:
            message = data(socket)
            magic, frame, width, height, count = websocket.RAW_HEADER.unpack_from(message)
            assert (magic, width, height) == (b"LIVE", 48, 64)
            at = websocket.RAW_HEADER.size + 48 * 64 * 3
            assert len(message) == at + 2 * count
            heard.append(np.frombuffer(message[at:], "<i2"))
            numbers.append(frame)
        assert np.diff(numbers).min() >= 1
        assert any(piece.any() for piece in heard)
        for piece in heard:  # a machine that is too slow leaves whole frames out, with their sound
            spoken_here = piece[np.flatnonzero(piece)].astype(int)
            assert (np.diff(spoken_here) == 1).all()
        socket.send_json({"type": "end"})
        reported(socket, "end")


def test_fragments_play_as_an_mp4(client):
    with client.websocket_connect(begin(client)) as socket:
        reported(socket, "begun")
        socket.send_json({"type": "hello", "video": "fmp4"})
        stream = reported(socket, "stream")
        assert stream["codecs"].startswith("video/mp4")
        movie = io.BytesIO(b"".join(data(socket) for _ in range(15)))
    with av.open(movie) as container:
        assert len(list(container.decode(video=0))) >= 12


def test_text_is_said_by_sentence_until_interrupted(client, state):
    token = begin(client)
    with client.websocket_connect(token) as socket:
        reported(socket, "begun")
        socket.send_json({"type": "mode", "mode": "type"})
        text = "One sentence to say. And then another one. " + "More of it follows here. " * 20
        socket.send_json({"type": "say", "text": text})
        assert reported(socket, "said")["text"] == "One sentence to say."
        second = reported(socket, "said")
        assert second["text"] == "And then another one."
        assert second["in_s"] > 0.5
        session = state.opened(token.removeprefix("live/")).ticket.session
        socket.send_json({"type": "interrupt"})
        wait_until(lambda: session.sound_queue.waiting_s == 0, "silence")


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("{", "not understood"),
        ("[1]", "not understood"),
        ('{"type": 3}', "not understood"),
        ('{"type": "fly"}', "no message"),
        ('{"type": "mode", "mode": "sing"}', "no such mode"),
        ('{"type": "media", "video": "vhs"}', "no such video"),
        ('{"type": "hello", "rate": 5}', "5 Hz"),
        ('{"type": "hello", "rate": "x"}', "number"),
        ('{"type": "say", "text": ""}', "nothing to say"),
        (json.dumps({"type": "say", "text": "a" * 3000}), "too long"),
        ('{"type": "say", "text": "Hi.", "voice": "nobody"}', "no voice"),
    ],
)
def test_what_cannot_be_done_is_said_and_the_session_lives(client, message, words):
    with client.websocket_connect(begin(client)) as socket:
        reported(socket, "begun")
        socket.send_text(message)
        assert words in reported(socket, "notice")["text"]
        socket.send_json({"type": "ping", "at": 7})
        assert reported(socket, "pong")["at"] == 7


@pytest.mark.parametrize("message", ["x" * 70_000, b"\0" * 70_000])
def test_a_message_that_is_too_large_closes_the_socket(client, message):
    with client.websocket_connect(begin(client)) as socket:
        reported(socket, "begun")
        (socket.send_bytes if isinstance(message, bytes) else socket.send_text)(message)
        with pytest.raises(WebSocketDisconnect) as closed:
            events_forever(socket)
        assert closed.value.code == 1009


def events_forever(socket):
    while True:
        message = socket.receive()
        if message["type"] == "websocket.close":
            raise WebSocketDisconnect(message["code"], message.get("reason"))


def test_floods_close_the_socket(client):
    with client.websocket_connect(begin(client)) as socket:
        reported(socket, "begun")
        for _ in range(30 * websocket.MOST_MESSAGES_PER_S):
            socket.send_text('{"type": "ping"}')
        with pytest.raises(WebSocketDisconnect) as closed:
            events_forever(socket)
        assert closed.value.code == 1008


def test_texts_faster_than_anybody_types_are_refused_in_words(client):
    with client.websocket_connect(begin(client)) as socket:
        reported(socket, "begun")
        for _ in range(10):  # of eight at once
            socket.send_json({"type": "record", "on": False})
        for _ in range(8):
            assert reported(socket, "recording")["on"] is False
        assert "too fast" in reported(socket, "notice")["text"]
        socket.send_json({"type": "ping", "at": 7})
        assert reported(socket, "pong")["at"] == 7


def test_what_a_network_held_back_for_seconds_may_come_at_once(client):
    with client.websocket_connect(begin(client)) as socket:
        reported(socket, "begun")
        for _ in range(150):
            socket.send_bytes(b"\0" * 3840)  # 40 ms, as the page sends them: six seconds
        socket.send_text('{"type": "ping", "at": 7}')
        assert reported(socket, "pong")["at"] == 7


def test_sound_faster_than_it_is_spoken_closes_the_socket(client):
    with client.websocket_connect(begin(client)) as socket:
        reported(socket, "begun")
        for _ in range(40):
            socket.send_bytes(b"\0" * 60_000)
        with pytest.raises(WebSocketDisconnect) as closed:
            events_forever(socket)
        assert closed.value.code == 1008


@pytest.mark.parametrize("token", ["0" * 48, "ab"])
def test_a_token_that_is_nobodys_opens_nothing(client, token):
    begin(client)
    with client.websocket_connect(f"live/{token}") as socket, pytest.raises(WebSocketDisconnect) as closed:
        events_forever(socket)
    assert closed.value.code == 4404
    assert client.post(f"/live/{token}/offer", json={"sdp": "v=0"}).status_code == 404


@pytest.mark.parametrize(
    "headers", [{"origin": "https://evil.example"}, {"host": "evil.example"}, {"origin": "null"}]
)
def test_pages_elsewhere_open_no_socket(client, headers):
    path = begin(client)
    with pytest.raises(WebSocketDisconnect), client.websocket_connect(path, headers=headers):
        pass
    with client.websocket_connect(path, headers={"origin": "http://testserver"}) as socket:
        reported(socket, "begun")


def test_other_addresses_open_no_socket(client):
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/gradio_api/queue/join"):
        pass


@pytest.mark.parametrize(
    "asked", [{}, {"portrait": "/etc/passwd"}, {"portrait": ["x"]}, {"portrait": ""}, [], "x"]
)
def test_only_an_upload_begins_a_session(client, asked):
    answer = client.post("/live/sessions", json=asked)
    assert answer.status_code == 400
    assert "passwd" not in answer.text


@pytest.mark.parametrize(
    "background",
    [
        {"background": "transparent"},
        {"background": "/etc/passwd"},
        {"background_picture": "/etc/passwd"},
        {"background_picture": ["x"]},
        {"background": 5},
    ],
)
def test_what_cannot_be_behind_a_session_begins_none(client, background):
    answer = client.post("/live/sessions", json={"portrait": client.portrait, **background})
    assert answer.status_code == 400
    assert "root:" not in answer.text


def test_an_uploaded_picture_may_be_behind_a_session(client):
    assert begin(client, background_picture=client.portrait)
    assert begin(client, background="blur")


@pytest.mark.parametrize("motion", ["wild", 5, ["calm"], {"motion": "calm"}])
def test_a_motion_that_there_is_not_begins_no_session(client, motion):
    answer = client.post("/live/sessions", json={"portrait": client.portrait, "motion": motion})
    assert answer.status_code == 400
    assert "still, calm, normal, lively" in answer.json()["error"]


def test_a_session_moves_as_much_as_it_is_asked_to(client, state):
    for motion in ("still", None):
        url = begin(client, motion=motion)
        request = state.session_queue.find(url.rpartition("/")[2]).request
        assert request.preset.generation.motion == (motion or "normal")


def test_a_second_visitor_is_reported_the_place_and_follows(client, state):
    first, second = begin(client), begin(client)
    with client.websocket_connect(second) as waits:
        assert reported(waits, "waiting")["place"] == 1
        with client.websocket_connect(first) as goes:
            reported(goes, "begun")
            goes.send_json({"type": "end"})
        reported(waits, "begun")
    assert client.post("/live/sessions", json={"portrait": client.portrait}).status_code == 200
    assert client.post("/live/sessions", json={"portrait": client.portrait}).status_code == 429


def test_what_is_asked_while_waiting_holds_once_it_begins(client, state):
    first, second = begin(client), begin(client)
    with client.websocket_connect(second) as waits:
        reported(waits, "waiting")
        waits.send_json({"type": "hello", "rate": 48_000, "video": "raw"})
        waits.send_json({"type": "mode", "mode": "type"})
        waits.send_json({"type": "say", "text": "Too early."})
        assert "not begun" in reported(waits, "notice")["text"]
        with client.websocket_connect(first) as goes:
            reported(goes, "begun")
            goes.send_json({"type": "end"})
        reported(waits, "begun")
        assert data(waits)
        assert state.opened(second.removeprefix("live/")).conversation.mode == "type"


def test_a_closed_page_frees_the_engine_at_once(client, state, engines):
    path = begin(client)
    with client.websocket_connect(path) as socket:
        reported(socket, "begun")
    began = time.monotonic()
    assert client.post(f"/{path}/leave").status_code == 204
    wait_until(lambda: engines[0].running is None, "the engine is free", 20)
    assert time.monotonic() - began < 20
    assert state.session_queue.find(path.removeprefix("live/")) is None


def test_a_lost_connection_finds_its_session_again(client, state):
    path = begin(client)
    for _ in range(2):
        with client.websocket_connect(path) as socket:
            reported(socket, "begun")
            socket.send_json({"type": "hello", "video": "raw"})
            data(socket)
    assert state.session_queue.find(path.removeprefix("live/")).session.pace.num_frames > 0


def test_a_failed_engine_is_explained_in_words(client, engines):
    with client.websocket_connect(begin(client)) as socket:
        reported(socket, "begun")
        engines[0].failure = AvatarError("The engine's process was lost.", "Begin again.")
        assert reported(socket, "end")["reason"] == "The engine's process was lost. Begin again."


def test_a_recording_lands_in_the_gallery_of_its_owner(client, state):
    with client.websocket_connect(begin(client, owner="s3cret")) as socket:
        reported(socket, "begun")
        socket.send_json({"type": "say", "text": "Something to record for a while."})
        reported(socket, "said")
        socket.send_json({"type": "record", "on": True})
        assert reported(socket, "recording")["on"] is True
        reported(socket, "pace"), reported(socket, "pace")
        socket.send_json({"type": "record", "on": False})
        id = reported(socket, "recorded")["id"]
    assert state.gallery.get(id, owner_hash("another")) is None
    entry = state.gallery.get(id, owner_hash("s3cret"))
    assert entry.about.num_frames >= 5
    with av.open(str(entry.video)) as movie:
        frames = len(list(movie.decode(video=0)))
    with av.open(str(entry.video)) as movie:
        sound = sum(frame.samples for frame in movie.decode(audio=0))
    assert frames == entry.about.num_frames
    assert abs(sound / 48_000 - frames / 25) < 0.05
    assert entry.thumbnail.is_file()


def test_a_recording_is_kept_when_its_page_is_closed(client, state):
    path = begin(client, owner="s3cret")
    with client.websocket_connect(path) as socket:
        reported(socket, "begun")
        socket.send_json({"type": "record", "on": True})
        reported(socket, "recording"), reported(socket, "pace"), reported(socket, "pace")
    assert client.post(f"/{path}/leave").status_code == 204
    wait_until(lambda: state.gallery.entries(owner_hash("s3cret")), "the recording is in the gallery")
    assert state.gallery.entries(owner_hash("another")) == []


def test_a_visitor_is_given_the_ice_servers_of_the_flags(client, state):
    state.options.ice = [IceServer.parse("stun:a.example:1"), IceServer.parse("turn:me:pw@b.example:2")]
    with client.websocket_connect(begin(client)) as socket:
        assert reported(socket, "begun")["ice"] == [
            {"urls": "stun:a.example:1"},
            {"urls": "turn:b.example:2", "username": "me", "credential": "pw"},
        ]


def loud(message: bytes) -> bool:
    return bool(np.frombuffer(message[websocket.RAW_HEADER.size + 48 * 64 * 3 :], "<i2").any())


@pytest.mark.parametrize("engines", [[QuickEngine(), QuickEngine()]])
def test_text_and_sound_reach_their_own_visitor_alone(client, engines):
    first, second = begin(client), begin(client)
    with client.websocket_connect(first) as mine, client.websocket_connect(second) as theirs:
        for socket in (mine, theirs):
            reported(socket, "begun")
            socket.send_json({"type": "hello", "video": "raw"})
        mine.send_json({"type": "say", "text": "This is for me alone."})
        assert reported(mine, "said")["text"] == "This is for me alone."
        wait_until(lambda: loud(data(mine)), "what was said is heard")
        theirs.send_json({"type": "ping", "at": 1})
        came = []
        while not came or came[-1].get("type") != "pong":
            message = theirs.receive()
            said = message.get("text")
            came.append(json.loads(said) if said else {"loud": loud(message["bytes"])})
        assert not any(one["type"] == "said" for one in came if "type" in one)
        assert not any(one["loud"] for one in came if "loud" in one)


def test_of_too_many_connections_the_oldest_is_closed(client):
    path = begin(client)
    with ExitStack() as opened:
        sockets = [opened.enter_context(client.websocket_connect(path)) for _ in range(4)]
        with pytest.raises(WebSocketDisconnect) as closed:
            events_forever(sockets[0])
        assert closed.value.code == websocket.REPLACED
        for socket in sockets[1:]:
            socket.send_json({"type": "ping", "at": 3})
            assert reported(socket, "pong")["at"] == 3


def test_offers_are_limited_in_rate(client):
    path = begin(client)
    with client.websocket_connect(path) as socket:
        reported(socket, "begun")
        answers = [client.post(f"/{path}/offer", json={"sdp": 5}) for _ in range(OFFERS_PER_MINUTE + 1)]
    assert [one.status_code for one in answers] == [400] * OFFERS_PER_MINUTE + [429]
    assert "too often" in answers[-1].json()["error"]


def test_errors_are_said_in_the_visitors_language(client, state):
    state.options.chat = ServiceAddress("http://127.0.0.1:9", "m")
    chinese = {"accept-language": "zh-CN"}
    with client.websocket_connect(begin(client), headers=chinese) as socket:
        reported(socket, "begun")
        socket.send_json({"type": "mode", "mode": "talk"})
        socket.send_json({"type": "say", "text": "Hello?", "answer": True})
        assert reported(socket, "notice")["text"] == "聊天服务器 127.0.0.1 没有响应。会话继续，请稍后再试。"
    begin(client)
    begun = client.post("/live/sessions", json={"portrait": client.portrait}, headers=chinese)
    assert begun.json() == {"error": "您已有一个实时会话。请先结束它，或关闭其页面。"}


def test_what_the_chat_is_to_be_comes_with_the_mode(client, state):
    state.options.chat, state.options.chat_models = ServiceAddress("http://127.0.0.1:9", "m"), ("m", "n")
    path = begin(client)
    with client.websocket_connect(path) as socket:
        reported(socket, "begun")
        socket.send_json({"type": "mode", "mode": "talk", "part": "You are a pirate.", "model": "n"})
        socket.send_json({"type": "mode", "mode": "talk", "model": "o"})
        assert "m, n" in reported(socket, "notice")["text"]
        chat = state.opened(path.removeprefix("live/")).conversation._chat
        assert (chat._part, chat._model) == ("You are a pirate.", "n")


def test_keys_of_services_reach_no_visitor(client, state):
    state.options.chat = ServiceAddress("http://127.0.0.1:9", "m", "k3y-of-ours")
    with client.websocket_connect(begin(client)) as socket:
        begun = reported(socket, "begun")
        assert begun["chat"] is True
        assert "k3y" not in json.dumps(begun)
        socket.send_json({"type": "mode", "mode": "talk"})
        socket.send_json({"type": "say", "text": "Hello?", "answer": True})
        notice = reported(socket, "notice")["text"]
        assert "does not answer" in notice
        assert "k3y" not in notice
    assert "k3y" not in repr(state.options)


def test_the_raw_header_is_as_documented():
    text = (ROOT / "docs" / "live.md").read_text(encoding="utf-8")
    assert websocket.RAW_HEADER.format.strip("<") in text
    assert struct.calcsize(websocket.RAW_HEADER.format) == websocket.RAW_HEADER.size
