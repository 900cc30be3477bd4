"""How long each thing that an engine does before its first frame took in the last runs on this machine."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from statistics import median

from avatar.media import atomic

log = logging.getLogger(__name__)

FILE = "usual-times.json"
NUM_KEPT = 5  # of the last runs
SHORTEST_S = 0.5  # a warm engine has nothing to do; its runs say nothing of a cold one's


class UsualTimes:
    """The times of one preset, in a file of all presets below a folder."""

    def __init__(self, folder: Path, preset: str) -> None:
        self._file, self._preset = folder / FILE, preset
        self._known = self._read().get(preset, {})

    def of(self, activity: str) -> float | None:
        """Seconds that it usually takes; None where it was never measured."""
        times = self._known.get(activity)
        return median(times) if times else None

    def took(self, activity: str, seconds: float) -> None:
        """Keep how long it took. A file that cannot be written is logged, and ends nothing."""
        if seconds < SHORTEST_S:
            return
        self._known[activity] = [*self._known.get(activity, []), round(seconds, 1)][-NUM_KEPT:]
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            everything = {**self._read(), self._preset: self._known}
            with atomic.whole(self._file) as draft:
                draft.write_text(json.dumps(everything), encoding="utf-8")
        except OSError as error:
            log.info("usual times are not kept: %s", error.strerror)

    def _read(self) -> dict[str, dict[str, list[float]]]:
        """Times by preset and activity; what is damaged counts as absent."""
        try:
            found = json.loads(self._file.read_text(encoding="utf-8"))
            return {
                str(preset): {str(name): list(map(_seconds, times)) for name, times in kept.items()}
                for preset, kept in found.items()
            }
        except (OSError, ValueError, TypeError, AttributeError):
            return {}


def _seconds(value: object) -> float:
    """Raises: ValueError, TypeError for anything but seconds."""
    seconds = float(value)  # type: ignore[arg-type]
    if not 0 <= seconds < math.inf:
        raise ValueError(f"{seconds} s")
    return seconds
