"""The chat of Talk: what it is told, how its answers come, and what is said where it fails."""

from __future__ import annotations

import pytest

from avatar.errors import BadInput
from avatar.live import slowness
from avatar.live.chat import MOST_PART_CHARS, Chat, chat_address, chat_models, sentences_of
from avatar.live.speech_recognition import hear_address
from avatar.live.voice import MOST_TEXT_CHARS
from tests.fixtures.server import wait_until
from tests.fixtures.speech_services import KEY
from tests.live.services import (
    notices,
    said,
    slowly,
)


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


def test_a_chat_that_takes_long_is_reported_once_and_answers(talk, server, monkeypatch):
    monkeypatch.setattr(slowness, "SLOW_S", 0.1)
    conversation, watcher = talk(chat=Chat(server.address))
    server.hold.clear()
    conversation.ask("Hello?")
    wait_until(lambda: "chat_slow" in notices(watcher), "the notice")
    server.hold.set()
    wait_until(lambda: len(said(watcher, "avatar")) == 2, "the answer")
    assert notices(watcher).count("chat_slow") == 1


def test_a_chat_without_a_word_is_reported(talk, server):
    server.pieces = ["", " "]
    conversation, watcher = talk(chat=Chat(server.address))
    conversation.ask("Hello?")
    wait_until(lambda: "error" in notices(watcher), "the notice")
    assert any("gave no answer" in one.get("text", "") for one in watcher.reported)


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
