"""Animation parameters of mouth, head, eyes and brows for every video frame."""

from collections.abc import Iterator

from avatar.geometry import FPS
from avatar.preview.articulation import Until, articulate
from avatar.preview.head_motion import Motion
from avatar.preview.motion_scale import USUAL, MotionScale
from avatar.preview.pose import Articulation, Pose
from avatar.preview.visemes import Level, Listen, VisemeNetwork


def animate(
    listen: Listen,
    num_frames: int,
    fps: float = FPS,
    seed: int = 0,
    first_frame: int = 0,
    network: VisemeNetwork | None = None,
    scale: MotionScale = USUAL,
    level: Level | None = None,
    until: Until | None = None,
) -> Iterator[tuple[Articulation, Pose]]:
    """Yield articulation and pose of video frames first_frame..num_frames, frame i at i / fps seconds.

    listen: the speech at 16 kHz, see `visemes.Listen`. level, until: see `articulate`. The result depends on
    speech, seed and scale alone.
    """
    motion = Motion(seed, scale)
    spoken = articulate(listen, num_frames, fps, first_frame, network, level, until)
    for index, frame in enumerate(spoken, first_frame):
        yield scale.spoken(frame.articulation), motion.pose(index / fps, frame.energy, frame.emphasis)
