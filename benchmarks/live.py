"""Latency of a live session on this machine, measured with a local server and one client per transport.

    python -m benchmarks.live --seconds 60

The client sends bursts of sound like a microphone, and measures how much later they, and the frames that
belong to them, come back. Server and client share the machine's cores.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from aiortc import MediaStreamTrack, RTCPeerConnection, RTCSessionDescription
from av import AudioFrame
from websockets.asyncio.client import connect

from avatar.geometry import FPS, SOUND_HZ
from tests.fixtures.server import ROOT, Server, start_server

log = logging.getLogger("live")

PORTRAIT = ROOT / "assets" / "portraits" / "mara.png"
PERIOD_S, BURST_S = 1.0, 0.2
SETTLED_S = 300  # one burst a second; memory still grows in the first minutes
LOUD = 2000  # out of 32767; a burst has 12000
HEADER_BYTES, FRAME = 20, SOUND_HZ // FPS
TEXT = "This sentence goes on and on, so that there is something to interrupt. " * 6


class Bursts:
    """A simulated microphone with one burst of sound per second. sent: time of each burst."""

    def __init__(self) -> None:
        self.at = 0
        self.sent: list[float] = []

    def next(self, count: int) -> np.ndarray:
        places = np.arange(self.at, self.at + count)
        self.at += count
        on = places % round(PERIOD_S * SOUND_HZ) < BURST_S * SOUND_HZ
        begins = np.flatnonzero(places % round(PERIOD_S * SOUND_HZ) == 0)
        if len(begins):
            self.sent.append(time.monotonic() + float(begins[0] - count) / SOUND_HZ)
        return (12_000 * on * np.sin(places * 0.03)).astype(np.int16)


class BurstsHeard:
    """Detects when bursts begin in the returned sound."""

    def __init__(self) -> None:
        self.begins: list[float] = []
        self._quiet = 0

    def note(self, samples: np.ndarray) -> None:
        loud = np.flatnonzero(np.abs(samples) > LOUD)
        if len(loud) and self._quiet > 0.3 * SOUND_HZ:
            self.begins.append(time.monotonic())
        self._quiet = 0 if len(loud) else self._quiet + len(samples)

    def delays(self, sent: Sequence[float]) -> list[float]:
        """Delay of each burst that came back, in seconds from when it was sent."""
        found = []
        for begin in sent:
            after = [one for one in self.begins if 0 < one - begin < PERIOD_S * 0.95]
            found += [after[0] - begin] if after else []
        return found


def reported(name: str, values: Sequence[float]) -> None:
    """Log the median and 95th percentile in milliseconds."""
    if values:
        middle, late = np.percentile(values, [50, 95]) * 1e3
        log.info("%-44s median %5.0f ms   p95 %5.0f ms   (%d)", name, middle, late, len(values))
    else:
        log.info("%-44s nothing was heard", name)


async def begin(server: Server) -> tuple[Any, str]:
    """Open a session; return its socket and its path."""
    async with httpx.AsyncClient(timeout=60) as client:
        files = {"files": ("me.png", PORTRAIT.read_bytes(), "image/png")}
        path = (await client.post(f"{server.url}/gradio_api/upload", files=files)).json()[0]
        asked = time.monotonic()
        session = (await client.post(f"{server.url}/live/sessions", json={"portrait": path})).json()
    socket = await connect(f"{server.url.replace('http', 'ws')}/{session['socket']}", max_size=None)
    await socket.send(json.dumps({"type": "hello", "rate": SOUND_HZ, "video": "raw"}))
    async for message in socket:
        if isinstance(message, bytes):
            break
    log.info("%-44s %.0f ms", "asked for → first frame", (time.monotonic() - asked) * 1e3)
    return socket, session["socket"]


async def by_socket(server: Server, seconds: float) -> None:
    """Measure the WebSocket transport: bursts, a typed text, an interruption, and memory."""
    socket, _ = await begin(server)
    bursts, heard, arrivals = Bursts(), BurstsHeard(), []
    engine_ms: list[float] = []

    async def speak() -> None:
        due = time.monotonic()
        while True:
            await socket.send(bursts.next(FRAME).tobytes())
            due += 1 / FPS
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    speaking = asyncio.create_task(speak())
    until = time.monotonic() + seconds
    memory: list[int] = []
    async for message in socket:
        if isinstance(message, bytes):
            arrivals.append(time.monotonic())
            heard.note(np.frombuffer(message[-2 * FRAME :], "<i2"))
        elif (said := json.loads(message))["type"] == "pace":
            engine_ms.append(said["engine_ms"] / 1e3)
            memory.append(used(server))
        elif said["type"] == "notice":
            log.info("%s", said["text"])
        if time.monotonic() > until:
            break
    speaking.cancel()
    gaps = np.diff(arrivals)
    reported("WebSocket: sound in → sound and frame out", heard.delays(bursts.sent))
    reported("  of that in the first five minutes", heard.delays(bursts.sent[:SETTLED_S]))
    reported("  and in the last five minutes", heard.delays(bursts.sent[-SETTLED_S:]))
    reported("  of that in the engine", engine_ms)
    log.info("%-44s %.1f, longest gap %.0f ms", "  frames a second", 1 / gaps.mean(), gaps.max() * 1e3)
    log.info("%-44s %s MB", "  memory, each minute", [round(one / 1e6) for one in memory[::60]])
    settled = memory[SETTLED_S:]  # one a second
    if settled:
        ends = (min(settled) - settled[0]) / 1e6, (max(settled) - settled[0]) / 1e6
        log.info("%-44s %+.1f to %+.1f MB", "  memory after the fifth minute", *ends)
    await interruption(socket)
    await socket.send(json.dumps({"type": "end"}))
    await socket.close()


async def interruption(socket: Any) -> None:
    """Measure the time from a typed text to its first sound, and from an interruption to silence."""
    await socket.send(json.dumps({"type": "mode", "mode": "type"}))
    asked = time.monotonic()
    await socket.send(json.dumps({"type": "say", "text": TEXT}))
    heard_at = stopped_at = None
    async for message in socket:
        if not isinstance(message, bytes):
            continue
        loud = np.abs(np.frombuffer(message[-2 * FRAME :], "<i2")).max() > 300
        now = time.monotonic()
        if heard_at is None and loud:
            heard_at = now
        if heard_at and stopped_at is None and now - heard_at > 3:
            stopped_at = now
            await socket.send(json.dumps({"type": "interrupt"}))
        if loud:
            last = now
        if stopped_at and now - max(last, stopped_at) > 1:
            break
    assert heard_at is not None
    assert stopped_at is not None
    log.info("%-44s %.0f ms", "text → first sound", (heard_at - asked) * 1e3)
    log.info("%-44s %.0f ms", "interruption → silence", max(0.0, last - stopped_at) * 1e3)


class _Microphone(MediaStreamTrack):
    kind = "audio"

    def __init__(self, bursts: Bursts) -> None:
        super().__init__()
        self._bursts, self._due = bursts, time.monotonic()

    async def recv(self) -> AudioFrame:
        """The next 20 ms of sound, in real time."""
        self._due += 0.02
        await asyncio.sleep(max(0.0, self._due - time.monotonic()))
        at = self._bursts.at
        frame = AudioFrame.from_ndarray(self._bursts.next(960)[None], "s16", "mono")
        frame.sample_rate, frame.pts = SOUND_HZ, at
        return frame


async def by_webrtc(server: Server, seconds: float) -> None:
    """Measure the WebRTC transport: bursts up, sound and video down."""
    socket, path = await begin(server)
    await socket.send(json.dumps({"type": "media", "video": "none"}))
    bursts, heard, arrivals = Bursts(), BurstsHeard(), []
    browser = RTCPeerConnection()
    tracks: dict[str, MediaStreamTrack] = {}
    browser.on("track", lambda track: tracks.__setitem__(track.kind, track))
    browser.addTransceiver("video", direction="recvonly")
    browser.addTrack(_Microphone(bursts))
    await browser.setLocalDescription(await browser.createOffer())
    async with httpx.AsyncClient(timeout=60) as client:
        asked = {"sdp": browser.localDescription.sdp}
        answer = (await client.post(f"{server.url}/{path}/offer", json=asked)).json()
    await browser.setRemoteDescription(RTCSessionDescription(answer["sdp"], "answer"))

    async def watch() -> None:
        while True:
            await tracks["video"].recv()
            arrivals.append(time.monotonic())

    async def listen() -> None:
        while True:
            frame: Any = await tracks["audio"].recv()
            channels = len(frame.layout.channels)
            heard.note(frame.to_ndarray().reshape(-1)[::channels])

    async def follow() -> None:
        async for _ in socket:  # or its keep-alive starves, and the session ends with it
            pass

    tasks = [asyncio.create_task(task()) for task in (watch, listen, follow)]
    async with asyncio.timeout(seconds + 30):
        await asyncio.sleep(seconds)
    for task in tasks:
        task.cancel()
    gaps = np.diff(arrivals[FPS:])
    reported("WebRTC: sound in → sound out", heard.delays(bursts.sent))
    log.info("%-44s %.1f, longest gap %.0f ms", "  frames a second", 1 / gaps.mean(), gaps.max() * 1e3)
    await browser.close()
    await socket.send(json.dumps({"type": "end"}))
    await socket.close()


def used(server: Server) -> int:
    """Resident memory of the server and its children, in bytes."""
    process = psutil.Process(server.process.pid)
    return sum(one.memory_info().rss for one in (process, *process.children(recursive=True)))


def main() -> None:
    """Measure both transports and log the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="for each transport")
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    log.setLevel(logging.INFO)
    with tempfile.TemporaryDirectory() as folder:
        server = start_server(Path(folder), "--preset", "cpu-preview")
        try:
            time.sleep(5)  # lets the engine's subprocess, started with the page, get ready
            asyncio.run(by_socket(server, args.seconds))
            asyncio.run(by_webrtc(server, args.seconds))
        finally:
            server.stop()


if __name__ == "__main__":
    main()
