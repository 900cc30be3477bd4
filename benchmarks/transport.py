"""The WebRTC transport alone, without an engine: a counter in the picture and a beep, sent and read back.

    python -m benchmarks.transport --seconds 600 --output transport.json
    python -m benchmarks.transport --client chromium --seconds 1900 --output av.json

Frames of 512*512, 25 a second; each 25th comes with a beep. A client in another process (aiortc, or a real
Chromium, which plays them) says when each frame and beep reached it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import multiprocessing
import os
import queue
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import uvicorn
from aiortc import MediaStreamTrack, RTCPeerConnection, RTCSessionDescription
from PIL import Image
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse
from starlette.routing import Route

from avatar.events import Phase, Progress
from avatar.geometry import FPS
from avatar.live.session import LiveSession
from avatar.live.transports.webrtc import Peer, hold_back
from avatar.media.timeline import SAMPLES_PER_FRAME
from avatar.preset import load_preset
from avatar.request import LiveRequest
from avatar.runtime.live_protocol import LiveFrames

log = logging.getLogger("transport")

ROOT = Path(__file__).resolve().parents[1]
PORTRAIT = ROOT / "assets" / "portraits" / "mara.png"
SIDE, BITS = 512, 16
TALL = SIDE // BITS  # of the counter's boxes
BEEP_EVERY = FPS  # frames
LOUD, QUIET_S = 3000, 0.3
PATIENCE_S = 30.0


class CounterRun:
    """A LiveRun whose frames are numbered. made: when each was, in seconds since 1970."""

    def __init__(self) -> None:
        self.made: list[float] = []
        self._sound: queue.Queue[np.ndarray | None] = queue.Queue()
        self._picture = np.asarray(Image.open(PORTRAIT).convert("RGB").resize((SIDE, SIDE)))
        self._beep = (12_000 * np.sin(np.arange(SAMPLES_PER_FRAME) * 0.13)).astype(np.int16)

    def hear(self, samples: np.ndarray) -> None:
        """See LiveRun."""
        self._sound.put(samples)

    def follow(self) -> Iterator[LiveFrames | Progress]:
        """See LiveRun."""
        yield Progress(Phase.GENERATING)
        while (silence := self._sound.get()) is not None:
            index = len(self.made)
            frame = np.roll(self._picture, round(12 * np.sin(index / 9)), 1)  # it sways as a head does
            bits = (index >> np.arange(BITS)) % 2
            frame[:TALL] = np.repeat(bits * 255, TALL)[None, :, None]
            sound = self._beep if index % BEEP_EVERY == 0 else silence
            self.made.append(time.time())
            yield LiveFrames(index, frame[None], sound)

    def end(self) -> None:
        """See LiveRun."""
        self._sound.put(None)


class CounterEngine:
    """A LiveEngine of counters."""

    def live(self, request: LiveRequest) -> CounterRun:
        """See LiveEngine."""
        return CounterRun()


def serve(port: int) -> None:
    """Serve sessions of counters until killed: the page, /offer, and /made, the times of its frames."""
    state: dict[str, LiveSession] = {}

    @asynccontextmanager
    async def opened(_: Starlette) -> Any:
        request = LiveRequest(PORTRAIT, Path(), load_preset("cpu-preview"), PORTRAIT.name)
        state["session"] = LiveSession(CounterEngine(), request)  # type: ignore[arg-type]
        yield
        state["session"].end()

    async def offer(request: Request) -> PlainTextResponse:
        peer = Peer(state["session"], [], lambda _: None, asyncio.get_running_loop())
        return PlainTextResponse(await peer.answer((await request.body()).decode()))

    async def made(_: Request) -> JSONResponse:
        return JSONResponse(state["session"]._run.made)  # type: ignore[attr-defined]

    async def page(_: Request) -> HTMLResponse:
        return HTMLResponse((ROOT / "benchmarks" / "transport.html").read_text("utf-8"))

    routes = [Route("/", page), Route("/made", made), Route("/offer", offer, methods=["POST"])]
    uvicorn.run(Starlette(routes=routes, lifespan=opened), port=port, log_level="warning")


async def with_aiortc(url: str, seconds: float) -> tuple[list[list[float]], list[float]]:
    """Frames, [counter, arrived at], and beeps as a client without buffers gets them; seconds since 1970."""
    frames: list[list[float]] = []
    beeps: list[float] = []
    tracks: dict[str, MediaStreamTrack] = {}
    peer = RTCPeerConnection()

    def found(track: MediaStreamTrack) -> None:
        tracks[track.kind] = track
        for transceiver in peer.getTransceivers():
            if transceiver.kind == "audio":
                hold_back(transceiver.receiver, 1)

    peer.on("track", found)
    peer.addTransceiver("video", direction="recvonly")
    peer.addTransceiver("audio", direction="recvonly")
    await peer.setLocalDescription(await peer.createOffer())
    async with httpx.AsyncClient(timeout=PATIENCE_S) as client:
        answer = (await client.post(f"{url}/offer", content=peer.localDescription.sdp)).text
    await peer.setRemoteDescription(RTCSessionDescription(answer, "answer"))

    async def watch() -> None:
        while True:
            frame: Any = await tracks["video"].recv()
            row = frame.to_ndarray(format="gray")[TALL // 2, TALL // 2 :: TALL]
            frames.append([float(((row > 127) << np.arange(BITS)).sum()), time.time()])

    async def listen() -> None:
        quiet = 0
        while True:
            frame: Any = await tracks["audio"].recv()
            samples = frame.to_ndarray().reshape(-1)[:: len(frame.layout.channels)]
            loud = np.flatnonzero(np.abs(samples.astype(int)) > LOUD)
            if len(loud) and quiet > QUIET_S * frame.sample_rate:
                beeps.append(time.time() - (len(samples) - loud[0]) / frame.sample_rate)
            quiet = 0 if len(loud) else quiet + len(samples)

    tasks = [asyncio.create_task(watch()), asyncio.create_task(listen())]
    await asyncio.sleep(seconds)
    for task in tasks:
        task.cancel()
    await peer.close()
    return frames, beeps


def with_chromium(url: str, seconds: float) -> tuple[list[list[float]], list[float]]:
    """Frames, [counter, shown at], and beeps as Chromium plays them; seconds since 1970."""
    from playwright.sync_api import sync_playwright

    from tests.browser.visiting import CHROMIUM, CHROMIUM_ARGUMENTS

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGUMENTS)
        page = browser.new_page()
        page.goto(url)
        page.wait_for_timeout(1000 * seconds)
        seen = page.evaluate("window.seen")
        browser.close()
    return [[counter, at / 1e3] for counter, at in seen["frames"]], [at / 1e3 for at in seen["beeps"]]


def offsets(frames: np.ndarray, beeps: np.ndarray) -> list[list[float]]:
    """[minute, median, least, most] of how much later than its frame a beep came, in milliseconds."""
    flashes = frames[frames[:, 0] % BEEP_EVERY == 0, 1]
    nearest = np.abs(beeps[:, None] - flashes[None]).argmin(1)
    late = 1e3 * (beeps - flashes[nearest])
    minutes = ((beeps - frames[0, 1]) // 60).astype(int)
    kept = np.abs(late) < 500  # a beep whose frame was never shown has no partner
    return [
        [int(one), *(round(float(f(late[kept & (minutes == one)])), 1) for f in (np.median, np.min, np.max))]
        for one in np.unique(minutes[kept])
    ]


def reported(frames: np.ndarray, beeps: np.ndarray, made: np.ndarray) -> dict[str, Any]:
    """Figures, in milliseconds unless named otherwise. frames: (n, 2), counter and time; the first second
    is left out."""
    frames = frames[frames[:, 1] > frames[0, 1] + 1]
    counters = frames[:, 0].astype(int)
    turns = np.cumsum(np.diff(counters, prepend=counters[0]) < -(2 ** (BITS - 1))) * 2**BITS
    shown = counters + turns
    delays = 1e3 * (frames[:, 1] - made[shown])
    gaps = 1e3 * np.diff(frames[:, 1])
    middle, late, latest = np.percentile(delays, [50, 95, 100])
    return {
        "seconds": round(float(frames[-1, 1] - frames[0, 1]), 1),
        "frames": len(frames),
        "frames_left_out": int(shown[-1] - shown[0] + 1 - len(np.unique(shown))),
        "fps": round(1e3 / float(gaps.mean()), 3),
        "longest_gap": round(float(gaps.max()), 1),
        "gaps_over_120": int((gaps > 120).sum()),
        "delay": {"median": round(middle, 1), "p95": round(late, 1), "longest": round(latest, 1)},
        "beeps": len(beeps),
        "sound_after_picture_by_minute": offsets(frames, beeps),
    }


def main() -> None:
    """Measure one client, and write the results as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--client", choices=("aiortc", "chromium"), default="aiortc")
    parser.add_argument("--output", type=Path, help="a JSON file")
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    log.setLevel(logging.INFO)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(port,), daemon=True)
    server.start()
    try:
        until = time.monotonic() + PATIENCE_S
        while True:
            try:
                httpx.get(f"{url}/made")
                break
            except httpx.TransportError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.2)
        memory: list[int] = []
        watching = threading.Thread(target=note_memory, args=(server.pid, memory), daemon=True)
        watching.start()
        if args.client == "chromium":
            frames, beeps = with_chromium(url, args.seconds)
        else:
            frames, beeps = asyncio.run(with_aiortc(url, args.seconds))
        made = httpx.get(f"{url}/made").json()
    finally:
        server.kill()
    found = {
        "client": args.client,
        "cores": os.cpu_count(),
        **reported(np.array(frames), np.array(beeps), np.array(made)),
        "server_mb_by_minute": [round(one / 1e6, 1) for one in memory],
    }
    log.info("%s", json.dumps(found, indent=1))
    if args.output is not None:
        args.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def note_memory(pid: int | None, memory: list[int]) -> None:
    """Add a process's resident bytes every minute."""
    process = psutil.Process(pid)
    while process.is_running():
        memory.append(process.memory_info().rss)
        time.sleep(60)


if __name__ == "__main__":
    main()
