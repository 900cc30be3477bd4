"""`live`: the page, opened at the tab Live with one portrait."""

from __future__ import annotations

import argparse
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from avatar.commands.output import console
from avatar.commands.setting_flags import add_checkpoint, add_declared, add_picture, chosen_picture
from avatar.errors import AvatarError
from avatar.live.portrait_intake import operators_preset
from avatar.media.background.choice import check_live_background, is_picture
from avatar.media.background.intake import open_background
from avatar.media.framing import framed
from avatar.media.portrait import open_portrait
from avatar.media.readers import Reader
from avatar.settings import PICTURE, SETTINGS, refuse_settings

ROOT = Path(__file__).resolve().parents[2]
START_S = 120.0
OPERATORS = ("motion", "decoder")  # settings of the preset that the server's operator may change
PASSED_ON = ("chat_url", "chat_model", "chat_prompt", "hear_url", "hear_model", "preset", "host")


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "live",
        help="a live session: the portrait mirrors you, says what you type, or talks with you",
        description=__doc__,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--image", type=Path, required=True, help="the portrait")
    add("--url", action="store_true", help="print the page's address alone")
    add("--preset", default="live-preview", help="live preset: a name, or a .toml file")
    add("--host", default="127.0.0.1", help="address to listen on")
    add("--port", type=int, default=0, help="port to listen on; 0: any that is free")
    add("--ice_servers", action="append", default=[], metavar="URL", help="STUN or TURN; may be repeated")
    add("--chat_url", help="chat that answers in Talk, by OpenAI's protocol")
    add("--chat_model", help="its model; several, by commas, are offered on the page")
    add("--chat_prompt", help="the chat's system prompt; what a visitor writes is added to it")
    add("--hear_url", help="recogniser of Talk, likewise")
    add("--hear_model", help="its model")
    settings = parser.add_argument_group("settings", "laid over the preset's own")
    for name in OPERATORS:
        add_declared(settings, SETTINGS[name])
    add_picture(parser)
    add_checkpoint(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serve the page until stopped. Raises: AvatarError for unusable inputs, before anything starts."""
    from avatar.preview.face_finder import Finder  # imports OpenCV and the face models; only for a portrait

    portrait, picture = open_portrait(args.image), chosen_picture(args)
    named = () if args.ckpt_dir is None else ("ckpt_dir",)
    preset = operators_preset(args.preset, **{name: getattr(args, name) for name in OPERATORS})
    refuse_settings(preset.engine, (*picture.demands, *named))
    check_live_background(picture.background)
    shown = framed(portrait.pixels, picture, args.image.name, finder=Finder())
    open_background(picture.background, shown.pixels, args.image.name, Reader(), None)
    port = args.port or _free_port(args.host)
    with subprocess.Popen(
        [sys.executable, str(ROOT / "app.py"), *arguments(args, port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        try:
            url = f"http://{args.host}:{port}/?live"
            _wait(server, url)
            if args.url:
                sys.stdout.write(f"{url}\n")
                sys.stdout.flush()
            else:
                console().print(f"Open {url}, and press Go live. Ctrl-C ends it.")
            assert server.stderr is not None
            for _ in server.stderr:  # otherwise its log would fill the pipe and block it
                pass
            return server.wait()
        finally:
            server.terminate()


def arguments(args: argparse.Namespace, port: int) -> list[str]:
    """The arguments for app.py."""
    out = ["--port", str(port), "--live-image", str(args.image.resolve())]
    for name in PASSED_ON:
        flag, value = "live-preset" if name == "preset" else name.replace("_", "-"), getattr(args, name)
        out += [f"--{flag}", str(value)] if value else []
    for name in (*OPERATORS, *PICTURE):
        value = getattr(args, name, None)
        if name == "background" and value and is_picture(value):
            value = str(Path(value).resolve())
        out += [f"--live-{name}", value] if value else []
    if args.ckpt_dir is not None:
        out += ["--weights", str(args.ckpt_dir.resolve())]
    for server in args.ice_servers:
        out += ["--ice-servers", server]
    return out


def _free_port(host: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        try:
            probe.bind((host, 0))
        except OSError as error:
            raise AvatarError(
                f"Cannot listen on {host}: {error.strerror}.", "Choose another --host."
            ) from None
        return int(probe.getsockname()[1])


def _wait(server: subprocess.Popen[str], url: str) -> None:
    """Wait until the page answers. Raises: AvatarError when it does not."""
    begin = time.monotonic()
    while time.monotonic() - begin < START_S:
        if server.poll() is not None:
            assert server.stderr is not None
            said = server.stderr.read().strip().splitlines()
            raise AvatarError("The page could not be started.", said[-1] if said else "")
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise AvatarError("The page did not start in time.", "Try `python app.py`, which says more.")
