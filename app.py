"""The page: `python app.py`, and what a Gradio Space runs. Arguments, engine, page, launch; no torch here."""

from __future__ import annotations

import argparse
import logging
import math
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

from avatar.errors import AvatarError, BadInput
from avatar.settings import PICTURE, SETTINGS

log = logging.getLogger("app")

MIB, GIB, DAY_S = 2**20, 2**30, 86_400
MOST = 1e9  # of any amount on the command line
KEEP_RUNNING_S = 600.0  # of a visitor who has gone, where others can reach the page
PLACES = 2  # of one visitor, where others can reach the page
# Whose word a Space takes for who a visitor is: the proxies in front of it, which have such addresses.
PROXIES = "127.0.0.0/8,10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,::1,fc00::/7"


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; what it leaves out comes from the environment, as on a Space."""
    env = os.environ.get
    hosted = bool(env("SPACE_ID"))
    parser = argparse.ArgumentParser(
        description="Talking avatars that stream while they are generated: the page.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--host",
        default=env("GRADIO_SERVER_NAME", "0.0.0.0" if hosted else "127.0.0.1"),
        help="address to listen on",
    )
    add(
        "--port",
        type=_whole(0, 2**16 - 1),
        default=env("GRADIO_SERVER_PORT", "7860"),
        help="port to listen on; 0 takes any that is free",
    )
    add("--root-path", default=env("GRADIO_ROOT_PATH", ""), help="path under which a proxy shows the page")
    add(
        "--preset",
        default=env("AVATAR_PRESET", "auto"),
        help="preset chosen at first: a name, or a .toml file",
    )
    add("--outputs", type=Path, default=Path(env("AVATAR_OUTPUTS", "outputs")), help="folder of the gallery")
    add("--weights", type=Path, default=_path(env("AVATAR_WEIGHTS")), help="folder of the checkpoint")
    add("--max-upload", type=_amount, default=64, metavar="MIB", help="largest file that may be uploaded")
    add("--max-duration", type=_amount, default=1200, metavar="S", help="longest speech")
    add("--queue-size", type=_whole(0, 10_000), default=8, help="videos that may wait in the queue")
    add(
        "--places",
        type=_whole(1, 10_000),
        default=None,
        help="videos of one visitor that may wait or be made (default: 2, or all where only this machine"
        " can reach the page)",
    )
    add(
        "--upload-quota",
        type=_amount,
        default=2,
        metavar="GIB",
        help="most that all uploads may hold; those unused longest go first",
    )
    add(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="another name of this server, which a proxy on this machine passes on; may be repeated",
    )
    add(
        "--disk-limit",
        type=_amount,
        default=4,
        metavar="GIB",
        help="most that the gallery may hold; oldest go first",
    )
    add(
        "--keep-running",
        type=_amount,
        default=env("AVATAR_KEEP_RUNNING"),
        metavar="MINUTES",
        help="how long a run goes on after its visitor has closed the page; 0: not at all (default: 10, or"
        " for ever where only this machine can reach the page)",
    )
    add(
        "--notify-url",
        default=env("AVATAR_NOTIFY_URL"),
        metavar="URL",
        help="when a video is made or has failed, POST a JSON object there: id, state, name, seconds",
    )
    add(
        "--upscale-command",
        default=env("AVATAR_UPSCALE_COMMAND"),
        metavar="COMMAND",
        help='a program that makes upscale 1080p in place of the filter, as "PROGRAM {input} {output}"',
    )
    add("--keep-days", type=_amount, default=30, help="days that the gallery keeps a video")
    add(
        "--attach",
        default=env("AVATAR_ATTACH"),
        metavar="HOST:PORT",
        help="ranks that torchrun started, which serve --preset (see python -m avatar worker)",
    )
    add(
        "--gallery",
        choices=("shared", "private"),
        default=env("AVATAR_GALLERY", "private" if hosted else "shared"),
        help="shared: every visitor sees, resumes and deletes all videos; private: each browser its own",
    )
    _add_live(parser)
    args = parser.parse_args(arguments)
    if args.gallery not in ("shared", "private"):  # from the environment
        parser.error(f"$AVATAR_GALLERY is {args.gallery!r}; it may be shared or private")
    args.hosted = hosted
    return args


def _add_live(parser: argparse.ArgumentParser) -> None:
    """The settings of live sessions; see docs/live.md."""
    add, env = parser.add_argument, os.environ.get
    add(
        "--live-preset",
        default=env("AVATAR_LIVE_PRESET", "live-preview"),
        help="preset of live sessions; off: none",
    )
    add(
        "--live-sessions",
        type=_whole(1, 16),
        default=1,
        help="live sessions at a time; others wait in the queue",
    )
    add("--live-image", type=Path, default=None, help="portrait of live sessions until a visitor chooses one")
    for name, one in PICTURE.items():
        about = f"of that portrait: {one.setting.help}"
        add(f"--live-{name}", default=one.default, metavar=name.upper(), help=about)
    for name in ("motion", "decoder"):
        one = SETTINGS[name]
        add(f"--live-{name}", choices=one.choices, default=None, help=f"{one.setting.help} (the preset's)")
    add(
        "--ice-servers",
        action="append",
        default=env("AVATAR_ICE_SERVERS", "").split(),
        metavar="URL",
        help="stun:HOST:PORT, or turn:USER:PASSWORD@HOST:PORT; may be repeated",
    )
    add(
        "--chat-url", default=None, help="chat that answers in Talk, OpenAI's protocol; key: $AVATAR_CHAT_KEY"
    )
    add("--chat-model", default=None, help="its model; several, by commas, are offered on the page")
    add("--chat-prompt", default=None, help="the chat's system prompt; what a visitor writes is added to it")
    add(
        "--hear-url",
        default=None,
        help="server that recognises speech, OpenAI's protocol; key: $AVATAR_HEAR_KEY",
    )
    add(
        "--hear-model",
        default=None,
        help="its model; without --hear-url, a model of faster-whisper or its folder",
    )


def main(arguments: list[str] | None = None) -> int:
    """Serve until stopped. Returns the exit code."""
    args = parse_arguments(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for talkative in ("httpx", "aioice", "aiortc", "faster_whisper"):
        logging.getLogger(talkative).setLevel(logging.WARNING)
    try:
        _serve(args)
    except AvatarError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


def _serve(args: argparse.Namespace) -> None:
    from avatar.media.ffmpeg import put_on_path
    from avatar.runtime.scratch import Scratch
    from avatar.runtime.webhook import check_url
    from avatar.ui.routes.host_names import local_names

    if args.notify_url is not None:
        check_url(args.notify_url)
    port = _free_port(args.host, args.port)
    stopped = _stop_signal()
    put_on_path()
    os.umask(0o077)  # uploads and videos are for this user alone
    with Scratch() as scratch:
        _settle(scratch)
        if args.hosted:
            os.environ.setdefault("FORWARDED_ALLOW_IPS", PROXIES)
        from avatar.runtime.zero_gpu import zero_gpu_of_space

        zero_gpu = zero_gpu_of_space()  # first of all: it changes Gradio and PyTorch
        app_state = _open_app_state(args, scratch, zero_gpu)  # before Gradio loads: it may refuse
        try:
            from starlette.middleware import Middleware

            from avatar.ui.page import build_page, launch_options
            from avatar.ui.routes.file_routes import file_routes
            from avatar.ui.routes.live_routes import live_routes
            from avatar.ui.routes.request_guard import Guard
            from avatar.ui.routes.video_routes import routes

            demo = build_page(app_state)
            names = local_names(args.host, args.allow_host)
            guard = Middleware(Guard, names=names, hosted=args.hosted)
            ours = [*routes(app_state), *file_routes(app_state, demo)]
            if app_state.live is not None:
                ours += live_routes(app_state, app_state.live)
            demo.launch(
                server_name=args.host,
                server_port=port,
                root_path=args.root_path or None,
                max_file_size=round(args.max_upload * MIB),
                app_kwargs={"routes": ours, "middleware": [guard]},
                ssr_mode=False,
                prevent_thread_lock=True,
                quiet=True,
                **launch_options(),
            )
            log.info("the page is at %s", demo.local_url)
            app_state.warm()
            threading.Thread(target=app_state.keep_tidy, name="tidy", daemon=True).start()
            stopped.wait()
            log.info("stopping")
            if app_state.live is not None:
                app_state.live.close()
            demo.close()
        finally:
            app_state.close()


def _open_app_state(args: argparse.Namespace, scratch: Path, zero_gpu: Any = None) -> Any:
    from avatar.hardware.inventory import probe
    from avatar.media.limits import InputLimits
    from avatar.planning.verdict import judge
    from avatar.preset import Preset, load_preset, load_presets
    from avatar.runtime.bounded_reader import ReaderCache
    from avatar.runtime.engine import Engine
    from avatar.runtime.external_program import read_command
    from avatar.runtime.factory import open_engine
    from avatar.runtime.gallery import Gallery
    from avatar.runtime.model_download import ModelFetch, fetch_command
    from avatar.runtime.webhook import Webhook
    from avatar.ui.routes.host_names import local_names
    from avatar.ui.state.app_state import AppState
    from avatar.ui.state.job_queue import JobQueue
    from avatar.ui.state.uploads import Uploads

    presets = load_presets()
    chosen = load_preset(args.preset)
    if chosen.name not in {preset.name for preset in presets}:
        presets.append(chosen)
    gallery = Gallery(args.outputs, args.keep_days * DAY_S, round(args.disk_limit * GIB))
    upload = round(args.max_upload * MIB)
    limits = InputLimits(
        max_speech_s=args.max_duration,
        max_portrait_bytes=upload,
        max_speech_bytes=upload,
        longer="have the page started with a larger --max-duration (in seconds)",
    )
    limits = limits.hosted() if args.hosted else limits
    reachable = args.hosted or local_names(args.host) is None
    places = args.places or (PLACES if reachable else args.queue_size + 1)
    keep_running_s = KEEP_RUNNING_S if reachable else None
    if args.keep_running is not None:
        keep_running_s = 60 * args.keep_running

    attached = _attached(args.attach, chosen)

    def open_for(preset: Preset) -> Engine:
        toy = preset.requires.weights == "tiny"  # it makes its own
        attach = args.attach if preset.name == attached else None
        gpus = None if attach else judge(preset, probe(args.weights)).uuids
        weights = None if toy else args.weights
        return open_engine(preset, weights=weights, gpus=gpus, attach=attach, zero_gpu=zero_gpu)

    def place_of(preset: Preset) -> Hashable:
        if zero_gpu is not None or preset.name == attached:
            return preset.models  # loaded ahead
        return tuple(judge(preset, probe(args.weights)).uuids or ())

    job_queue = JobQueue(open_for, gallery, args.queue_size, places)
    job_queue.place_of = place_of
    job_queue.upscale_with = read_command(args.upscale_command) if args.upscale_command else ()
    return AppState(
        job_queue=job_queue,
        gallery=gallery,
        presets=presets,
        preset_name=chosen.name,
        scratch=scratch,
        limits=limits,
        weights=args.weights,
        root=args.root_path.rstrip("/"),
        shared=args.gallery == "shared",
        attached=attached,
        reader_cache=ReaderCache(scratch / "read", limits, per_visitor=places),
        admin=os.environ.get("AVATAR_ADMIN", "") if reachable else None,
        model=ModelFetch(fetch_command(args.weights)),
        uploads=Uploads(scratch / "uploads", upload, round(args.upload_quota * GIB)),
        live=_open_live(args, gallery),
        webhook=None if args.notify_url is None else Webhook(args.notify_url),
        keep_running_s=keep_running_s,
        engines_here=zero_gpu is None,
    )


def _open_live(args: argparse.Namespace, gallery: Any) -> Any:
    """What live sessions need; None where there are to be none. Raises: BadInput."""
    if args.live_preset == "off":
        return None
    from avatar.hardware.inventory import probe
    from avatar.live.chat import SYSTEM_PROMPT, chat_address, chat_models
    from avatar.live.portrait_intake import operators_preset
    from avatar.live.speech_recognition import WHISPER, hear_address, recogniser
    from avatar.live.state import LiveOptions, LiveState
    from avatar.live.transports.webrtc import IceServer
    from avatar.media.framing import parse_picture
    from avatar.planning.verdict import cards_of_each
    from avatar.runtime.factory import open_engine

    preset = operators_preset(args.live_preset, motion=args.live_motion, decoder=args.live_decoder)
    hears = hear_address(args.hear_url, args.hear_model)
    chat = chat_address(args.chat_url, args.chat_model)
    if args.chat_prompt and chat is None:
        raise BadInput("--chat-prompt is given without --chat-url.", "Give the chat server's address, too.")
    options = LiveOptions(
        preset=preset,
        recogniser=recogniser(hears, args.hear_model or WHISPER),
        chat=chat,
        chat_models=chat_models(args.chat_model),
        system_prompt=args.chat_prompt or SYSTEM_PROMPT,
        ice=[IceServer.parse(one) for one in args.ice_servers],
        portrait=args.live_image,
        picture=parse_picture(files=True, **{name: getattr(args, f"live_{name}") for name in PICTURE}),
    )
    toy = preset.requires.weights == "tiny"
    engines: list[Any] = [
        open_engine(preset, weights=None if toy else args.weights, gpus=gpus)
        for gpus in cards_of_each(preset, probe(args.weights), args.live_sessions)
    ]
    return LiveState(options, engines, gallery)


def _attached(address: str | None, preset: Any) -> str:
    """The preset that ranks elsewhere serve, "" for none. Raises: BadInput."""
    if address is None:
        return ""
    from avatar.runtime.torchrun_client import Address, secret

    Address.parse(address)
    secret()
    if preset.engine != "diffusion":
        raise BadInput("--attach needs the preset that the ranks serve.", "Name it with --preset.")
    return str(preset.name)


def _settle(scratch: Path) -> None:
    """Every cache of every library goes into the scratch folder: nothing else need be writable."""
    from avatar.ui.state.app_state import UPLOADS

    os.environ["GRADIO_TEMP_DIR"] = str(scratch / UPLOADS)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("MPLCONFIGDIR", str(scratch / "matplotlib"))
    os.environ.setdefault("NUMBA_CACHE_DIR", str(scratch / "numba"))


def _stop_signal() -> threading.Event:
    """Set when the process is asked to stop, from now on."""
    stopped = threading.Event()
    from avatar.runtime.child_process import ENDING, HANGUP

    for number in ENDING:
        if number != HANGUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores it
            signal.signal(number, lambda *_: stopped.set())
    return stopped


def _free_port(host: str, port: int) -> int:
    """The port itself, or for 0 one that is free. Raises: BadInput when another program has it."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            return int(probe.getsockname()[1])
        except (OSError, UnicodeError, TypeError) as error:  # the last two of a name that none can be
            reason = getattr(error, "strerror", None) or "no such address"
            raise BadInput(
                f"Cannot listen on {host}:{port}: {reason}.", "Choose another --port or --host."
            ) from None


def _whole(least: int, most: int) -> Callable[[str], int]:
    """The reader of a whole number within bounds."""

    def read(text: str) -> int:
        if not text.strip().lstrip("-").isdecimal() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from {least} to {most}")
        return int(text)

    return read


def _amount(text: str) -> float:
    """Read a number, 0 or more, that can be counted in bytes and seconds whatever its unit is."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number <= MOST:  # nor "nan"
        raise argparse.ArgumentTypeError(f"{text!r} must be a number from 0 to {MOST:.0f}")
    return number


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None


if __name__ == "__main__":
    sys.exit(main())
