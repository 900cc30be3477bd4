"""Gradio's pickers of pictures and sounds, made to hand over the file itself: intake says if it is good."""

from __future__ import annotations

from typing import Any

import gradio as gr

from avatar.media.speech import SPEECH_SUFFIXES


def portrait_picker(**options: Any) -> gr.Image:
    """gr.Image alone would decode the picture, and show the server's path when it cannot."""
    picker = gr.Image(type="filepath", format="png", buttons=[], **options)
    picker.preprocess = _path  # type: ignore[method-assign]
    return picker


def speech_picker(**options: Any) -> gr.Audio:
    """gr.Audio, of which nothing is wanted but the file."""
    picker = gr.Audio(type="filepath", buttons=[], editable=False, **options)
    picker.preprocess = _path  # type: ignore[method-assign]
    return picker


def video_button(label: Any, **options: Any) -> gr.UploadButton:
    """A button for a video whose sound is wanted; gr.UploadButton alone leaves an empty file each time.

    It takes sound as well: the speech picker refuses the kinds that browsers do not know.
    """
    button = gr.UploadButton(label, file_types=["video", *SPEECH_SUFFIXES], **options)
    button.preprocess = _path  # type: ignore[method-assign]
    return button


def _path(payload: Any) -> str | None:
    """The uploaded file's path; Gradio has checked that it is one of its uploads."""
    return None if payload is None else payload.path
