"""HTML of the tab Live, which static/live.js makes work."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from typing import get_args

from avatar.live.chat import MOST_PART_CHARS
from avatar.settings import MotionLevel
from avatar.speech.voices import Voice
from avatar.ui.language import Language, choices_of, text, translation

MODES = ("mirror", "type", "talk")


def render_live(
    language: Language,
    voices: Sequence[Voice],
    chat: bool,
    label: str,
    root: str,
    motion: MotionLevel = "normal",
    models: Sequence[str] = (),
) -> str:
    """The whole tab. chat: whether a chat model answers. label: the engine's. root: the page's prefix.

    motion: the one chosen at first. models: those of the chat, to choose from.
    """
    word = dict(translation(language).live)
    data = html.escape(json.dumps({"words": word, "chat": chat, "label": label, "root": root}))
    modes = "".join(
        f'<button type="button" role="radio" data-mode="{mode}"'
        f' aria-checked="{"true" if mode == "mirror" else "false"}"'
        f' tabindex="{0 if mode == "mirror" else -1}"><b>{_said(word[mode])}</b>'
        f"<span>{_said(word[f'{mode}_info'])}</span></button>"
        for mode in MODES
    )
    options = "".join(
        f'<option value="{html.escape(voice.name)}">{html.escape(_name(voice))}</option>' for voice in voices
    )
    motions = "".join(
        f'<option value="{value}"{" selected" if value == motion else ""}>{_said(words)}</option>'
        for words, value in choices_of("motion", get_args(MotionLevel), language)
    )
    talk = _chat(word, models) if chat else f'<p class="muted">{_said(word["no_chat"])}</p>'
    return f"""<div class="live" data-live="{data}">
<div class="live-modes" role="radiogroup" aria-label="{_said(word["modes"])}">{modes}</div>
<div class="live-chat" data-for="talk" hidden>{talk}</div>
<div class="live-buttons">
<button type="button" class="live-go" data-do="go">{_said(word["go"])}</button>
<button type="button" data-do="mute" aria-pressed="false" hidden>{_said(word["mute"])}</button>
<button type="button" data-do="push" aria-pressed="false" hidden>{_said(word["push"])}</button>
<button type="button" data-do="stop" hidden>{_said(word["quiet"])}</button>
<button type="button" data-do="record" aria-pressed="false" hidden>{_said(word["record"])}</button>
</div>
<label class="live-choice">{_said(text("motion", language))} <select data-motion>{motions}</select></label>
<label class="live-check" hidden><input type="checkbox" data-do="held"> {_said(word["held"])}</label>
<div class="live-meter" role="meter" aria-label="{_said(word["meter"])}" aria-valuemin="0" aria-valuemax="100"
 aria-valuenow="0" hidden><i></i></div>
<div class="live-type" hidden>
<textarea rows="2" maxlength="2000" aria-label="{_said(word["say_what"])}"
 placeholder="{_said(word["say_hint"])}"></textarea>
<div class="live-row"><select aria-label="{text("voice", language)}">{options}</select>
<button type="button" data-do="say">{_said(word["say"])}</button></div>
</div>
<p class="live-state" role="status" aria-live="polite">{_said(word["idle"])}</p>
<p class="live-notice" role="alert" hidden></p>
<ol class="live-said" aria-label="{_said(word["said"])}" aria-live="polite" tabindex="0" hidden></ol>
</div>"""


def _chat(word: Mapping[str, str], models: Sequence[str]) -> str:
    """What the visitor may tell the chat: its part, and its model where there are several."""
    options = "".join(f"<option>{_said(model)}</option>" for model in models)
    choice = f"<label>{_said(word['chat_model'])} <select data-chat-model>{options}</select></label>"
    return (
        f"<details><summary>{_said(word['chat_part'])}</summary>"
        f'<textarea rows="2" maxlength="{MOST_PART_CHARS}" data-chat-part'
        f' aria-label="{_said(word["chat_part"])}" placeholder="{_said(word["chat_part_hint"])}"></textarea>'
        f"{choice if len(models) > 1 else ''}</details>"
    )


def _said(words: str) -> str:
    return html.escape(words)


def _name(voice: Voice) -> str:
    short = voice.name.rpartition("/")[2]
    short = short.partition("_")[2] or short
    return f"{short.capitalize()} · {voice.language}" if voice.language else short.capitalize()
