"""Open, fit, caption and write moviepy clips, with errors for the user."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import ImageFont

from avatar.errors import AvatarError, BadInput
from avatar.geometry import SOUND_HZ
from avatar.media import atomic
from avatar.media.files import check_file, display_name
from avatar.media.limits import InputLimits
from avatar.media.portrait import PORTRAIT_SUFFIXES, open_portrait
from avatar.media.side_files import MARK, check_free

log = logging.getLogger(__name__)

_GIB = 2**30
_LARGEST_BYTES = 64 * _GIB
_PICTURES = InputLimits(min_side_px=2)  # logos may be small
OUTPUTS = (".mp4", ".webm", ".gif")
_H264 = {
    "codec": "libx264",
    "audio_codec": "aac",
    "preset": "veryfast",
    "ffmpeg_params": ["-crf", "20", "-pix_fmt", "yuv420p", "-movflags", "+faststart"],
}
_VP9 = {
    "codec": "libvpx-vp9",
    "audio_codec": "libopus",
    "preset": "medium",  # VP9 has none, but moviepy passes one anyway and ffmpeg ignores it
    "ffmpeg_params": [
        "-pix_fmt",
        "yuv420p",
        "-crf",
        "32",
        "-b:v",
        "0",
        "-deadline",
        "good",
        "-cpu-used",
        "5",
        "-row-mt",
        "1",
    ],
}
GIF_FPS, GIF_PX = 12, 480  # of its longer side


def is_picture(path: Path) -> bool:
    """Whether a file is a still picture, by its name."""
    return path.suffix.lower() in PORTRAIT_SUFFIXES


def open_video(path: Path) -> Any:
    """A video as a clip with its sound. Raises: BadInput."""
    from moviepy import VideoFileClip

    name = display_name(path)
    check_file(path, name, _LARGEST_BYTES, "video")
    try:
        _check_stream(path, "video")
        return VideoFileClip(str(path))
    except (OSError, KeyError, ValueError, IndexError) as error:
        log.info("%s: %r", name, error)
        raise BadInput(f"{name} cannot be read as a video.", "Give an .mp4 or .webm file.") from error


def open_sound(path: Path) -> Any:
    """A sound file, or the sound of a video, as a clip. Raises: BadInput."""
    from moviepy import AudioFileClip

    name = display_name(path)
    check_file(path, name, _LARGEST_BYTES, "sound")
    try:
        _check_stream(path, "audio")
        return AudioFileClip(str(path))
    except (OSError, KeyError, ValueError, IndexError) as error:
        log.info("%s: %r", name, error)
        raise BadInput(f"{name} cannot be read as sound.", "Give a WAV, MP3, M4A or OGG file.") from error


def _check_stream(path: Path, kind: str) -> None:
    """Require a stream, as moviepy leaves a half-made reader on failure. Raises: OSError, ValueError."""
    with av.open(str(path)) as container:
        if not any(stream.type == kind for stream in container.streams):
            raise ValueError(f"no {kind}")


def open_picture(path: Path) -> np.ndarray:
    """A still, upright, uint8 (H, W, 3 or 4): PNG and WebP keep their transparency. Raises: BadInput."""
    pixels = open_portrait(path, limits=_PICTURES).pixels
    if path.suffix.lower() not in (".png", ".webp"):
        return pixels
    from PIL import Image

    with Image.open(path) as picture:
        if "A" not in picture.getbands() and "transparency" not in picture.info:
            return pixels
        alpha = picture.convert("RGBA")
        alpha.thumbnail((pixels.shape[1], pixels.shape[0]))
        return np.asarray(alpha)


def still(pixels: np.ndarray, seconds: float) -> Any:
    """A still as a clip."""
    from moviepy import ImageClip

    return ImageClip(pixels, duration=seconds)


def fitted(clip: Any, width: int, height: int) -> Any:
    """A clip scaled to fit a size, centred on black."""
    from moviepy import ColorClip, CompositeVideoClip

    if (clip.w, clip.h) == (width, height):
        return clip
    scale = min(width / clip.w, height / clip.h)
    small = clip.resized((max(2, round(clip.w * scale)), max(2, round(clip.h * scale))))
    back = ColorClip((width, height), color=(0, 0, 0), duration=clip.duration)
    return CompositeVideoClip([back, small.with_position("center")], size=(width, height)).with_audio(
        clip.audio
    )


def lettering(text: str, font_px: int, width: int, font: Path | None = None, back: bool = False) -> Any:
    """A text as a clip of a given width, with wrapped lines. back: on a dark background. Raises: BadInput."""
    from moviepy import TextClip

    return TextClip(
        font=font_for(text, font),
        text=text,
        font_size=font_px,
        size=(width, None),
        margin=(0, font_px // 5, 0, font_px // 2),  # moviepy cuts off descenders of the last line
        color="white",
        bg_color=(0, 0, 0, 150) if back else None,
        stroke_color=None if back else "black",
        stroke_width=0 if back else max(1, font_px // 12),
        method="caption",
        text_align="center",
        transparent=True,
    )


def font_for(text: str, given: Path | None = None) -> str | None:
    """A font file that has every letter of a text; None for Pillow's own. Raises: BadInput if none has."""
    if given is not None:
        check_file(given, display_name(given), _GIB, "font")
        try:
            missing = _missing(text, str(given))
        except OSError as error:
            raise BadInput(
                f"{display_name(given)} is not a font file.", "Give a .ttf, .otf or .ttc file."
            ) from error
        if missing:
            raise BadInput(f"{display_name(given)} lacks the letter {missing!r}.", "Give another --font.")
        return str(given)
    if not (missing := _missing(text, None)):
        return None
    for path in _system_fonts(missing):
        try:
            if not _missing(text, path):
                return path
        except OSError as error:
            log.info("%s: %s", path, error)
    raise BadInput(f"No font here has the letter {missing!r}.", "Give one that has with --font FILE.ttf.")


def _missing(text: str, path: str | None) -> str:
    """The first letter that a font lacks, i.e. draws as its missing-glyph sign; "" for none."""
    font: Any = ImageFont.load_default(24) if path is None else ImageFont.truetype(path, 24)
    absent = bytes(font.getmask("\U0010fffe")), font.getmask("\U0010fffe").size
    for letter in dict.fromkeys(text):
        drawn = font.getmask(letter)
        if not letter.isspace() and (bytes(drawn), drawn.size) == absent:
            return letter
    return ""


def _system_fonts(letter: str) -> list[str]:
    """Font files that have a letter, according to fontconfig; none without fontconfig."""
    program = shutil.which("fc-list")
    if program is None:
        return []
    command = [program, "--format", "%{file}\n", f":charset={ord(letter):x}"]
    listed = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return sorted(
        set(listed.stdout.splitlines()), key=lambda path: ("Sans" not in path, "Regular" not in path, path)
    )


def check_output(path: Path) -> None:
    """Refuse an output that cannot be written, before anything is made. Raises: BadInput."""
    if path.suffix.lower() not in OUTPUTS:
        raise BadInput(
            f"{display_name(path)} has no supported video extension.", f"End it in {', '.join(OUTPUTS)}."
        )
    if not path.absolute().parent.is_dir():
        raise BadInput(f"There is no folder for {display_name(path)}.", "Make it, or choose another one.")
    check_free(path)


def save(clip: Any, path: Path, fps: float, work: Path) -> None:
    """Write a clip in the format of its file name. work: a folder for drafts. Raises: AvatarError."""
    draft, mark = work / f"draft{path.suffix.lower()}", json.dumps(MARK)
    with _ffmpegs_errors():
        if path.suffix.lower() == ".gif":
            scale = min(1.0, GIF_PX / max(clip.w, clip.h))
            clip.resized(scale).write_gif(str(draft), fps=min(fps, GIF_FPS), logger=None)
        else:
            options: dict[str, Any] = dict(_VP9 if path.suffix.lower() == ".webm" else _H264)
            options["ffmpeg_params"] = [*options["ffmpeg_params"], "-metadata", f"comment={mark}"]
            # Set explicitly, because moviepy knows no file extension for Opus.
            sound = str(work / ("sound.ogg" if path.suffix.lower() == ".webm" else "sound.m4a"))
            clip.write_videofile(
                str(draft),
                fps=fps,
                threads=2,
                logger=None,
                audio_fps=SOUND_HZ,
                temp_audiofile=sound,
                **options,
            )
    atomic.place(draft, path)


@contextmanager
def _ffmpegs_errors() -> Iterator[None]:
    """Turn errors of moviepy and ffmpeg into one for the user."""
    try:
        with warnings.catch_warnings():
            # When the sound is slightly longer than the video, moviepy warns that it repeats the last frame.
            warnings.filterwarnings("ignore", module="moviepy")
            yield
    except (OSError, RuntimeError, ValueError) as error:
        log.info("moviepy failed", exc_info=error)
        raise AvatarError(
            "The video cannot be composed.", "Check that the disk is not full; --verbose shows details."
        ) from error
