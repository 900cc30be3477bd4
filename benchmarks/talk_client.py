"""The user of a spoken conversation: speaks into a live session in real time, and takes what comes back."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
from aiortc import MediaStreamTrack, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError
from av import AudioFrame
from websockets.asyncio.client import connect

from avatar.geometry import SOUND_HZ
from avatar.live.transports.websocket import RAW_HEADER
from avatar.live.voice import at_sound_hz
from avatar.speech.catalogue import Catalogue
from avatar.speech.narration import Narrator, Script
from tests.fixtures.server import ROOT, Server

log = logging.getLogger("talk")

PORTRAIT = ROOT / "assets" / "portraits" / "mara.png"
LOUD, AUDIBLE = 300, 600  # out of 32767: of what comes back, and of what is said
PIECE = SOUND_HZ // 50
PATIENCE_S = 20.0  # for anything to come


@dataclass
class Spoken:
    """Something to say: int16 (n,) at SOUND_HZ. first, last: its first and last audible sample."""

    samples: np.ndarray
    first: int
    last: int

    @classmethod
    def of(cls, text: str) -> Spoken:
        [said] = Narrator.of(Script(text), Catalogue()).sentences()
        samples = at_sound_hz(said.samples, said.hz)
        loud = np.flatnonzero(np.abs(samples.astype(int)) > AUDIBLE)
        return cls(samples, int(loud[0]), int(loud[-1]))


@dataclass
class UserVoice:
    """What the user says, in real time, and silence otherwise. marks: when samples of interest were sent."""

    pieces: list[np.ndarray] = field(default_factory=list)
    marks: list[tuple[int, asyncio.Future[float]]] = field(default_factory=list)
    at: int = 0

    def say(self, spoken: Spoken) -> tuple[asyncio.Future[float], asyncio.Future[float]]:
        """Say something now; the times at which its first and last audible sample will have been sent."""
        self.pieces = [spoken.samples]
        loop = asyncio.get_running_loop()
        begins, ends = loop.create_future(), loop.create_future()
        self.marks = [(self.at + spoken.first, begins), (self.at + spoken.last, ends)]
        return begins, ends

    def take(self, count: int) -> np.ndarray:
        """The next samples, whose last one is spoken just now."""
        left = self.pieces.pop(0) if self.pieces else np.empty(0, np.int16)
        if len(left) > count:
            self.pieces.insert(0, left[count:])
        found = np.concatenate([left[:count], np.zeros(max(0, count - len(left)), np.int16)])
        self.at += count
        now = time.monotonic()
        for place, future in [one for one in self.marks if one[0] < self.at]:
            future.set_result(now - (self.at - place) / SOUND_HZ)
        self.marks = [one for one in self.marks if one[0] >= self.at]
        return found


class Client:
    """What comes back to the user: loud moments, pictures while they are wanted, and the server's events."""

    def __init__(self, socket: Any) -> None:
        self.socket, self.microphone = socket, UserVoice()
        self.loud: list[float] = []  # when loud sound came
        self.pictures: list[tuple[float, np.ndarray]] = []
        self.events: list[tuple[float, dict[str, Any]]] = []
        self.wants_pictures = False
        self.engine_ms = 0.0

    def hear(self, samples: np.ndarray) -> None:
        if np.abs(samples.astype(int)).max(initial=0) > LOUD:
            self.loud.append(time.monotonic())

    def see(self, pixels: np.ndarray) -> None:
        if self.wants_pictures:
            self.pictures.append((time.monotonic(), pixels[::2, ::2].copy()))

    def note(self, event: dict[str, Any]) -> None:
        self.events.append((time.monotonic(), event))
        if event["type"] == "pace":
            self.engine_ms = event["engine_ms"]

    async def send(self, **message: Any) -> None:
        await self.socket.send(json.dumps(message))

    async def quiet(self, seconds: float = 1.5) -> None:
        """Wait until nothing has been heard for so long."""
        begin = time.monotonic()
        while time.monotonic() - max([begin, *self.loud[-1:]]) < seconds:
            await asyncio.sleep(0.05)

    async def event(self, kind: str, after: float, **wanted: Any) -> tuple[float, dict[str, Any]]:
        """The first event of a kind after a moment, with its time. Raises: TimeoutError."""
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            for at, event in self.events:
                fits = all(event.get(key) == value for key, value in wanted.items())
                if at > after and event["type"] == kind and fits:
                    return at, event
            await asyncio.sleep(0.005)
        raise TimeoutError(f"no {kind} came, but {self._came(after)}")

    async def sound(self, after: float) -> float:
        """When the first loud sound after a moment came. Raises: TimeoutError."""
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            for at in self.loud[-400:]:
                if at > after:
                    return at
            await asyncio.sleep(0.005)
        raise TimeoutError(f"no sound came, but {self._came(after)}")

    def _came(self, after: float) -> list[tuple[float, dict[str, Any]]]:
        """What else came, to be told with an error."""
        return [(round(at - after, 2), event) for at, event in self.events if at > after - 5]


async def _follow_socket(client: Client) -> None:
    """Take what comes over the WebSocket: events, and raw frames if it carries the video."""
    async for message in client.socket:
        if isinstance(message, str):
            client.note(json.loads(message))
            continue
        _, _, width, height, num_samples = RAW_HEADER.unpack_from(message)
        client.hear(np.frombuffer(message[-2 * num_samples :], "<i2"))
        pixels = np.frombuffer(message, np.uint8, width * height * 3, RAW_HEADER.size)
        client.see(pixels.reshape(height, width, 3))


async def _speak_into_socket(client: Client) -> None:
    due = time.monotonic()
    while True:
        await client.socket.send(client.microphone.take(2 * PIECE).tobytes())
        due += 2 * PIECE / SOUND_HZ
        await asyncio.sleep(max(0.0, due - time.monotonic()))


class _MicrophoneTrack(MediaStreamTrack):
    kind = "audio"

    def __init__(self, microphone: UserVoice) -> None:
        super().__init__()
        self._microphone, self._due = microphone, time.monotonic()

    async def recv(self) -> AudioFrame:
        """The next 20 ms of sound, in real time."""
        self._due += PIECE / SOUND_HZ
        await asyncio.sleep(max(0.0, self._due - time.monotonic()))
        at = self._microphone.at
        frame = AudioFrame.from_ndarray(self._microphone.take(PIECE)[None], "s16", "mono")
        frame.sample_rate, frame.pts = SOUND_HZ, at
        return frame


async def _watch(client: Client, track: MediaStreamTrack) -> None:
    try:
        while True:
            frame: Any = await track.recv()
            if client.wants_pictures:
                client.see(frame.to_ndarray(format="rgb24"))
    except MediaStreamError:
        log.debug("the video has ended")


async def _listen(client: Client, track: MediaStreamTrack) -> None:
    try:
        while True:
            frame: Any = await track.recv()
            client.hear(frame.to_ndarray().reshape(-1)[:: len(frame.layout.channels)])
    except MediaStreamError:
        log.debug("the voice has ended")


@asynccontextmanager
async def session(server: Server, transport: str) -> AsyncIterator[Client]:
    """A session in the mode Talk, with its microphone open."""
    async with httpx.AsyncClient(timeout=60) as http:
        files = {"files": ("me.png", PORTRAIT.read_bytes(), "image/png")}
        path = (await http.post(f"{server.url}/gradio_api/upload", files=files)).json()[0]
        found = (await http.post(f"{server.url}/live/sessions", json={"portrait": path})).json()
    socket = await connect(f"{server.url.replace('http', 'ws')}/{found['socket']}", max_size=None)
    client, peer = Client(socket), None
    tasks = [asyncio.create_task(_follow_socket(client))]
    try:
        await client.event("begun", 0.0)
        by_socket = transport == "websocket"
        await client.send(type="hello", rate=SOUND_HZ, video="raw" if by_socket else "none")
        if by_socket:
            tasks.append(asyncio.create_task(_speak_into_socket(client)))
        else:
            peer = await _connected(server, found["socket"], client, tasks)
        await client.send(type="mode", mode="talk")
        await asyncio.sleep(3)  # the recogniser is loaded meanwhile
        yield client
        await client.send(type="end")
    finally:
        for task in tasks:
            task.cancel()
        if peer is not None:
            await peer.close()
        await socket.close()


async def _connected(
    server: Server, path: str, client: Client, tasks: list[asyncio.Task[None]]
) -> RTCPeerConnection:
    """Connect by WebRTC, as the page does."""
    peer = RTCPeerConnection()
    tracks: dict[str, MediaStreamTrack] = {}
    peer.on("track", lambda track: tracks.__setitem__(track.kind, track))
    peer.addTransceiver("video", direction="recvonly")
    peer.addTrack(_MicrophoneTrack(client.microphone))
    await peer.setLocalDescription(await peer.createOffer())
    async with httpx.AsyncClient(timeout=60) as http:
        asked = {"sdp": peer.localDescription.sdp}
        answer = (await http.post(f"{server.url}/{path}/offer", json=asked)).json()
    await peer.setRemoteDescription(RTCSessionDescription(answer["sdp"], "answer"))
    tasks.append(asyncio.create_task(_watch(client, tracks["video"])))
    tasks.append(asyncio.create_task(_listen(client, tracks["audio"])))
    return peer
