"""Choose where to cut a long speech into parts."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from avatar.errors import BadInput
from avatar.geometry import BLOCK_FRAMES, FPS, LEAD_IN_FRAMES, SPEECH_HZ
from avatar.media.pauses import DEPTHS_DB, pauses
from avatar.media.speech_reader import SpeechReader
from avatar.preset import Preset

log = logging.getLogger(__name__)

_SHORTEST_S = 1.0  # a remainder shorter than this joins the part before it
_SEARCH = 0.25  # fraction of a part by which a cut may move either way to find silence
_PAUSE_S = 0.3  # silence wanted on either side of a cut
_LEAST_S = 0.08  # silence needed on either side; less is only a closed mouth within a word


@dataclass(frozen=True)
class Span:
    """A part of the speech: num_frames from first_frame on."""

    first_frame: int
    num_frames: int

    @property
    def end_frame(self) -> int:
        return self.first_frame + self.num_frames


def part_frames(preset: Preset, every: int) -> int:
    """Frames per regular part. every: clips, or seconds for the preview. Raises: BadInput."""
    if every < 1:
        raise BadInput(f"checkpoint_every is {every}.", "It must be 1 or more.")
    if preset.engine == "preview":
        return every * FPS
    return math.ceil(every * preset.generation.infer_frames / BLOCK_FRAMES) * BLOCK_FRAMES


def regular_spans(num_frames: int, preset: Preset, every: int) -> list[Span]:
    """Parts of equal length, in whole blocks for the diffusion engine, whose first block has a lead-in."""
    length = part_frames(preset, every)
    lead_in = LEAD_IN_FRAMES if preset.engine == "diffusion" else 0
    return _spans([*range(length - lead_in, num_frames, length)], num_frames)


def quiet_spans(num_frames: int, preset: Preset, every: int, speech: Path) -> list[Span]:
    """Independent parts, cut at whole blocks in the deepest pauses of the speech."""
    length = part_frames(preset, every)
    reach = int(length * _SEARCH)
    cuts: list[int] = []
    with SpeechReader(speech) as reader:
        while (nominal := (cuts[-1] if cuts else 0) + length) < num_frames:
            first = math.ceil((nominal - reach) / BLOCK_FRAMES) * BLOCK_FRAMES
            places = list(range(first, min(nominal + reach + 1, num_frames), BLOCK_FRAMES))
            cuts.append(_best_place(reader, places, nominal))
    return _spans(cuts, num_frames)


def _best_place(reader: SpeechReader, places: Sequence[int], nominal: int) -> int:
    """The candidate frame that is best inside a pause; if none is, the one nearest to the nominal frame."""
    start_s = places[0] / FPS - _PAUSE_S
    first, last = round(start_s * SPEECH_HZ), round((places[-1] / FPS + _PAUSE_S) * SPEECH_HZ)
    samples = reader.listen(first, last)
    nearness = {place: -abs(place - nominal) for place in places}
    for depth_db in DEPTHS_DB:
        found = [(start_s + start, start_s + stop) for start, stop in pauses(samples, depth_db)]
        margins = {place: _margin(place / FPS, found) for place in places}
        best = max(places, key=lambda place: (round(margins[place], 2), nearness[place]))
        if margins[best] >= _LEAST_S:
            return best
    return max(places, key=lambda place: nearness[place])


def _margin(at_s: float, found: Sequence[tuple[float, float]]) -> float:
    """Seconds of pause on both sides of a moment, capped at _PAUSE_S."""
    return max((min(at_s - start, stop - at_s, _PAUSE_S) for start, stop in found), default=0.0)


def _spans(cuts: Sequence[int], num_frames: int) -> list[Span]:
    starts = [0, *(cut for cut in cuts if 0 < cut <= num_frames - _SHORTEST_S * FPS)]
    return [Span(start, end - start) for start, end in zip(starts, [*starts[1:], num_frames])]
