"""Behind a proxy's path, with one writable place, with limits."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile
import uvicorn
from playwright.sync_api import Page
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket
from visiting import PORTRAIT, ROOT, Server, Visitor, start_server, wait_until
from websockets.asyncio.client import ClientConnection, connect

Visit = Callable[..., Visitor]
PREFIX = "/some/where"
NO_WEBRTC = "delete window.RTCPeerConnection"
SHOWN = "document.querySelector('#live-video')?.getVideoPlaybackQuality().totalVideoFrames"
HOP_BY_HOP = {"connection", "transfer-encoding", "keep-alive", "content-length", "host"}


@pytest.fixture(scope="module")
def hosted(tmp_path_factory: pytest.TempPathFactory, small_preset: str) -> Iterator[Server]:
    """A server as a host would configure it: a root path, small limits, a read-only home."""
    folder = tmp_path_factory.mktemp("hosted")
    home = folder / "home"
    home.mkdir()
    running = start_server(
        folder,
        *("--root-path", PREFIX, "--max-upload", "1", "--max-duration", "20", "--gallery", "private"),
        *("--preset", small_preset),
        HOME=str(home),
    )
    yield running
    running.stop()


@pytest.fixture(scope="module")
def network_gone() -> threading.Event:
    """While it is set, the proxy passes no message of a WebSocket on."""
    return threading.Event()


@pytest.fixture(scope="module")
def proxy(hosted: Server, network_gone: threading.Event) -> Iterator[str]:
    """The URL of a proxy that serves the server under PREFIX."""

    @asynccontextmanager
    async def with_client(app: Starlette) -> AsyncIterator[None]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=hosted.url, timeout=None, limits=limits) as app.state.client:
            yield

    async def forward(request: Request) -> StreamingResponse:
        client = request.app.state.client
        headers = {k: v for k, v in request.headers.items() if k not in HOP_BY_HOP}
        sent = client.build_request(
            request.method,
            httpx.URL(path=f"/{request.path_params['path']}", query=request.url.query.encode()),
            headers={**headers, "x-forwarded-host": request.headers["host"]},
            content=await request.body(),
        )
        answer = await client.send(sent, stream=True)
        kept = {k: v for k, v in answer.headers.items() if k not in HOP_BY_HOP}
        return StreamingResponse(
            answer.aiter_raw(), answer.status_code, kept, background=BackgroundTask(answer.aclose)
        )

    async def join(outer: WebSocket) -> None:
        await outer.accept()
        url = f"{hosted.url.replace('http', 'ws')}/{outer.path_params['path']}"
        async with connect(url, max_size=None) as inner:
            going_up = asyncio.create_task(carry_up(outer, inner, network_gone))
            async for message in inner:
                await wait_for(network_gone)
                await (outer.send_text if isinstance(message, str) else outer.send_bytes)(message)
            going_up.cancel()

    path = f"{PREFIX}/{{path:path}}"
    app = Starlette(
        routes=[Route(path, forward, methods=["GET", "POST", "HEAD"]), WebSocketRoute(path, join)],
        lifespan=with_client,
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    serving = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning"))
    thread = threading.Thread(target=serving.run, daemon=True)
    thread.start()
    wait_until(lambda: serving.started, "the proxy is up")
    yield f"http://127.0.0.1:{port}{PREFIX}/"
    serving.should_exit = True
    thread.join(20)


async def wait_for(network_gone: threading.Event) -> None:
    while network_gone.is_set():
        await asyncio.sleep(0.02)


async def carry_up(outer: WebSocket, inner: ClientConnection, network_gone: threading.Event) -> None:
    """Pass on what a browser sends, until it closes its socket."""
    while (message := await outer.receive())["type"] != "websocket.disconnect":
        await wait_for(network_gone)
        await inner.send(message["bytes"] if message.get("text") is None else message["text"])
    await inner.close()


def go_live(page: Page, script: str) -> None:
    """Go live in the mode Type."""
    page.wait_for_selector(".live-go", state="visible")
    page.evaluate(script)
    page.set_input_files("#portrait input[type=file]", PORTRAIT)
    page.wait_for_selector("#portrait img")
    page.click('[data-mode="type"]')
    page.click(".live-go")


@pytest.mark.parametrize(("script", "transport"), [("", "webrtc"), (NO_WEBRTC, "socket")])
def test_a_live_session_works_under_a_path(proxy: str, visit: Visit, script: str, transport: str):
    visitor = visit(f"{proxy}?live")
    page = visitor.page
    go_live(page, script)
    page.wait_for_function(f"{SHOWN} > 10 && window.liveSession.transport === '{transport}'")
    page.fill(".live-type textarea", "Hello there.")
    page.press(".live-type textarea", "Enter")
    page.wait_for_selector(".live-said li:visible")
    page.click(".live-go")
    page.wait_for_function("!window.liveSession.token")
    assert visitor.errors == []


@pytest.mark.slow
def test_a_network_gone_for_five_seconds_is_survived(proxy: str, network_gone: threading.Event, visit: Visit):
    page = visit(f"{proxy}?live").page
    go_live(page, NO_WEBRTC)
    page.wait_for_function(f"{SHOWN} > 30 && window.liveSession.engineMs > 0")
    token = page.evaluate("window.liveSession.token")
    network_gone.set()
    page.wait_for_timeout(5000)
    network_gone.clear()
    page.evaluate("window.liveSession.delayMs = 0")
    before = page.evaluate(SHOWN)
    page.wait_for_function(f"{SHOWN} > {before} + 25")
    page.wait_for_function("window.liveSession.delayMs > 0 && window.liveSession.delayMs < 2000")
    assert page.evaluate("window.liveSession.token") == token
    page.click(".live-go")
    page.wait_for_function("!window.liveSession.token")


def test_everything_works_under_a_path(hosted: Server, proxy: str, visit: Visit):
    visitor = visit(proxy)
    page = visitor.page
    lost: list[str] = []
    page.on("response", lambda answer: lost.append(answer.url) if answer.status >= 400 else None)
    page.reload()
    page.locator(".example").first.click()
    page.wait_for_function("document.querySelector('#live video')?.currentTime > 0.5")
    page.click("#stop:enabled")
    visitor.wait_state("stopped", "done")
    page.wait_for_function("document.querySelector('.example img').naturalWidth > 0")
    page.locator(".poster").scroll_into_view_if_needed()
    page.wait_for_function("document.querySelector('.poster img').naturalWidth > 0")
    with page.expect_download() as download:
        page.locator(".video-buttons a[download]").click()
    assert Path(download.value.path()).read_bytes() == hosted.videos()[-1].read_bytes()
    visitor.show_finished()
    assert lost == []
    assert visitor.errors == []


def test_a_private_gallery_is_each_browsers_own(hosted: Server, proxy: str, visit: Visit):
    assert hosted.videos()
    assert visit(proxy).page.locator(".video").count() == 0


def test_a_large_upload_is_refused(hosted: Server, proxy: str, visit: Visit, tmp_path: Path):
    large = tmp_path / "large.wav"
    soundfile.write(large, np.zeros(2_000_000), 48_000)
    visitor = visit(proxy)
    visitor.page.set_input_files("#speech input[type=file]", large)
    assert "maximum allowed size" in visitor.toast()


def test_a_long_speech_is_refused(hosted: Server, proxy: str, visit: Visit, tmp_path: Path):
    long = tmp_path / "long.flac"
    t = np.arange(30 * 16_000) / 16_000
    soundfile.write(long, 0.3 * np.sin(2 * np.pi * 200 * t), 16_000)
    visitor = visit(proxy)
    visitor.page.set_input_files("#portrait input[type=file]", PORTRAIT)
    visitor.page.set_input_files("#speech input[type=file]", long)
    visitor.wait_speech()
    visitor.generate()
    assert "long.flac" in visitor.toast()


def test_nothing_is_written_elsewhere(hosted: Server):
    """An unprivileged user's writable folders are enough: the outputs folder and the temporary one."""
    home = hosted.outputs.parent / "home"
    assert list(home.rglob("*")) == []
    began = os.stat(hosted.log.parent).st_ctime
    here = [path for path in ROOT.iterdir() if path.name in ("avatar", "app.py", "assets", "presets")]
    files = [path for top in here for path in (top.rglob("*") if top.is_dir() else [top]) if path.is_file()]
    fresh = [path for path in files if path.suffix != ".pyc" and path.stat().st_mtime > began]
    written = [path for path in fresh if path.suffix not in (".py", ".toml", ".css", ".js")]
    assert written == [], f"{time.time() - began:.0f} s after the start"
