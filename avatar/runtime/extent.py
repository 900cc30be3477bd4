"""How many frames and segments a run will have. Of a speech that still grows, that changes during the run."""

from __future__ import annotations

from avatar.errors import AvatarError
from avatar.geometry import FPS
from avatar.media.growing import GrowingRecording, Growth
from avatar.request import Caption, Request

_OPENING_S = 0.72  # length of the first two segments, short so that playback starts early
_MORE_FRAMES = 60 * FPS  # that may follow what is known: beyond the end of any segment


def segment_lengths(num_frames: int, segment_s: float, fps: int) -> list[int]:
    """Frames per segment: two short ones first, then segment_s each; a small remainder joins the last one."""
    regular = max(1, round(segment_s * fps))
    opening = min(regular, round(_OPENING_S * fps))
    lengths: list[int] = []
    while num_frames > 0:
        length = opening if len(lengths) < 2 else regular
        if num_frames - length < opening // 2:
            length = num_frames
        lengths.append(length)
        num_frames -= length
    return lengths


class Extent:
    """A run's frames, segments and captions. Thread-safe."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._recording = None if request.growing is None else GrowingRecording(request.growing)
        self._fixed = Growth(captions=request.captions, ended=True)

    @property
    def most(self) -> int:
        """The most frames that there can be; exact once the speech is complete."""
        return self._growth.num_frames if self._growth.ended and self._recording else self._request.num_frames

    @property
    def segments(self) -> list[int]:
        """Frames per segment. While the speech grows, only those are certain that end well before its end.

        Engines look further ahead than that: no frame is made of a segment that is not certain.
        """
        growth = self._growth
        known = self.most if growth.ended else growth.num_frames + _MORE_FRAMES
        return segment_lengths(known, self._request.segment_s, FPS)

    @property
    def expected(self) -> tuple[int, int]:
        """Numbers of frames and segments that there will probably be."""
        growth = self._growth
        num_frames = self.most if growth.ended else growth.expected_frames
        return num_frames, len(segment_lengths(num_frames, self._request.segment_s, FPS))

    @property
    def captions(self) -> tuple[Caption, ...]:
        """Those of the speech so far."""
        return self._growth.captions

    @property
    def error(self) -> AvatarError | None:
        """Why the speech ended before its time."""
        error = self._growth.error
        return None if error is None else AvatarError(*error)

    @property
    def _growth(self) -> Growth:
        return self._fixed if self._recording is None else self._recording.look()
