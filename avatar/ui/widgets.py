"""Check visitors' values before any handler sees them: files are paths, and only paths of uploads."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.data_classes import FileData
from gradio.exceptions import ComponentProcessingError
from pydantic import ValidationError

from avatar.media.speech_reader import SPEECH_SUFFIXES
from avatar.ui.error_messages import ValueNotUnderstood, errors_shown
from avatar.ui.language import language_of
from avatar.ui.state.uploads import NotUploaded, Uploads

log = logging.getLogger(__name__)

PICKERS = (gr.Image, gr.Audio, gr.UploadButton, gr.File)


class GuardedBlocks(gr.Blocks):
    """A page whose handlers receive no paths but those of uploads, whichever component they come through.

    Gradio checks only values declared as files; it opens other paths, and fetches URLs.
    """

    def __init__(self, uploads: Uploads, **options: Any) -> None:
        super().__init__(**options)
        self.uploads = uploads

    async def process_api(  # type: ignore[override]  # Gradio has named parameters here
        self, block_fn: Any, inputs: list[Any], **options: Any
    ) -> dict[str, Any]:
        """Every event of the page and every endpoint comes through here, before Gradio looks at a value."""
        with errors_shown(language_of(options.get("request"))):
            if options.get("iterator") is None:  # otherwise they were checked when the generator began
                self.uploads.check(inputs)
                for component, value in zip(block_fn.inputs, inputs):
                    if isinstance(component, PICKERS) and not _are_files(component, value):
                        raise NotUploaded
                inputs = [*inputs, *(first_value(one) for one in block_fn.inputs[len(inputs) :])]
            return await super().process_api(block_fn, inputs, **options)

    async def preprocess_data(
        self, block_fn: Any, inputs: list[Any], state: Any, *more: Any, **options: Any
    ) -> list[Any]:
        """Turn the values sent into handlers' arguments. Raises: ValueNotUnderstood."""
        keep_own(block_fn.inputs, state)
        try:
            return await super().preprocess_data(block_fn, inputs, state, *more, **options)
        except (ComponentProcessingError, ValidationError) as error:
            log.info("a value was not understood: %s", error)
            raise ValueNotUnderstood from None


def _are_files(component: Any, value: Any) -> bool:
    """Whether a value is what a picker sends: a file's payload, or several where it takes several."""
    if getattr(component, "file_count", "single") == "multiple":
        return value is None or (isinstance(value, list) and all(isinstance(one, dict) for one in value))
    return value is None or isinstance(value, dict)


def keep_own(components: Iterable[Any], state: Any) -> None:
    """Give a session's copies of components our own preprocess and postprocess.

    Gradio rebuilds a component from its arguments when a session updates it, and drops what was set on it.
    """
    for component in components:
        if state is not None and component._id in state:
            for name in ("preprocess", "postprocess"):
                if name in vars(component):
                    setattr(state[component._id], name, vars(component)[name])


def first_value(component: Any) -> Any:
    """A component's initial value, for the last inputs, which a caller may leave out."""
    return getattr(component, "value", None)


def portrait_picker(**options: Any) -> gr.Image:
    """A portrait picker; gr.Image alone would decode the picture, and show the server's path if it cannot."""
    picker = gr.Image(type="filepath", format="png", buttons=[], **options)
    picker.preprocess = _path  # type: ignore[method-assign]
    return picker


def speech_picker(**options: Any) -> gr.Audio:
    """A speech picker that only passes the file on; gr.Audio would convert some files, of any length."""
    picker = gr.Audio(type="filepath", buttons=[], editable=False, **options)
    picker.preprocess = _path  # type: ignore[method-assign]
    picker.postprocess = _file  # type: ignore[method-assign, assignment]
    return picker


def file_picker(**options: Any) -> gr.File:
    """A picker for a video that only passes the file on."""
    picker = gr.File(file_count="single", file_types=["video"], type="filepath", **options)
    picker.preprocess = _path  # type: ignore[method-assign, assignment]
    return picker


def video_button(label: Any, **options: Any) -> gr.UploadButton:
    """A button to take the sound of a video; gr.UploadButton alone leaves an empty file each time.

    It takes sound files as well: the speech picker refuses formats that browsers do not know.
    """
    button = gr.UploadButton(label, file_types=["video", *SPEECH_SUFFIXES], **options)
    button.preprocess = _path  # type: ignore[method-assign]
    return button


def turns_picker(**options: Any) -> gr.File:
    """A picker of a list of turns: who speaks when."""
    picker = gr.File(file_types=[".txt", ".csv", ".tsv", ".rttm"], height=90, **options)
    picker.preprocess = _path  # type: ignore[method-assign]
    return picker


def several_button(label: Any, **options: Any) -> gr.UploadButton:
    """A button for several recordings, or for videos to take the sound of."""
    button = gr.UploadButton(
        label, file_count="multiple", file_types=["audio", "video", *SPEECH_SUFFIXES], **options
    )
    button.preprocess = _paths  # type: ignore[method-assign]
    return button


def _paths(payload: Any) -> list[str]:
    """The uploaded files' paths."""
    return [] if payload is None else [one.path for one in payload.root]


def _path(payload: Any) -> str | None:
    """The uploaded file's path."""
    return None if payload is None else payload.path


def _file(path: str | None) -> FileData | None:
    """The file, unchanged."""
    return None if path is None else FileData(path=path, orig_name=Path(path).name)
