"""Talk: whoever speaks is heard, understood and answered, and may cut in; what is down is said."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from avatar.errors import BadInput
from avatar.live import slowness
from avatar.live.chat import MOST_PART_CHARS, Chat, chat_address, chat_models, sentences_of
from avatar.live.conversation import Conversation
from avatar.live.service_address import ServiceAddress, ServiceDown
from avatar.live.session import LiveSession
from avatar.live.speech_recognition import RemoteRecogniser, hear_address
from avatar.live.vad import CHUNK, LEAST_SPEECH, PAUSE, SUSPECTED, Turns, VoiceProbability
from avatar.live.voice import MOST_TEXT_CHARS, SessionVoice
from avatar.media.speech_reader import SpeechReader, write_speech
from avatar.preset import Preset
from avatar.request import LiveRequest
from avatar.speech.voices import VoiceUnavailable
from tests.fixtures.server import wait_until
from tests.live.engines import Noting, QuickEngine
from tests.live.test_websocket import Beeps, Voices

ROOT = Path(__file__).parents[2]
REQUEST = LiveRequest(Path(), Path(), Preset("test", "Test", "For tests", "preview"), "me.png")
KEY = "k3y-of-ours"


class Server:
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


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


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


@pytest.fixture
def talk():
    """A function that begins a conversation over an engine that needs no time."""
    begun = []

    def talking(recogniser=None, chat=None, voices=None):
        session, watcher = LiveSession(QuickEngine(), REQUEST), Noting()
        session.watch(watcher)
        voice = SessionVoice(session, voices or Voices())
        conversation = Conversation(session, voice, recogniser or Parrot(), chat)
        begun.append(conversation)
        conversation.set_mode("talk")
        return conversation, watcher

    yield talking
    for conversation in begun:
        conversation.close()
        conversation.session.end()


@pytest.fixture(scope="module")
def speech(tmp_path_factory) -> np.ndarray:
    """Two seconds of somebody speaking, and two of silence; int16 at 48 kHz."""
    path = tmp_path_factory.mktemp("speech") / "speech.wav"
    write_speech(ROOT / "assets" / "speech" / "hello-en.flac", path)
    with SpeechReader(path) as reader:
        spoken = reader.samples(0, 96_000)[:, 0].astype(np.int16)
    return np.concatenate([spoken, np.zeros(96_000, np.int16)])


def speak(conversation: Conversation, sound: np.ndarray) -> None:
    for piece in np.array_split(sound, len(sound) // 1920):
        conversation.hear(piece)


def said(watcher: Noting, who: str) -> list[str]:
    return [one["text"] for one in watcher.reported if one["type"] == "said" and one["who"] == who]


def test_speech_is_reported_from_silence_and_noise(speech):
    from avatar.media.timeline import Timeline

    timeline = Timeline(10.0)
    timeline.append(speech)
    heard = timeline.listen(0, timeline.num_heard)
    likely, turns, changes = VoiceProbability(), Turns(), []
    for at in range(0, len(heard) - CHUNK, CHUNK):
        change = turns.note(likely(heard[at : at + CHUNK]))
        if change:
            changes.append((change, at / 16_000))
    assert [change for change, _ in changes] == ["begins", "ends"]
    assert changes[0][1] < 1.0
    assert 1.5 < changes[1][1] < 3.2
    hiss, quiet = VoiceProbability(), Turns()
    noise = np.random.default_rng(0).normal(0, 0.02, 4 * 16_000).astype(np.float32)
    assert not any(quiet.note(hiss(piece)) for piece in noise[: 124 * CHUNK].reshape(-1, CHUNK))


def test_a_click_is_no_turn_and_a_short_pause_ends_none():
    turns = Turns()
    assert not any(turns.note(0.9) for _ in range(LEAST_SPEECH - 1))
    assert turns.note(0.1) == ""
    assert [turns.note(0.9) for _ in range(LEAST_SPEECH)][-1] == "begins"
    assert not any(turns.note(0.1) for _ in range(PAUSE - 1))
    assert turns.note(0.9) == ""
    assert [turns.note(0.1) for _ in range(PAUSE)][-1] == "ends"


def test_a_spoken_sentence_is_answered_by_the_chat(talk, server, speech):
    conversation, watcher = talk(RemoteRecogniser(server.address), Chat(server.address))
    speak(conversation, speech)
    wait_until(lambda: len(said(watcher, "avatar")) == 2, "the answer")
    assert said(watcher, "you") == ["hello there"]
    assert said(watcher, "avatar") == ["Nice to hear from you.", "How is the weather there?"]
    wait_until(lambda: any(one.sound.any() for one in watcher.made), "the answer is heard")
    assert server.asked[0]["bytes"] > 20_000
    assert server.asked[1]["messages"][-1] == {"role": "user", "content": "hello there"}
    assert server.asked[1]["messages"][0]["role"] == "system"
    assert set(server.keys) == {f"Bearer {KEY}"}


def test_without_a_chat_what_was_said_is_said_back(talk, speech):
    conversation, watcher = talk()
    speak(conversation, speech)
    wait_until(lambda: said(watcher, "avatar"), "the echo")
    assert said(watcher, "avatar") == ["how are you today"]


def test_speaking_over_the_avatar_stops_it(talk, speech):
    conversation, watcher = talk()
    conversation.say("This is a very long sentence that goes on for quite a while. " * 6)
    wait_until(lambda: conversation.session.sound_queue.waiting_s > 5, "it speaks")
    speak(conversation, speech[:96_000])
    wait_until(lambda: any(one["type"] == "interrupted" for one in watcher.reported), "the interruption")
    wait_until(lambda: conversation.session.sound_queue.waiting_s < 0.1, "silence")


def test_a_suspected_voice_silences_the_avatar_until_it_is_known(talk):
    turns = Turns()
    for _ in range(SUSPECTED - 1):
        turns.note(0.9)
        assert not turns.is_suspected
    turns.note(0.9)
    assert turns.is_suspected
    turns.note(0.1)  # it was a cough
    assert not turns.is_suspected
    for _ in range(LEAST_SPEECH):
        turns.note(0.9)
    assert turns.is_speaking
    assert not turns.is_suspected


def test_watchers_are_told_of_any_interruption(talk):
    conversation, watcher = talk()
    conversation.interrupt()
    assert not any(one["type"] == "interrupted" for one in watcher.reported), "nothing was said"
    conversation.say("There is a great deal to say about this.")
    wait_until(lambda: conversation.voice.is_speaking, "the voice")
    conversation.interrupt()
    wait_until(lambda: any(one["type"] == "interrupted" for one in watcher.reported), "the interruption")


def test_an_answer_that_is_cut_off_is_not_gone_on_with(talk, server):
    server.pieces = ["First one is here. ", "Second one is here. ", "Third."]
    conversation, watcher = talk(chat=Chat(server.address))
    server.hold.clear()
    conversation.ask("Tell me.")
    wait_until(lambda: server.asked, "the chat is asked")
    conversation.interrupt()
    server.hold.set()
    conversation.ask("Something else.")
    wait_until(lambda: len(server.asked) == 2 and len(said(watcher, "avatar")) == 3, "the second answer")
    assert said(watcher, "avatar") == ["First one is here.", "Second one is here.", "Third."]


@pytest.mark.parametrize(
    ("status", "words"), [(401, "key"), (404, "model"), (429, "rate-limiting"), (500, "status 500")]
)
def test_a_refusing_chat_is_reported_and_the_session_lives(talk, server, status, words):
    server.status = status
    conversation, watcher = talk(chat=Chat(server.address))
    conversation.ask("Hello?")
    wait_until(lambda: any(one.get("code") == "error" for one in watcher.reported), "the notice")
    notice = next(one["text"] for one in watcher.reported if one.get("code") == "error")
    assert words in notice
    assert KEY not in notice
    assert "secret words" not in notice
    server.status = 200
    conversation.ask("Hello?")
    wait_until(lambda: said(watcher, "avatar"), "the answer after all")


def test_a_recogniser_that_is_down_is_reported_in_a_line(talk, speech):
    nowhere = RemoteRecogniser(ServiceAddress("http://127.0.0.1:9/v1", "m"))
    conversation, watcher = talk(nowhere)
    speak(conversation, speech)
    wait_until(lambda: any(one.get("code") == "error" for one in watcher.reported), "the notice")
    assert not conversation.session.over.is_set()


def test_in_the_mirror_sound_is_said_as_it_comes(talk, speech):
    conversation, watcher = talk()
    conversation.set_mode("mirror")
    conversation.hear(speech[24_000:33_600])
    wait_until(lambda: any(one.sound.any() for one in watcher.made), "sound")
    with pytest.raises(BadInput, match="talk"):
        conversation.ask("Hello?")


def test_the_visitor_says_who_answers_and_by_which_model(talk, server):
    chat = Chat(server.address, "Be brief.", models=("tiny", "large"))
    conversation, _ = talk(chat=chat)
    for part, model in (("You are a pirate.", "large"), ("", "")):
        conversation.set_part(part, model)
        assert "".join(chat.answer("Hello?"))
    assert [one["model"] for one in server.asked] == ["large", "tiny"]
    told = [one["messages"][0]["content"] for one in server.asked]
    assert told == ["Be brief.\n\nYou are a pirate.", "Be brief."]


@pytest.mark.parametrize(("part", "model"), [("a" * (MOST_PART_CHARS + 1), ""), ("", "gigantic")])
def test_a_part_too_long_and_other_models_are_refused(talk, server, part, model):
    conversation, _ = talk(chat=Chat(server.address, models=("tiny", "large")))
    with pytest.raises(BadInput, match=r"too long|tiny, large"):
        conversation.set_part(part, model)


def test_where_no_chat_answers_it_can_be_told_nothing(talk):
    conversation, _ = talk()
    conversation.set_part("", "")
    with pytest.raises(BadInput, match="--chat-url"):
        conversation.set_part("You are a pirate.")


def test_models_are_named_by_flag_or_environment():
    assert chat_models("a, b,", {}) == ("a", "b")
    assert chat_models(None, {"AVATAR_CHAT_MODEL": "c"}) == ("c",)
    assert chat_models(None, {}) == ("default",)
    assert chat_address("http://h/v1", "a,b", {}).model == "a"


def notices(watcher: Noting) -> list[str]:
    return [one["code"] for one in watcher.reported if one["type"] == "notice"]


def test_a_chat_that_takes_long_is_reported_once_and_answers(talk, server, monkeypatch):
    monkeypatch.setattr(slowness, "SLOW_S", 0.1)
    conversation, watcher = talk(chat=Chat(server.address))
    server.hold.clear()
    conversation.ask("Hello?")
    wait_until(lambda: "chat_slow" in notices(watcher), "the notice")
    server.hold.set()
    wait_until(lambda: len(said(watcher, "avatar")) == 2, "the answer")
    assert notices(watcher).count("chat_slow") == 1


class SlowVoice(Beeps):
    """Beeps when it is allowed to."""

    def __init__(self) -> None:
        self.hold, self.error = threading.Event(), None

    def synthesise(self, text, voice, speed=1.0):
        if self.error is not None:
            raise self.error
        self.hold.wait(20)
        yield from super().synthesise(text, voice, speed)


def test_a_voice_that_takes_long_or_fails_is_reported(talk, monkeypatch):
    monkeypatch.setattr(slowness, "SLOW_S", 0.1)
    voice, voices = SlowVoice(), Voices()
    voices.engines = (voice,)
    conversation, watcher = talk(voices=voices)
    conversation.say("Hello.")
    wait_until(lambda: notices(watcher) == ["voice_slow"], "the notice")
    voice.hold.set()
    wait_until(lambda: said(watcher, "avatar") == ["Hello."], "the voice")
    voice.error = VoiceUnavailable("The speech server is down.")
    conversation.say("Once more.")
    wait_until(lambda: notices(watcher) == ["voice_slow", "error"], "the error")
    voice.error = None
    conversation.say("And again.")
    wait_until(lambda: said(watcher, "avatar") == ["Hello.", "And again."], "the voice after all")


def test_recognition_that_takes_long_is_reported(talk, speech, monkeypatch):
    monkeypatch.setattr(slowness, "SLOW_S", 0.1)
    parrot = Parrot()
    hold = threading.Event()
    monkeypatch.setattr(parrot, "words", lambda samples: hold.wait(20) and "well")
    conversation, watcher = talk(parrot)
    speak(conversation, speech)
    wait_until(lambda: "recognition_slow" in notices(watcher), "the notice")
    hold.set()
    wait_until(lambda: said(watcher, "avatar") == ["well"], "the echo")


def test_where_no_words_were_understood_it_is_said(talk, speech):
    conversation, watcher = talk(Parrot(understood=""))
    speak(conversation, speech)
    wait_until(lambda: any(one["type"] == "not_understood" for one in watcher.reported), "the event")
    assert said(watcher, "you") == []


def test_a_chat_without_a_word_is_reported(talk, server):
    server.pieces = ["", " "]
    conversation, watcher = talk(chat=Chat(server.address))
    conversation.ask("Hello?")
    wait_until(lambda: "error" in notices(watcher), "the notice")
    assert any("gave no answer" in one.get("text", "") for one in watcher.reported)


def slowly(piece: str, count: int) -> Iterator[str]:
    """A piece again and again, twenty a second."""
    for _ in range(count):
        time.sleep(0.05)
        yield piece


def test_an_interrupted_chat_is_not_read_to_its_sentences_end(talk, server):
    server.pieces = slowly("word ", 2000)
    conversation, watcher = talk(chat=Chat(server.address))
    conversation.ask("Tell me.")
    wait_until(lambda: server.asked, "the chat is asked")
    conversation.interrupt()
    server.pieces = ["Here I am again."]
    conversation.ask("Something else.")
    wait_until(lambda: said(watcher, "avatar") == ["Here I am again."], "the second answer")


def test_a_text_to_answer_may_not_be_too_long(talk, server):
    conversation, _ = talk(chat=Chat(server.address))
    with pytest.raises(BadInput, match="too long"):
        conversation.ask("a" * (MOST_TEXT_CHARS + 1))
    assert server.asked == []


def test_a_chat_remembers_both_sides_and_no_more_than_it_may(server):
    chat = Chat(server.address, most_turns=3)
    for number in range(4):
        assert "".join(chat.answer(f"turn {number}")) == "".join(server.pieces)
    roles = [one["role"] for one in server.asked[-1]["messages"]]
    assert roles == ["system", "user", "assistant", "user"]


def test_sentences_come_as_soon_as_they_are_whole():
    pieces = iter(["It costs 3.", "50 dollars. Yes", "! And it is, well, done. 好", "的。没问题。再见"])
    assert list(sentences_of(pieces)) == [
        "It costs 3.50 dollars.",
        "Yes! And it is, well, done.",
        "好的。没问题。",
        "再见",
    ]


@pytest.mark.parametrize(
    "url", ["ftp://x", "localhost:1", "http://", "http://me:pw@host/v1", "http://h/v1?k=1"]
)
def test_a_wrong_address_of_a_service_is_refused(url):
    for address in (chat_address, hear_address):
        with pytest.raises(BadInput):
            address(url, None, {})
    assert chat_address(None, None, {}) is None


def test_without_the_library_recognition_says_what_to_do(monkeypatch):
    import sys

    from avatar.live.speech_recognition import LocalRecogniser

    monkeypatch.setitem(sys.modules, "faster_whisper", None)
    with pytest.raises(ServiceDown, match="--hear-url"):
        LocalRecogniser().load()
