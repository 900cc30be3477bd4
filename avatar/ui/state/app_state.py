"""The page's state: presets, machine, job queue, gallery. One object, made by app.py; no Gradio here."""

from __future__ import annotations

import logging
import os
import shutil
import threading
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from avatar.compare.bounded import BoundedMeasuring
from avatar.errors import AvatarError
from avatar.live.state import LiveState
from avatar.media.limits import InputLimits
from avatar.media.readers import Reader
from avatar.planning.gauges import Gauges
from avatar.planning.plan import Plan
from avatar.preset import Preset
from avatar.runtime.bounded_reader import ReaderCache
from avatar.runtime.gallery import Gallery, GalleryEntry, owner_hash
from avatar.runtime.gallery_entry import remove
from avatar.runtime.model_download import ModelFetch
from avatar.runtime.webhook import JobNews, Webhook
from avatar.ui.state.examples import Examples
from avatar.ui.state.job_queue import JobQueue, KeptVideo, QueuedRun
from avatar.ui.state.machine_presets import MachinePresets
from avatar.ui.state.owners import Owners
from avatar.ui.state.speech_service import SpeechService
from avatar.ui.state.stream_segments import StreamSegments
from avatar.ui.state.uploads import Uploads

log = logging.getLogger(__name__)

UPLOADS = "uploads"  # in the scratch folder
TIDY_EVERY_S = 5.0


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
        self.machine = MachinePresets(self.presets, self.weights, self.gallery.folder, self.attached)
        self._closed = threading.Event()
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

    def _post_end(self, run: QueuedRun) -> None:
        """Post how a run has ended to the webhook, if the server has one."""
        if self.webhook is not None:
            made = run.outcome.finished.duration_s if isinstance(run.outcome, KeptVideo) else 0.0
            name = f"{run.request.portrait_name} · {run.request.speech_name}"
            self.webhook.post(JobNews(run.id, run.state, name, made))

    def _show_plan(self, planned: Plan) -> None:
        """Show the current run's planned memory beside the measured memory."""
        self.machine.held = planned
        self.gauges.set_plan(planned)

    def warm(self) -> None:
        """Open the engine for the page's initial preset, so that the first run does not wait for it."""
        if self.speech_service is not None:
            self.speech_service.warm()
        try:
            if self.live is not None:
                self.live.warm()
            self.job_queue.warm(self.machine.resolved(self.preset_name))
        except AvatarError as error:  # shown on the page as well, by the preset's card
            log.warning("nothing to warm: %s", error)

    def prepare(self, portrait: np.ndarray, preset: Preset, live: bool = False) -> None:
        """Let an idle engine, or the next session's, get ready for a portrait, uint8 (H, W, 3) RGB."""
        if not live:
            self.job_queue.prepare(portrait, preset)
        elif self.live is not None:
            self.live.prepare(portrait)

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
