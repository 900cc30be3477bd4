"""HTML of the gallery."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from html import escape
from types import MappingProxyType

from avatar.media.side_files import SRT
from avatar.runtime.gallery import GalleryEntry
from avatar.runtime.report import RunReport
from avatar.ui.gallery.report_html import render_account
from avatar.ui.html import tag
from avatar.ui.language import Language, text

Url = Callable[[str, str], str]  # from an entry's id and the name of one of its files

LONG_S = 120.0  # from here on, lengths are shown in minutes


def render_gallery(
    entries: Sequence[GalleryEntry],
    language: Language,
    url: Url,
    max_age_s: float,
    reports: Mapping[str, RunReport] = MappingProxyType({}),
) -> str:
    """Cards of finished and stopped videos, newest first. url: of an entry's file.

    reports: by entry id, for entries that have one.
    """
    title = tag("h2", escape(text("gallery", language)))
    kept = tag("span", escape(text("gallery_kept", language, days=round(max_age_s / 86_400))), class_="muted")
    head = tag("div", title + kept, class_="gallery-head")
    if not entries:
        return tag(
            "div", head + tag("p", escape(text("gallery_empty", language)), class_="empty"), class_="gallery"
        )
    cards = (_card(entry, language, url, reports.get(entry.id)) for entry in entries)
    return tag("div", head + tag("ul", "".join(cards), class_="videos"), class_="gallery")


def _card(entry: GalleryEntry, language: Language, url: Url, report: RunReport | None) -> str:
    about = entry.about
    thumbnail = escape(url(entry.id, entry.thumbnail.name))
    video = url(entry.id, entry.video.name)
    badges = [_length(about.duration_s, language)] if about.duration_s else []
    if about.label:
        badges.append(text("preview", language) if about.label == "preview" else about.label)
    if about.stopped and about.duration_s:
        badges.append(text("stopped", language))
    elif entry.is_unfinished:
        badges.append(text("unfinished", language))
    over = tag(
        "span", "".join(tag("span", escape(badge), class_="badge") for badge in badges), class_="badges"
    )
    picture = f'<img src="{thumbnail}" alt="" loading="lazy">'
    name = f"{about.portrait} · {about.speech}"
    if about.duration_s:
        play = tag(
            "button",
            picture + tag("span", "", class_="play", aria_hidden="true") + over,
            type="button",
            class_="poster",
            aria_label=f"{text('gallery_replay', language)}: {name}",
            data_action="play",
            data_id=entry.id,
            data_src=video,
        )
    else:  # parts only, no video yet
        play = tag("div", picture + over, class_="poster")
    made = time.strftime("%Y-%m-%d %H:%M", time.localtime(about.created))
    settings = about.settings
    facts = [made, about.preset, str(settings.get("size", "")).replace("*", "×")]
    if "seed" in settings:
        facts.append(f"{text('seed', language)} {settings['seed']}")
    words = tag("strong", escape(name), title=name) + tag(
        "span", escape(" · ".join(filter(None, facts))), class_="muted"
    )
    if about.prompt:
        words += tag("span", escape(about.prompt), class_="muted prompt", title=about.prompt)
    if about.error:
        words += tag("span", escape(about.error), class_="muted", data_level="warning")
    account = ""
    if report is not None:
        account = render_account(report, language, url(entry.id, entry.report.name), entry.report.name)
    return tag(
        "li",
        play + tag("div", words, class_="video-words") + _buttons(entry, video, url, language) + account,
        class_="video",
    )


def _buttons(entry: GalleryEntry, video: str, url: Url, language: Language) -> str:
    about, resume, download = entry.about, "", ""
    if entry.is_unfinished:
        words = escape(text("gallery_resume", language))
        resume = tag("button", words, type="button", data_action="resume", data_id=entry.id)
    if about.duration_s:
        download = tag(
            "a",
            escape(text("gallery_download", language)),
            href=url(entry.id, entry.taken.name),
            download=entry.download_name,
        )
    if entry.captions is not None:
        name, words = entry.captions.with_suffix(SRT).name, escape(text("gallery_captions", language))
        taken = entry.download_name.removesuffix(entry.taken.suffix) + SRT
        download += tag("a", words, href=url(entry.id, name), download=taken)
    use = tag(
        "button", escape(text("gallery_use", language)), type="button", data_action="use", data_id=entry.id
    )
    delete = tag(
        "button",
        escape(text("gallery_delete", language)),
        type="button",
        data_action="delete",
        data_id=entry.id,
        data_confirm=text("gallery_confirm", language),
    )
    return tag("div", resume + download + use + delete, class_="video-buttons")


def _length(seconds: float, language: Language) -> str:
    """A video's length as text."""
    if seconds >= LONG_S:
        return text("minutes", language, min=round(seconds / 60))
    return text("seconds", language, s=f"{seconds:.0f}" if seconds >= 10 else f"{seconds:.1f}")
