"""A comparison as a table of texts: figures of the runs, and measures of their videos."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from avatar.compare.result import DONE, OOM, Comparison, Row

GIB = 2**30
UNKNOWN = "–"

Columns = Mapping[str, Callable[[Row], str]]


def _gpus(row: Row) -> str:
    peaks = []
    for gpu in (row.run or {}).get("gpus", ()):
        peak, card = gpu["peak_bytes"], gpu["card_peak_bytes"]
        known = peak if peak is not None else card
        bound = "≤ " if peak is None and card is not None else ""
        peaks.append(UNKNOWN if known is None else f"{bound}{known / GIB:.1f}")
    return " + ".join(peaks) or UNKNOWN


def _out_of_memory(row: Row) -> str:
    if row.state == OOM:
        return "yes"
    found = (row.run or {}).get("out_of_memory")
    return {None: UNKNOWN if row.run is None else "?", True: "yes, went on", False: "no"}[found]


def _figure(number: Any, form: str) -> str:
    return UNKNOWN if number is None else form.format(number)


def _ran(key: str, form: str) -> Callable[[Row], str]:
    return lambda row: _figure((row.run or {}).get(key), form)


def _host(row: Row) -> str:
    peak = (row.run or {}).get("host_peak_bytes")
    return _figure(None if peak is None else peak / GIB, "{:.1f}")


def _measured(*keys: str, form: str, times: float = 1) -> Callable[[Row], str]:
    def cell(row: Row) -> str:
        found: Any = row.measures
        for key in keys:
            found = None if found is None else found.get(key)
        return _figure(None if found is None else found * times, form)

    return cell


def _confidence(row: Row) -> str:
    measures = row.measures or {}
    own = measures.get("speakers")  # whose lines below have theirs
    return UNKNOWN if own else _figure((measures.get("lip_sync") or {}).get("confidence"), "{:.2f}")


def _closures(row: Row) -> str:
    sync = (row.measures or {}).get("lip_sync") or {}
    if sync.get("closure_recall") is None:
        return UNKNOWN
    chance = _figure(sync["closure_chance"], "{:.0%}")
    return f"{sync['closure_recall']:.0%} of {sync['closures']} (chance {chance})"


def _seam(row: Row) -> str:
    smooth = (row.measures or {}).get("smoothness") or {}
    if smooth.get("ratio") is None:
        return UNKNOWN
    return f"{smooth['ratio']:.2f}" + (" – a seam" if smooth["seam_is_seen"] else "")


def _head(row: Row) -> str:
    natural = (row.measures or {}).get("naturalness") or {}
    spans = [natural.get(name) for name in ("yaw", "pitch", "roll")]
    return " / ".join(f"{span['range']:.1f}" for span in spans if span) or UNKNOWN


def _bands(row: Row) -> str:
    shares = ((row.measures or {}).get("naturalness") or {}).get("spectrum") or {}
    return " / ".join(f"{share:.0%}" for share in shares.values()) or UNKNOWN


def _movement(name: str, form: str) -> Callable[[Row], str]:
    def cell(row: Row) -> str:
        found = ((row.measures or {}).get("expression") or {}).get(name)
        if not found:
            return UNKNOWN
        speed = found.get("speed")
        return form.format(found["range"]) + ("" if speed is None else f", {form.format(speed)}")

    return cell


def _blinks(row: Row) -> str:
    natural = (row.measures or {}).get("naturalness") or {}
    if natural.get("blinks_per_min") is None:
        return UNKNOWN
    length = natural["blink_ms"]
    words = f"{natural['blinks_per_min']:.0f}" + ("" if length is None else f", {length:.0f} ms")
    return words + (" – unusual" if natural["unusual"] else "")


def _drift(kind: str, form: str) -> Callable[[Row], str]:
    def cell(row: Row) -> str:
        found = ((row.measures or {}).get("likeness") or {}).get(kind)
        if not found:
            return UNKNOWN
        slope = "" if found["per_min"] is None else f" ({form.format(found['per_min'])} a minute)"
        mean = form.format(found["mean"]).lstrip("+")
        return mean + slope + (" – drifts" if found["drifts"] else "")

    return cell


RUN: Columns = {
    "peak memory per GPU, GiB": _gpus,
    "host, GiB": _host,
    "OOM?": _out_of_memory,
    "average fps": _ran("average_fps", "{:.1f}"),
    "first frame, s": _ran("first_frame_s", "{:.1f}"),
}
MEASURED: Columns = {
    "sound after mouth, ms": _measured("lip_sync", "offset_ms", form="{:+.0f}"),
    "confidence": _confidence,
    "lips shut for p, b, m": _closures,
    "jolt at borders (1 = none)": _seam,
    "head yaw / pitch / roll, °": _head,
    "head motion: slow / ordinary / rapid": _bands,
    "blinks a minute": _blinks,
    "brows: range, speed": _movement("brows", "{:.2f}"),
    "eyes: range, speed": _movement("eyes", "{:.1f}"),
    "mouth corners: range, speed": _movement("mouth_corners", "{:.2f}"),
    "likeness, SSIM": _drift("ssim", "{:+.2f}"),
    "colour distance": _drift("colour", "{:+.1f}"),
    "sharpness": _drift("sharpness", "{:+.2f}"),
}
ABOUT = (
    "These numbers do not measure beauty: docs/quality.md says how each is measured and tested, and what it "
    "cannot see. – means that it was not measured or cannot be known."
)


def grid(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Headings and cells; columns without any value are left out.

    Where several faces speak in a video, each has a line of its own below that of the video.
    """
    columns = {name: figure for group in (RUN, MEASURED) for name, figure in group.items()}
    rows = [one for row in comparison.rows for one in (row, *_speakers(row))]
    known = {name: [figure(row) for row in rows] for name, figure in columns.items()}
    shown = {name: cells for name, cells in known.items() if set(cells) != {UNKNOWN}}
    heads = ["video", *shown]
    return heads, [[_name(row), *(cells[at] for cells in shown.values())] for at, row in enumerate(rows)]


def _speakers(row: Row) -> list[Row]:
    """A line for each of several speakers; none where there is one."""
    found = (row.measures or {}).get("speakers") or ()
    return [Row(row.name, f"{_name(row)} – {one['name']}", row.settings, measures=one) for one in found]


def remarks(comparison: Comparison) -> list[str]:
    """What could not be made or measured, and why."""
    found = list(comparison.notes)
    for row in comparison.rows:
        if row.error:
            found.append(f"{row.label}: {row.error}")
        elif row.state != DONE:
            found.append(f"{row.label}: {row.state.replace('_', ' ')}.")
        for one in (row, *_speakers(row)):
            for name, value in (one.measures or {}).items():
                if isinstance(value, dict) and value.get("why"):
                    found.append(f"{one.label}, {name.replace('_', ' ')}: {value['why']}.")
    return found


def markdown(comparison: Comparison) -> str:
    """The table and its remarks, in Markdown."""
    heads, cells = grid(comparison)
    lines = ["<!-- Made by Live Avatar -->", "# Comparison", ""]
    inputs = [text for text in (comparison.portrait, comparison.speech) if text]
    lines += [f"Made from {' and '.join(map(_escaped, inputs))}.", ""] if inputs else []
    lines += [_line(heads), _line(["---"] * len(heads)), *map(_line, cells), ""]
    lines += [f"- {_escaped(text)}" for text in remarks(comparison)]
    strips = [f"![{_escaped(row.label)}: worst border]({row.seam})" for row in comparison.rows if row.seam]
    return "\n".join([*lines, "", *strips, "", ABOUT, ""])


def _name(row: Row) -> str:
    return row.label or row.name


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(map(_escaped, cells))} |"


def _escaped(text: str) -> str:
    for sign in "\\|<>[]*_`":
        text = text.replace(sign, "\\" + sign)
    return " ".join(text.split())
