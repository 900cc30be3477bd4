"""Everything that live sessions need of a server, made once: the line, voices, recogniser, chat, gallery."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from avatar.live.conversation import Conversation
from avatar.live.line import LiveLine, Ticket
from avatar.live.recording import Recording
from avatar.live.services import SYSTEM_PROMPT, Chat, Recogniser, ServiceAddress
from avatar.live.session import LiveEngine, LiveSession
from avatar.live.voice import SessionVoice
from avatar.live.webrtc import IceServer
from avatar.preset import Preset
from avatar.runtime.gallery import About, Gallery, GalleryEntry
from avatar.settings import Picture
from avatar.speech.catalogue import Catalogue

log = logging.getLogger(__name__)


@dataclass
class LiveOptions:
    """What whoever runs the server chose. preset: of all sessions. chat: None for an echo.

    ice: STUN and TURN servers, for both sides.
    """

    preset: Preset
    recogniser: Recogniser
    chat: ServiceAddress | None = None
    system_prompt: str = SYSTEM_PROMPT
    ice: Sequence[IceServer] = ()
    portrait: Path | None = None  # what the page begins with
    picture: Picture = field(default_factory=Picture)  # who of that portrait speaks, and what of it is shown


@dataclass
class OpenSession:
    """What one ticket's session has of its own. conversation: None before its turn has come."""

    ticket: Ticket
    conversation: Conversation | None = None
    recording: Recording | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)


class LiveState:
    """Sessions with all that belongs to them; safe from any thread."""

    def __init__(
        self,
        options: LiveOptions,
        engines: Sequence[LiveEngine],
        gallery: Gallery | None = None,
        catalogue: Catalogue | None = None,
    ) -> None:
        """engines: as many as there may be sessions. gallery: where recordings go; None: none can be made."""
        self.options, self.gallery, self._engines = options, gallery, engines
        self.catalogue = catalogue or Catalogue()
        self.line = LiveLine(engines)
        self._opened: dict[str, OpenSession] = {}
        self._lock = threading.Lock()

    def opened(self, token: str) -> OpenSession | None:
        """What belongs to a token; None when it is nobody's."""
        ticket = self.line.find(token)
        with self._lock:
            for gone in [key for key in self._opened if self.line.find(key) is None]:
                self._leave(self._opened.pop(gone))
            if ticket is None:
                return None
            return self._opened.setdefault(token, OpenSession(ticket))

    def conversation(self, opened: OpenSession) -> Conversation | None:
        """The conversation of a session that has begun."""
        session = opened.ticket.session
        with opened.lock:
            if opened.conversation is None and session is not None:
                voice = SessionVoice(session, self.catalogue)
                address = self.options.chat
                chat = None if address is None else Chat(address, self.options.system_prompt)
                opened.conversation = Conversation(session, voice, self.options.recogniser, chat)
            return opened.conversation

    def record(self, opened: OpenSession, on: bool) -> bool:
        """Begin a recording, or finish it; the watchers are reported once it is kept. Raises: AvatarError."""
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
        """Its visitor has ended the session."""
        with self._lock:
            self._opened.pop(opened.ticket.token, None)
        self._leave(opened)
        self.line.end(opened.ticket)

    def warm(self) -> None:
        """Start the engines' processes: the first session does not wait for imports. Raises: WorkerLost."""
        for engine in self._engines:
            getattr(engine, "warm", lambda: None)()

    def close(self) -> None:
        """End all."""
        for opened in list(self._opened.values()):
            self.end(opened)
        self.line.close()
        for engine in self._engines:
            getattr(engine, "close", lambda: None)()

    def _leave(self, opened: OpenSession) -> None:
        if opened.conversation is not None:
            opened.conversation.close()
        if opened.recording is not None:
            opened.recording.stop()
            opened.recording.join()


def about(ticket: Ticket) -> About:
    """What the gallery should know of a recording."""
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
    """Tell those who watch that a recording is in the gallery, or that it is not."""
    session.tell({"type": "recorded", "id": "" if entry is None else entry.id})
