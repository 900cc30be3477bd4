"""Begin a session, and read what its WebSocket is sent."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from starlette.websockets import WebSocketDisconnect

from avatar.live.transports import websocket

ROOT = Path(__file__).parents[2]


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


def loud(message: bytes) -> bool:
    return bool(np.frombuffer(message[websocket.RAW_HEADER.size + 48 * 64 * 3 :], "<i2").any())


def events_forever(socket):
    while True:
        message = socket.receive()
        if message["type"] == "websocket.close":
            raise WebSocketDisconnect(message["code"], message.get("reason"))
