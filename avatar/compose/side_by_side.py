"""A portrait and videos side by side, each with its label, with the sound of one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from avatar.compose.clips import fitted, lettering, open_picture, open_video, save, still
from avatar.errors import BadInput

COLUMNS = 4  # per row
TILE_PX = 480  # maximum height of each picture
_LABEL = 0.08  # share of a tile's height
MOST_VIDEOS = 15


def side_by_side(
    videos: Sequence[tuple[str, Path]],
    output: Path,
    work: Path,
    *,
    portrait: Path | None = None,
    sound_of: int = 0,
    font: Path | None = None,
) -> None:
    """Write one video that shows several. videos: (label, file); shorter ones hold their last frame.

    sound_of: index of the video whose sound is used. work: folder for drafts. Raises: BadInput, AvatarError.
    """
    from moviepy import ColorClip, CompositeVideoClip

    if not 1 <= len(videos) <= MOST_VIDEOS:
        raise BadInput(f"{len(videos)} videos cannot be shown side by side.", f"Take 1 to {MOST_VIDEOS}.")
    with ExitStack() as stack:
        clips = [stack.enter_context(open_video(path)) for _, path in videos]
        duration = max(clip.duration for clip in clips)
        height = min(TILE_PX, *(clip.h for clip in clips)) // 2 * 2
        width = max(round(clip.w * height / clip.h) for clip in clips) // 2 * 2
        tiles = [_held(clip, duration) for clip in clips]
        labels = [label for label, _ in videos]
        if portrait is not None:
            tiles.insert(0, still(open_picture(portrait)[..., :3], duration))
            labels.insert(0, "portrait")
        columns = min(len(tiles), COLUMNS)
        label_px = max(14, round(height * _LABEL)) // 2 * 2
        cell = (width, height + 3 * label_px)
        size = columns * cell[0], math.ceil(len(tiles) / columns) * cell[1]
        placed: list[Any] = [ColorClip(size, color=(24, 24, 24), duration=duration)]
        for number, (tile, label) in enumerate(zip(tiles, labels)):
            x, y = number % columns * cell[0], number // columns * cell[1]
            text = lettering(label, label_px, width, font).with_duration(duration)
            placed += [fitted(tile, width, height).with_position((x, y)), text.with_position((x, y + height))]
        fps = max(clip.fps or 25 for clip in clips)
        whole = CompositeVideoClip(placed, size=size).with_duration(duration)
        save(whole.with_audio(clips[sound_of].audio), output, fps, work)


def _held(clip: Any, seconds: float) -> Any:
    """A clip that holds its last frame until the longest clip is over."""
    if clip.duration >= seconds - 1e-3:
        return clip.without_audio()
    from moviepy import concatenate_videoclips

    last = still(clip.get_frame(max(0, clip.duration - 1 / (clip.fps or 25))), seconds - clip.duration)
    return concatenate_videoclips([clip.without_audio(), last])
