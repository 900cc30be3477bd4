"""`live`: bad inputs are refused before anything starts; the page's address is printed once it answers."""

from __future__ import annotations

import signal
import subprocess
import sys
import urllib.request
from argparse import Namespace
from pathlib import Path

import pytest

from avatar.cli import main
from avatar.commands import live

ROOT = Path(__file__).parents[2]
PORTRAIT = ROOT / "assets" / "portraits" / "mara.png"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--image", "nowhere.png"], "nowhere.png"),
        (["--image", str(PORTRAIT), "--preset", "live-previw"], "live-preview"),
        (["--image", str(PORTRAIT), "--face", "2"], "There is no face 2 in mara.png: 1 face can be seen."),
        (["--image", str(PORTRAIT), "--background", "transparent"], "A live session cannot be transparent"),
        (["--image", str(PORTRAIT), "--background", "no.png"], "background is 'no.png': no colour"),
        (["--image", str(PORTRAIT), "--framing", "legs"], "head, shoulders, half, whole"),
        (["--image", str(PORTRAIT), "--ckpt_dir", "weights"], "it uses no checkpoint"),
    ],
)
def test_what_cannot_be_used_is_refused_at_once(arguments, words, capsys):
    assert main(["live", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_flags_are_passed_on_to_the_page():
    args = Namespace(
        image=PORTRAIT,
        preset="live-preview",
        host="127.0.0.1",
        chat_url="http://127.0.0.1:11434/v1",
        chat_model="llama",
        chat_prompt="You are a guide.",
        hear_url=None,
        hear_model=None,
        ice_servers=["stun:a:1", "stun:b:2"],
        ckpt_dir=Path("weights"),
        face="0.5,0.4",
        framing="head",
    )
    said = " ".join(live.arguments(args, 7))
    assert "--chat-url http://127.0.0.1:11434/v1 --chat-model llama --chat-prompt You are a guide." in said
    assert "--live-preset live-preview" in said
    assert f"--weights {Path('weights').resolve()}" in said
    assert said.endswith("--ice-servers stun:a:1 --ice-servers stun:b:2")
    assert "--live-face 0.5,0.4 --live-framing head" in said
    assert "None" not in said


def test_the_address_is_printed_once_the_page_answers(tmp_path):
    command = [sys.executable, "-m", "avatar", "live", "--image", str(PORTRAIT), "--url"]
    environment = {"AVATAR_OUTPUTS": str(tmp_path / "outputs"), "TMPDIR": str(tmp_path)}
    import os

    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}
    ) as running:
        try:
            url = running.stdout.readline().strip()
            with urllib.request.urlopen(url, timeout=60) as page:
                assert b"live-panel" in page.read()
        finally:
            running.send_signal(signal.SIGINT)
        assert running.wait(timeout=60) == 130
