"""A request: one portrait, one speech, one preset, all of it already checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from avatar.geometry import FPS
from avatar.preset import Preset

if TYPE_CHECKING:
    from avatar.events import Notice

Box = tuple[float, float, float, float]

# What may be put behind the person; besides these, a colour as #rrggbb.
KEEP, BLUR, GREEN, TRANSPARENT, PICTURE_FILE = "keep", "blur", "green", "transparent", "picture"
TRANSPARENT_SUFFIXES = (".webm", ".mov")  # of videos that can be transparent


def beside(video: Path) -> Path:
    """Where the transparent video lies beside the one that plays everywhere."""
    return video.with_suffix(TRANSPARENT_SUFFIXES[0])


@dataclass(frozen=True)
class Caption:
    """What is said from start_s to end_s, in seconds from the speech's beginning."""

    start_s: float
    end_s: float
    text: str


@dataclass(frozen=True)
class Part:
    """A stretch of a long speech, made as a video of its own that joins those before and after it.

    run: what all parts of one video have in common. first_frame, speech_frames: where it begins in the
    speech, and how long that is. carry: the file that the part before left for this one, None where this one
    begins from the portrait. leave: where to leave the same for the next one, None where nothing is wanted.
    num_rungs: how many of its preset's ladder it begins below the preset. num_full: how often memory ran out
    before, so that a plan counts on less.
    """

    run: str
    first_frame: int
    speech_frames: int
    carry: Path | None = None
    leave: Path | None = None
    num_rungs: int = 0
    num_full: int = 0


@dataclass(frozen=True)
class Speaker:
    """One of several faces of a portrait, and the voice that moves it.

    face: its box, in fractions of the portrait. name: of the recording, or of the speaker in a recording that
    was split. voice: a WAV like a Request's speech, in which nobody else speaks; None: this one listens.
    mask: the box in which the diffusion engine lets the voice move the picture, or painted: a PNG of grey as
    wide and high as the portrait is, white where it does; None of both: all that is nearer to this face than
    to another. spoken: a digest of the text and the way in which it was spoken, "" for a
    recording.
    """

    face: Box
    name: str
    voice: Path | None = None
    mask: Box | None = None
    spoken: str = ""
    painted: bytes | None = None


@dataclass(frozen=True)
class Request:
    """What an engine is asked for; media.intake.open_request builds it and refuses what cannot be used.

    portrait: a PNG that intake wrote, 8-bit RGB, upright, bounded in size, framed as the user wishes.
    speech: a WAV that intake wrote, 48 kHz 16-bit in mono or stereo; num_frames of video cover it, silence
    pads the last.
    work: this run's own folder; intake's files and segments live there. output: the finished .mp4.
    portrait_name, speech_name: the user's file names, for messages and the gallery.
    face_points: fractions of width and height by point name, when the user placed them.
    head_only: move the head, leave the mouth shut (preview only).
    face: the box of the face that speaks, left, top, right and bottom in fractions of the portrait; None: the
    engine takes the largest.
    part: where num_frames are but a stretch of the speech.
    captions: of the whole speech, in order, where its text is known. burn_captions: draw them into the video.
    spoken: a digest of the text and the way in which it was spoken, "" for a recording.
    background: what is put behind the person, a word or a colour as the setting has it, or PICTURE_FILE: then
    background_picture is a PNG that intake wrote, under the user's name background_name. Engines do not know
    of it.
    growing: the journal of a speech that is still being spoken (media.growing); then num_frames is the most
    that there can be, and captions are without their times. None: the speech is complete.
    speakers: where several faces speak, each with a voice; speech is then what is heard of all. other_faces:
    the boxes of faces that belong to nobody of them.
    pose: a video of poses that intake wrote, see media.pose_video, under the user's name pose_name; None:
    nothing but the speech leads the person.
    """

    portrait: Path
    speech: Path
    work: Path
    output: Path
    preset: Preset
    num_frames: int
    portrait_name: str
    speech_name: str
    prompt: str = ""
    face_points: dict[str, tuple[float, float]] | None = None
    head_only: bool = False
    face: Box | None = None
    segment_s: float = 2.0
    notices: tuple[Notice, ...] = field(default_factory=tuple)
    part: Part | None = None
    captions: tuple[Caption, ...] = ()
    burn_captions: bool = False
    spoken: str = ""
    background: str = KEEP
    background_picture: Path | None = None
    background_name: str = ""
    growing: Path | None = None
    speakers: tuple[Speaker, ...] = ()
    other_faces: tuple[Box, ...] = ()
    pose: Path | None = None
    pose_name: str = ""

    @property
    def num_speakers(self) -> int:
        """Faces that an engine moves by a voice of their own."""
        return len(self.speakers) or 1

    @property
    def voices(self) -> tuple[Path, ...]:
        """The files of several speakers' voices, in order; none for a single speaker."""
        return tuple(one.voice for one in self.speakers if one.voice is not None)

    def with_voices(self, voices: Sequence[Path]) -> Request:
        """The same request with the voices' files in other places, given in the order of `voices`."""
        places = iter(voices)
        speakers = (one if one.voice is None else replace(one, voice=next(places)) for one in self.speakers)
        return replace(self, speakers=tuple(speakers))

    @property
    def transparent_output(self) -> Path | None:
        """The finished file with transparency: the output, or beside an .mp4; None where there is none."""
        if self.background != TRANSPARENT:
            return None
        return self.output if self.output.suffix.lower() in TRANSPARENT_SUFFIXES else beside(self.output)

    @property
    def seed(self) -> int:
        return self.preset.generation.seed

    @property
    def first_frame(self) -> int:
        """The frame of the speech with which the video begins."""
        return self.part.first_frame if self.part else 0

    @property
    def speech_frames(self) -> int:
        """Frames that the whole speech takes."""
        return self.part.speech_frames if self.part else self.num_frames

    @property
    def duration_s(self) -> float:
        return self.num_frames / FPS


@dataclass(frozen=True)
class LiveRequest:
    """What an engine is asked for when there is no end: the portrait comes now, the sound as it is spoken.

    may_skip: whether frames that come too late repeat the last picture, so that the delay does not grow; not
    where sound comes faster than it is spoken. The other fields are those of Request.
    """

    portrait: Path
    work: Path
    preset: Preset
    portrait_name: str
    prompt: str = ""
    face_points: dict[str, tuple[float, float]] | None = None
    head_only: bool = False
    face: Box | None = None
    notices: tuple[Notice, ...] = ()
    may_skip: bool = True
    background: str = KEEP
    background_picture: Path | None = None

    @property
    def seed(self) -> int:
        return self.preset.generation.seed
