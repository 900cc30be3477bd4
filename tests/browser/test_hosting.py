"""Behind a proxy's path, with one writable place, with limits."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile
import uvicorn
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route
from visiting import PORTRAIT, ROOT, Server, Visitor, start_server, wait_until

Visit = Callable[..., Visitor]
PREFIX = "/some/where"
HOP_BY_HOP = {"connection", "transfer-encoding", "keep-alive", "content-length", "host"}


@pytest.fixture(scope="module")
def hosted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server as a host would configure it: a root path, small limits, a read-only home."""
    folder = tmp_path_factory.mktemp("hosted")
    home = folder / "home"
    home.mkdir()
    running = start_server(
        folder,
        *("--root-path", PREFIX, "--max-upload", "1", "--max-duration", "20", "--gallery", "private"),
        HOME=str(home),
    )
    yield running
    running.stop()


@pytest.fixture(scope="module")
def proxy(hosted: Server) -> Iterator[str]:
    """The URL of a proxy that serves the server under PREFIX."""

    async def forward(request: Request) -> StreamingResponse:
        client = httpx.AsyncClient(base_url=hosted.url, timeout=None)
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
            answer.aiter_raw(), answer.status_code, kept, background=BackgroundTask(client.aclose)
        )

    app = Starlette(routes=[Route(f"{PREFIX}/{{path:path}}", forward, methods=["GET", "POST", "HEAD"])])
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
