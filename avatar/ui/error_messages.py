"""How the page shows errors: our own by their message, others by a code to look up in the log."""

from __future__ import annotations

import functools
import inspect
import logging
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr

from avatar.errors import AvatarError, BadInput
from avatar.live.service_address import ServiceDown
from avatar.live.session_queue import LiveQueueFull
from avatar.runtime.bounded_process import Crowded
from avatar.speech.catalogue import Unreadable
from avatar.ui.language import Language, error_title, language_of, program_words, text
from avatar.ui.state.job_queue import QueueFull
from avatar.ui.state.speech_service import VoicesBusy
from avatar.ui.state.uploads import MIB, NotUploaded, TooLarge, UploadsFull

log = logging.getLogger(__name__)


class ValueNotUnderstood(BadInput):
    """A value in a request is not of the kind that its component takes."""

    def __init__(self) -> None:
        super().__init__("A value in the request has the wrong type.")


def reports_errors(handler: Callable[..., Any]) -> Callable[..., Any]:
    """Make all errors of a handler (function or generator) gr.Error; it takes the gr.Request first."""
    if inspect.isgeneratorfunction(handler):

        @functools.wraps(handler)
        def generator(request: gr.Request, *values: Any) -> Iterator[Any]:
            with errors_shown(language_of(request)):
                yield from handler(request, *values)

        return generator

    @functools.wraps(handler)
    def function(request: gr.Request, *values: Any) -> Any:
        with errors_shown(language_of(request)):
            return handler(request, *values)

    return function


@contextmanager
def errors_shown(language: Language) -> Iterator[None]:
    """Turn exceptions into gr.Error: AvatarError with its own message, anything else with a code."""
    try:
        yield
    except gr.Error:
        raise
    except AvatarError as error:
        raise gr.Error(
            message_of(error, language), title=error_title(error, language), print_exception=False
        ) from None
    except Exception as error:
        raise unexpected_error(error, language) from None


def message_of(error: AvatarError, language: Language) -> str:
    """An error's message and remedy; those from media and engines are in English."""
    match error:
        case QueueFull(yours=True):
            return text("line_yours", language, count=error.count)
        case QueueFull():
            return text("line_full", language, count=error.count)
        case Crowded():
            return text("crowded", language)
        case VoicesBusy():
            return text("voices_busy", language)
        case UploadsFull():
            return text("uploads_full", language)
        case TooLarge():
            return text("upload_too_large", language, mib=error.most_bytes / MIB)
        case NotUploaded():
            return text("upload_lost", language)
        case ValueNotUnderstood():
            return text("value_not_understood", language)
        case Unreadable():
            return _unreadable(error, language)
        case LiveQueueFull():
            return text(error.key, language)
        case ServiceDown(service=""):
            return text(f"service_{error.why}", language)
        case ServiceDown():
            service = text(f"service_{error.service}", language)
            values = {"service": service, "host": error.host, "status": error.status}
            return text(f"service_{error.why}", language, **values)
    return str(error)


def _unreadable(error: Unreadable, language: Language) -> str:
    """Which letters a voice does not read, and which voice does."""
    names, other = program_words("scripts", language), error.other
    scripts = text("and", language).join(names.get(script, script) for script in error.scripts)
    said = text("unreadable", language, voice=error.voice, scripts=scripts)
    if other is None:
        return said + text("unreadable_nobody", language)
    if other.missing:
        return said + text("unreadable_missing", language, other=other.name, missing=other.missing)
    if other.fetch_mb:
        return said + text("unreadable_fetch", language, other=other.name, mb=other.fetch_mb)
    return said + text("unreadable_other", language, other=other.name)


def reason(error: BaseException, language: Language) -> str:
    """Why a run has ended, as a message; an unexpected error was logged when it happened."""
    return message_of(error, language) if isinstance(error, AvatarError) else text("job_fault", language)


def unexpected_error(error: Exception, language: Language) -> gr.Error:
    """Log an unexpected error in full; the page shows only a code to look up in the log."""
    code = secrets.token_hex(3).upper()
    log.error("fault %s", code, exc_info=error)
    title = text("error_AvatarError", language)
    return gr.Error(text("fault", language, code=code), title=title, print_exception=False)
