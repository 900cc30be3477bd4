"""Routes that begin and reach live sessions: below /live/, by a token that only the visitor knows."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio.to_thread
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.websockets import WebSocket

from avatar.errors import AvatarError, BadInput
from avatar.live.portrait_intake import moving, open_live_request
from avatar.live.session_queue import LiveQueueFull, Ticket
from avatar.live.state import LiveState, OpenSession
from avatar.live.transports.webrtc import MOST_SDP_BYTES, Peer
from avatar.live.transports.websocket import GONE, LiveSocket
from avatar.media.face_choice import face_words
from avatar.media.framing import parse_picture
from avatar.runtime.gallery import owner_hash
from avatar.settings import PICTURE, refuse_settings
from avatar.ui import payloads
from avatar.ui.error_messages import message_of
from avatar.ui.language import Language, language_of, notice_words, text
from avatar.ui.routes.request_guard import visitor_of
from avatar.ui.state.app_state import AppState

log = logging.getLogger(__name__)

MOST_PEERS = 2  # per session: a page that is being reloaded has two for a moment


@dataclass(frozen=True)
class PageWords:
    """The page's texts in one language; see websocket.MessageWords."""

    language: Language

    def error(self, error: AvatarError) -> str:
        """See MessageWords."""
        return message_of(error, self.language)

    def notice(self, code: str, english: str, values: Mapping[str, Any]) -> str:
        """See MessageWords."""
        return notice_words(code, english, values, self.language)

    def text(self, key: str) -> str:
        """See MessageWords."""
        return text(key, self.language)


def live_routes(app_state: AppState, state: LiveState) -> list[BaseRoute]:
    """All routes of live sessions."""
    peers: dict[str, list[Peer]] = {}

    async def begin(request: Request) -> Response:
        """Begin a session for an uploaded portrait; answers with its token."""
        try:
            asked = await _json(request)
            visitor = visitor_of(request)
            ticket = await anyio.to_thread.run_sync(begin_session, app_state, state, asked, visitor)
        except AvatarError as error:
            return _refused(error, request)
        place = state.session_queue.place(ticket)
        return JSONResponse({"token": ticket.token, "socket": f"live/{ticket.token}", "place": place})

    async def offer(request: Request) -> Response:
        """Take a WebRTC offer; responds with the WebRTC answer."""
        opened = state.opened(request.path_params["token"])
        if opened is None or opened.ticket.session is None:
            return JSONResponse({"error": text("live_over", language_of(request))}, 404)
        try:
            opened.check_offers(time.monotonic())
            asked = await _json(request)
            sdp = asked.get("sdp")
            if not isinstance(sdp, str) or len(sdp) > MOST_SDP_BYTES:
                raise BadInput("The browser's WebRTC offer cannot be used.")
            answer = await _answered(state, opened, sdp, peers.setdefault(opened.ticket.token, []))
        except AvatarError as error:
            return _refused(error, request)
        for token in [token for token in peers if state.session_queue.find(token) is None]:
            del peers[token]
        return JSONResponse({"sdp": answer})

    async def leave(request: Request) -> Response:
        """The page is being closed."""
        opened = state.opened(request.path_params["token"])
        if opened is not None:
            await anyio.to_thread.run_sync(state.end, opened)
        return Response(status_code=204)

    async def serve(socket: WebSocket) -> None:
        opened = state.opened(socket.path_params["token"])
        said = PageWords(language_of(socket))
        await socket.accept()
        if opened is None:
            await socket.close(GONE, said.text("live_over"))
            return
        await LiveSocket(socket, state, opened, said).serve()

    return [
        Route("/live/sessions", begin, methods=["POST"]),
        Route("/live/{token}/offer", offer, methods=["POST"]),
        Route("/live/{token}/leave", leave, methods=["POST"]),
        WebSocketRoute("/live/{token}", serve),
    ]


def begin_session(app_state: AppState, state: LiveState, asked: dict[str, Any], visitor: str) -> Ticket:
    """A ticket for the session requested in asked.

    asked: portrait (an upload's path), head_only, owner, face, framing, aspect, extend, background or
    background_picture (an upload's path), motion. Raises: AvatarError.
    """
    from avatar.preview.face_finder import Finder  # imports OpenCV and the face models; only for a session

    state.session_queue.check_not_full(visitor)
    portrait = asked.get("portrait")
    if not isinstance(portrait, str) or not portrait:
        raise BadInput("A live session needs a portrait.", "Upload one, and pass its path.")
    if app_state.uploads is None:
        raise BadInput("This server does not accept uploads.")
    app_state.uploads.check([{"path": portrait, "meta": {"_type": "gradio.FileData"}}])
    owner = asked.get("owner")
    behind = asked.get("background_picture")
    if behind is not None:
        app_state.uploads.check([{"path": behind}])
    given = {name: asked.get(name) for name in PICTURE}
    given |= payloads.background(given.pop("background"), behind)
    picture = parse_picture(**{**given, "face": face_words(given["face"])})
    preset = moving(state.options.preset, asked.get("motion"))
    refuse_settings(preset.engine, picture.demands)
    request = open_live_request(
        Path(portrait),
        preset,
        app_state.scratch,
        head_only=asked.get("head_only") is True,
        face_points=asked.get("points") if isinstance(asked.get("points"), dict) else None,
        limits=app_state.limits,
        reader=app_state.reader(visitor),
        picture_settings=picture,
        finder=Finder(),
    )
    return state.session_queue.ask(request, visitor, owner_hash(owner if isinstance(owner, str) else ""))


async def _answered(state: LiveState, opened: OpenSession, sdp: str, peers: list[Peer]) -> str:
    """Answer an offer with a new peer; the oldest is closed if there are too many."""
    session, conversation = opened.ticket.session, state.conversation(opened)
    assert session is not None
    assert conversation is not None
    while len(peers) >= MOST_PEERS:
        await peers.pop(0).close()
    peer = Peer(session, state.options.ice, conversation.hear, asyncio.get_running_loop())
    answer = await peer.answer(sdp)
    peers.append(peer)
    return answer


async def _json(request: Request) -> dict[str, Any]:
    """A request's JSON object. Raises: BadInput."""
    try:
        asked = await request.json()
    except (ValueError, RecursionError):
        asked = None
    if not isinstance(asked, dict):
        raise BadInput("The request was not understood.", "Send a JSON object.")
    return asked


def _refused(error: AvatarError, request: Request) -> JSONResponse:
    code = 429 if isinstance(error, LiveQueueFull) else 400 if isinstance(error, BadInput) else 503
    return JSONResponse({"error": message_of(error, language_of(request))}, code)
