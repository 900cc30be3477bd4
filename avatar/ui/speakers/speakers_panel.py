"""Several speakers on the page: each face with its recording, or one split; and where each voice acts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from avatar.errors import BadInput
from avatar.media.brushes import BRUSHES
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
from avatar.ui.language import Language, language_of, notice_words, text
from avatar.ui.payloads import mapping, text_of
from avatar.ui.portrait.framing_panel import box_of
from avatar.ui.presets.choice_cards import Shape
from avatar.ui.presets.preset_panel import PresetPanel
from avatar.ui.routes.request_guard import visitor_of
from avatar.ui.speakers.mask_editor import canvas, css_colour
from avatar.ui.state.app_state import AppState

ONE, OWN, TURNS = "one", "own", "turns"  # and STEREO: how the faces get their voices
WAYS = (ONE, OWN, STEREO, TURNS)
AROUND, BOXES, PAINTED = "around", "boxes", "painted"  # where in the picture each voice acts
PLACES = (AROUND, BOXES, PAINTED)
MOST_AREAS = 12  # faces that a box can be drawn for
ROWS = range(1, MOST_SPEAKERS + 1)
FACES, AUDIOS = [f"face_{n}" for n in ROWS], [f"audio_{n}" for n in ROWS]
SHOWN_PLACES = ("areas", "legend", "masks")
GIVEN = ("way", "turns", "place", "areas", "masks", *FACES, *AUDIOS)  # inputs of a run, in order
NAMES = ("section", *GIVEN, "legend", *(f"row_{n}" for n in ROWS))
EVERY_S = 0.4  # how soon it is noticed that the page is gone
Handler = Callable[..., Updates]


class SpeakersPanel:
    """Handlers of the section."""

    def __init__(self, parts: PageComponents, app_state: AppState) -> None:
        self.parts, self.app_state = parts, app_state

    @property
    def inputs(self) -> list[Any]:
        return [self.parts.speakers[name] for name in GIVEN]

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
        way, turns, place, drawn, masks, *chosen = given
        faces, audios = [str(face) for face in chosen[: len(FACES)]], chosen[len(FACES) :]
        if place == PAINTED and masks is None:
            raise BadInput(text("speakers_unpainted", language))
        if way == TURNS and not turns:
            raise BadInput(text("speakers_no_list", language))
        boxes = mapping(mapping(drawn).get("boxes")) if place == BOXES else {}

        def speaker(row: int, audio: Path | None = None) -> AskedSpeaker:
            one = AskedSpeaker(faces[row], audio, mask=_box(boxes, faces[row]))
            if place != PAINTED:
                return one
            name = text("speakers_nth", language, number=row + 1)
            return replace(one, painted=masks, painted_name=name, brush=row)

        rows = range(_num_rows(text_of(way), count))
        if way != OWN:
            return asked_speakers(
                [speaker(row) for row in rows], STEREO if way == STEREO else turns, recording=recording
            )
        spoken = [row for row, audio in enumerate(audios) if audio]
        taken = {faces[row] for row in spoken}
        silent = {faces[row]: row for row in reversed(rows) if not audios[row] and faces[row] not in taken}
        speakers = [speaker(row, Path(audios[row])) for row in spoken]
        speakers += [speaker(row) for row in sorted(silent.values())]
        return asked_speakers(speakers[:MOST_SPEAKERS], None, recording=False)

    def faces_changed(self, presets: PresetPanel) -> Handler:
        """The handler of another portrait: the section is shown where it has several faces."""

        def changed(
            request: gr.Request,
            asked: Any,
            way: Any,
            place: Any,
            portrait: str | None,
            preset: str,
            shape: Shape | None,
            *values: Any,
        ) -> Updates:
            s, count, language = self.parts.speakers, _num_faces(asked), language_of(request)
            if count < 2:
                nothing = {s[name]: gr.update(value=None) for name in ("turns", "areas", *AUDIOS)}
                hidden = {row: gr.update(visible=False) for row in self.rows}
                hidden |= {s[name]: gr.update(visible=False) for name in ("place", "legend")}
                hidden[s["masks"]] = gr.update(value=None, visible=False)
                section = {s["section"]: gr.update(visible=False), s["way"]: ONE, **nothing, **hidden}
                return {**section, **presets.speakers_changed(language, preset, shape, 1, values)}
            choices = [(text("speakers_face", language, number=n), n) for n in range(1, count + 1)]
            faces = {
                s[name]: gr.update(choices=choices, value=min(n, count)) for n, name in enumerate(FACES, 1)
            }
            chosen = text_of(way) or ONE
            return {
                **self._shown(request, asked, chosen, place, portrait, faces),
                **presets.speakers_changed(language, preset, shape, _num_rows(chosen, count) or 1, values),
                s["section"]: gr.update(visible=True),
                s["way"]: _choices("speakers", WAYS, chosen, language),
            }

        return changed

    def way_changed(self, presets: PresetPanel) -> Handler:
        """The handler of another way in which the faces get their voices."""

        def changed(
            request: gr.Request,
            asked: Any,
            way: Any,
            place: Any,
            portrait: str | None,
            preset: str,
            shape: Shape | None,
            *values: Any,
        ) -> Updates:
            chosen, count = text_of(way), _num_rows(text_of(way), _num_faces(asked)) or 1
            return {
                **self._shown(request, asked, chosen, place, portrait, {}),
                **presets.speakers_changed(language_of(request), preset, shape, count, values),
            }

        return changed

    def place_changed(
        self, request: gr.Request, asked: Any, way: Any, place: Any, portrait: str | None
    ) -> Updates:
        """Another way to say where each voice acts."""
        s, language = self.parts.speakers, language_of(request)
        num_rows = _num_rows(text_of(way), _num_faces(asked))
        boxes, paints = num_rows > 0 and place == BOXES, num_rows > 0 and place == PAINTED
        updates: Updates = {
            s["areas"]: _areas_update(asked, language) if boxes else gr.update(value=None),
            s["legend"]: gr.update(value=_legend(num_rows, language) if paints else "", visible=paints),
            s["masks"]: gr.update(value=None, visible=False),
        }
        if paints and portrait:
            reader = self.app_state.reader(visitor_of(request))
            pixels = reader.portrait(Path(portrait), limits=self.app_state.limits).pixels
            updates[s["masks"]] = gr.update(value=canvas(pixels), visible=True)
        return updates

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

    def _shown(
        self,
        request: gr.Request,
        asked: Any,
        way: str,
        place: Any,
        portrait: str | None,
        faces: Updates,
    ) -> Updates:
        """The rows that a way needs. asked: see `asked`. faces: updates of their dropdowns."""
        s, language = self.parts.speakers, language_of(request)
        num_rows = _num_rows(way, _num_faces(asked))
        updates: Updates = {s["turns"]: gr.update(visible=way == TURNS)}
        chosen = _choices("speakers_place", PLACES, text_of(place) or AROUND, language)
        updates[s["place"]] = {**chosen, "visible": num_rows > 0}
        updates |= self.place_changed(request, asked, way, place, portrait)
        for n, (face, audio, row) in enumerate(zip(FACES, AUDIOS, self.rows), 1):
            label = text("speakers_nth", language, number=n)
            if way == STEREO and n <= len(SIDES):
                label = text(f"speakers_{SIDES[n - 1]}", language)
            given = dict(faces.get(s[face], {}))
            updates[s[face]] = {**(given or gr.update()), "label": label}
            updates[s[audio]] = gr.update(visible=way == OWN)
            updates[row] = gr.update(visible=n <= num_rows)
        return updates


def _num_rows(way: str, count: int) -> int:
    """How many of a portrait's faces have a row: a voice, or a place to listen. count: its faces."""
    rows = min(count, MOST_SPEAKERS)
    return {OWN: rows, STEREO: len(SIDES), TURNS: rows}.get(way, 0)


def _choices(prefix: str, choices: Sequence[str], chosen: str, language: Language) -> Any:
    return gr.update(choices=[(text(f"{prefix}_{one}", language), one) for one in choices], value=chosen)


def _legend(num_rows: int, language: Language) -> str:
    """Which colour is whose, and how to paint."""
    speakers = "".join(
        f'<li><i style="background: {css_colour(colour)}"></i>'
        f"{escape(text('speakers_nth', language, number=n))}</li>"
        for n, colour in enumerate(BRUSHES[:num_rows], 1)
    )
    return f'<div class="brushes"><p>{escape(text("speakers_paint", language))}</p><ul>{speakers}</ul></div>'


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
