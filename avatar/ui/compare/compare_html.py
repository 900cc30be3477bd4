"""HTML of a comparison: two videos and the table of their measures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from avatar.compare.result import Comparison
from avatar.compare.table import grid, remarks
from avatar.ui.html import tag
from avatar.ui.language import Language, compared_words, text


@dataclass(frozen=True)
class PlayedVideo:
    """One of the two videos. letter: "A" or "B"; label: what differs; src: its URL."""

    letter: str
    label: str
    src: str


def render_players(videos: Sequence[PlayedVideo], language: Language) -> str:
    """The videos with one shared play button and one slider for their position, for in_step.js."""
    bar = tag("button", escape(text("compare_play", language)), type="button", data_step="play")
    place = escape(text("compare_place", language))
    bar += f'<input type="range" data-step="place" min="0" max="1" step="any" value="0" aria-label="{place}">'
    bar += tag("output", "0.0 s", data_step="time")
    return tag(
        "div",
        tag("div", "".join(_figure(one, language) for one in videos), class_="compared-videos")
        + tag("div", bar, class_="compared-bar")
        + tag("p", escape(text("compare_keys", language)), class_="muted"),
        class_="compared",
        role="group",
        tabindex="-1",  # so that keys work after a click on a video
        aria_label=text("compare", language),
        data_play=text("compare_play", language),
        data_pause=text("compare_pause", language),
    )


def render_table(comparison: Comparison, language: Language, measuring: bool = False) -> str:
    """The measures known so far, one column per video. measuring: more will follow."""
    heads, rows = grid(comparison)
    videos = tag("th", escape(text("compare_of", language)), scope="col")
    videos += "".join(tag("th", escape(row[0]), scope="col") for row in rows)
    lines = [
        tag("th", escape(compared_words(head, language)), scope="row")
        + "".join(tag("td", escape(compared_words(row[at], language))) for row in rows)
        for at, head in enumerate(heads[1:], 1)
    ]
    body = tag("tbody", "".join(tag("tr", line) for line in lines))
    table = tag("table", tag("thead", tag("tr", videos)) + body, class_="compared-table")
    said = "" if measuring else tag("p", escape(text("compare_about", language)), class_="muted")
    labels = sorted((row[0] for row in rows), key=len, reverse=True)  # a speaker's begins with its video's
    notes = "".join(tag("li", escape(_remark(one, labels, language))) for one in remarks(comparison))
    return table + (tag("ul", notes, class_="notices") if notes else "") + said


def render_note(words: str, busy: bool = False) -> str:
    """What is being done now; read aloud by screen readers."""
    bar = tag("div", "", class_="bar", data_busy=True) if busy else ""
    return tag("div", tag("p", escape(words), class_="muted") + bar, role="status", class_="compare-note")


def _figure(video: PlayedVideo, language: Language) -> str:
    hear = tag(
        "button",
        tag("b", video.letter) + tag("span", escape(text("compare_hear", language))),
        type="button",
        data_step="hear",
        aria_pressed="false",
        aria_label=f"{text('compare_hear', language)}: {video.letter}",
    )
    film = tag("video", src=video.src, preload="auto", playsinline=True, muted=True, aria_label=video.letter)
    words = tag("span", escape(video.label), title=video.label)
    return tag("figure", film + tag("figcaption", hear + words))


def _remark(english: str, labels: Sequence[str], language: Language) -> str:
    """ "B, lip sync: the mouth does not move."; labels and engines' texts stay as they are."""
    label = next((one for one in labels if english.startswith(one)), "")
    if not label:  # about the whole comparison: already in the page's language
        return english
    about, colon, why = english.removeprefix(label).partition(": ")
    known = [compared_words(one, language, whole=True) for one in (about.removeprefix(", "), why.rstrip("."))]
    between = ", " if about else ""
    return f"{label}{between}{known[0]}: {known[1]}" if colon else english
