"""A run's segments so far; if its process is lost, a video is joined from them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from avatar.errors import AvatarError
from avatar.events import Event, Finished, PlanMade, Progress, Segment
from avatar.planning.plan import Plan
from avatar.request import Request
from avatar.runtime.report import MemoryUse


@dataclass
class ShownSegments:
    """The events of a run so far. plan: the first; progress: the last; finished: the video exists already."""

    plan: Plan | None = None
    progress: Progress | None = None
    segments: list[Segment] = field(default_factory=list)
    finished: bool = False

    def note(self, message: Any) -> Iterator[Event]:
        """Record a message, and yield it if it is an event."""
        if isinstance(message, Event):
            if isinstance(message, PlanMade):
                self.plan = self.plan or message.plan
            elif isinstance(message, Segment):
                self.segments.append(message)
            elif isinstance(message, Progress):
                self.progress = message
            elif isinstance(message, Finished):
                self.finished = True
            yield message

    def salvaged(
        self, request: Request, error: AvatarError, label: str, memory: MemoryUse | None = None
    ) -> Iterator[Finished]:
        """Yield Finished for a file joined from the segments on disk; nothing if that is impossible."""
        from avatar.runtime.stream import finish_from_segments

        if not self.segments or self.finished:
            return
        kept = finish_from_segments(
            request,
            self.segments,
            error,
            label=label,
            progress=self.progress,
            plan=self.plan,
            memory=memory,
        )
        if kept is not None:
            yield kept
