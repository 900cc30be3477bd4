"""Background music: as long as the video, ducked under speech, faded at both ends."""

from __future__ import annotations

from typing import Any

import numpy as np

from avatar.errors import BadInput

_HZ = 50  # rate at which loudness is measured
_SPEAKS_DB = -38.0  # relative to full scale; louder counts as speech
_RISE_S = 0.4  # in which the music rises and falls
_RANGE_DB = (-60.0, 6.0)
_PAUSE_S = 0.3  # between two stretches of speech; a shorter one is a breath


def loudness(clip: Any) -> np.ndarray:
    """The loudness of a clip's sound over time in dB of full scale, (T,) at 50 Hz; read in chunks."""
    hz = 16_000
    levels = [
        20 * np.log10(np.sqrt((hop.astype(np.float64) ** 2).mean()) + 1e-6)
        for block in clip.iter_chunks(chunk_duration=2, fps=hz)
        for hop in np.array_split(block, max(1, round(len(block) * _HZ / hz)))
        if len(hop)
    ]
    return np.array(levels)


def spoken(clip: Any) -> list[tuple[float, float]]:
    """Stretches of speech in a clip's sound, (start, end) in seconds."""
    loud = np.concatenate([[0], (loudness(clip) > _SPEAKS_DB).astype(np.int8), [0]])
    edges = np.flatnonzero(np.diff(loud)) / _HZ
    found: list[tuple[float, float]] = []
    for start, end in zip(edges[::2], edges[1::2]):
        if found and start - found[-1][1] < _PAUSE_S:
            found[-1] = (found[-1][0], float(end))
        else:
            found.append((float(start), float(end)))
    return found


def with_music(voice: Any, music: Any, seconds: float, music_db: float, duck_db: float) -> Any:
    """Mix music under a voice, looped or cut to seconds. voice: a clip, or None.

    music_db: its level without speech; duck_db: change of its level under speech. Raises: BadInput.
    """
    from moviepy import CompositeAudioClip, afx

    for name, value in (("--music_db", music_db), ("--duck_db", duck_db)):
        if not _RANGE_DB[0] <= value <= _RANGE_DB[1]:
            raise BadInput(f"{name} is {value:g}.", "Take from -60 to 6, in decibels.")
    bed = music.with_effects([afx.AudioLoop(duration=seconds)]) if music.duration < seconds else music
    bed = bed.with_duration(seconds)
    fade_s = min(1.0, seconds / 4)
    bed = bed.with_effects([afx.AudioFadeIn(fade_s / 2), afx.AudioFadeOut(fade_s)])
    gains = _gains(None if voice is None else loudness(voice), seconds, music_db, duck_db)
    grid = np.arange(len(gains)) / _HZ

    def quieter(get_frame: Any, times: Any) -> np.ndarray:
        gain = np.interp(times, grid, gains)
        return get_frame(times) * (gain[:, None] if np.ndim(gain) else gain)

    bed = bed.transform(quieter, keep_duration=True)
    return bed if voice is None else CompositeAudioClip([voice, bed]).with_duration(seconds)


def _gains(levels: np.ndarray | None, seconds: float, music_db: float, duck_db: float) -> np.ndarray:
    """The music's gain factor over time, at 50 Hz."""
    speaks = np.zeros(max(2, round(seconds * _HZ) + 1))
    if levels is not None:
        speaks[: len(levels)] = levels[: len(speaks)] > _SPEAKS_DB
    reach = round(_RISE_S * _HZ)
    # Held over short pauses, then smoothed, so that the music neither pumps nor clicks.
    held = np.lib.stride_tricks.sliding_window_view(np.pad(speaks, reach), 2 * reach + 1).max(1)
    kernel = np.hanning(reach + 2)[1:-1]
    smooth = np.convolve(np.pad(held, reach, "edge"), kernel / kernel.sum(), "same")[reach:-reach]
    return 10 ** ((music_db + duck_db * smooth) / 20)
