"""Messages between processes: the same at the other end, flat ones without pickle."""

from __future__ import annotations

import pickle
import socket
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from avatar.errors import AvatarError, BadInput, Cancelled, DoesNotFit, WeightsMissing, WorkerLost
from avatar.events import Notice
from avatar.preset import load_preset
from avatar.runtime import protocol
from avatar.runtime.protocol import (
    Cancel,
    Ended,
    Failed,
    Greeting,
    Heartbeat,
    Link,
    MadeFrames,
    OutOfMemory,
    PartCarry,
    Planned,
    Pulse,
    Quit,
    Ready,
    RendezvousPort,
    RequestFiles,
    RunEvent,
    StartEngine,
    StartRank,
    from_json,
    to_json,
)
from avatar.runtime.report import MemoryUse
from avatar.runtime.request_bundle import RequestBundle

PRESET = load_preset("self-test")
FLAT = [
    Cancel(3),
    Ended(3),
    Ready("preview"),
    RendezvousPort(1234),
    Pulse(1, "layers 0–19", "GPU 1", 4, 0.5, 6, None, 8, 9.5, missing=("cudnn", "pinned")),
    Quit(),
]
PICKLED = [
    StartEngine("a.b:C", {"preset": PRESET}, 10),
    StartRank(PRESET, Path("weights"), "roles", 1, 2, 10),
    Heartbeat(MemoryUse(host_peak_bytes=5)),
    RunEvent(3, Notice("code", "text")),
    Greeting(PRESET, True),
    RequestFiles(RequestBundle(b"p", b"s", None)),
    PartCarry(b"carry"),
    Planned(BadInput("No.")),
]
ERRORS = [
    AvatarError("It failed.", "Try."),
    BadInput("Bad."),
    Cancelled("Stopped."),
    DoesNotFit("Small.", "Grow."),
    OutOfMemory.on(1, "GPU 2"),
    WeightsMissing("None."),
    WorkerLost("Gone."),
]


@pytest.fixture
def links() -> Iterator[tuple[Link, Link]]:
    ours, theirs = (Link(end.detach()) for end in socket.socketpair())
    yield ours, theirs
    ours.close()
    theirs.close()


def values(message: object) -> dict[str, object]:
    return {field.name: getattr(message, field.name) for field in fields(message)}


@pytest.mark.parametrize("message", FLAT, ids=lambda message: type(message).__name__)
def test_flat_messages_pass_as_json(links, message, monkeypatch):
    monkeypatch.setattr(protocol.pickle, "loads", lambda data: pytest.fail("unpickled"))
    ours, theirs = links
    ours.send(message)
    assert theirs.recv() == message


@pytest.mark.parametrize("message", PICKLED, ids=lambda message: type(message).__name__)
def test_other_messages_pass_as_they_are(links, message):
    ours, theirs = links
    theirs.send(message)
    received = ours.recv()
    assert type(received) is type(message)
    assert str(values(received)) == str(values(message))
    with pytest.raises(TypeError, match="is not flat"):
        to_json(message)


def test_frames_pass_whole(links):
    frames = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    ours, theirs = links
    ours.send(MadeFrames(1, frames, None))
    received = theirs.recv()
    assert np.array_equal(received.frames, frames)
    assert (received.run, received.anchor) == (1, None)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_errors_are_the_same_after_json(error):
    again = from_json(to_json(Failed(1, error, True, 2.5)))
    assert (again.rank, again.foreseen, again.at_s) == (1, True, 2.5)
    assert (type(again.error), str(again.error)) == (type(error), str(error))
    assert vars(again.error) == vars(error)


def test_an_error_of_no_known_kind_passes_as_its_nearest():
    class Special(DoesNotFit):
        pass

    again = from_json(to_json(Ended(1, Special("Small.", "Grow."))))
    assert type(again.error) is DoesNotFit
    assert str(again.error) == "Small. Grow."


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "3", '{"Run": {}}', '{"Quit": {"x": 1}}', '{"Ended": {"error": 3}}', '{"Quit": 1}'],
)
def test_what_is_no_flat_message_is_refused(text):
    with pytest.raises((ValueError, KeyError, TypeError, AttributeError)):
        from_json(text)


def test_nothing_is_unpickled_that_says_to_be_json(links):
    ours, theirs = links
    ours.send_bytes(b"J" + pickle.dumps(Quit()))
    with pytest.raises((ValueError, AttributeError)):  # it is no text
        theirs.recv()
