"""A speech server: what it is asked, and what is reported of one that is down, slow or wrong."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from avatar.errors import BadInput
from avatar.settings import Speaking
from avatar.speech import remote
from avatar.speech.catalogue import Catalogue
from avatar.speech.narration import Narrator, Script
from avatar.speech.remote import RemoteVoices
from avatar.speech.voices import VoiceUnavailable
from tests.speech.conftest import SpeechServer, sound

KEY = "sk-not-to-be-seen"


@pytest.fixture
def voices(server: SpeechServer) -> RemoteVoices:
    return RemoteVoices(server.url, KEY, "tts-9", ("alloy", "nova"))


def test_every_sentence_is_one_request(server: SpeechServer, voices: RemoteVoices, monkeypatch):
    monkeypatch.setenv(remote.URL, server.url)
    monkeypatch.setenv(remote.KEY, KEY)
    script = Script("你好。 Hello there.", Speaking(voice="url/alloy", speed=1.5))
    said = list(Narrator.of(script, Catalogue()).sentences())
    assert [one.text for one in said] == ["你好。", "Hello there."]
    assert server.asked[0] == (
        {"model": "tts-1", "voice": "alloy", "input": "你好。", "speed": 1.5, "response_format": "wav"},
        f"Bearer {KEY}",
    )
    assert len(server.asked) == 2
    assert said[1].hz == 24_000


def test_sound_of_any_rate_becomes_samples_at_ours(voices: RemoteVoices):
    (samples,) = voices.synthesise("x" * 40, "url/nova")
    assert samples.dtype == np.float32
    assert len(samples) == pytest.approx(2.0 * voices.hz, rel=0.01)
    assert np.abs(samples).max() == pytest.approx(0.4, abs=0.02)


def test_without_a_key_none_is_sent(server: SpeechServer):
    list(RemoteVoices(server.url).synthesise("Hello.", "url/alloy"))
    assert server.asked[0][1] == ""


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "does not accept the key. Check $AVATAR_SPEECH_KEY"),
        (403, "does not accept the key"),
        (404, "no /audio/speech"),
        (400, "refuses the voice 'alloy'"),
        (429, "rate-limiting"),
        (500, "fails (status 500)"),
    ],
)
def test_each_refusal_of_the_server_says_what_to_do(
    server: SpeechServer, voices: RemoteVoices, status: int, words: str
):
    server.status, server.body = status, b'{"error": "sk-not-to-be-seen is wrong"}'
    with pytest.raises(VoiceUnavailable) as reported:
        list(voices.synthesise("Hello.", "url/alloy"))
    assert words in str(reported.value)
    assert KEY not in str(reported.value)


@pytest.mark.parametrize("body", [b"", b"{}", b"RIFF....WAVE", sound(20)[:40]])
def test_an_answer_that_is_no_sound_is_reported(server: SpeechServer, voices: RemoteVoices, body: bytes):
    server.body = body
    with pytest.raises(VoiceUnavailable, match="not readable audio"):
        list(voices.synthesise("Hello.", "url/alloy"))


def test_a_server_that_is_down_is_reported(server: SpeechServer, caplog: pytest.LogCaptureFixture):
    down = RemoteVoices("http://127.0.0.1:9/v1", KEY)
    with caplog.at_level(logging.DEBUG), pytest.raises(VoiceUnavailable) as reported:
        list(down.synthesise("Hello.", "url/alloy"))
    assert "cannot be reached" in str(reported.value)
    assert "Check $AVATAR_SPEECH_URL" in str(reported.value)
    assert KEY not in caplog.text + repr(down) + repr(reported.value)


def test_a_slow_server_is_not_waited_for_for_ever(
    server: SpeechServer, voices: RemoteVoices, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(remote, "ANSWER_S", 0.2)
    server.wait_s = 5.0
    with pytest.raises(VoiceUnavailable, match="does not answer in time"):
        list(voices.synthesise("Hello.", "url/alloy"))


def test_an_endless_answer_is_cut_off(server: SpeechServer, voices: RemoteVoices, monkeypatch):
    monkeypatch.setattr(remote, "_MOST_BYTES", 1000)
    with pytest.raises(VoiceUnavailable, match="sent too much data"):
        list(voices.synthesise("Hello.", "url/alloy"))


@pytest.mark.parametrize("url", ["ftp://x/v1", "nonsense", "http://", "https://u:p@x/v1", "https://x/v1?k=1"])
def test_an_address_that_is_none_is_refused(url: str):
    with pytest.raises(BadInput, match="AVATAR_SPEECH_URL"):
        RemoteVoices.from_environment({remote.URL: url})


def test_its_voices_are_those_that_the_environment_names():
    named = {remote.URL: "https://host/v1/", remote.VOICES: "a, b,", remote.MODEL: "m"}
    assert [voice.name for voice in RemoteVoices.from_environment(named).voices()] == ["url/a", "url/b"]
    assert RemoteVoices.from_environment({}).voices() == []
