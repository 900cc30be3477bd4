"""Measure the videos of a comparison, and make a strip of frames around each one's worst border."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from avatar.compare.result import Comparison, Row, named_errors
from avatar.errors import BadInput
from avatar.geometry import LEAD_IN_FRAMES, Size, shown_part, within_part
from avatar.measures.frames import read_frames
from avatar.measures.lip_sync import ExpectedMouth, expected_mouth
from avatar.measures.measure import Measures, SeenSpeaker, measure, measure_several
from avatar.measures.seams import clip_borders
from avatar.media.side_files import written_report
from avatar.media.speech_reader import silence
from avatar.media.voices_file import read_voice, voices_beside
from avatar.preview.visemes import Listen
from avatar.runtime.fingerprint import file_digest
from avatar.runtime.report import read_report

VERSION = 1  # of the measures; results of an earlier version are measured again
_BEFORE, _AFTER = 3, 3  # frames of a strip
_STRIP_PX = 240


def measure_row(
    comparison: Comparison,
    row: Row,
    before: dict[str, object],
    *,
    portrait: Path | None,
    clip_frames: int | None,
    on_frame: Callable[[int], None] = lambda _: None,
) -> None:
    """Fill in a row's measures; before: the row of an earlier run, whose measures are reused if still valid.

    Raises: BadInput for a file that is not a video.
    """
    assert row.file is not None
    video = comparison.folder / row.file
    borders = borders_of(video, clip_frames)
    portrait_digest = "" if portrait is None else file_digest(portrait)
    row.measured_from = f"{VERSION}:{file_digest(video)}:{portrait_digest}:{borders[:1]}:{len(borders)}"
    if (voices := voices_beside(video)).is_file():
        row.measured_from += f":{file_digest(voices)}"
    if before.get("measured_from") == row.measured_from and before.get("lip_sync"):
        keys = [key for key in before if key not in Row.__dataclass_fields__]
        row.measures = {key: before[key] for key in keys}
        row.seam = str(before["seam"]) if before.get("seam") else None
        return
    found = measured(video, portrait=portrait, borders=borders, on_frame=on_frame)
    row.measures = found.as_dict()
    worst = found.smoothness.worst_frame
    if worst is not None:
        row.seam = f"{row.name}.border.png"
        with named_errors(row.seam):
            strip(video, worst).save(comparison.folder / row.seam)


def measured(
    video: Path,
    *,
    portrait: Path | None = None,
    borders: Sequence[int] = (),
    on_frame: Callable[[int], None] = lambda _: None,
) -> Measures:
    """Measure a video, each of several speakers by its own voice where that is kept beside it.

    See measure. Raises: BadInput.
    """
    speakers = speakers_of(video)
    if not speakers:
        return measure(video, portrait=portrait, borders=borders, on_frame=on_frame)
    return measure_several(video, speakers, portrait=portrait, borders=borders, on_frame=on_frame)


def speakers_of(video: Path) -> list[SeenSpeaker]:
    """Those who speak in a video by its report, where there are several, else none. Raises: BadInput."""
    try:
        report = read_report(written_report(video))
    except BadInput:
        return []
    shape = report.portrait_size
    if not report.speakers or shape is None or not all((*shape, report.width, report.height)):
        return []
    part = shown_part(*shape, Size(report.width, report.height))
    voices = voices_beside(video)
    found = []
    for number, one in enumerate(report.speakers):
        heard: ExpectedMouth | str = "its own voice is not kept beside the video"
        if not one.speaks:
            heard = "it listens"
        elif voices.is_file() and (voice := read_voice(voices, number)) is not None:
            heard = expected_mouth(_listener(voice), len(voice))
        name = f"{number + 1}: {one.name}" if one.name else str(number + 1)
        found.append(SeenSpeaker(name, within_part(one.face, part), heard))
    return found


def _listener(voice: np.ndarray) -> Listen:
    """Samples start:stop of a voice, silence outside of it."""

    def listen(start: int, stop: int) -> np.ndarray:
        out = silence(start, stop)
        first, last = max(start, 0), min(stop, len(voice))
        if first < last:
            out[first - start : last - start] = voice[first:last]
        return out

    return listen


def borders_of(video: Path, clip_frames: int | None) -> list[int]:
    """First frames of a video's clips, from its report, else every clip_frames; none without either."""
    try:
        report = read_report(written_report(video))
    except BadInput:
        return [] if not clip_frames else clip_borders(10**6, clip_frames)
    if report.preset["engine"] != "diffusion":
        return []
    clip = report.preset["generation"]["infer_frames"]
    changed = [taken.frame for taken in report.rungs if taken.frame]
    return sorted({*clip_borders(report.num_frames, clip, LEAD_IN_FRAMES), *changed})


def strip(video: Path, frame: int) -> Image.Image:
    """The frames around a border, left to right, with a line before `frame`, the first after the border."""
    wanted = range(frame - _BEFORE, frame + _AFTER)
    pictures = []
    for number, (_, pixels) in enumerate(read_frames(video)):
        if number in wanted:
            picture = Image.fromarray(pixels)
            picture.thumbnail((_STRIP_PX, _STRIP_PX))
            pictures.append(np.asarray(picture))
            if number == frame - 1:
                pictures.append(np.full((picture.height, 4, 3), (230, 40, 40), np.uint8))
        if number >= wanted.stop:
            break
    return Image.fromarray(np.concatenate(pictures, axis=1))
