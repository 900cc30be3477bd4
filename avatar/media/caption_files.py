"""Captions: what is said and when, as SRT and WebVTT files, and drawn into video frames."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from avatar.errors import BadInput
from avatar.media import atomic
from avatar.media.side_files import NOTE, captions_paths
from avatar.request import Caption

_LINE, _LINE_DENSE, _LINES = 42, 18, 2  # letters per line, and lines shown at once, as usual in subtitles
_DENSE_FROM = "\u2e80"  # from this code point on letters are twice as wide
_LEAST_S = 0.04
FONT_HELP = "Install one (for example: apt install fonts-noto-cjk), or use --captions file."


def readable(captions: Sequence[Caption], end_s: float) -> list[Caption]:
    """Captions in pieces of two lines at most, up to the video's end; letters share a sentence's time."""
    out = []
    for one in captions:
        pieces = _pieces(one.text)
        total = sum(map(len, pieces)) or 1
        start_s = one.start_s
        for piece in pieces:
            stop_s = start_s + (one.end_s - one.start_s) * len(piece) / total
            if start_s < end_s - _LEAST_S:
                out.append(Caption(start_s, min(stop_s, end_s), piece))
            start_s = stop_s
    return out


def _pieces(text: str) -> list[str]:
    lines = wrapped(text)
    return ["\n".join(lines[at : at + _LINES]) for at in range(0, len(lines), _LINES)]


def wrapped(text: str) -> list[str]:
    """Wrap a text into lines of about equal width; words are not broken in scripts that have words."""
    words = _words(text)
    total = sum(map(_width, words))
    most = 2 * _LINE_DENSE if any(char >= _DENSE_FROM for char in text) else _LINE
    count = max(1, -(-total // most))
    goal = min(most, total / count * 1.15)
    lines = [""]
    for word in words:
        if lines[-1] and _width((lines[-1] + word).rstrip()) > goal:
            lines.append("")
        lines[-1] += word if lines[-1] else word.lstrip()
    return [line.strip() for line in lines if line.strip()]


def _words(text: str) -> list[str]:
    """Words, each with the space before it; in dense scripts single letters, with the marks that follow."""
    out: list[str] = []
    for char in text:
        counted = bool(out) and out[-1][-1].isdigit()  # "5日" stays together
        starts = char.isspace() or (char >= _DENSE_FROM and char.isalnum() and not counted)
        joins = out and not starts and not (out[-1][-1] >= _DENSE_FROM and char.isalnum())
        if joins:
            out[-1] += char
        else:
            out.append(char)
    return out


def _width(text: str) -> int:
    return sum(2 if char >= _DENSE_FROM else 1 for char in text)


def srt(captions: Sequence[Caption]) -> str:
    """SubRip text."""
    blocks = (
        f"{number}\n{_clock(one.start_s, ',')} --> {_clock(one.end_s, ',')}\n{one.text}\n"
        for number, one in enumerate(captions, 1)
    )
    return "\n".join(blocks)


def vtt(captions: Sequence[Caption]) -> str:
    """WebVTT text with this project's mark."""
    escape = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
    blocks = (
        f"{_clock(one.start_s, '.')} --> {_clock(one.end_s, '.')}\n{one.text.translate(escape)}\n"
        for one in captions
    )
    return "\n".join([f"WEBVTT\n\n{NOTE}\n", *blocks])


def write(video: Path, captions: Sequence[Caption], end_s: float) -> None:
    """Write SRT and VTT beside a video. end_s: its length. Raises: OSError."""
    shown = readable(captions, end_s)
    srt_path, vtt_path = captions_paths(video)
    atomic.write(vtt_path, vtt(shown).encode())  # first: its mark covers the .srt too
    atomic.write(srt_path, srt(shown).encode())


def _clock(seconds: float, point: str) -> str:
    ms = round(seconds * 1000)
    return f"{ms // 3_600_000:02}:{ms // 60_000 % 60:02}:{ms // 1000 % 60:02}{point}{ms % 1000:03}"


class Burner:
    """Draws captions into frames."""

    def __init__(self, captions: Sequence[Caption], fps: float) -> None:
        """captions: of the whole speech. Raises: BadInput when no installed font has their letters."""
        self._shown = readable(captions, float("inf"))
        self._fps = fps
        self._font_path = find_font("".join(one.text for one in captions))
        self._at = 0

    def show(self, captions: Sequence[Caption]) -> None:
        """Take the captions with times that are known by now; those before are their beginning."""
        self._shown = readable(captions, float("inf"))

    def burn(self, frames: np.ndarray, first_frame: int) -> np.ndarray:
        """Return frames with their captions drawn in; the input is not modified.

        frames: uint8 (T, H, W, 3) RGB, in order of time from call to call.
        """
        out = frames
        for index in range(len(frames)):
            text = self._text((first_frame + index) / self._fps)
            if text:
                if out is frames:
                    out = frames.copy()
                height, width = frames.shape[1:3]
                layer = _layer(text, width, height, self._font_path)
                top = height - layer.shape[0]
                alpha = layer[:, :, 3:].astype(np.uint16)
                below = out[index, top:].astype(np.uint16)
                out[index, top:] = ((layer[:, :, :3] * alpha + below * (255 - alpha)) // 255).astype(np.uint8)
        return out

    def _text(self, at_s: float) -> str:
        while self._at < len(self._shown) and self._shown[self._at].end_s <= at_s:
            self._at += 1
        now = self._shown[self._at] if self._at < len(self._shown) else None
        return now.text if now is not None and now.start_s <= at_s else ""


@lru_cache(maxsize=4)
def _layer(text: str, width: int, height: int, font_path: str) -> np.ndarray:
    """A text with a dark outline, for a picture's bottom: uint8 (h, width, 4) RGBA."""
    lines = text.split("\n")
    px = max(10, round(min(height * 0.055, width * 0.9 / max(map(_width, lines)) * 1.9)))
    font = ImageFont.truetype(font_path, px) if font_path else ImageFont.load_default(px)
    edge = max(1, px // 9)
    picture = Image.new("RGBA", (width, min(height, round(px * (1.3 * len(lines) + 1)))))
    draw = ImageDraw.Draw(picture)
    place = (width / 2, picture.height - px * 0.7)
    draw.multiline_text(
        place,
        text,
        (255, 255, 255, 255),
        font,
        "md",
        px * 0.2,
        "center",
        stroke_width=edge,
        stroke_fill=(0, 0, 0, 230),
    )
    return np.asarray(picture)


@lru_cache(maxsize=16)
def find_font(letters: str) -> str:
    """The path of a font that has these letters; "" for Pillow's own, which covers Latin.

    Raises: BadInput when none is found.
    """
    foreign = sorted({char for char in letters if char.isalpha() and ord(char) > 0x24F})
    if not foreign:
        return ""
    program = shutil.which("fc-match")
    if program is not None:
        wanted = ":charset=" + " ".join(f"{ord(char):x}" for char in foreign[:200])
        command = [program, "-f", "%{file}\n", wanted]
        found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
        path = found.stdout.partition("\n")[0]
        if path and _has(path, foreign):
            return path
    raise BadInput("No font here has the letters of the captions.", FONT_HELP)


def _has(path: str, letters: Sequence[str]) -> bool:
    """Whether a font has all these letters: it draws each differently from an unassigned code point."""
    try:
        font = ImageFont.truetype(path, 24)
    except OSError:
        return False
    unknown = bytes(font.getmask("\U0010fffd"))
    return all(bytes(font.getmask(char)) != unknown for char in letters)
