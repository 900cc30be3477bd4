"""Compose one finished video: intro, the video with its overlays, outro."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from avatar.compose.captions import Cue, read_captions, spread, write_srt
from avatar.compose.clips import (
    check_output,
    fitted,
    font_for,
    is_picture,
    lettering,
    open_picture,
    open_sound,
    open_video,
    save,
    still,
)
from avatar.compose.sound import spoken, with_music
from avatar.errors import BadInput
from avatar.media import atomic
from avatar.media.files import display_name

CORNERS = ("top-left", "top-right", "bottom-left", "bottom-right")
MARGIN = 0.03  # distance from the edges, as a share of the shorter side
_FONT = 0.055  # as a share of the shorter side
_LINE = 0.92  # share of the width that captions fill at most


@dataclass(frozen=True)
class Composition:
    """A video and its edits. captions: a file; text: spread over the speech instead.

    music_db: level of the music; duck_db: change of its level under speech. intro, outro: videos, or
    stills shown for still_s. picture: a still or video in a corner. logo_share, picture_share: of the width.
    """

    video: Path
    captions: Path | None = None
    text: str | None = None
    font: Path | None = None
    music: Path | None = None
    music_db: float = -16.0
    duck_db: float = -8.0
    intro: Path | None = None
    outro: Path | None = None
    still_s: float = 3.0
    logo: Path | None = None
    logo_corner: str = "top-right"
    logo_share: float = 0.12
    picture: Path | None = None
    picture_corner: str = "bottom-right"
    picture_share: float = 0.3


def compose(asked: Composition, output: Path, work: Path) -> list[Cue]:
    """Make a composition; return its captions, timed for the whole video. work: a folder for drafts.

    Raises: BadInput for a file or number that cannot be used, AvatarError when it cannot be written.
    """
    from moviepy import CompositeVideoClip, concatenate_videoclips

    check(asked, output)
    cues = [] if asked.captions is None else read_captions(asked.captions)
    with ExitStack() as stack:
        video = stack.enter_context(open_video(asked.video))
        width, height = video.w // 2 * 2, video.h // 2 * 2
        if asked.text is not None:
            cues = spread(asked.text, [] if video.audio is None else spoken(video.audio))
            if not cues:
                raise BadInput("There is no speech to spread the text over.", "Give captions with times.")
        layers = [fitted(video, width, height), *_pictures(asked, video, (width, height), stack)]
        layers += subtitles(cues, video, (width, height), asked.font)
        main = CompositeVideoClip(layers, size=(width, height)).with_duration(video.duration)
        main = main.with_audio(video.audio)
        before = _ends(asked.intro, asked.still_s, (width, height), stack)
        parts = [*before, main, *_ends(asked.outro, asked.still_s, (width, height), stack)]
        whole = main if len(parts) == 1 else concatenate_videoclips(parts)
        if asked.music is not None:
            music = stack.enter_context(open_sound(asked.music))
            sound = with_music(whole.audio, music, whole.duration, asked.music_db, asked.duck_db)
            whole = whole.with_audio(sound)
        save(whole, output, video.fps or 25, work)
        later_s = sum(clip.duration for clip in before)
    return [Cue(cue.start_s + later_s, cue.end_s + later_s, cue.text) for cue in cues]


def check(asked: Composition, output: Path) -> None:
    """Refuse invalid options, before anything is opened. Raises: BadInput."""
    check_output(output)
    if output.absolute() == asked.video.absolute():
        raise BadInput("The output is the video itself.", "Choose another name.")
    if asked.captions is not None and asked.text is not None:
        raise BadInput("Captions come from a file or from a text.", "Leave out one of the two.")
    if asked.text is not None:
        if not asked.text.strip():
            raise BadInput("The text for captions is empty.", "Write what is said.")
        font_for(asked.text, asked.font)
    for name, share in (("--logo_width", asked.logo_share), ("--picture_width", asked.picture_share)):
        if not 0.01 <= share <= 1:
            raise BadInput(f"{name} is {share:g}.", "Give a share of the video's width, from 0.01 to 1.")
    if not (math.isfinite(asked.still_s) and 0.1 <= asked.still_s <= 60):
        raise BadInput(f"--still_s is {asked.still_s:g}.", "Give seconds, from 0.1 to 60.")


def keep_captions(cues: Sequence[Cue], path: Path) -> None:
    """Write captions beside a video, as SubRip. Raises: OSError."""
    atomic.write(path, write_srt(cues).encode())


def subtitles(cues: Sequence[Cue], video: Any, size: tuple[int, int], font: Path | None) -> list[Any]:
    """Captions as clips at the bottom, each for its time. Raises: BadInput."""
    width, height = size
    font_px = max(12, round(_FONT * min(size)))
    clips = []
    for cue in cues:
        end_s = min(cue.end_s, video.duration)
        if cue.start_s >= end_s:
            continue
        words = lettering(cue.text, font_px, round(_LINE * width), font, back=True)
        place = ("center", height - words.h - round(MARGIN * min(size)))
        clips.append(words.with_start(cue.start_s).with_duration(end_s - cue.start_s).with_position(place))
    return clips


def _pictures(asked: Composition, video: Any, size: tuple[int, int], stack: ExitStack) -> list[Any]:
    """Overlays in the corners: a picture or video, with the logo on top."""
    found = []
    if asked.picture is not None:
        inset = _opened(asked.picture, video.duration, stack)
        if inset.duration < video.duration:
            from moviepy import vfx

            inset = inset.without_audio().with_effects([vfx.Loop(duration=video.duration)])
        inset = inset.without_audio().with_duration(video.duration)
        found.append(_in_corner(inset, asked.picture_corner, asked.picture_share, size))
    if asked.logo is not None:
        logo = still(open_picture(asked.logo), video.duration)
        found.append(_in_corner(logo, asked.logo_corner, asked.logo_share, size))
    return found


def _in_corner(clip: Any, corner: str, share: float, size: tuple[int, int]) -> Any:
    width, height = size
    margin = round(MARGIN * min(size))
    scale = min(share * width / clip.w, (height - 2 * margin) / clip.h)
    small = clip.resized((max(2, round(clip.w * scale)), max(2, round(clip.h * scale))))
    x = margin if corner.endswith("left") else width - margin - small.w
    y = margin if corner.startswith("top") else height - margin - small.h
    return small.with_position((x, y))


def _ends(path: Path | None, still_s: float, size: tuple[int, int], stack: ExitStack) -> list[Any]:
    """The intro or the outro at the video's size; a still fades in and out."""
    if path is None:
        return []
    clip = fitted(_opened(path, still_s, stack), *size)
    if is_picture(path):
        from moviepy import vfx

        fade_s = min(0.5, still_s / 4)
        clip = clip.with_effects([vfx.FadeIn(fade_s), vfx.FadeOut(fade_s)])
    return [clip]


def _opened(path: Path, still_s: float, stack: ExitStack) -> Any:
    """A still or a video as a clip. Raises: BadInput."""
    if not is_picture(path):
        return stack.enter_context(open_video(path))
    pixels = open_picture(path)
    if pixels.shape[2] == 4:
        alpha = pixels[..., 3:].astype(np.float32) / 255
        pixels = (pixels[..., :3] * alpha).astype(np.uint8)
    if min(pixels.shape[:2]) < 2:
        raise BadInput(f"{display_name(path)} is too small.", "Give a larger picture.")
    return still(pixels, still_s)
