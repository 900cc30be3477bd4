"""Chats, recognisers and voices of which a test decides what they say."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

from avatar.live.conversation import Conversation
from avatar.live.service_address import ServiceAddress, ServiceDown
from avatar.speech.catalogue import Catalogue
from avatar.speech.voices import Voice
from tests.live.engines import Noting

KEY = "k3y-of-ours"


class Beeps:
    """See SpeechEngine: a beep for each letter, at once."""

    hz = 24_000

    def voices(self):
        return [Voice("heart", "en-US", (), "Beeps")]

    def load(self, voice):
        pass

    def synthesise(self, text, voice, speed=1.0):
        places = np.arange(len(text) * 1200)
        yield (0.3 * np.sin(places * 0.1)).astype(np.float32)


class Voices(Catalogue):
    engines = (Beeps(),)


class Deaf:
    """See Recogniser: always down."""

    def load(self):
        pass

    def words(self, samples):
        raise ServiceDown("The recogniser is down.", why="silent", service="recognition", host="here")


class SpeechServices:
    """A chat and a recogniser of which a test decides what they say."""

    def __init__(self) -> None:
        self.pieces: Iterable[str] = ["Nice to ", "hear from you. ", "How is ", "the weather there?"]
        self.words, self.status = "hello there", 200
        self.asked: list[dict] = []
        self.keys: list[str] = []
        self.hold = threading.Event()
        self.hold.set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.keys.append(self.headers.get("Authorization", ""))
                self.send_response(outer.status)
                self.end_headers()
                if outer.status != 200:
                    self.wfile.write(b"secret words of the server " + KEY.encode())
                elif self.path.endswith("/audio/transcriptions"):
                    outer.asked.append({"bytes": len(body)})
                    self.wfile.write(json.dumps({"text": outer.words}).encode())
                else:
                    outer.asked.append(json.loads(body))
                    for piece in outer.pieces:
                        outer.hold.wait(20)
                        line = json.dumps({"choices": [{"delta": {"content": piece}}]})
                        self.wfile.write(f"data: {line}\n\n".encode())
                        self.wfile.flush()
                    self.wfile.write(b"data: [DONE]\n\n")

            def log_message(self, *_):
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        self.address = ServiceAddress(f"http://127.0.0.1:{self._http.server_port}/v1", "tiny", KEY)

    def close(self) -> None:
        self.hold.set()
        self._http.shutdown()
        self._http.server_close()


class Parrot:
    """See Recogniser: hears the same words whatever is said."""

    def __init__(self, understood: str = "how are you today") -> None:
        self.heard: list[int] = []
        self.understood = understood

    def load(self) -> None:
        pass

    def words(self, samples: np.ndarray) -> str:
        self.heard.append(len(samples))
        return self.understood


class SlowVoice(Beeps):
    """Beeps when it is allowed to."""

    def __init__(self) -> None:
        self.hold, self.error = threading.Event(), None

    def synthesise(self, text, voice, speed=1.0):
        if self.error is not None:
            raise self.error
        self.hold.wait(20)
        yield from super().synthesise(text, voice, speed)


def speak(conversation: Conversation, sound: np.ndarray) -> None:
    for piece in np.array_split(sound, len(sound) // 1920):
        conversation.hear(piece)


def said(watcher: Noting, who: str) -> list[str]:
    return [one["text"] for one in watcher.reported if one["type"] == "said" and one["who"] == who]


def notices(watcher: Noting) -> list[str]:
    return [one["code"] for one in watcher.reported if one["type"] == "notice"]


def slowly(piece: str, count: int) -> Iterator[str]:
    """A piece again and again, twenty a second."""
    for _ in range(count):
        time.sleep(0.05)
        yield piece
