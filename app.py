"""The page: `python app.py`, and what a Gradio Space runs. Arguments, engine, page, launch; no torch here."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any

from avatar.errors import AvatarError, BadInput

log = logging.getLogger("app")

MIB, GIB, DAY_S = 2**20, 2**30, 86_400


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
    add("--port", type=int, default=env("GRADIO_SERVER_PORT", "7860"), help="port to listen on")
    add("--root-path", default=env("GRADIO_ROOT_PATH", ""), help="path under which a proxy shows the page")
    add(
        "--preset",
        default=env("AVATAR_PRESET", "auto"),
        help="preset chosen at first: a name, or a .toml file",
    )
    add("--outputs", type=Path, default=Path(env("AVATAR_OUTPUTS", "outputs")), help="folder of the gallery")
    add("--weights", type=Path, default=_path(env("AVATAR_WEIGHTS")), help="folder of the checkpoint")
    add("--max-upload", type=float, default=64, metavar="MIB", help="largest file that may be uploaded")
    add("--max-duration", type=float, default=1200, metavar="S", help="longest speech")
    add("--queue-size", type=int, default=8, help="videos that may wait in line")
    add(
        "--disk-limit",
        type=float,
        default=4,
        metavar="GIB",
        help="most that the gallery may hold; oldest go first",
    )
    add("--keep-days", type=float, default=30, help="days that the gallery keeps a video")
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
        help="shared: every visitor sees all videos; private: each browser its own",
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Serve until stopped. Returns the exit code."""
    args = parse_arguments(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        _serve(args)
    except AvatarError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


def _serve(args: argparse.Namespace) -> None:
    from avatar.media.ffmpeg import put_on_path
    from avatar.scratch import Scratch

    _check_port(args.host, args.port)
    stopped = _stop_signal()
    put_on_path()
    with Scratch() as scratch:
        _settle(scratch)
        from avatar.ui.page import build_page, launch_options
        from avatar.ui.routes import routes

        studio = _open_studio(args, scratch)
        try:
            demo = build_page(studio)
            demo.launch(
                server_name=args.host,
                server_port=args.port,
                root_path=args.root_path or None,
                max_file_size=round(args.max_upload * MIB),
                allowed_paths=[str(studio.gallery.folder)],
                app_kwargs={"routes": routes(studio)},
                ssr_mode=False,
                prevent_thread_lock=True,
                quiet=True,
                **launch_options(),
            )
            log.info("the page is at %s", demo.local_url)
            studio.warm()
            stopped.wait()
            log.info("stopping")
            demo.close()
        finally:
            studio.close()


def _open_studio(args: argparse.Namespace, scratch: Path) -> Any:
    from avatar.engine import Engine, open_engine
    from avatar.gallery import Gallery
    from avatar.media.limits import Limits
    from avatar.memory.fit import judge
    from avatar.memory.inventory import probe
    from avatar.preset import Preset, load_preset, load_presets
    from avatar.ui.desk import Desk
    from avatar.ui.studio import Studio

    presets = load_presets()
    chosen = load_preset(args.preset)
    if chosen.name not in {preset.name for preset in presets}:
        presets.append(chosen)
    gallery = Gallery(args.outputs, args.keep_days * DAY_S, round(args.disk_limit * GIB))
    upload = round(args.max_upload * MIB)
    limits = Limits(max_speech_s=args.max_duration, max_portrait_bytes=upload, max_speech_bytes=upload)

    attached = _attached(args.attach, chosen)

    def open_for(preset: Preset) -> Engine:
        toy = preset.requires.weights == "tiny"  # it makes its own
        attach = args.attach if preset.name == attached else None
        gpus = None if attach else judge(preset, probe(args.weights)).uuids
        return open_engine(preset, weights=None if toy else args.weights, gpus=gpus, attach=attach)

    desk = Desk(open_for, gallery, args.queue_size)
    return Studio(
        desk=desk,
        gallery=gallery,
        presets=presets,
        preset_name=chosen.name,
        scratch=scratch,
        limits=limits,
        weights=args.weights,
        root=args.root_path.rstrip("/"),
        shared=args.gallery == "shared",
        attached=attached,
    )


def _attached(address: str | None, preset: Any) -> str:
    """The preset that ranks elsewhere serve, "" for none. Raises: BadInput."""
    if address is None:
        return ""
    from avatar.parallel.attach import Address, secret

    Address.parse(address)
    secret()
    if preset.engine != "diffusion":
        raise BadInput("--attach needs the preset that the ranks serve.", "Name it with --preset.")
    return str(preset.name)


def _settle(scratch: Path) -> None:
    """Every cache of every library goes into the scratch folder: nothing else need be writable."""
    os.environ["GRADIO_TEMP_DIR"] = str(scratch / "uploads")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("MPLCONFIGDIR", str(scratch / "matplotlib"))
    os.environ.setdefault("NUMBA_CACHE_DIR", str(scratch / "numba"))


def _stop_signal() -> threading.Event:
    """Set when the process is told to stop, from now on."""
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    return stopped


def _check_port(host: str, port: int) -> None:
    """Raises: BadInput when another program has the port."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise BadInput(
                f"Cannot listen on {host}:{port}: {error.strerror}.", "Choose another --port."
            ) from None


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None


if __name__ == "__main__":
    sys.exit(main())
