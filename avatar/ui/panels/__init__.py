"""HTML of the page's own parts: pure functions from plain data to text, no Gradio objects."""

from __future__ import annotations

from html import escape


def tag(name: str, inner: str = "", **attributes: object) -> str:
    """An element; inner is HTML, attributes are escaped (class_ → class, aria_label → aria-label).

    An attribute of None or False is left out, one of True has no value.
    """
    words = [name]
    for key, value in attributes.items():
        if value is not None and value is not False:
            key = key.rstrip("_").replace("_", "-")
            words.append(key if value is True else f'{key}="{escape(str(value))}"')
    return f"<{' '.join(words)}>{inner}</{name}>"
