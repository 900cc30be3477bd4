"""HTML of the page's panels: pure functions from plain data to text, no Gradio objects."""

from __future__ import annotations

from html import escape


def tag(name: str, inner: str = "", **attributes: object) -> str:
    """An HTML element; inner is HTML, attributes are escaped (class_ → class, aria_label → aria-label).

    An attribute of None or False is left out, one of True has no value.
    """
    words = [name]
    for key, value in attributes.items():
        if value is not None and value is not False:
            key = key.rstrip("_").replace("_", "-")
            words.append(key if value is True else f'{key}="{escape(str(value))}"')
    return f"<{' '.join(words)}>{inner}</{name}>"


def gib(num_bytes: int | None) -> str:
    """ "12.3", or a dash if unknown; the unit is in the text around it."""
    return "–" if num_bytes is None else f"{num_bytes / 2**30:.1f}"


def share(part: int | None, total: int | None) -> str:
    """Part of a total as a percentage for CSS, 100 % at most."""
    return f"{100 * min(part / total, 1.0):.1f}%" if part and total else "0.0%"


def meter(title: str, figures: str, bar: str, below: str = "", **attributes: object) -> str:
    """A meter: title, figures, a bar of HTML elements, and HTML below it."""
    head = tag("span", escape(title), class_="name") + tag("span", escape(figures), class_="figure")
    inner = tag("div", head, class_="row-head") + tag("div", bar, class_="meter") + below
    return tag("div", inner, class_="gauge", **attributes)
