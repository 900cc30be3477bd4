"""Talk: whoever speaks is heard, understood and answered, and may cut in; what is down is said."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from avatar.errors import BadInput
from avatar.live import slowness
from avatar.live.chat import Chat
from avatar.live.service_address import ServiceAddress, ServiceDown
from avatar.live.speech_recognition import RemoteRecogniser
from avatar.live.vad import CHUNK, LEAST_SPEECH, PAUSE, SUSPECTED, Turns, VoiceProbability
from avatar.speech.voices import VoiceUnavailable
from tests.fixtures.server import wait_until
from tests.fixtures.speech_services import KEY
from tests.live.services import (
    Parrot,
    SlowVoice,
    Voices,
    notices,
    said,
    speak,
)


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


@pytest.mark.parametrize(("sound", "ms"), [("click", 5), ("thump", 120), ("clap", 60)])
def test_a_click_or_thump_does_not_silence_the_avatar(talk, sound, ms):
    conversation, watcher = talk()
    conversation.say("This is a very long sentence that goes on for quite a while. " * 6)
    wait_until(lambda: conversation.session.sound_queue.waiting_s > 5, "it speaks")
    noise = np.random.default_rng(0).normal(0, 1, round(ms * 48))
    shape = np.exp(-np.linspace(0, 6, len(noise)))
    tone = np.sin(2 * np.pi * 70 * np.arange(len(noise)) / 48_000)
    burst = (12_000 * shape * (tone if sound == "thump" else noise)).clip(-32_768, 32_767)
    held, hold = [], conversation.session.sound_queue.hold
    conversation.session.sound_queue.hold = lambda on: held.append(on) or hold(on)
    speak(conversation, np.concatenate([burst, np.zeros(48_000)]).astype(np.int16))
    wait_until(lambda: len(held) > 25, "all of it is looked at")
    assert not any(held)
    assert not any(one["type"] == "interrupted" for one in watcher.reported)


def test_watchers_are_told_of_any_interruption(talk):
    conversation, watcher = talk()
    conversation.interrupt()
    assert not any(one["type"] == "interrupted" for one in watcher.reported), "nothing was said"
    conversation.say("There is a great deal to say about this.")
    wait_until(lambda: conversation.voice.is_speaking, "the voice")
    conversation.interrupt()
    wait_until(lambda: any(one["type"] == "interrupted" for one in watcher.reported), "the interruption")


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


def test_without_the_library_recognition_says_what_to_do(monkeypatch):
    import sys

    from avatar.live.speech_recognition import LocalRecogniser

    monkeypatch.setitem(sys.modules, "faster_whisper", None)
    with pytest.raises(ServiceDown, match="--hear-url"):
        LocalRecogniser().load()
