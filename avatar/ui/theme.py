"""Colours, type and spacing. Everything is local: no font, style or script is loaded from elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import gradio as gr

from avatar.ui.translations import TRANSLATIONS

FOLDER = Path(__file__).parent / "static"
SANS = ["system-ui", "-apple-system", "Segoe UI", "Noto Sans", "PingFang SC", "Microsoft YaHei", "sans-serif"]
MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]

LIGHT_ONLY = ("color_accent", "shadow_drop", "shadow_drop_lg")  # Gradio has no dark twin of these

# name: (light, dark); style.css uses the same names
PALETTE = {
    "paper": ("#f7f5f1", "#121110"),
    "surface": ("#ffffff", "#1b1a18"),
    "sunken": ("#f1eee8", "#23211f"),
    "line": ("#e3ded5", "#34312d"),
    "line-strong": ("#9a9184", "#7d756a"),
    "ink": ("#1d1a16", "#f3efe8"),
    "muted": ("#655e54", "#aaa296"),
    "accent": ("#b93a1d", "#ff8a66"),
    "accent-hover": ("#9c2f16", "#ffa285"),
    "on-accent": ("#ffffff", "#2a0f06"),
    "accent-soft": ("#fbe9e3", "#3a2119"),
    "good": ("#1d7350", "#68c79b"),
    "good-soft": ("#e2f2ea", "#173026"),
    "warn": ("#8a5a00", "#e9b44c"),
    "warn-soft": ("#fdf1d8", "#33280f"),
}


def palette_css() -> str:
    """The palette as CSS variables, light and dark."""
    light = "".join(f"--{name}: {pair[0]};" for name, pair in PALETTE.items())
    dark = "".join(f"--{name}: {pair[1]};" for name, pair in PALETTE.items())
    return f":root {{ {light} }}\n.dark {{ {dark} }}\n"


def toast_css() -> str:
    """The heading of error toasts by language: Gradio 6.31 shows "Error" in place of an error's own title."""
    return "".join(
        f":lang({language}) .toast-title.error {{ font-size: 0; }}\n"
        f":lang({language}) .toast-title.error::before {{"
        f" content: {json.dumps(one.page['error_toast'], ensure_ascii=False)}; font-size: 16px; }}\n"
        for language, one in TRANSLATIONS.items()
        if language != "en"
    )


def css() -> str:
    return palette_css() + (FOLDER / "style.css").read_text(encoding="utf-8") + toast_css()


def script(name: str) -> str:
    """The text of one of our JavaScript files."""
    return (FOLDER / name).read_text(encoding="utf-8")


def theme() -> gr.themes.Base:
    """Gradio's own components in our palette."""
    ours = {
        "body_background_fill": "var(--paper)",
        "body_text_color": "var(--ink)",
        "body_text_color_subdued": "var(--muted)",
        "background_fill_primary": "var(--surface)",
        "background_fill_secondary": "var(--sunken)",
        "block_background_fill": "var(--surface)",
        "block_border_color": "var(--line)",
        "block_label_background_fill": "transparent",
        "block_label_text_color": "var(--ink)",
        "block_label_border_width": "0px",
        "block_title_text_color": "var(--ink)",
        "block_info_text_color": "var(--muted)",
        "border_color_primary": "var(--line)",
        "border_color_accent": "var(--accent)",
        "border_color_accent_subdued": "var(--accent)",
        "color_accent": "var(--accent)",
        "color_accent_soft": "var(--accent-soft)",
        "link_text_color": "var(--accent)",
        "link_text_color_hover": "var(--accent-hover)",
        "link_text_color_visited": "var(--accent)",
        "link_text_color_active": "var(--accent)",
        "input_background_fill": "var(--surface)",
        "input_background_fill_focus": "var(--surface)",
        "input_border_color": "var(--line-strong)",
        "input_border_color_focus": "var(--accent)",
        "input_placeholder_color": "var(--muted)",
        "input_shadow": "none",
        "input_shadow_focus": "0 0 0 3px var(--accent-soft)",
        "button_primary_background_fill": "var(--accent)",
        "button_primary_background_fill_hover": "var(--accent-hover)",
        "button_primary_text_color": "var(--on-accent)",
        "button_primary_text_color_hover": "var(--on-accent)",
        "button_primary_border_color": "transparent",
        "button_primary_border_color_hover": "transparent",
        "button_secondary_background_fill": "var(--surface)",
        "button_secondary_background_fill_hover": "var(--sunken)",
        "button_secondary_text_color": "var(--ink)",
        "button_secondary_text_color_hover": "var(--ink)",
        "button_secondary_border_color": "var(--line-strong)",
        "button_secondary_border_color_hover": "var(--ink)",
        "checkbox_background_color": "var(--surface)",
        "checkbox_border_color": "var(--line-strong)",
        "checkbox_background_color_selected": "var(--accent)",
        "checkbox_border_color_selected": "var(--accent)",
        "slider_color": "var(--accent)",
        "loader_color": "var(--accent)",
        "error_background_fill": "var(--surface)",
        "panel_background_fill": "transparent",
        "shadow_drop": "none",
        "shadow_drop_lg": "none",
        "shadow_spread": "0px",
        "block_shadow": "none",
    }
    dark = {f"{name}_dark": value for name, value in ours.items() if name not in LIGHT_ONLY}
    base = gr.themes.Base(
        font=SANS,
        font_mono=MONO,
        radius_size=gr.themes.sizes.radius_lg,
        spacing_size=gr.themes.sizes.spacing_lg,
        text_size=gr.themes.sizes.text_md,
    )
    return base.set(**ours, **dark)
