"""One video to make: its files and options, checked and turned into a request."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from avatar.errors import BadInput
from avatar.events import Finished
from avatar.long.job_speech import JobSpeech, spoken_dialogue, spoken_text
from avatar.long.ledger import PLAN, SPOKEN, Ledger, open_ledger, tidy
from avatar.long.splitting import Span, quiet_spans, regular_spans
from avatar.long.stream import LongVideo
from avatar.media.files import display_name
from avatar.media.growing import can_grow
from avatar.media.intake import open_request
from avatar.media.limits import InputLimits
from avatar.media.portrait import open_portrait
from avatar.media.readers import Reader
from avatar.media.side_files import made_here, written_report
from avatar.media.speaker_choice import AskedSpeakers
from avatar.media.speaker_places import check_together, place_speakers
from avatar.paths import exists, is_file
from avatar.preset import Preset
from avatar.preview.points import load_sidecar
from avatar.request import TRANSPARENT, TRANSPARENT_SUFFIXES, Request
from avatar.runtime.engine import Engine
from avatar.runtime.fingerprint import check_same, origin
from avatar.runtime.report import read_report
from avatar.runtime.upscaled_video import AlreadyMade, UpscaledVideo
from avatar.settings import Picture
from avatar.speech.narration import Script

log = logging.getLogger(__name__)

PARTS_SUFFIX = ".parts"  # suffix of the folder beside a video that is made in parts
_DAY_S, _GIB = 86_400.0, 2**30
_LONGER = (
    "give checkpoint_every (seconds for the preview, else clips): it is then made in parts, for up to a day"
)
LONGEST = InputLimits(max_speech_s=_DAY_S, max_speech_bytes=64 * _GIB)


@dataclass(frozen=True)
class Job:
    """The order for one video.

    script: the text to speak if there is no audio. preset: resolved. pose: a video of poses. picture: the
    face that speaks, and the framing. speakers: where several faces speak; audio is then the recording that
    is split, or None. checkpoint_every: clips per part, or seconds for the preview; None: in one piece.
    resume: continue an interrupted run; a finished video is not made again. tokenizer: the checkpoint's
    tokenizer folder, to count the prompt's tokens; None: the engine counts them. upscale_with: words of a
    command that enlarges the video, in place of the filter. may_grow: whether the engine, on this machine,
    may begin before a slow voice has ended.
    """

    image: Path
    audio: Path | None
    output: Path
    preset: Preset
    script: Script | None = None
    points: Path | None = None
    head_only: bool = False
    pose: Path | None = None
    picture: Picture = field(default_factory=Picture)
    speakers: AskedSpeakers | None = None
    max_duration_s: float | None = None
    checkpoint_every: int | None = None
    independent: bool = False
    keep_parts: bool = False
    resume: bool = False
    tokenizer: Path | None = None
    upscale_with: tuple[str, ...] = ()
    may_grow: bool = True

    @property
    def parts_folder(self) -> Path:
        return self.output.parent / f"{self.output.stem}{PARTS_SUFFIX}"

    @contextmanager
    def opened(self, work: Path) -> Iterator[OpenedJob]:
        """Check everything and lock the ledger, if there is one. Raises: AvatarError.

        A voice that is still speaking by then is stopped at the end.
        """
        half_made = exists(self.parts_folder / PLAN)
        long = self.checkpoint_every is not None or (self.resume and half_made)
        if not long and half_made:
            raise BadInput(
                f"A half-made {self.output.name} is there already.",
                f"Resume it with --resume, or delete the folder {self.parts_folder.name} to start over.",
            )
        if not long and (self.independent or self.keep_parts):
            raise BadInput("Parts are made with --checkpoint_every N.", "Give it, or leave out the other.")
        if self.picture.background == TRANSPARENT:
            self._check_transparent(long)
        with self._speech(work, long) as speech:
            yield from self._opened(work, long, half_made, speech)

    def _opened(self, work: Path, long: bool, half_made: bool, speech: JobSpeech) -> Iterator[OpenedJob]:
        from avatar.preview.face_finder import Finder  # OpenCV and the face models, for a run alone

        request = open_request(
            self.image,
            speech.path,
            self.preset,
            output=self.output,
            work=work,
            prompt=self.preset.generation.prompt,
            face_points=self._face_points(),
            head_only=self.head_only,
            pose=self.pose,
            picture_settings=self.picture,
            speakers=speech.speakers,
            finder=Finder(),
            limits=self._limits(long),
            tokenizer=self.tokenizer,
            speech_name=speech.title,
            captions=speech.captions,
            growing=speech.growing,
            spoken=speech.spoken,
            burn_captions=speech.burn,
        )
        finished = self._finished(request) if self.resume and not half_made else None
        if finished is not None:
            tidy(self.parts_folder, self.keep_parts)
        if finished is not None or not long:
            lacks = finished is not None and self._lacks_upscale(finished)
            yield OpenedJob(
                request,
                None if lacks else finished,
                upscale_with=self.upscale_with,
                to_upscale=finished if lacks else None,
            )
            return
        ledger = open_ledger(
            self.parts_folder,
            request,
            lambda: self._spans(request),
            independent=self.independent,
            resume=self.resume,
        )
        try:
            speech.keep(self.parts_folder / SPOKEN)
            if self.checkpoint_every is not None:
                self._check_spans(request, ledger)
            yield OpenedJob(request, None, ledger, self.keep_parts, self.upscale_with)
        finally:
            ledger.close()

    def _check_transparent(self, long: bool) -> None:
        """Raises: BadInput for a transparent video that is to be made in parts, or to be an .mp4."""
        if long:
            raise BadInput(
                "A transparent video cannot be made in parts.",
                "Leave out --checkpoint_every, or choose another --background: green can be keyed out later.",
            )
        if self.output.suffix.lower() not in TRANSPARENT_SUFFIXES:
            raise BadInput(
                f"{display_name(self.output)} cannot be transparent.",
                "Give the output a name that ends in .webm (VP9 with alpha) or .mov (ProRes 4444).",
            )

    @contextmanager
    def _speech(self, work: Path, long: bool) -> Iterator[JobSpeech]:
        """The speech, perhaps still being spoken from a text; none where speakers have their own.

        Raises: AvatarError.
        """
        limits, typed = self._limits(long), self.speakers is not None and self.speakers.is_typed
        kept = self.parts_folder / SPOKEN if self.resume else None
        if self.script is None and not typed:
            yield JobSpeech(self.audio, speakers=self.speakers)
            return
        self._check_portrait(limits)
        if self.script is None:
            assert self.speakers is not None, "they have texts"
            yield spoken_dialogue(self.speakers, work, limits, kept)
            return
        # in parts, or compared with what is there, its end is needed first
        whole = long or self.resume or self.pose is not None
        may_grow = self.may_grow and not whole and can_grow(self.preset)
        with spoken_text(self.script, work, limits, kept, may_grow=may_grow) as said:
            yield said

    def _check_portrait(self, limits: InputLimits) -> None:
        """Refuse a portrait that cannot be used, or speakers who are not in it, before anything is spoken."""
        pixels = open_portrait(self.image, limits=limits).pixels
        if self.speakers is not None:
            check_together(
                self.speakers,
                self.picture,
                self.preset,
                points=self.points is not None,
                head_only=self.head_only,
                limits=limits,
            )
            from avatar.preview.face_finder import Finder  # OpenCV and the face models, for a run alone

            place_speakers(
                self.speakers,
                pixels,
                self.picture,
                Finder(),
                display_name(self.image),
                engine=self.preset.engine,
                reader=Reader(),
                limits=limits,
            )

    def _spans(self, request: Request) -> Sequence[Span]:
        assert self.checkpoint_every is not None  # otherwise a ledger would have been resumed
        if self.independent:
            return quiet_spans(request.num_frames, self.preset, self.checkpoint_every, request.speech)
        return regular_spans(request.num_frames, self.preset, self.checkpoint_every)

    def _check_spans(self, request: Request, ledger: Ledger) -> None:
        """Raises: BadInput when the video was begun with a different division into parts."""
        if list(self._spans(request)) != ledger.spans:
            raise BadInput(
                f"{self.output.name} was begun with parts of another length or kind.",
                "Resume it with the same --checkpoint_every and --independent, or without them.",
            )

    def _finished(self, request: Request) -> Path | None:
        """The output, if it is finished. Raises: BadInput if it was made from other inputs."""
        report = written_report(self.output)
        if not (self.output.is_file() and report.is_file()):
            return None
        report_there = read_report(report)
        if report_there.stopped:
            return None
        check_same(report_there.made_from, origin(request), self.output.name)
        return self.output

    def upscaled_with(self, words: tuple[str, ...]) -> Job:
        """The job with a command that enlarges its video; no words leave it as it is. Raises: BadInput."""
        if not words:
            return self
        if self.preset.generation.upscale == "1080p-arnet":
            raise BadInput("It cannot be upscaled both by ARNet and by a command.", "Leave one of them out.")
        return replace(self, preset=self.preset.with_settings(upscale="1080p"), upscale_with=words)

    def _lacks_upscale(self, video: Path) -> bool:
        """Whether a finished video was to be enlarged, and was not."""
        wanted = self.preset.generation.upscale != "off"
        return wanted and read_report(written_report(video)).upscaled is None

    def _limits(self, long: bool) -> InputLimits:
        """The limits for portrait and speech. Raises: BadInput for an invalid max_duration_s."""
        usual = LONGEST if long else InputLimits(longer=_LONGER)
        if self.max_duration_s is None:
            return usual
        if not 0 < self.max_duration_s < math.inf:  # refuses nan, too
            raise BadInput(f"--max_duration is {self.max_duration_s:g}.", "Give seconds, more than 0.")
        longer = "give a larger max_duration"
        return replace(usual, max_speech_s=self.max_duration_s, longer=longer)

    def _face_points(self) -> dict[str, tuple[float, float]] | None:
        """The face points of a file, or of the JSON file beside the portrait; only the preview uses points.

        Raises: BadInput when the file holds no face points.
        """
        path = self.points
        if self.preset.engine != "preview" or (self.head_only and path is None):
            return None
        if path is None and (self.picture.face or self.speakers):
            # the file beside the portrait is of one face, perhaps another
            return None
        if path is not None and (path.suffix != ".json" or not is_file(path)):
            raise BadInput(
                f"There is no points file {display_name(path)}.",
                "Give the path of a .json file that is there.",
            )
        if path is not None and made_here(path):
            raise BadInput(f"{path.name} is a run report: no points.", "Give a file of face points.")
        points = load_sidecar(path or self.image)
        return {name: (x, y) for name, (x, y) in points.to_dict().items()} if points else None


@dataclass(frozen=True)
class OpenedJob:
    """A checked job. finished: the video, if there is nothing left to do.

    to_upscale: the video, if it is finished but for that.
    """

    request: Request
    finished: Path | None = None
    ledger: Ledger | None = None
    keep_parts: bool = False
    upscale_with: tuple[str, ...] = ()
    to_upscale: Path | None = None

    def check_engines(self, num_engines: int) -> None:
        """Raises: BadInput when not all of num_engines could be used."""
        if num_engines < 1:
            raise BadInput(f"--jobs is {num_engines}.", "Take 1 or more.")
        if num_engines > 1 and (self.ledger is None or self.ledger.chained):
            raise BadInput(
                f"--jobs {num_engines} is for parts that need not know each other.",
                "Give --checkpoint_every N, and with diffusion --independent; or leave --jobs out.",
            )

    def engine(self, engines: Sequence[Engine]) -> Engine:
        """The engine for the video: the first one, or a LongVideo over all; its result is upscaled."""
        made: Engine = engines[0]
        if self.to_upscale is not None:
            report = read_report(written_report(self.to_upscale))
            path = written_report(self.to_upscale)
            made = AlreadyMade(made, Finished(self.to_upscale, path, report.num_frames, report.duration_s))
        elif self.ledger:
            made = LongVideo(engines, self.ledger, keep_parts=self.keep_parts)
        return UpscaledVideo(made, self.upscale_with)
