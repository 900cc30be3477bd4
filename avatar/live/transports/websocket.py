"""The WebSocket of a live session, for the page or any other client.

Text messages are JSON, {"type": …}; binary messages are sound up and video down: see docs/live.md.
"""

from __future__ import annotations

import asyncio
import json
import logging
import struct
import time
from collections import deque
from collections.abc import Mapping
from typing import Any, Protocol

import anyio.to_thread
import numpy as np
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from avatar.errors import AvatarError, BadInput
from avatar.geometry import FPS, SOUND_HZ
from avatar.live.microphone import Microphone
from avatar.live.state import LiveState, OpenSession
from avatar.live.transports.fragments import FragmentWriter
from avatar.runtime.live_protocol import LiveFrames

log = logging.getLogger(__name__)

MOST_MESSAGE_BYTES = 64 * 2**10
MOST_MESSAGES_PER_S = 120
MOST_SOUND_BYTES_PER_S = 2.5 * 2 * SOUND_HZ  # of 16-bit samples
MOST_TEXTS_PER_S = 2.0  # and recordings begun or ended: each may cost the operator money, or disk
BURST_S = 4.0  # at any rate, that may come at once: as much as a network that was gone for 10 s delivers
MOST_QUEUED = 25  # frames not yet sent over a slow network; beyond, all are dropped and the stream restarts
PLACE_EVERY_S = 0.5
MOST_SOCKETS = 3  # of one session: a page whose network was gone has two for a while
POLICY, TOO_LARGE, GONE, REPLACED = 1008, 1009, 4404, 4409
VIDEO = ("fmp4", "raw", "none")
RAW_HEADER = struct.Struct("<4sIHHI")  # "LIVE", first frame, width, height, number of samples


class MessageWords(Protocol):
    """Texts for a connection, in its language."""

    def error(self, error: AvatarError) -> str:
        """An error and its remedy."""

    def notice(self, code: str, english: str, values: Mapping[str, Any]) -> str:
        """A notice of the session."""

    def text(self, key: str) -> str:
        """One of the page's own texts."""


class LiveSocket:
    """Serves one connection until it closes."""

    def __init__(self, socket: WebSocket, state: LiveState, opened: OpenSession, words: MessageWords) -> None:
        self._socket, self._state, self._opened, self._words = socket, state, opened, words
        self._microphone = Microphone()
        self._viewer: _Viewer | None = None
        self._video = "none"  # this and the mode may be asked for while waiting
        self._mode: Mapping[str, Any] | None = None
        self._sent = asyncio.Lock()
        self._sender: asyncio.Task[None] | None = None
        self._messages, self._sound = _Budget(MOST_MESSAGES_PER_S), _Budget(MOST_SOUND_BYTES_PER_S)
        self._texts = _Budget(MOST_TEXTS_PER_S)

    async def serve(self) -> None:
        """Wait in the queue, then pass messages both ways until the end.

        Of more than MOST_SOCKETS of one session, the oldest is closed.
        """
        session_queue, ticket = self._state.session_queue, self._opened.ticket
        session_queue.connected(ticket)
        self._sender = asyncio.create_task(self._send())
        surplus = self._opened.joined(self, MOST_SOCKETS)
        closing = [asyncio.create_task(oldest.replaced()) for oldest in surplus]
        try:
            await self._receive()
        except WebSocketDisconnect:
            log.debug("a live page is gone")
        finally:
            self._sender.cancel()
            for task in closing:
                task.cancel()
            if self._viewer is not None and ticket.session is not None:
                ticket.session.leave(self._viewer)
            self._opened.parted(self)
            session_queue.left(ticket)

    async def replaced(self) -> None:
        """Close this connection, because its session has newer ones."""
        if self._sender is not None:
            self._sender.cancel()
        await self._close(REPLACED, self._words.text("live_replaced"))

    async def _send(self) -> None:
        """Send the place in the queue, then the session's frames and events."""
        ticket, place = self._opened.ticket, -1
        while ticket.session is None and ticket.error is None:
            now = self._state.session_queue.place(ticket)
            if ticket.is_over:
                await self._close(GONE, self._words.text("live_over"))
                return
            if now != place:
                place = now
                await self._send_json({"type": "waiting", "place": place})
            await asyncio.sleep(PLACE_EVERY_S)
        if ticket.session is None:
            assert ticket.error is not None
            await self._send_json({"type": "end", "reason": self._words.error(ticket.error)})
            await self._close(1000)
            return
        session = ticket.session
        ice = [server.for_browser for server in self._state.options.ice]
        chat = self._state.options.chat is not None
        await self._send_json({"type": "begun", "fps": FPS, "hz": SOUND_HZ, "ice": ice, "chat": chat})
        self._viewer = viewer = _Viewer(asyncio.get_running_loop())
        viewer.show_as(self._video)
        session.watch(viewer)
        if self._mode is not None:
            await self._take(self._mode)
        while True:
            await viewer.woken.wait()
            viewer.woken.clear()
            for message in await anyio.to_thread.run_sync(viewer.take):
                if isinstance(message, bytes):
                    async with self._sent:
                        await self._socket.send_bytes(message)
                else:
                    await self._send_json(self._translated(message))
            if viewer.is_over:
                error = session.error
                reason = "" if error is None else self._words.error(error)
                await self._send_json({"type": "end", "reason": reason})
                await self._close(1000)
                return

    async def _receive(self) -> None:
        while True:
            message = await self._socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            data, said = message.get("bytes"), message.get("text")
            size = len(data) if data is not None else len((said or "").encode())
            if size > MOST_MESSAGE_BYTES:
                await self._close(TOO_LARGE, self._words.text("live_message_too_large"))
                return
            within = self._messages.takes(1), self._sound.takes(size if data is not None else 0)
            if not all(within):
                await self._close(POLICY, self._words.text("live_too_fast"))
                return
            await self._take(data if data is not None else said or "")

    def _parsed(self, said: str) -> Mapping[str, Any]:
        try:
            message = json.loads(said)
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict) or not isinstance(message.get("type"), str):
            raise BadInput("A message was not understood.", 'Send JSON: {"type": …}.')
        return message

    def _hear(self, data: bytes) -> None:
        conversation = self._state.conversation(self._opened)
        if conversation is not None:
            samples = self._microphone.samples(data)
            if len(samples):
                conversation.hear(samples)

    async def _take(self, message: bytes | str | Mapping[str, Any]) -> None:
        """Hear sound, or carry out a message, or say why not."""
        try:
            if isinstance(message, bytes):
                self._hear(message)
            else:
                await self._obey(self._parsed(message) if isinstance(message, str) else message)
        except AvatarError as error:
            await self._send_json({"type": "notice", "code": "error", "text": self._words.error(error)})

    async def _obey(self, message: Mapping[str, Any]) -> None:
        """Carry out a message. Raises: AvatarError."""
        kind = message["type"]
        if kind == "ping":
            await self._send_json({"type": "pong", "at": _number(message, "at", 0.0)})
            return
        if kind == "end":
            await anyio.to_thread.run_sync(self._state.end, self._opened)
            return
        if kind == "hello":
            self._microphone = Microphone(int(_number(message, "rate", 16_000)))
        if kind in ("hello", "media"):
            self._show(str(message.get("video", "fmp4")))
            return
        conversation = self._state.conversation(self._opened)
        if conversation is None and kind in ("mode", "interrupt"):
            self._mode = message if kind == "mode" else self._mode
            return
        if conversation is None:
            raise BadInput("The session has not begun.", "Wait for its place in the queue.")
        if kind in ("say", "record") and not self._texts.takes(1):
            raise BadInput("Texts are coming too fast.", "Send two a second at most.")
        voice, speed = str(message.get("voice") or ""), _number(message, "speed", 1.0)
        match kind:
            case "mode":
                conversation.set_mode(str(message.get("mode")), voice, speed)
                if "part" in message or "model" in message:
                    conversation.set_part(str(message.get("part") or ""), str(message.get("model") or ""))
            case "say":
                say = conversation.ask if message.get("answer") else conversation.say
                arguments = () if message.get("answer") else (voice, speed)
                await anyio.to_thread.run_sync(say, str(message.get("text", "")), *arguments)
            case "interrupt":
                conversation.interrupt()
            case "record":
                on = await anyio.to_thread.run_sync(self._state.record, self._opened, bool(message.get("on")))
                await self._send_json({"type": "recording", "on": on})
            case _:
                raise BadInput(f"There is no message {kind[:40]!r}.", "See docs/live.md.")

    def _show(self, video: str) -> None:
        """Send this kind of video from now on, or from when the session begins. Raises: BadInput."""
        if video not in VIDEO:
            raise BadInput("There is no such video.", f"Choose {', '.join(VIDEO)}.")
        self._video = video
        if self._viewer is not None:
            self._viewer.show_as(video)

    def _translated(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        """Translate a notice into the page's language."""
        if message["type"] != "notice":
            return message
        error = message.get("error")
        if error is not None:
            said = self._words.error(error)
        else:
            said = self._words.notice(message["code"], message["text"], message["values"])
        return {"type": "notice", "code": message["code"], "text": said}

    async def _send_json(self, message: Mapping[str, Any]) -> None:
        async with self._sent:
            if self._socket.application_state is WebSocketState.CONNECTED:
                await self._socket.send_text(json.dumps(message, ensure_ascii=False))

    async def _close(self, code: int, reason: str = "") -> None:
        async with self._sent:
            if self._socket.application_state is WebSocketState.CONNECTED:
                await self._socket.close(code, reason.encode()[:120].decode(errors="ignore"))


class _Budget:
    """A limit on a rate. What a network held back for some seconds, and delivers at once, is within it."""

    def __init__(self, per_s: float) -> None:
        self._per_s, self._left, self._at = per_s, BURST_S * per_s, time.monotonic()

    def takes(self, amount: float) -> bool:
        """Whether this much more is within the limit; it is counted in any case."""
        now = time.monotonic()
        self._left = min(self._left + (now - self._at) * self._per_s, BURST_S * self._per_s) - amount
        self._at = now
        return self._left >= 0


class _Viewer:
    """A watcher that queues frames and events for one connection; take encodes the frames."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._frames: deque[LiveFrames] = deque()
        self._events: deque[Mapping[str, Any]] = deque(maxlen=100)
        self._video = "none"
        self._writer: FragmentWriter | None = None
        self._is_fresh = True
        self.is_over = False
        self.woken = asyncio.Event()

    def show_as(self, video: str) -> None:
        """Switch the kind of video from the next frame on, starting with a keyframe."""
        self._video, self._is_fresh, self._writer = video, True, None

    def show(self, made: LiveFrames) -> None:
        """See Watcher."""
        if self._video == "none":
            return
        if sum(len(one.frames) for one in list(self._frames)) >= MOST_QUEUED:
            self._frames.clear()
            self._is_fresh = True
        self._frames.append(made)
        self._wake()

    def on_event(self, what: Mapping[str, Any]) -> None:
        """See Watcher."""
        self._events.append(what)
        self._wake()

    def end(self, reason: str) -> None:
        """See Watcher."""
        self.is_over = True
        self._wake()

    def take(self) -> list[bytes | Mapping[str, Any]]:
        """All queued messages, encoded and ready to send."""
        out: list[bytes | Mapping[str, Any]] = []
        while self._events:
            out.append(self._events.popleft())
        while self._frames:
            made = self._frames.popleft()
            if self._video == "raw":
                out.append(raw(made))
            elif self._video == "fmp4":
                out += self._coded(made)
        return out

    def _coded(self, made: LiveFrames) -> list[bytes | Mapping[str, Any]]:
        out: list[bytes | Mapping[str, Any]] = []
        fresh, self._is_fresh = self._is_fresh, False
        if self._writer is None:
            self._writer = FragmentWriter(made.frames.shape[2], made.frames.shape[1])
            width, height = self._writer.width, self._writer.height
            out.append({"type": "stream", "codecs": self._writer.codecs, "width": width, "height": height})
            out.append(self._writer.header)
        if fresh:
            self._writer.restart(made.first_frame)
        out.append(self._writer.write(made))
        return out

    def _wake(self) -> None:
        self._loop.call_soon_threadsafe(self.woken.set)


def raw(made: LiveFrames) -> bytes:
    """One message of uncompressed frames: RAW_HEADER, then rgb24 pixels, then 16-bit mono samples."""
    height, width = made.frames.shape[1:3]
    header = RAW_HEADER.pack(b"LIVE", made.first_frame, width, height, len(made.sound))
    return header + np.ascontiguousarray(made.frames).tobytes() + made.sound.astype("<i2").tobytes()


def _number(message: Mapping[str, Any], name: str, default: float) -> float:
    """A number in a message. Raises: BadInput for anything but a number."""
    value = message.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not -1e12 < value < 1e12:
        raise BadInput(f"{name} must be a number.")
    return float(value)
