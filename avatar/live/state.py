"""A server's state shared by all live sessions: their queue, voices, recogniser, chat and gallery."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from avatar.live.chat import SYSTEM_PROMPT, Chat
from avatar.live.conversation import Conversation
from avatar.live.recording import Recording
from avatar.live.service_address import ServiceAddress
from avatar.live.session import LiveEngine, LiveSession
from avatar.live.session_queue import LiveQueueFull, LiveSessionQueue, Ticket
from avatar.live.speech_recognition import Recogniser
from avatar.live.transports.webrtc import IceServer
from avatar.live.voice import SessionVoice
from avatar.preset import Preset
from avatar.runtime.engine import prepare, warm_up
from avatar.runtime.gallery import About, Gallery, GalleryEntry
from avatar.settings import Picture
from avatar.speech.catalogue import Catalogue

log = logging.getLogger(__name__)

OFFERS_PER_MINUTE = 12  # of WebRTC, in one session; a page makes one each time it connects


@dataclass
class LiveOptions:
    """Live options of the server's operator. preset: of all sessions. chat: None to repeat what was said.

    ice: STUN and TURN servers, for the browser and the server.
    """

    preset: Preset
    recogniser: Recogniser
    chat: ServiceAddress | None = None
    chat_models: Sequence[str] = ()  # that visitors may choose from; none: the address's own
    system_prompt: str = SYSTEM_PROMPT
    ice: Sequence[IceServer] = ()
    portrait: Path | None = None  # shown when the page opens
    picture: Picture = field(default_factory=Picture)  # the face that speaks, and the framing


@dataclass
class OpenSession:
    """A ticket with its session's conversation and recording. conversation: None before it is first used."""

    ticket: Ticket
    conversation: Conversation | None = None
    recording: Recording | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)
    _connections: list[Any] = field(default_factory=list, init=False)
    _offered_at: deque[float] = field(default_factory=lambda: deque(maxlen=OFFERS_PER_MINUTE), init=False)

    def joined(self, connection: Any, most: int) -> list[Any]:
        """Note a connection; returns the oldest ones that are more than so many."""
        with self.lock:
            self._connections.append(connection)
            surplus, self._connections = self._connections[:-most], self._connections[-most:]
            return surplus

    def parted(self, connection: Any) -> None:
        """Note that a connection is closed."""
        with self.lock:
            if connection in self._connections:
                self._connections.remove(connection)

    def check_offers(self, now: float) -> None:
        """Count one more WebRTC offer, at this moment. Raises: LiveQueueFull for too many within a minute."""
        with self.lock:
            if len(self._offered_at) == OFFERS_PER_MINUTE and now - self._offered_at[0] < 60.0:
                raise LiveQueueFull(
                    "live_too_many_offers",
                    "The session was connected too often.",
                    "Please try again in a minute.",
                )
            self._offered_at.append(now)


class LiveState:
    """All live sessions and what they share; thread-safe."""

    def __init__(
        self,
        options: LiveOptions,
        engines: Sequence[LiveEngine],
        gallery: Gallery | None = None,
        catalogue: Catalogue | None = None,
    ) -> None:
        """engines: one per concurrent session. gallery: for recordings; None disables them."""
        self.options, self.gallery, self._engines = options, gallery, engines
        self.catalogue = catalogue or Catalogue()
        self.session_queue = LiveSessionQueue(engines)
        self._opened: dict[str, OpenSession] = {}
        self._lock = threading.Lock()

    def opened(self, token: str) -> OpenSession | None:
        """The open session of a token; None for an unknown token."""
        ticket = self.session_queue.find(token)
        with self._lock:
            for gone in [key for key in self._opened if self.session_queue.find(key) is None]:
                self._leave(self._opened.pop(gone))  # a recording ends in its own time: this must not wait
            if ticket is None:
                return None
            return self._opened.setdefault(token, OpenSession(ticket))

    def conversation(self, opened: OpenSession) -> Conversation | None:
        """The conversation of a session, made on first use; None before the session has started."""
        session = opened.ticket.session
        with opened.lock:
            if opened.conversation is None and session is not None:
                voice = SessionVoice(session, self.catalogue)
                address = self.options.chat
                chat = None
                if address is not None:
                    chat = Chat(address, self.options.system_prompt, models=self.options.chat_models)
                opened.conversation = Conversation(session, voice, self.options.recogniser, chat)
            return opened.conversation

    def record(self, opened: OpenSession, on: bool) -> bool:
        """Start or finish a recording; returns whether one is running. Raises: AvatarError.

        Watchers are notified once the recording is saved.
        """
        session = opened.ticket.session
        with opened.lock:
            if opened.recording is not None:
                if session is not None:
                    session.leave(opened.recording)
                opened.recording.stop()
                opened.recording = None
            if not on or session is None or self.gallery is None:
                return False
            opened.recording = Recording(
                self.gallery, about(opened.ticket), lambda entry: kept(session, entry)
            )
            session.watch(opened.recording)
            return True

    def end(self, opened: OpenSession) -> None:
        """End a session at its visitor's request."""
        with self._lock:
            self._opened.pop(opened.ticket.token, None)
        self._leave(opened)
        if opened.recording is not None:
            opened.recording.join()
        self.session_queue.end(opened.ticket)

    def warm(self) -> None:
        """Start the engine processes, so that the first session does not wait for it. Raises: WorkerLost."""
        for engine in self._engines:
            warm_up(engine)

    def prepare(self, portrait: np.ndarray) -> None:
        """Let the next session's engine get ready for a portrait, uint8 (H, W, 3) RGB."""
        engine = self.session_queue.free_engine
        if engine is not None:
            prepare(engine, portrait, self.options.preset, live=True)

    def close(self) -> None:
        """End all sessions and close the engines."""
        for opened in list(self._opened.values()):
            self.end(opened)
        self.session_queue.close()
        for engine in self._engines:
            getattr(engine, "close", lambda: None)()

    def _leave(self, opened: OpenSession) -> None:
        if opened.conversation is not None:
            opened.conversation.close()
        if opened.recording is not None:
            opened.recording.stop()


def about(ticket: Ticket) -> About:
    """The gallery's metadata for a recording."""
    request = ticket.request
    return About(
        portrait=request.portrait_name,
        speech="live",
        prompt=request.prompt,
        preset=request.preset.name,
        label="preview" if request.preset.engine == "preview" else "",
        settings={},
        num_frames=0,
        duration_s=0.0,
        owner_hash=ticket.owner,
    )


def kept(session: LiveSession, entry: GalleryEntry | None) -> None:
    """Notify watchers that a recording is in the gallery, or could not be saved."""
    session.post_event({"type": "recorded", "id": "" if entry is None else entry.id})
