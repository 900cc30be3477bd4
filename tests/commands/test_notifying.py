"""--notify_url: who is told, and what, when a command has made a video or has failed."""

from __future__ import annotations

import pytest

from avatar.cli import main
from tests.fixtures.listener import listening


def test_generate_tells_of_its_video(inputs, machine, engine, capsys):
    engine()
    with listening() as listener:
        assert main([*inputs, "--output", "out.mp4", "--notify-url", listener.url]) == 0
    assert listener.posted == [{"id": "out", "state": "done", "name": "p.png · s.wav", "seconds": 3.0}]


def test_generate_tells_of_a_failure(inputs, machine, engine, capsys):
    engine(fault="error", at=25)
    with listening() as listener:
        code = main([*inputs, "--output", "out.mp4", "--notify-url", listener.url])
    assert code != 0
    [news] = listener.posted
    assert (news["state"], news["id"]) == ("failed", "out")
    assert 0 < news["seconds"] < 3, "what was made before counts"


def test_nobody_waits_for_an_address_that_fails(inputs, machine, engine, capsys):
    engine()
    with listening(404) as listener:
        assert main([*inputs, "--output", "out.mp4", "--notify-url", listener.url]) == 0
    assert capsys.readouterr().out == "out.mp4\n"


@pytest.mark.parametrize("url", ["nonsense", "file:///etc/passwd"])
def test_a_wrong_address_is_refused_before_anything_loads(inputs, machine, engine, capsys, url):
    opened = engine()
    assert main([*inputs, "--output", "out.mp4", "--notify-url", url]) == 2
    assert "is not a valid address" in capsys.readouterr().err
    assert opened == []
