"""Several faces of one portrait, each moved by its own voice; whoever has none, or is silent, idles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import numpy as np

from avatar.errors import BadInput
from avatar.events import Notice
from avatar.geometry import FPS, Size
from avatar.media.speech_reader import SpeechReader, silence
from avatar.preview.animate import animate
from avatar.preview.face_detection import Face
from avatar.preview.motion_scale import MOTION_SCALES
from avatar.preview.portrait_notices import concerns
from avatar.preview.pose import Articulation, Pose
from avatar.preview.recent import known_faces
from avatar.preview.render import Renderer, framed_with_all
from avatar.preview.visemes import VisemeNetwork
from avatar.request import Request
from avatar.sizes import video_size

SEED_STEP = 7919  # between the seeds of two faces, so that they do not blink and sway together

Performance = Iterator[tuple[Articulation, Pose]]  # a face's mouth and pose, frame by frame


class SeveralFaces:
    """Draws frames in which several faces move, without state between frames."""

    def __init__(self, image: np.ndarray, faces: Sequence[Face], still: Sequence[Face], limit: Size) -> None:
        """image: uint8 (H, W, 3) RGB, the portrait. faces: those that move. still: the others in it."""
        scaled_image, scaled = framed_with_all(image, [*faces, *still], limit)
        self.image = scaled_image
        self.renderers = [
            Renderer(scaled_image, face, [*scaled[:index], *scaled[index + 1 :]])
            for index, face in enumerate(scaled[: len(faces)])
        ]

    def frame(self, moves: Sequence[tuple[Articulation, Pose]]) -> np.ndarray:
        """Draw a frame, uint8 (H, W, 3) RGB. moves: one mouth and pose per face."""
        frame = self.image.copy()
        for renderer, (articulation, pose) in zip(self.renderers, moves, strict=True):
            renderer.frame(articulation, pose, onto=frame)
        return frame


def faces_of(request: Request, image: np.ndarray) -> tuple[SeveralFaces, list[Notice]]:
    """A request's speakers, ready to be drawn, and what the user should know of their faces.

    image: uint8 (H, W, 3) RGB, the request's portrait. Raises: BadInput when a face is not found again.
    """
    found, name = known_faces(image), request.portrait_name
    height, width = image.shape[:2]
    size = video_size("preview", width, height, request.preset.generation.size)
    moving: list[int] = []
    notices: list[Notice] = []
    for number, speaker in enumerate(request.speakers, 1):
        left, top, right, bottom = speaker.face
        index = found.at((left * width, top * height, right * width, bottom * height))
        if index is None or index in moving:
            raise BadInput(
                f"The face of speaker {number} in {name} cannot be made out in the picture that is shown.",
                "Choose another aspect, or a larger picture.",
            )
        moving.append(index)
        known = {notice.code for notice in notices}
        face = found.faces[index]
        notices += [one for one in concerns(image, face, size, name) if one.code not in known]
    still = [face for index, face in enumerate(found.faces) if index not in moving]
    limit = Size.parse(request.preset.generation.size)
    return SeveralFaces(image, [found.faces[index] for index in moving], still, limit), notices


def performances(request: Request, network: VisemeNetwork, open_files: ExitStack) -> list[Performance]:
    """How each of a request's speakers moves, from its first frame on."""
    found: list[Performance] = []
    for index, speaker in enumerate(request.speakers):
        listen = silence
        if speaker.voice is not None:
            listen = open_files.enter_context(SpeechReader(speaker.voice)).listen
        seed = request.seed + SEED_STEP * index
        scale = MOTION_SCALES[request.preset.generation.motion]
        found.append(animate(listen, request.speech_frames, FPS, seed, request.first_frame, network, scale))
    return found
