"""Requests from the page and its endpoints: checked in full, kept so that they can be resumed, and queued."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from avatar.errors import BadInput
from avatar.geometry import FPS
from avatar.long import unfinished
from avatar.long.ledger import Ledger
from avatar.media.atomic import disk_error
from avatar.media.growing import can_grow
from avatar.media.intake import open_request
from avatar.media.speaker_choice import AskedSpeakers
from avatar.media.voices_file import voices_beside, write_voices_file
from avatar.request import TRANSPARENT, Caption, Request
from avatar.runtime.gallery import HALF, owner_hash, video_name
from avatar.settings import FORM, Picture, refuse_settings
from avatar.speech.narration import Narrator
from avatar.ui.state.app_state import AppState
from avatar.ui.state.growing_runs import keep_speech, spoken_again
from avatar.ui.state.job_queue import QueuedRun, Requester, about_request
from avatar.ui.state.machine_presets import flat
from avatar.ui.state.speech_service import GrowingText

LONG_S = 120.0  # from this length on, a video is made in parts, which are kept whatever happens


def submit(
    app_state: AppState,
    portrait: Path,
    speech: Path | None,
    name: str,
    settings: Mapping[str, Any],
    *,
    prompt: str = "",
    face_points: Mapping[str, tuple[float, float]] | None = None,
    head_only: bool = False,
    portrait_name: str | None = None,
    speech_name: str | None = None,
    owner: str = "",
    visitor: str = "",
    visit: str = "",
    captions: tuple[Caption, ...] = (),
    burn_captions: bool = False,
    spoken: str = "",
    growing: GrowingText | None = None,
    picture: Picture | None = None,
    speakers: AskedSpeakers | None = None,
    pose: Path | None = None,
) -> QueuedRun:
    """Check everything that can be checked, and queue the request. Raises: AvatarError.

    speakers: where several faces speak; speech is then the recording that is split, or None.
    owner, visitor, visit: see Requester; the owner by its secret. growing: the speech's voice, if it goes
    on speaking; the run ends it.
    """
    app_state.job_queue.check_not_full(visitor)
    from avatar.preview.face_finder import Finder  # imports OpenCV and the face models; only for a run

    machine, num_speakers = app_state.machine, speakers.num_speakers if speakers else 1
    preset = machine.with_settings(name, settings, num_speakers)
    also = (*(picture.demands if picture else ()), *(("pose",) if pose else ()))
    refuse_settings(preset.engine, also)
    preset = machine.require(preset, num_speakers)
    prompt = prompt.strip() or preset.generation.prompt  # the page shows the preset's own in an empty box
    draft = app_state.gallery.draft()
    work = Path(tempfile.mkdtemp(prefix="run-", dir=app_state.scratch))
    try:
        request = open_request(
            portrait,
            speech,
            preset,
            output=draft / video_name(draft.name),
            work=work,
            prompt=prompt if "prompt" in machine.honoured(preset) else "",
            face_points=face_points if preset.engine == "preview" else None,
            head_only=head_only and preset.engine == "preview",
            limits=app_state.limits,
            portrait_name=portrait_name,
            speech_name=speech_name,
            tokenizer=None if preset.name == app_state.attached else machine.inventory().checkpoint.tokenizer,
            reader=app_state.reader(visitor),
            captions=captions,
            burn_captions=burn_captions,
            spoken=spoken,
            growing=growing.voicing.journal if growing else None,
            picture_settings=picture,
            finder=Finder(),
            speakers=speakers,
            pose=pose,
        )
        if request.speakers:
            write_voices_file(request.speakers, voices_beside(request.output))  # each is measured by its own
        settings, ledger = used_settings(name, request), None
        requester = Requester(owner_hash(owner), visitor, visit, portrait, speech)
        if owner or _in_parts(request):  # no need to keep what nobody can resume
            request = unfinished.keep(draft / HALF, request, growing.script if growing else None)
            ledger = _parts(draft, request)
        try:
            app_state.gallery.describe(draft, about_request(request, settings, requester.owner_hash))
        except OSError as error:
            raise disk_error(error) from error
        run = app_state.job_queue.submit(request, draft, settings, requester, ledger, growing)
        keep_speech(run)
        return run
    except BaseException:
        app_state.gallery.discard(draft)
        shutil.rmtree(work)
        raise


def resume(app_state: AppState, id: str, owner: str = "", visitor: str = "", visit: str = "") -> QueuedRun:
    """Queue an unfinished video of the gallery again, as submit does. Raises: AvatarError."""
    app_state.job_queue.check_not_full(visitor)
    draft = app_state.gallery.reopen(id, app_state.owner(owner))
    if draft is None:
        raise BadInput("This video cannot be resumed.", "It is finished, being made, or deleted.")
    work = Path(tempfile.mkdtemp(prefix="run-", dir=app_state.scratch))
    ledger, growing = None, None
    try:
        growing = spoken_again(app_state.speech_service, draft, visitor)
        request, ledger = unfinished.resume(
            draft / HALF,
            work=work,
            output=draft / video_name(draft.name),
            growing=growing.voicing.journal if growing else None,
            most=math.ceil(app_state.limits.max_speech_s * FPS),
        )
        app_state.machine.require(request.preset, request.num_speakers)
        ledger = ledger or _parts(draft, request)
        about = app_state.gallery.about(draft)
        requester = Requester(about.owner_hash, visitor, visit)
        if (earlier := app_state.job_queue.find(id, about.owner_hash)) is not None:
            requester = replace(
                requester, portrait=earlier.requester.portrait, speech=earlier.requester.speech
            )
        run = app_state.job_queue.submit(request, draft, about.settings, requester, ledger, growing)
        keep_speech(run)
        return run
    except BaseException:
        if growing is not None:
            growing.close()
        if ledger is not None:
            ledger.close()
        app_state.gallery.set_aside(draft)
        shutil.rmtree(work)
        raise


def may_grow(app_state: AppState, name: str, settings: Mapping[str, Any], narrator: Narrator) -> bool:
    """Whether a video may begin before a slow voice has ended. Raises: AvatarError.

    Not where the engine cannot read what is being written; nor a long one of the diffusion engine, which
    takes so long that it had better be made in parts.
    """
    preset = app_state.machine.with_settings(name, settings)
    if preset.engine != "preview" and not (
        app_state.engines_here and preset.name != app_state.attached and narrator.most_s < LONG_S
    ):
        return False
    return can_grow(preset)


def _parts(draft: Path, request: Request) -> Ledger | None:
    """A new ledger if the request is long enough for one."""
    return unfinished.begin_parts(draft / HALF, request) if _in_parts(request) else None


def _in_parts(request: Request) -> bool:
    """Whether a video is made in parts; a transparent one never is, nor one of unknown length."""
    is_long = request.growing is None and request.duration_s >= LONG_S
    return is_long and request.background != TRANSPARENT


def used_settings(name: str, request: Request) -> dict[str, Any]:
    """What "use these settings" fills in: the preset as it was chosen, and every setting of the form."""
    values = flat(request.preset)
    return {"preset": name, "prompt": request.prompt, **{key: values[key] for key in FORM}}
