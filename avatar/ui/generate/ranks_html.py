"""HTML of what every rank of an engine on several GPUs is doing, and which one the others wait for."""

from __future__ import annotations

from html import escape

from avatar.events import Progress, RankLoad
from avatar.ui.html import tag
from avatar.ui.language import Language, program_words, text


def render_ranks(progress: Progress, language: Language) -> str:
    """One row per rank; empty if there is only one."""
    if len(progress.ranks) < 2:
        return ""
    busiest = progress.bottleneck
    works = busiest is not None and round(busiest.busy_percent or 0) > 0
    rows = [_row(rank, works and rank == busiest, language) for rank in progress.ranks]
    return tag("ul", "".join(rows), class_="ranks", aria_label=text("ranks", language))


def role_words(role: str, language: Language) -> str:
    """ "layers 0–13, decode" → "层 0–13，解码" """
    words, parts = program_words("rank_roles", language), []
    for part in role.split(", "):
        name, _, span = part.partition(" ")
        parts.append(words.get(part) or f"{words.get(name, name)} {span}".strip())
    return words.get(", ", ", ").join(parts)


def _row(rank: RankLoad, is_busiest: bool, language: Language) -> str:
    words = [rank.place or text("rank", language, rank=rank.rank), role_words(rank.role, language)]
    name = tag("span", escape(" · ".join(word for word in words if word)), class_="name")
    busy = "–" if rank.busy_percent is None else f"{rank.busy_percent:.0f} %"
    waited = text("bottleneck", language) if is_busiest else ""
    figures = (tag("span", escape(f"{waited} · "), class_="waited") if waited else "") + escape(busy)
    bar = tag("i", style=f"width:{rank.busy_percent or 0:.0f}%")
    return tag(
        "li",
        name + tag("span", bar, class_="meter") + tag("span", figures, class_="figure"),
        data_busiest="yes" if is_busiest else None,
        title=waited or None,
    )
