"""HTML of the cards to choose from: presets and examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from avatar.errors import BadInput
from avatar.planning.shortfalls import Shortfall
from avatar.planning.verdict import Verdict
from avatar.preset import Preset
from avatar.sizes import video_size
from avatar.ui.html import tag
from avatar.ui.language import Language, has_text, program_words, text
from avatar.ui.state.examples import Example

Shape = tuple[int, int]
"""A portrait's width and height in pixels, upright."""


def render_presets(
    presets: Sequence[Preset],
    found: Mapping[str, Verdict],
    chosen: str,
    resolved: Preset | None,
    language: Language,
    shape: Shape | None = None,
) -> str:
    """A radio group: presets that run here first, the rest folded (open if the chosen one is among them).

    found: by preset name. resolved: what `auto` resolves to on this machine. shape: the portrait's, if one
    is chosen.
    """

    def card(preset: Preset) -> str:
        return _card(preset, found[preset.name], chosen, resolved, language, shape)

    here = [preset for preset in presets if found[preset.name].ok]
    rest = [preset for preset in presets if not found[preset.name].ok]
    cards, others = map(card, here), map(card, rest)
    fold = ""
    if rest:
        summary = tag("summary", escape(text("presets_other", language, count=len(rest))))
        inside = any(preset.name == chosen for preset in rest)
        fold = tag("details", summary + tag("div", "".join(others), class_="cards"), open=inside)
    return tag(
        "div",
        tag("h2", escape(text("presets", language)), id="presets-title")
        + tag(
            "div",
            tag("div", "".join(cards), class_="cards") + fold,
            role="radiogroup",
            aria_labelledby="presets-title",
        ),
        class_="presets",
    )


def render_examples(examples: Sequence[Example], language: Language, root: str) -> str:
    """One button per example: a press fills in the page and generates."""
    if not examples:
        return ""
    return tag(
        "div",
        "".join(_example(number, example, language, root) for number, example in enumerate(examples)),
        class_="examples",
    )


def preset_title(preset: Preset, language: Language) -> str:
    return preset.title_zh or preset.title if language == "zh" else preset.title


def size_words(preset: Preset, language: Language, shape: Shape | None) -> str:
    """The size of a preset's video: its largest area, or the exact size for a portrait of this shape."""
    if shape is None:
        return text("gives_area", language, size=preset.generation.size.replace("*", "×"))
    try:
        video = video_size(preset.engine, *shape, preset.generation.size)
    except BadInput:
        return text("gives_nothing", language)
    return text("gives_portrait", language, size=f"{video.width}×{video.height}")


def shortfall_words(shortfall: Shortfall, language: Language) -> str:
    """What is missing, in the page's language."""
    words = program_words("shortfalls", language)
    return words[shortfall.code].format_map(shortfall.values) if shortfall.code in words else shortfall.text


def _card(
    preset: Preset,
    found: Verdict,
    chosen: str,
    resolved: Preset | None,
    language: Language,
    shape: Shape | None,
) -> str:
    checked = preset.name == chosen
    if preset.engine == "auto":
        state = text("preset_auto", language, title=preset_title(resolved, language)) if resolved else ""
    else:
        state = text("preset_fits" if found.ok else "preset_lacks", language)
    head = tag("span", escape(preset_title(preset, language)), class_="card-title")
    head += tag("span", escape(state), class_="pill", data_ok="yes" if found.ok else "no")
    summary = preset.summary_zh or preset.summary if language == "zh" else preset.summary
    lines = tag("span", escape(summary), class_="card-text")
    if preset.engine != "auto":
        lines += tag("span", _facts(preset, language, shape), class_="facts")
    if found.shortfalls:
        missing = " ".join(shortfall_words(shortfall, language) for shortfall in found.shortfalls)
        lines += tag(
            "span", tag("b", escape(text("missing", language))) + " " + escape(missing), class_="card-missing"
        )
    return tag(
        "button",
        tag("span", head, class_="card-head") + lines,
        type="button",
        class_="card",
        role="radio",
        aria_checked="true" if checked else "false",
        tabindex=0 if checked else -1,
        data_action="preset",
        data_id=preset.name,
    )


def _facts(preset: Preset, language: Language, shape: Shape | None) -> str:
    needs = preset.requires
    words = []
    if needs.num_gpus == 1:
        words.append(text("needs_gpu", language, vram=f"{needs.vram_gib:g}"))
    elif needs.num_gpus:
        words.append(text("needs_gpus", language, count=needs.num_gpus, vram=f"{needs.vram_gib:g}"))
    else:
        words.append(text("needs_cpu", language))
    if needs.host_ram_gib:
        words.append(text("needs_ram", language, ram=f"{needs.host_ram_gib:g}"))
    if needs.weights == "live-avatar":
        words.append(text("needs_weights", language))
    made = preset.generation
    gives = size_words(preset, language, shape)
    if preset.engine == "diffusion":
        steps, frames = made.sample_steps, made.infer_frames
        gives += f" · {text('gives_frames', language, steps=steps, frames=frames)}"
    return tag("span", tag("b", escape(text("needs", language))) + " " + escape(", ".join(words))) + tag(
        "span", tag("b", escape(text("gives", language))) + " " + escape(gives)
    )


def _example(number: int, example: Example, language: Language, root: str) -> str:
    portrait, speech = example.titles
    portrait = program_words("portraits", language).get(portrait, portrait)
    if has_text(f"speaks_{example.spoken}"):
        speech = text(f"speaks_{example.spoken}", language)
    label = text("example_play", language, portrait=portrait, speech=speech)
    picture = f'<img src="{escape(root)}/examples/{number}" alt="" loading="lazy" width="96" height="96">'
    words = tag("span", tag("b", escape(portrait)) + tag("span", escape(speech)), class_="example-words")
    return tag(
        "button",
        picture + tag("span", "", class_="play", aria_hidden="true") + words,
        type="button",
        class_="example",
        aria_label=label,
        data_action="example",
        data_id=number,
    )
