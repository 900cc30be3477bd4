"""All measures of one finished video."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from avatar.errors import BadInput
from avatar.measures.face_track import FaceTrack, track
from avatar.measures.identity import Likeness, likeness
from avatar.measures.lip_sync import ExpectedMouth, LipSync, expected_mouth, lip_sync
from avatar.measures.liveliness import Expression, Naturalness, expression, naturalness
from avatar.measures.seams import Smoothness, smoothness
from avatar.media.limits import InputLimits
from avatar.media.speech_reader import SpeechReader, write_speech

log = logging.getLogger(__name__)

_DAY_S, _GIB = 86_400.0, 2**30
_LIMITS = InputLimits(max_speech_s=_DAY_S, max_speech_bytes=64 * _GIB, min_speech_s=0.1)


@dataclass(frozen=True)
class Measures:
    """All measures of a video. face_share: share of frames that show a face."""

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
