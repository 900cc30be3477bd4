"""Several speakers on the page: each face of the portrait with its recording, or one recording split."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gradio as gr

from avatar.errors import BadInput
from avatar.media.speaker_choice import (
    MOST_SPEAKERS,
    SIDES,
    STEREO,
    AskedSpeaker,
    AskedSpeakers,
    asked_speakers,
)
from avatar.media.speaker_words import mask_of
from avatar.request import Box
from avatar.ui.components import PageComponents, Updates
from avatar.ui.error_messages import reports_errors
from avatar.ui.language import Language, browser_table, language_of, notice_words, text
from avatar.ui.payloads import mapping, text_of
from avatar.ui.portrait.framing_panel import box_of
from avatar.ui.routes.request_guard import visitor_of
from avatar.ui.state.app_state import AppState
from avatar.ui.theme import script
from avatar.ui.widgets import speech_picker, turns_picker

ONE, OWN, TURNS = "one", "own", "turns"  # and STEREO: how the faces get their voices
MOST_AREAS = 12  # faces that a box can be drawn for
WAYS = (ONE, OWN, STEREO, TURNS)
ROWS = range(1, MOST_SPEAKERS + 1)
FACES, AUDIOS = [f"face_{n}" for n in ROWS], [f"audio_{n}" for n in ROWS]
NAMES = ("section", "way", "turns", "areas", *FACES, *AUDIOS, *(f"row_{n}" for n in ROWS))
EVERY_S = 0.4  # how soon it is noticed that the page is gone
word: Any = browser_table()


def section() -> dict[str, Any]:
    """The section below the portrait; shown where several faces were found."""
    parts: dict[str, Any] = {}
    with gr.Accordion(word("speakers"), open=False, visible=False, elem_id="speakers") as parts["section"]:
        parts["way"] = gr.Radio(
            [(text(f"speakers_{way}", "en"), way) for way in WAYS],
            value=ONE,
            label=word("speakers_way"),
            elem_id="speakers-way",
        )
        parts["turns"] = turns_picker(label=word("speakers_file"), visible=False, elem_id="speakers-turns")
        for n in ROWS:
            with gr.Row(visible=False, elem_id=f"speaker-{n}") as parts[f"row_{n}"]:
                parts[f"face_{n}"] = gr.Dropdown(
                    list(ROWS), value=n, label=str(n), min_width=150, scale=2, elem_id=f"speaker-face-{n}"
                )
                parts[f"audio_{n}"] = speech_picker(
                    sources=["upload", "microphone"],
                    label=word("speech"),
                    min_width=200,
                    scale=3,
                    elem_id=f"speaker-audio-{n}",
                )
        parts["areas"] = areas()
    return parts


def areas() -> gr.HTML:
    """The boxes in which voices act, for the full model. Its value is None while nobody else speaks."""
    return gr.HTML(
        value=None,
        html_template='<div class="areas" hidden></div>',
        js_on_load=script("areas.js"),
        apply_default_css=False,
        elem_id="speakers-areas",
        words={},
    )


def wire(panel: SpeakersPanel, portrait_seen: Any, queued: Mapping[str, Any]) -> None:
    """Connect the section's events. portrait_seen: the event after which the portrait's faces are known."""
    s, p = panel.parts.speakers, panel.parts
    outputs = [
        s["section"],
        s["way"],
        s["turns"],
        s["areas"],
        *(s[name] for name in (*FACES, *AUDIOS)),
        *panel.rows,
    ]
    portrait_seen.then(reports_errors(panel.faces_changed), [p.points, s["way"]], outputs, **queued)
    s["way"].input(reports_errors(panel.way_changed), [p.points, s["way"]], outputs, **queued)
    for name in AUDIOS:
        s[name].change(reports_errors(panel.heard), [s[name]], [s["section"]], **queued)


class SpeakersPanel:
    """Handlers of the section."""

    def __init__(self, parts: PageComponents, app_state: AppState) -> None:
        self.parts, self.app_state = parts, app_state

    @property
    def inputs(self) -> list[Any]:
        return [self.parts.speakers[name] for name in ("way", "turns", "areas", *FACES, *AUDIOS)]

    @property
    def rows(self) -> list[Any]:
        return [self.parts.speakers[f"row_{n}"] for n in ROWS]

    def asked(
        self, asked: Any, given: Sequence[Any], recording: bool, language: Language
    ) -> AskedSpeakers | None:
        """Who speaks, by the section; None where one face does.

        asked: the value of the portrait's panel. given: of `inputs`, empty where there is no section.
        recording: whether one for all was chosen. Raises: BadInput.
        """
        count = _num_faces(asked)
        if not given or count < 2 or text_of(given[0]) in ("", ONE):
            return None
        way, turns, drawn, *chosen = given
        faces, audios = chosen[: len(FACES)], chosen[len(FACES) :]
        boxes = mapping(mapping(drawn).get("boxes"))
        rows = range(min(count, MOST_SPEAKERS))
        if way == OWN:
            spoken = [(str(face), Path(audio)) for face, audio in zip(faces, audios) if audio]
            taken = [face for face, _ in spoken]
            silent = [str(faces[n]) for n in rows if not audios[n] and str(faces[n]) not in taken]
            speakers = [AskedSpeaker(face, audio, mask=_box(boxes, face)) for face, audio in spoken]
            speakers += [AskedSpeaker(face, mask=_box(boxes, face)) for face in dict.fromkeys(silent)]
            return asked_speakers(speakers[:MOST_SPEAKERS], None, recording=False)
        if way == TURNS and not turns:
            raise BadInput(text("speakers_no_list", language))
        num_rows = len(SIDES) if way == STEREO else len(rows)
        speakers = [AskedSpeaker(str(face), mask=_box(boxes, str(face))) for face in faces[:num_rows]]
        return asked_speakers(speakers, STEREO if way == STEREO else turns, recording=recording)

    def faces_changed(self, request: gr.Request, asked: Any, way: Any) -> Updates:
        """The section for another portrait: shown where it has several faces."""
        s, count, language = self.parts.speakers, _num_faces(asked), language_of(request)
        if count < 2:
            nothing = {s[name]: gr.update(value=None) for name in ("turns", "areas", *AUDIOS)}
            hidden = {row: gr.update(visible=False) for row in self.rows}
            return {s["section"]: gr.update(visible=False), s["way"]: ONE, **nothing, **hidden}
        choices = [(text("speakers_face", language, number=n), n) for n in range(1, count + 1)]
        faces = {s[name]: gr.update(choices=choices, value=min(n, count)) for n, name in enumerate(FACES, 1)}
        ways = [(text(f"speakers_{one}", language), one) for one in WAYS]
        chosen = text_of(way) or ONE
        return {
            **self._shown(asked, chosen, language, faces),
            s["section"]: gr.update(visible=True),
            s["way"]: gr.update(choices=ways, value=chosen),
        }

    def way_changed(self, request: gr.Request, asked: Any, way: Any) -> Updates:
        """Another way in which the faces get their voices."""
        return self._shown(asked, text_of(way), language_of(request), {})

    def heard(self, request: gr.Request, audio: str | None) -> Iterator[Updates]:
        """Check a recording as soon as it is there, as Generate will. Raises: BadInput."""
        nothing = {self.parts.speakers["section"]: gr.skip()}
        if audio:
            path, reader, language = (
                Path(audio),
                self.app_state.reader(visitor_of(request)),
                language_of(request),
            )
            for _ in reader.ahead(None, path, EVERY_S):
                yield nothing
            for one in reader.judge(path, name=path.name, limits=self.app_state.limits).notices:
                words = notice_words(one.code, one.text, one.values, language)
                gr.Info(words, title=text("notices", language))
        yield nothing

    def _shown(self, asked: Any, way: str, language: Language, faces: Updates) -> Updates:
        """The rows that a way needs. asked: see `asked`. faces: updates of their dropdowns."""
        s, rows = self.parts.speakers, min(_num_faces(asked), MOST_SPEAKERS)
        num_rows = {OWN: rows, STEREO: len(SIDES), TURNS: rows}.get(way, 0)
        updates: Updates = {s["turns"]: gr.update(visible=way == TURNS)}
        updates[s["areas"]] = _areas_update(asked, language) if num_rows else gr.update(value=None)
        for n, (face, audio, row) in enumerate(zip(FACES, AUDIOS, self.rows), 1):
            label = text("speakers_nth", language, number=n)
            if way == STEREO and n <= len(SIDES):
                label = text(f"speakers_{SIDES[n - 1]}", language)
            given = dict(faces.get(s[face], {}))
            updates[s[face]] = {**(given or gr.update()), "label": label}
            updates[s[audio]] = gr.update(visible=way == OWN)
            updates[row] = gr.update(visible=n <= num_rows)
        return updates


def _areas_update(asked: Any, language: Language) -> Any:
    """No box drawn yet: every voice acts around its face."""
    value = mapping(asked)
    faces = [asdict(box_of(face)) for face in value["faces"][:MOST_AREAS]]
    words = {key: text(key, language) for key in ("areas_why", "areas_one")}
    return gr.update(value={"for": value.get("for"), "faces": faces, "boxes": {}}, words=words)


def _box(boxes: Mapping[str, Any], face: str) -> Box | None:
    """The box drawn for a face, by its number. Raises: BadInput for a value no page sends."""
    drawn = boxes.get(face)
    return None if drawn is None else mask_of(drawn)


def _num_faces(asked: Any) -> int:
    """How many faces the portrait's panel shows."""
    faces = mapping(asked).get("faces")
    return len(faces) if isinstance(faces, list) else 0
