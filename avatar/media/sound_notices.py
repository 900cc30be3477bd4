"""Notices of what is odd about a recording, and of what was done about it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from avatar.events import Notice
from avatar.media.audio_track import TrackFindings
from avatar.media.files import minutes

_NOTICED_GAP_S = 0.2  # shortest gap in a recording that gets a notice


def fault_notices(
    name: str, found: TrackFindings, promised_s: float | None, seconds: float
) -> tuple[Notice, ...]:
    """Notices of the faults of a file. promised_s: the length that it states; seconds: what was read."""
    notices = []
    gaps = [(start, length) for start, length in found.gaps if start > 0 and length > _NOTICED_GAP_S]
    if found.broken:
        notices.append(_cut_short(name, promised_s, seconds))
    if found.bad_packets:
        notices.append(_damaged(name, gaps))
    elif gaps:
        words = f"{name} holds no sound", "; the video is silent there."
        notices.append(_in_places("no_sound", words, name, gaps, "info"))
    if found.astray_s is not None:
        at = _at(found.astray_s)
        text = (
            f"The time stamps of {name} overlap or leap at {at}; "
            "its sound was taken in the order in which it is stored."
        )
        notices.append(Notice("astray", text, "warning", values={"name": name, "at": at}))
    if found.not_numbers:
        text = f"{found.not_numbers} samples of {name} are not numbers (NaN or infinite); they are silent."
        values = {"name": name, "count": found.not_numbers}
        notices.append(Notice("not_numbers", text, "warning", values=values))
    return tuple(notices)


def gain_notices(name: str, gain: float, peak_dbfs: float) -> tuple[Notice, ...]:
    """A notice of a gain other than 1. peak_dbfs: before it."""
    change = f"{abs(20 * math.log10(gain)):.0f}"
    if gain > 1:
        peak = f"{peak_dbfs:.0f}"
        text = f"{name} is very quiet (peak {peak} dB); it was made louder by {change} dB."
        return (Notice("made_louder", text, values={"name": name, "peak": peak, "change": change}),)
    if gain < 1:
        text = f"{name} is louder than full scale; it was made quieter by {change} dB."
        return (Notice("made_quieter", text, values={"name": name, "change": change}),)
    return ()


def _cut_short(name: str, promised_s: float | None, seconds: float) -> Notice:
    values, at = {"name": name, "at": _at(seconds)}, _at(seconds)
    breaks = f"{name} is cut short: it breaks off after {at}"
    if promised_s is None or promised_s <= seconds + _NOTICED_GAP_S:
        return Notice("cut_short", f"{breaks}. The video ends there.", "warning", values=values)
    promised = _at(promised_s)
    text = f"{breaks} of the {promised} that it should last. The video ends there."
    return Notice("cut_short_of", text, "warning", values={**values, "promised": promised})


def _damaged(name: str, gaps: Sequence[tuple[float, float]]) -> Notice:
    words = f"A small part of {name} is damaged and was left out", "."
    if not gaps:
        return Notice("damaged", "".join(words), "warning", values={"name": name})
    return _in_places("damaged", words, name, gaps, "warning")


def _in_places(
    code: str, words: tuple[str, str], name: str, gaps: Sequence[tuple[float, float]], level: str
) -> Notice:
    """A notice about gaps, whose places stand between the words. The code tells one gap from several."""
    start, stop = _at(gaps[0][0]), _at(sum(gaps[0]))
    where = f" from {start} to {stop}"
    values: dict[str, Any] = {"name": name, "start": start, "stop": stop}
    if len(gaps) == 1:
        return Notice(f"{code}_at", where.join(words), level, values=values)
    rest_s = sum(length for _, length in gaps[1:])
    places = "1 more place" if len(gaps) == 2 else f"{len(gaps) - 1} more places"
    where += f" and in {places}, {minutes(rest_s)} in all"
    values |= {"more": len(gaps) - 1, "seconds": f"{rest_s:.1f}"}
    return Notice(f"{code}_places", where.join(words), level, values=values)


def _at(seconds: float) -> str:
    """A position in a recording: "0:02.5", "1:02:03.0"."""
    tenths = round(seconds * 10)
    whole_minutes, rest = divmod(tenths, 600)
    hours, left = divmod(whole_minutes, 60)
    start = f"{hours}:{left:02d}" if hours else f"{left}"
    return f"{start}:{rest // 10:02d}.{rest % 10}"
