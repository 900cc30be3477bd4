"""The page's state: presets, machine, job queue, gallery. One object, made by app.py; no Gradio here."""

from __future__ import annotations

import logging
import math
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from avatar.checkpoints.lora_files import parse_loras
from avatar.compare.bounded import BoundedMeasuring
from avatar.errors import AvatarError, BadInput
from avatar.geometry import FPS
from avatar.hardware.inventory import Inventory, probe
from avatar.live.state import LiveState
from avatar.long import unfinished
from avatar.long.ledger import Ledger
from avatar.media.atomic import disk_error
from avatar.media.growing import can_grow
from avatar.media.intake import open_request
from avatar.media.limits import InputLimits
from avatar.media.readers import Reader
from avatar.media.speaker_choice import AskedSpeakers
from avatar.planning.gauges import Gauges
from avatar.planning.plan import Plan
from avatar.planning.verdict import Verdict, judge, require, resolve
from avatar.preset import Preset
from avatar.request import TRANSPARENT, Caption, Request
from avatar.runtime.bounded_reader import ReaderCache
from avatar.runtime.gallery import HALF, Gallery, GalleryEntry, owner_hash, video_name
from avatar.runtime.gallery_entry import remove
from avatar.runtime.model_download import ModelFetch
from avatar.runtime.webhook import JobNews, Webhook
from avatar.settings import FORM, SETTINGS, Picture, refusal, refuse_settings
from avatar.speech.narration import Narrator
from avatar.ui.examples import Examples
from avatar.ui.growing_runs import keep_speech, spoken_again
from avatar.ui.job_queue import JobQueue, KeptVideo, QueuedRun, Requester, about_request
from avatar.ui.owners import Owners
from avatar.ui.speech_service import GrowingText, SpeechService
from avatar.ui.stream_segments import StreamSegments
from avatar.ui.uploads import Uploads

log = logging.getLogger(__name__)

UPLOADS = "uploads"  # in the scratch folder
LONG_S = 120.0  # from this length on, a video is made in parts, which are kept whatever happens
TIDY_EVERY_S = 5.0
INVENTORY_FRESH_S = 5.0  # probing takes milliseconds; pages that load together share one result


@dataclass
class AppState:
    """Created once, by app.py. Owners are identified by the secret that their browser keeps.

    root: the path prefix under which a proxy shows the page, "" for none. shared: everybody sees all videos.
    scratch: a folder for files that live no longer than the server. attached: the preset that ranks elsewhere
    serve. reader_cache: where visitors' files are decoded, None for this process. uploads: None for Gradio's
    folder. admin: the secret of those who may download the model, "" for nobody, None for everybody.
    keep_running_s: see Owners. engines_here: whether all engines read this machine's disk; ZeroGPU's may not.
    """

    job_queue: JobQueue
    gallery: Gallery
    presets: list[Preset]
    preset_name: str
    scratch: Path
    limits: InputLimits = field(default_factory=InputLimits)
    weights: Path | None = None
    root: str = ""
    shared: bool = True
    attached: str = ""
    examples: Examples = field(default_factory=Examples)
    gauges: Gauges = field(default_factory=Gauges)
    reader_cache: ReaderCache | None = None
    uploads: Uploads | None = None
    admin: str | None = None
    model: ModelFetch = field(default_factory=ModelFetch)
    live: LiveState | None = None
    webhook: Webhook | None = None
    keep_running_s: float | None = None
    engines_here: bool = True

    def __post_init__(self) -> None:
        self.speech_service: SpeechService | None = (
            None if self.uploads is None else SpeechService(self.uploads, self.limits)
        )
        self.owners = Owners(self.job_queue, self.keep_running_s)
        self.segments = StreamSegments(self.scratch / "live")
        self.measuring = BoundedMeasuring()
        self._closed = threading.Event()
        self._probing = threading.Lock()
        self._probed: tuple[float, Inventory] | None = None
        self._held: Plan | None = None  # of the last run, whose models stay loaded
        self.job_queue.on_start, self.job_queue.on_plan = self.gauges.reset_peak, self._show_plan
        self.job_queue.on_end = self._post_end
        self.gauges.pinned = lambda: self.job_queue.pinned_bytes

    def owner(self, token: str) -> str | None:
        """The owner's hash, as in the gallery; None if everybody may do everything."""
        return None if self.shared else owner_hash(token)

    def url(self, id: str, name: str) -> str:
        """The URL of a video's file; only for those who may see that video."""
        return f"{self.root}/outputs/{id}/{name}?key={self.gallery.key(id, name)}"

    def handed_out(self, entry: GalleryEntry, file: Path | None = None) -> Path:
        """A hard link to the video (else a copy), which Gradio may serve; it is deleted with the video.

        file: another file of the entry's, instead of the one that is downloaded.
        """
        file = file or entry.taken
        folder = self.scratch / UPLOADS / self.gallery.key(entry.id, "handed out")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        name = (folder / entry.download_name).with_suffix(file.suffix)
        name.unlink(missing_ok=True)
        try:
            os.link(file, name)
        except OSError:  # another disk, or one without hard links
            try:
                shutil.copyfile(file, name)
            except OSError as error:
                raise AvatarError(
                    f"The video is kept, but it cannot be shown here ({error.strerror}).",
                    "Download it from the gallery.",
                ) from error
        return name

    def delete(self, id: str, token: str) -> bool:
        """Delete a video and its handed-out link; False if there is none, or it is another owner's."""
        if self.gallery.get(id, self.owner(token)) is None:
            return False
        handed_out = self.scratch / UPLOADS / self.gallery.key(id, "handed out")
        remove(handed_out)  # first: a video that has left the gallery must not remain elsewhere
        deleted = self.gallery.delete(id, self.owner(token))
        remove(handed_out)  # a page opened meanwhile may have created it again
        return deleted

    def preset(self, name: str) -> Preset:
        """The preset of a name. Raises: BadInput if there is none."""
        for preset in self.presets:
            if preset.name == name:
                return preset
        names = ", ".join(preset.name for preset in self.presets)
        raise BadInput(f"There is no preset {name!r}.", f"Presets: {names}.")

    def inventory(self) -> Inventory:
        """This machine, probed at most INVENTORY_FRESH_S ago."""
        with self._probing:
            now = time.monotonic()
            if self._probed is None or now - self._probed[0] > INVENTORY_FRESH_S:
                self._probed = (now, self._with_engine_memory(probe(self.weights, self.gallery.folder)))
            return self._probed[1]

    def _with_engine_memory(self, machine: Inventory) -> Inventory:
        """The machine; where the driver hides memory per process, the open engine's plan counts as ours.

        Otherwise the second run would be refused because of the memory that the first run's models hold.
        """
        held = self._held
        if held is None:
            return machine
        gpus = tuple(
            replace(gpu, ours_bytes=min(gpu.used_bytes or 0, held.peak_bytes(gpu.index) or 0))
            if gpu.hides_processes
            else gpu
            for gpu in machine.gpus
        )
        return replace(machine, gpus=gpus)

    def verdict(self, preset: Preset) -> Verdict:
        """What this machine, or the ranks that the page is attached to, can do with a preset."""
        if preset.name == self.attached:
            return Verdict(preset)
        return judge(preset, self.inventory(), self.presets)

    def verdicts(self) -> dict[str, Verdict]:
        """Verdicts by preset name; `auto` has that of the preset which it resolves to here."""
        return {preset.name: self.verdict(preset) for preset in self.presets}

    def resolved(self, name: str) -> Preset:
        """The preset that will run when this one is chosen. Raises: BadInput, DoesNotFit."""
        return resolve(self.preset(name), self.inventory(), self.presets)

    def with_settings(self, name: str, settings: Mapping[str, Any]) -> Preset:
        """The preset that will run, with the user's changes applied.

        settings: by name; None, or the preset's own value, is no change.
        Raises: BadInput for a change that the engine cannot honour, or a wrong value.
        """
        preset = self.resolved(name)
        changes = {key: value for key, value in settings.items() if value is not None}
        own = flat(preset)
        changes = {key: value for key, value in changes.items() if value != own.get(key)}
        refuse_settings(preset.engine, changes)
        if isinstance(lora := changes.get("lora"), str):
            parse_loras(lora, named_only=True)  # visitors must not name files of this machine
        return preset.with_settings(**changes)

    def form_settings(self, name: str, values: Sequence[Any]) -> dict[str, Any]:
        """The form's values (in FORM's order) by name; settings not offered for the preset are left out."""
        offered = self.honoured(self.resolved(name))
        return {key: value for key, value in zip(FORM, values) if key in offered}

    def honoured(self, preset: Preset) -> set[str]:
        """The names of FORM, and "prompt", that the preset's engine can honour."""
        return {name for name in (*FORM, "prompt") if not refusal(preset.engine, name)}

    def _require(self, preset: Preset, num_speakers: int = 1) -> Preset:
        """The preset as it will run here, or on the ranks attached to. Raises: AvatarError if it cannot."""
        if preset.name == self.attached:
            return preset
        return require(preset, self.inventory(), self.presets, num_speakers=num_speakers).preset

    def plan(self, preset: Preset) -> tuple[Plan | None, str]:
        """What a preset will hold on each device, and why it cannot run here ("" if it can)."""
        refusal = ""
        try:
            self._require(preset)
        except AvatarError as error:
            refusal = str(error)
        return judge(preset, self.inventory(), self.presets).plan, refusal

    def submit(
        self,
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
        self.job_queue.check_not_full(visitor)
        from avatar.preview.face_finder import Finder  # imports OpenCV and the face models; only for a run

        preset = self.with_settings(name, settings)
        also = (*(picture.demands if picture else ()), *(("pose",) if pose else ()))
        refuse_settings(preset.engine, also)
        preset = self._require(preset, speakers.num_speakers if speakers else 1)
        prompt = prompt.strip() or preset.generation.prompt  # the page shows the preset's own in an empty box
        draft = self.gallery.draft()
        work = Path(tempfile.mkdtemp(prefix="run-", dir=self.scratch))
        try:
            request = open_request(
                portrait,
                speech,
                preset,
                output=draft / video_name(draft.name),
                work=work,
                prompt=prompt if "prompt" in self.honoured(preset) else "",
                face_points=face_points if preset.engine == "preview" else None,
                head_only=head_only and preset.engine == "preview",
                limits=self.limits,
                portrait_name=portrait_name,
                speech_name=speech_name,
                tokenizer=None if preset.name == self.attached else self.inventory().checkpoint.tokenizer,
                reader=self.reader(visitor),
                captions=captions,
                burn_captions=burn_captions,
                spoken=spoken,
                growing=growing.voicing.journal if growing else None,
                picture_settings=picture,
                finder=Finder(),
                speakers=speakers,
                pose=pose,
            )
            settings, ledger = used_settings(name, request), None
            requester = Requester(owner_hash(owner), visitor, visit, portrait, speech)
            if owner or self._in_parts(request):  # no need to keep what nobody can resume
                request = unfinished.keep(draft / HALF, request, growing.script if growing else None)
                ledger = self._parts(draft, request)
            try:
                self.gallery.describe(draft, about_request(request, settings, requester.owner_hash))
            except OSError as error:
                raise disk_error(error) from error
            run = self.job_queue.submit(request, draft, settings, requester, ledger, growing)
            keep_speech(run)
            return run
        except BaseException:
            self.gallery.discard(draft)
            shutil.rmtree(work)
            raise

    def _parts(self, draft: Path, request: Request) -> Ledger | None:
        """A new ledger if the request is long enough for one."""
        return unfinished.begin_parts(draft / HALF, request) if self._in_parts(request) else None

    def _in_parts(self, request: Request) -> bool:
        """Whether a video is made in parts; a transparent one never is, nor one of unknown length."""
        is_long = request.growing is None and request.duration_s >= LONG_S
        return is_long and request.background != TRANSPARENT

    def may_grow(self, name: str, settings: Mapping[str, Any], narrator: Narrator) -> bool:
        """Whether a video may begin before a slow voice has ended. Raises: AvatarError.

        Not where the engine cannot read what is being written; nor a long one of the diffusion engine, which
        takes so long that it had better be made in parts.
        """
        preset = self.with_settings(name, settings)
        if preset.engine != "preview" and not (
            self.engines_here and preset.name != self.attached and narrator.most_s < LONG_S
        ):
            return False
        return can_grow(preset)

    def resume(self, id: str, owner: str = "", visitor: str = "", visit: str = "") -> QueuedRun:
        """Queue an unfinished video of the gallery again, as submit does. Raises: AvatarError."""
        self.job_queue.check_not_full(visitor)
        draft = self.gallery.reopen(id, self.owner(owner))
        if draft is None:
            raise BadInput("This video cannot be resumed.", "It is finished, being made, or deleted.")
        work = Path(tempfile.mkdtemp(prefix="run-", dir=self.scratch))
        ledger, growing = None, None
        try:
            growing = spoken_again(self.speech_service, draft, visitor)
            request, ledger = unfinished.resume(
                draft / HALF,
                work=work,
                output=draft / video_name(draft.name),
                growing=growing.voicing.journal if growing else None,
                most=math.ceil(self.limits.max_speech_s * FPS),
            )
            self._require(request.preset, request.num_speakers)
            ledger = ledger or self._parts(draft, request)
            about = self.gallery.about(draft)
            requester = Requester(about.owner_hash, visitor, visit)
            if (earlier := self.job_queue.find(id, about.owner_hash)) is not None:
                requester = replace(
                    requester, portrait=earlier.requester.portrait, speech=earlier.requester.speech
                )
            run = self.job_queue.submit(request, draft, about.settings, requester, ledger, growing)
            keep_speech(run)
            return run
        except BaseException:
            if growing is not None:
                growing.close()
            if ledger is not None:
                ledger.close()
            self.gallery.set_aside(draft)
            shutil.rmtree(work)
            raise

    def _post_end(self, run: QueuedRun) -> None:
        """Post how a run has ended to the webhook, if the server has one."""
        if self.webhook is not None:
            made = run.outcome.finished.duration_s if isinstance(run.outcome, KeptVideo) else 0.0
            name = f"{run.request.portrait_name} · {run.request.speech_name}"
            self.webhook.post(JobNews(run.id, run.state, name, made))

    def _show_plan(self, planned: Plan) -> None:
        """Show the current run's planned memory beside the measured memory."""
        self._held = planned
        self.gauges.set_plan(planned)

    def warm(self) -> None:
        """Open the engine for the page's initial preset, so that the first run does not wait for it."""
        if self.speech_service is not None:
            self.speech_service.warm()
        try:
            if self.live is not None:
                self.live.warm()
            self.job_queue.warm(self.resolved(self.preset_name))
        except AvatarError as error:  # shown on the page as well, by the preset's card
            log.warning("nothing to warm: %s", error)

    def reader(self, visitor: str) -> Reader:
        """The reader that decodes this visitor's files."""
        return Reader() if self.reader_cache is None else self.reader_cache.by(visitor)

    def keep_tidy(self) -> None:
        """Drop unwatched streams, abandoned runs and old cached files, periodically until close."""
        while not self._closed.wait(TIDY_EVERY_S):
            self.segments.tidy()
            self.owners.end_abandoned()
            if self.reader_cache is not None:
                self.reader_cache.tidy()

    def close(self) -> None:
        self._closed.set()
        if self.live is not None:
            self.live.close()
        if self.reader_cache is not None:
            self.reader_cache.close()
        if self.speech_service is not None:
            self.speech_service.close()
        self.measuring.close()
        self.model.close()
        self.job_queue.close()
        if self.webhook is not None:
            self.webhook.close()
        self.gauges.close()
        self.gallery.close()


def flat(preset: Preset) -> dict[str, Any]:
    """All settings of a preset by name."""
    return {name: preset.setting(name) for name in SETTINGS}


def used_settings(name: str, request: Request) -> dict[str, Any]:
    """What "use these settings" fills in: the preset as it was chosen, and every setting of the form."""
    values = flat(request.preset)
    return {"preset": name, "prompt": request.prompt, **{key: values[key] for key in FORM}}
