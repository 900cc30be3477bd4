"""All measures of one finished video."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from avatar.errors import BadInput
from avatar.measures.face_track import FaceTrack, follow_several, track
from avatar.measures.frames import read_frames
from avatar.measures.identity import Likeness, likeness
from avatar.measures.lip_sync import ExpectedMouth, LipSync, expected_mouth, lip_sync
from avatar.measures.liveliness import Expression, Naturalness, expression, naturalness
from avatar.measures.seams import Smoothness, smoothness
from avatar.media.limits import InputLimits
from avatar.media.portrait import read_portrait
from avatar.media.speech_reader import SpeechReader, write_speech
from avatar.request import Box

log = logging.getLogger(__name__)

EACH = "each speaker is measured by its own voice"

_DAY_S, _GIB = 86_400.0, 2**30
_LIMITS = InputLimits(max_speech_s=_DAY_S, max_speech_bytes=64 * _GIB, min_speech_s=0.1)


@dataclass(frozen=True)
class SeenSpeaker:
    """One of several faces that speak in a video. face: its box, in fractions of the frame.

    heard: by its own voice; a string is the reason for having none.
    """

    name: str
    face: Box
    heard: ExpectedMouth | str


@dataclass(frozen=True)
class SpeakerMeasures:
    """The measures of one of several faces; see Measures."""

    name: str
    face_share: float
    lip_sync: LipSync
    naturalness: Naturalness
    expression: Expression
    likeness: Likeness


@dataclass(frozen=True)
class Measures:
    """All measures of a video. face_share: share of frames that show a face.

    speakers: where several faces speak, the measures of each; the others then say why they are not there.
    """

    width: int
    height: int
    num_frames: int
    fps: float
    duration_s: float
    face_share: float
    lip_sync: LipSync
    smoothness: Smoothness
    naturalness: Naturalness
    expression: Expression
    likeness: Likeness
    speakers: tuple[SpeakerMeasures, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON, including derived values."""
        plain = asdict(self)
        smooth = self.smoothness
        plain["smoothness"] |= {
            "ratio": smooth.ratio,
            "seam_is_seen": smooth.is_seen,
            "worst_frame": smooth.worst_frame,
        }
        plain["likeness"]["drifting"] = list(self.likeness.drifting)
        if not self.speakers:
            del plain["speakers"]
            return plain
        for one, speaker in zip(plain["speakers"], self.speakers, strict=True):
            one["likeness"]["drifting"] = list(speaker.likeness.drifting)
        return plain


def measure(
    video: Path,
    *,
    portrait: Path | None = None,
    borders: Sequence[int] = (),
    on_frame: Callable[[int], None] = lambda _: None,
) -> Measures:
    """Measure a video. portrait: what its face should look like. borders: first frames of later clips.

    on_frame: gets the frames done so far. Raises: BadInput for a file that is not a video.
    """
    return judge(track(video, portrait, on_frame), listened(video), borders)


def measure_several(
    video: Path,
    speakers: Sequence[SeenSpeaker],
    *,
    portrait: Path | None = None,
    borders: Sequence[int] = (),
    on_frame: Callable[[int], None] = lambda _: None,
) -> Measures:
    """As measure, each of several faces by its own voice."""
    picture = None if portrait is None else read_portrait(portrait)
    tracks = follow_several(read_frames(video), [one.face for one in speakers], picture, on_frame)
    return judge_several(tracks, speakers, borders)


def judge_several(
    tracks: Sequence[FaceTrack], speakers: Sequence[SeenSpeaker], borders: Sequence[int] = ()
) -> Measures:
    """All measures of several faces' tracks, one for each speaker."""
    each = [judge(track, one.heard) for track, one in zip(tracks, speakers, strict=True)]
    jolts = [smoothness(track, borders) for track in tracks]
    return replace(
        judge(tracks[0], EACH),
        face_share=min(one.face_share for one in each),
        smoothness=max(jolts, key=lambda one: one.ratio or 0.0),
        naturalness=Naturalness(),
        expression=Expression(),
        likeness=Likeness(),
        speakers=tuple(
            SpeakerMeasures(
                speaker.name, one.face_share, one.lip_sync, one.naturalness, one.expression, one.likeness
            )
            for speaker, one in zip(speakers, each, strict=True)
        ),
    )


def judge(seen: FaceTrack, heard: ExpectedMouth | str, borders: Sequence[int] = ()) -> Measures:
    """All measures of a track and its sound; heard: a string is the reason for having no sound."""
    return Measures(
        *seen.size,
        num_frames=seen.num_frames,
        fps=seen.fps,
        duration_s=seen.num_frames / seen.fps,
        face_share=seen.seen_share,
        lip_sync=LipSync(why=heard) if isinstance(heard, str) else lip_sync(seen, heard),
        smoothness=smoothness(seen, borders),
        naturalness=naturalness(seen),
        expression=expression(seen),
        likeness=likeness(seen),
    )


def listened(video: Path) -> ExpectedMouth | str:
    """Mouth movements expected from a video's sound; a string is the reason for having none."""
    with tempfile.TemporaryDirectory(prefix="avatar-measure-") as folder:
        sound = Path(folder) / "sound.wav"
        try:
            write_speech(video, sound, limits=_LIMITS)
        except BadInput as error:
            log.info("%s: %s", video.name, error)
            return error.message.rstrip(".")
        with SpeechReader(sound) as reader:
            return expected_mouth(reader.listen, reader.num_samples_16k)
