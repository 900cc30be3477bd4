"""What a live session's socket refuses: floods, large messages, and whose session it is not."""

from __future__ import annotations

import json
from contextlib import ExitStack

import pytest
from starlette.websockets import WebSocketDisconnect

from avatar.live.service_address import ServiceAddress
from avatar.live.state import OFFERS_PER_MINUTE
from avatar.live.transports import websocket
from tests.fixtures.server import wait_until
from tests.live.engines import QuickEngine
from tests.live.sockets import begin, data, events_forever, loud, reported


@pytest.mark.parametrize("message", ["x" * 70_000, b"\0" * 70_000])
def test_a_message_that_is_too_large_closes_the_socket(client, message):
    with client.websocket_connect(begin(client)) as socket:
        reported(socket, "begun")
        (socket.send_bytes if isinstance(message, bytes) else socket.send_text)(message)
        with pytest.raises(WebSocketDisconnect) as closed:
            events_forever(socket)
        assert closed.value.code == 1009


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
