"""Programs and pages at a session's WebSocket: what they are sent, and what they may send."""

from __future__ import annotations

import io
import json
import struct
import time

import av
import numpy as np
import pytest

from avatar.errors import AvatarError
from avatar.live.service_address import ServiceAddress
from avatar.live.transports import websocket
from avatar.live.transports.webrtc import IceServer
from avatar.runtime.gallery import owner_hash
from tests.fixtures.server import wait_until
from tests.live.sockets import ROOT, begin, data, reported


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


def test_the_raw_header_is_as_documented():
    text = (ROOT / "docs" / "live.md").read_text(encoding="utf-8")
    assert websocket.RAW_HEADER.format.strip("<") in text
    assert struct.calcsize(websocket.RAW_HEADER.format) == websocket.RAW_HEADER.size
