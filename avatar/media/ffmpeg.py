"""ffmpeg and ffprobe for libraries that call them as programs."""

from __future__ import annotations


def put_on_path() -> None:
    """Make sure that `ffmpeg` and `ffprobe` are found on this process's PATH: the system's, else the static ones.

    Raises: AvatarError when neither is there.
    """
    raise NotImplementedError
