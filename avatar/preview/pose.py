"""Animation parameters of one preview frame: the mouth's articulation and the head's pose.

Both are plain numbers, one set per video frame. Articulation comes from the speech (`articulation.py`), pose
from time, seed and speech energy (`head_motion.py`); the renderer turns both into a warp of the portrait.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Articulation:
    """Mouth of one frame; every field is 0 for a closed mouth at rest and about 1 at its strongest.

    open: jaw opening, 0..1.1 (1 = the widest vowel); the inner lips part in proportion.
    wide: lip corners drawn apart (as in "see"). round: lips drawn together and forward (as in "you").
    upper: upper lip raised off the upper teeth. lower: lower lip dropped off the lower teeth.
    press: lips pressed on each other (as in "p b m"). ff: lower lip tucked under the upper teeth ("f v").
    tongue: tongue tip raised until it shows between the teeth (as in "th", "l").
    """

    open: float = 0.0
    wide: float = 0.0
    round: float = 0.0
    upper: float = 0.0
    lower: float = 0.0
    press: float = 0.0
    ff: float = 0.0
    tongue: float = 0.0


@dataclass(frozen=True, slots=True)
class Pose:
    """Head, eyes and brows of one frame, relative to the original portrait.

    yaw, pitch, roll: radians; positive yaw turns the nose towards the right edge of the image, positive pitch
    lowers the chin (a nod), positive roll turns the head clockwise on the image.
    tx, ty: shift of the head as a fraction of face height (forehead to chin); positive is right and down.
    breath: 0 (breathed out) to 1 (breathed in). brow: 0 (at rest) to 1 (raised).
    blink: 0 (eyelids as in the portrait) to 1 (shut).
    gaze_x, gaze_y: rotation of the eyes in the head, radians; positive is towards the image's right and down.
    """

    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0
    tx: float = 0.0
    ty: float = 0.0
    breath: float = 0.0
    brow: float = 0.0
    blink: float = 0.0
    gaze_x: float = 0.0
    gaze_y: float = 0.0
