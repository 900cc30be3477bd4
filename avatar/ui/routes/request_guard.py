"""Filter requests before the page: which paths are answered, under which host names, and how much is read.

Gradio has endpoints that this page does not use (a proxy for any address, edits of its own source, recordings
that it converts, files read whole into memory); they are refused.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from avatar.ui.language import language_of, text

MOST_BODY_BYTES = 2**20  # of anything but an upload: a form, seven points, a file's path
GRADIO = "/gradio_api/"
READ = re.compile(
    r"(info|openapi\.json|startup-events|app_id|theme\.css|heartbeat/[^/]+|queue/(data|status)|upload_progress"
    r"|call/(v2/)?[^/]+/[^/]+|stream/[^/]+/[^/]+/\d+/[^/]+\.(m3u8|ts|aac)|file=.+)/?",
    re.DOTALL,
)
WRITTEN = re.compile(r"(queue/join|cancel|reset|upload|(call|call/v2|run|api)/[^/]+)/?", re.DOTALL)
UNUSED = re.compile(r"/(monitoring|login|logout)(/.*)?", re.DOTALL)  # Gradio's, outside /gradio_api/
SOCKETS = re.compile(r"/live/[0-9a-f]+")
FILES = re.compile(r"/(outputs/|examples/|gradio_api/(file=|stream/))")

# Gradio's page has inline scripts and styles and compiles some scripts; it plays blobs that it puts together.
PAGE_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' data: blob:; "
    "font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-src 'none'; frame-ancestors {frames}"
)
FILE_POLICY = "default-src 'none'; img-src 'self'; media-src 'self'; style-src 'unsafe-inline'; sandbox"


@dataclass
class Guard:
    """ASGI middleware.

    names: host names under which the page may be requested, None for any. hosted: as a Space, which embeds
    the page in another.
    """

    app: ASGIApp
    names: Collection[str] | None = None
    hosted: bool = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._socket(scope, receive, send)
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request, path = Request(scope), path_of(scope)
        answer = _Headers(send, self._policy(path))
        refusal = self._refusal(request, path)
        if refusal is None and scope["method"] == "POST" and path.rstrip("/") != f"{GRADIO}upload":
            body = await _body(receive)
            if body is None:
                refusal = PlainTextResponse(text("body_too_large", language_of(request)), 413)
            else:
                receive = _Replay(body, receive)
        await (refusal or self.app)(scope, receive, answer)

    async def _socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse sockets opened by pages from elsewhere; programs other than browsers send no origin."""
        headers, path = Headers(scope=scope), path_of(scope)
        origin = headers.get("origin")
        ours = self._is_ours(headers.get("host", ""))
        if not ours or (origin is not None and not self._is_ours(urlsplit(origin).netloc)):
            await send({"type": "websocket.close", "code": 1008, "reason": "wrong host"})
        elif not SOCKETS.fullmatch(path):
            await send({"type": "websocket.close", "code": 1008, "reason": "no such address"})
        else:
            await self.app(scope, receive, send)

    def _refusal(self, request: Request, path: str) -> PlainTextResponse | None:
        language = language_of(request)
        origin = request.headers.get("origin")
        if not self._is_ours(request.headers.get("host", "")) or (
            request.method == "POST" and origin is not None and not self._is_ours(urlsplit(origin).netloc)
        ):
            return PlainTextResponse(text("wrong_host", language), 421)
        if UNUSED.fullmatch(path):
            return PlainTextResponse("Not Found", 404)
        if path.startswith(GRADIO):
            allowed = WRITTEN if request.method == "POST" else READ
            if not allowed.fullmatch(path.removeprefix(GRADIO)):
                return PlainTextResponse("Not Found", 404)
        return None

    def _is_ours(self, host: str) -> bool:
        """Whether a host, with or without a port, is a name of this server."""
        if self.names is None:
            return True
        try:
            return (urlsplit(f"//{host}").hostname or "").rstrip(".") in self.names
        except ValueError:  # not a valid host
            return False

    def _policy(self, path: str) -> str:
        if FILES.match(path):
            return FILE_POLICY
        spaces = " https://huggingface.co https://*.hf.space" if self.hosted else ""
        return PAGE_POLICY.format(frames=f"'self'{spaces}")


class _Headers:
    """Adds the headers that all our responses have."""

    def __init__(self, send: Send, policy: str) -> None:
        self._send, self._policy = send, policy

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            message.setdefault("headers", [])
            headers = MutableHeaders(scope=message)
            headers["X-Content-Type-Options"] = "nosniff"
            headers["Content-Security-Policy"] = self._policy
            headers["Referrer-Policy"] = "same-origin"
        await self._send(message)


class _Replay:
    """Replays a body that has been read, then passes on what follows it."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive

    async def __call__(self) -> Message:
        if self._body is None:
            return await self._receive()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}


async def _body(receive: Receive) -> bytes | None:
    """The whole body; None as soon as it is too large."""
    body, more = bytearray(), True
    while more:
        message = await receive()
        if message["type"] != "http.request":  # the client has disconnected
            return b""
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > MOST_BODY_BYTES:
            return None
    return bytes(body)


def path_of(scope: Scope) -> str:
    """The path below the prefix under which a proxy shows the page, whether or not the proxy strips it."""
    root, path = str(scope.get("root_path", "")), str(scope["path"])
    prefix = urlsplit(root).path.rstrip("/")
    return path.removeprefix(prefix) if prefix and path.startswith(f"{prefix}/") else path


def visitor_of(request: Any) -> str:
    """The visitor who sent a request: an IP address, since anything else can be forged for each request.

    Behind a trusted proxy (FORWARDED_ALLOW_IPS), it is the address that the proxy reports.
    """
    client = getattr(request, "client", None)
    return "" if client is None else str(getattr(client, "host", "") or "")
