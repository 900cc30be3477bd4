"""The preview engine: a portrait's face found once, then a warped frame for every 40 ms of speech."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack
from itertools import islice

import numpy as np

from avatar.errors import BadInput, Cancelled
from avatar.events import Notice, Phase, Progress
from avatar.geometry import FPS, Size
from avatar.media.face_choice import idle_faces, several_faces
from avatar.media.growing import open_speech
from avatar.media.portrait import read_portrait
from avatar.media.speech_reader import SpeechReader
from avatar.preset import Preset
from avatar.preview.animate import animate
from avatar.preview.face_detection import Detection, Face, Faces, find_face
from avatar.preview.landmarks import Crop, landmarks
from avatar.preview.live import LiveRenderer, animate_live
from avatar.preview.loudness import VOICE_SAMPLES, VoiceLevel
from avatar.preview.mesh_from_points import face_from_points
from avatar.preview.motion_scale import MOTION_SCALES
from avatar.preview.points import FacePoints
from avatar.preview.portrait_notices import NO_USE_OF_POINTS, concerns
from avatar.preview.pose import Articulation
from avatar.preview.recent import Recent, known_faces, picture_key
from avatar.preview.render import Renderer, framed
from avatar.preview.several import SeveralFaces, faces_of, performances
from avatar.preview.visemes import VisemeNetwork
from avatar.request import LiveRequest, Request
from avatar.runtime.engine import FrameItem
from avatar.runtime.live_protocol import LiveFrames
from avatar.sizes import video_size

BATCH_FRAMES = 5  # handed over together: a fifth of a second
MOST_READY = 2  # portraits that are ready to be drawn, for each kind of request
MOST_IDLE = 3  # faces of a live session that move besides the one that speaks

# Where a head is assumed when only it is to move: a portrait's usual place, fractions of the picture.
ASSUMED_FACE = FacePoints(
    mouth_left=(0.43, 0.56),
    mouth_right=(0.57, 0.56),
    inner_lip_top=(0.5, 0.56),
    inner_lip_bottom=(0.5, 0.56),
    outer_lip_top=(0.5, 0.54),
    outer_lip_bottom=(0.5, 0.59),
    chin=(0.5, 0.69),
)


class PreviewSource:
    """Frames of a talking portrait without a GPU; see engine.FrameSource."""

    label = "preview"

    def __init__(self) -> None:
        """Load the models, so that the first request finds them ready."""
        self._network = VisemeNetwork.load()
        self._renderers: Recent[Renderer] = Recent(MOST_READY)
        self._live_faces: Recent[SeveralFaces] = Recent(MOST_READY)
        blank = np.zeros((128, 128, 3), np.uint8)
        find_face(blank)  # no face, so that it does not come to the landmarks
        landmarks(blank, Crop(np.full(2, 64.0), 128.0, 0.0))

    def frames(self, request: Request, cancelled: Callable[[], bool]) -> Iterator[FrameItem]:
        """Yield uint8 (T, H, W, 3) RGB. Raises: BadInput when there is no face, Cancelled."""
        yield Progress(Phase.ENCODING)
        image = read_portrait(request.portrait)
        frames: Iterator[np.ndarray]
        with ExitStack() as open_files:
            if request.speakers:
                several, notices = faces_of(request, image)
                moves = performances(request, self._network, open_files)
                frames = map(several.frame, zip(*moves, strict=True))
            else:
                face, notices = face_of(request, image)
                speech = open_files.enter_context(open_speech(request, cancelled))
                frames = self._spoken(request, image, face, speech)
            yield from notices
            yield Progress(Phase.GENERATING)
            batch: list[np.ndarray] = []
            for frame in islice(frames, request.num_frames):
                if cancelled():
                    raise Cancelled("The run was stopped.")
                batch.append(frame)
                if len(batch) == BATCH_FRAMES:
                    yield np.stack(batch)
                    batch.clear()
            if batch:
                yield np.stack(batch)

    def _spoken(
        self, request: Request, image: np.ndarray, face: Face, speech: SpeechReader
    ) -> Iterator[np.ndarray]:
        """Frames of a single speaker, from the request's first one on."""
        renderer = self._renderer(image, face, Size.parse(request.preset.generation.size))
        level = None
        if request.spoken:  # the same frames, whether the voice has ended or goes on
            level = VoiceLevel(speech.listen, min(VOICE_SAMPLES, speech.until_16k(VOICE_SAMPLES)))
        performance = animate(
            speech.listen,
            request.speech_frames,
            FPS,
            request.seed,
            request.first_frame,
            self._network,
            MOTION_SCALES[request.preset.generation.motion],
            level,
            speech.until_frame,
        )
        for articulation, pose in performance:
            yield renderer.frame(Articulation() if request.head_only else articulation, pose)

    def live(
        self, request: LiveRequest, sound: Iterator[np.ndarray], cancelled: Callable[[], bool]
    ) -> Iterator[LiveFrames | Notice | Progress]:
        """See LiveSource. Raises: BadInput when there is no face."""
        image = read_portrait(request.portrait)
        faces = known_faces(image)
        face, notices = face_of(request, image, faces)
        others = others_by_size(faces, face)
        notices += idle_faces(len(others), MOST_IDLE, request.portrait_name)
        yield from (*request.notices, *notices)
        size = Size.parse(request.preset.generation.size)
        moving, still = others[:MOST_IDLE], others[MOST_IDLE:]
        drawn = self._all_faces(image, [face, *moving], still, size)
        renderer = LiveRenderer(image, face, size, moving, still, drawn)
        yield Progress(Phase.GENERATING)
        yield from animate_live(
            renderer,
            sound,
            cancelled,
            seed=request.seed,
            speaks=not request.head_only,
            may_skip=request.may_skip,
            network=self._network,
            scale=MOTION_SCALES[request.preset.generation.motion],
        )

    def prepare(self, image: np.ndarray, preset: Preset, live: bool) -> None:
        """Find and get ready the face of a portrait, uint8 (H, W, 3) RGB, that a request may soon bring.

        live: of a live session. Raises: BadInput where the face cannot be drawn.
        """
        faces, size = known_faces(image), Size.parse(preset.generation.size)
        face = faces.found[faces.main].face if faces.found else None
        if face is None:
            return
        if live:
            others = others_by_size(faces, face)
            self._all_faces(image, [face, *others[:MOST_IDLE]], others[MOST_IDLE:], size)
        else:
            self._renderer(image, face, size)

    def _renderer(self, image: np.ndarray, face: Face, size: Size) -> Renderer:
        key = (*picture_key(image), _face_key(face), size)
        return self._renderers.get(key, lambda: Renderer(*framed(image, face, size)))

    def _all_faces(
        self, image: np.ndarray, faces: Sequence[Face], still: Sequence[Face], size: Size
    ) -> SeveralFaces:
        key = (*picture_key(image), *map(_face_key, faces), len(faces), *map(_face_key, still), size)
        return self._live_faces.get(key, lambda: SeveralFaces(image, faces, still, size))

    def close(self) -> None:
        """Nothing is held outside Python's memory."""


def _face_key(face: Face) -> Hashable:
    """What tells faces of one picture apart."""
    return face.landmarks.tobytes(), None if face.iris is None else face.iris.tobytes(), face.has_eyes


def others_by_size(faces: Faces, face: Face) -> list[Face]:
    """The faces of a picture but this one, the largest first."""
    speaks = faces.at(face.box)
    others = [one for index, one in enumerate(faces.faces) if index != speaks]
    return sorted(others, key=lambda one: one.box[1] - one.box[3])


def face_of(
    request: Request | LiveRequest, image: np.ndarray, faces: Faces | None = None
) -> tuple[Face, list[Notice]]:
    """The face to move, and what the user should know of it and of the portrait.

    image: uint8 (H, W, 3) RGB, the request's portrait. faces: those in it, if they are known. Raises:
    BadInput when there is no face.
    """
    height, width = image.shape[:2]
    size = video_size(request.preset.engine, width, height, request.preset.generation.size)
    if request.face_points is not None:
        face = face_from_points(FacePoints.parse(request.face_points), width, height)
        return face, concerns(image, face, size, request.portrait_name)
    found, several = _found(request, image, faces or known_faces(image))
    if request.head_only:
        face = found.face or face_from_points(ASSUMED_FACE, width, height)
        head_only = Notice("head_only", "Only the head moves: the mouth does not speak.", "warning")
        return face, [head_only, *several, *concerns(image, None, size, request.portrait_name)]
    if found.face is None:
        raise BadInput(
            f"No face was found in {request.portrait_name}.",
            "Take a portrait that shows the whole face from the front; or place the mouth's points on it (a"
            " chin that is cut off: on the picture's edge), or let only the head move.",
        )
    worries = concerns(image, found.face, size, request.portrait_name)
    if found.verdict == "weak" and not {notice.code for notice in worries} & NO_USE_OF_POINTS:
        name = request.portrait_name
        text = f"The face in {name} was found with doubt; place its points if the mouth moves wrongly."
        worries.append(Notice("weak_face", text, "warning"))
    return found.face, [*several, *worries]


def _found(
    request: Request | LiveRequest, image: np.ndarray, faces: Faces
) -> tuple[Detection, list[Notice]]:
    """The face that was chosen, or the main one, and that there are others if nobody has chosen."""
    name = request.portrait_name
    if not faces.found:
        return Detection("none", None, faces.jitter), []
    if request.face is None:
        return faces.found[faces.main], several_faces(len(faces.found), faces.main, False, name)
    height, width = image.shape[:2]
    left, top, right, bottom = request.face
    index = faces.at((left * width, top * height, right * width, bottom * height))
    if index is None:  # it was seen in the whole picture, and is not in what was cut out of it
        raise BadInput(
            f"The face that was chosen in {name} cannot be made out in the crop.", "Choose a wider framing."
        )
    return faces.found[index], []
