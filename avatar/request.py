"""A request: one portrait, one speech, one preset, all of it already checked."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from avatar.preset import Preset


@dataclass(frozen=True)
class Request:
    """What an engine is asked for; media.intake.open_request builds it and refuses what cannot be used.

    portrait: a PNG that intake wrote, 8-bit RGB, upright, bounded in size.
    speech: a WAV that intake wrote, 48 kHz mono 16-bit; num_frames of video cover it, silence pads the last.
    work: this run's own folder; intake's files and segments live there. output: the finished .mp4.
    portrait_name, speech_name: the user's file names, for messages and the gallery.
    face_points: fractions of width and height by point name, when the user placed them.
    head_only: move the head, leave the mouth shut (preview only).
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
    segment_s: float = 2.0
    notices: tuple[str, ...] = field(default_factory=tuple)

    @property
    def seed(self) -> int:
        return self.preset.generation.seed

    @property
    def duration_s(self) -> float:
        return self.num_frames / self.preset.generation.fps
