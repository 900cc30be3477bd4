"""The one door for user input: everything that can be refused is refused here, before an engine starts."""

from __future__ import annotations

import logging
import math
import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from PIL import Image

from avatar.errors import BadInput
from avatar.events import Notice
from avatar.geometry import FPS, Size
from avatar.media.background.intake import open_background
from avatar.media.caption_files import find_font
from avatar.media.face_choice import FaceFinder
from avatar.media.files import LONGEST_NAME_BYTES, check_file, display_name, megabytes, minutes
from avatar.media.framing import framed
from avatar.media.growing import GROWING, most_frames
from avatar.media.limits import InputLimits
from avatar.media.pauses import trim
from avatar.media.portrait import smaller_video
from avatar.media.prompt import check_prompt
from avatar.media.readers import Reader
from avatar.media.side_files import check_places
from avatar.media.speaker_choice import AskedSpeakers
from avatar.media.speaker_intake import SPEECH, write_voices
from avatar.media.speaker_places import check_together, place_speakers
from avatar.media.upscale import UPSCALED_AREA, check_upscale
from avatar.paths import exists, is_dir
from avatar.preset import Preset
from avatar.request import TRANSPARENT, TRANSPARENT_SUFFIXES, Caption, Request, beside
from avatar.settings import Picture, refuse_settings
from avatar.sizes import video_size

log = logging.getLogger(__name__)

_BITS_PER_PIXEL = 0.12  # of a frame of H.264; a generous guess for a talking head
_TRANSPARENT_BITS_PER_PIXEL = {".webm": 0.2, ".mov": 9.0}
POSE_FILE = "pose.mkv"
_SOUND_BYTES_PER_S = 200_000  # of a channel: the canonical WAV, its lossless copy in segments, and AAC twice


def open_request(
    portrait: Path | str,
    speech: Path | str | None,
    preset: Preset,
    *,
    output: Path | str,
    work: Path | str,
    prompt: str = "",
    face_points: Mapping[str, tuple[float, float]] | None = None,
    head_only: bool = False,
    limits: InputLimits | None = None,
    portrait_name: str | None = None,
    speech_name: str | None = None,
    segment_s: float = 2.0,
    tokenizer: Path | None = None,
    reader: Reader | None = None,
    captions: tuple[Caption, ...] = (),
    burn_captions: bool = False,
    spoken: str = "",
    growing: Path | None = None,
    picture_settings: Picture | None = None,
    finder: FaceFinder | None = None,
    speakers: AskedSpeakers | None = None,
    pose: Path | str | None = None,
    pose_name: str | None = None,
) -> Request:
    """Check everything that a user gave; write portrait.png and speech.wav into work.

    portrait_name, speech_name: the user's own file names, where the paths are those of uploads.
    tokenizer: the folder of the checkpoint's, by which prompts are counted; None: the engine counts them.
    reader: how the files are decoded; by default in this process. captions, spoken: of the speech, see
    Request. growing: the journal of the speech, if it is still being spoken: it is left where it is, and not
    decoded; captions then say what will be said. picture_settings: which face speaks and what is shown.
    finder: of faces, needed for that. speakers: where several faces speak; speech is then the recording that
    is split, or None. pose: a video of poses for the diffusion engine, under the user's own name for it; not
    beside what grows.
    On refusal nothing is left behind in work, nor work itself if it was made here. Raises: BadInput.
    """
    portrait, output, work = Path(portrait), Path(output), Path(work)
    speech = None if speech is None else Path(speech)
    limits, reader = limits or InputLimits(), reader or Reader()
    portrait_name = display_name(portrait, portrait_name)
    speech_name = display_name(speech or (speakers.name if speakers else ""), speech_name)
    # the toy model of the self-test has a tokenizer of its own
    counted_by = tokenizer if preset.requires.weights == "live-avatar" else None
    made = preset.generation
    prompt = check_prompt(prompt or made.prompt, limits.max_prompt_tokens, counted_by, made.motion)
    points = _check_points(face_points)
    if head_only and points:
        raise BadInput(
            "With face points the mouth speaks; head_only keeps it shut.", "Leave one of them out."
        )
    if not 0.4 <= segment_s <= 10:
        raise BadInput(f"Segments of {segment_s} s cannot be made.", "Choose 0.4 to 10 seconds.")
    if burn_captions and captions:
        find_font("".join(one.text for one in captions))  # refuses letters that no font here has
    asked, placed = picture_settings or Picture(), None
    if speakers is not None:
        check_together(speakers, asked, preset, points=bool(points), head_only=head_only, limits=limits)
    if speech is not None:
        check_file(speech, speech_name, limits.max_speech_bytes, "speech")
    if pose is not None:
        pose, pose_name = Path(pose), display_name(Path(pose), pose_name)
        refuse_settings(preset.engine, ("pose",))
        check_file(pose, pose_name, limits.max_speech_bytes, "pose")
    picture = reader.portrait(portrait, name=portrait_name, limits=limits)
    if speakers is not None:
        assert finder is not None, "faces are to be found"
        placed = place_speakers(
            speakers,
            picture.pixels,
            asked,
            finder,
            portrait_name,
            engine=preset.engine,
            reader=reader,
            limits=limits,
        )
    shown = framed(picture.pixels, asked, portrait_name, points=points, finder=finder)
    background = open_background(asked.background, shown.pixels, portrait_name, reader, limits)
    transparent = background.background == TRANSPARENT
    if transparent and burn_captions and captions:
        raise BadInput(
            "Captions cannot be burned into a transparent video.", "Choose captions beside it, or none."
        )
    height, width = shown.pixels.shape[:2]
    size = video_size(preset.engine, width, height, preset.generation.size)  # refuses what has no room for it
    check_upscale(made.upscale, size, transparent)
    smaller = smaller_video(width, height, preset, portrait_name)
    with ExitStack() as undo:
        _open_folder(work, "working", undo)
        wav, png = work / SPEECH, work / "portrait.png"
        undo.callback(png.unlink, missing_ok=True)
        files = [] if background.picture is None else [Path(asked.background)]
        files += [] if speech is None else [speech]
        files += [] if pose is None else [pose]
        inputs = (portrait, *files, *(speakers.files if speakers else ()))
        _check_output(output, inputs, bool(captions), undo, transparent)
        try:
            read = None
            if growing is None:
                voices = write_voices(
                    placed, speech, speech_name, work, reader=reader, limits=limits, undo=undo
                )
                heard = voices.speech
                if preset.generation.trim:
                    heard = trim(wav, heard, speech_name)
                num_frames, cut = _num_frames(heard.num_frames(FPS), preset, speech_name)
                expected, channels = num_frames, heard.num_channels + 2 * len(voices.speakers)
                speakers_said, notices = voices.speakers, (*heard.notices, *voices.notices, *cut)
            else:
                assert placed is None, "a text for several speakers is spoken first"
                assert pose is None, "a text that a pose video goes with is spoken first"
                num_frames, expected = most_frames(growing, preset, limits)
                speakers_said, channels, notices = (), 1, (GROWING,)
            _check_disk(expected, channels, preset, output, work, limits, transparent)
            if pose is not None:
                undo.callback((work / POSE_FILE).unlink, missing_ok=True)
                read = reader.pose(
                    pose, work / POSE_FILE, size=size, num_frames=num_frames, name=pose_name, limits=limits
                )
                notices = (*notices, *read.notices)
            behind = background.write(work)
            if behind is not None:
                undo.callback(behind.unlink, missing_ok=True)
            Image.fromarray(shown.pixels).save(png, compress_level=1)
        except OSError as error:
            log.exception("intake could not write")
            reason = error.strerror or type(error).__name__
            raise BadInput(
                f"The working folder cannot be written ({reason}).", "Free disk space or check it."
            ) from error
        undo.pop_all()
    return Request(
        portrait=png,
        speech=wav if growing is None or speech is None else speech,
        work=work,
        output=output,
        preset=preset,
        num_frames=num_frames,
        portrait_name=portrait_name,
        speech_name=speech_name,
        prompt=prompt,
        face_points=shown.points,
        head_only=head_only,
        face=shown.face,
        segment_s=float(segment_s),
        notices=(*picture.notices, *shown.notices, *smaller, *notices),
        captions=captions,
        burn_captions=burn_captions and bool(captions),
        spoken=spoken,
        background=background.background,
        background_picture=behind,
        growing=growing,
        speakers=speakers_said,
        other_faces=() if placed is None else placed.other_faces,
        background_name=background.name,
        pose=None if read is None else work / POSE_FILE,
        pose_name=pose_name or "" if read else "",
    )


def _check_points(points: Mapping[str, tuple[float, float]] | None) -> dict[str, tuple[float, float]] | None:
    """Fractions of width and height by name; which names there must be is the engine's to say."""
    if points is None:
        return None
    remedy = "Place the point again: each is [x, y] as fractions of the picture, from 0 to 1."
    if not isinstance(points, Mapping) or not points:
        raise BadInput("The face points are not understood.", remedy)
    out = {}
    for name, point in points.items():
        try:
            x, y = (float(value) for value in point)
        except (TypeError, ValueError, OverflowError) as error:
            raise BadInput(f"Face point {str(name)[:40]!r} is not understood.", remedy) from error
        if not (0 <= x <= 1 and 0 <= y <= 1):  # also refuses nan
            raise BadInput(f"Face point {str(name)[:40]!r} lies outside the picture.", remedy)
        out[str(name)] = (x, y)
    return out


def _check_output(
    output: Path, inputs: tuple[Path, ...], captions: bool, undo: ExitStack, transparent: bool
) -> None:
    """The place of the finished file: a video in a folder that can be written, and not one of the inputs.

    transparent: then a .webm or .mov; or an .mp4 that plays everywhere, with a .webm beside it.
    """
    name, suffix = display_name(output), output.suffix.lower()
    if suffix in TRANSPARENT_SUFFIXES and not transparent:
        raise BadInput(
            f"{name} cannot be the output.",
            "Give it a name that ends in .mp4; .webm and .mov are for --background transparent.",
        )
    if suffix not in (".mp4", *TRANSPARENT_SUFFIXES) or not output.stem.strip("."):
        endings = " or ".join(TRANSPARENT_SUFFIXES) if transparent else ".mp4"
        raise BadInput(f"{name} cannot be the output.", f"Give it a name that ends in {endings}.")
    if len(os.fsencode(output.name)) > LONGEST_NAME_BYTES or "\0" in output.name:
        raise BadInput(f"{name} is no usable name for the output.", "Choose a shorter, plain name.")
    if is_dir(output):
        raise BadInput(
            f"The output {name} is a folder.", f"Give the name of a file in it, ending in {suffix}."
        )
    if exists(output) and any(output.samefile(path) for path in inputs):
        raise BadInput(f"The output {name} would overwrite the input.", "Choose another name.")
    check_places(output, captions, (beside(output),) if transparent and suffix == ".mp4" else ())
    _open_folder(output.parent, "output", undo)


def _open_folder(folder: Path, kind: str, undo: ExitStack) -> None:
    """Make the folder if it is not there, to be unmade by undo, and try to write into it."""
    try:
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        for path in reversed(missing):
            path.mkdir(exist_ok=True)  # another job may make it just now
            undo.callback(_remove_if_empty, path)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise BadInput(f"The {kind} folder cannot be written ({reason}).", "Choose another one.") from error


def _remove_if_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _num_frames(of_speech: int, preset: Preset, speech_name: str) -> tuple[int, tuple[Notice, ...]]:
    """Frames to make: the speech's, or fewer where num_clip bounds them, and the user is notified."""
    g = preset.generation
    most = g.num_clip * g.infer_frames
    if not most or most >= of_speech:
        return of_speech, ()
    text = (
        f"The video ends after {minutes(most / FPS)} of the {minutes(of_speech / FPS)} of {speech_name}: "
        f"num_clip is {g.num_clip} clips of {g.infer_frames} frames."
    )
    values = {"name": speech_name, "seconds": f"{most / FPS:.1f}", "of": f"{of_speech / FPS:.1f}"}
    values |= {"num_clip": str(g.num_clip), "infer_frames": str(g.infer_frames)}
    return most, (Notice("num_clip", text, values=values),)


def _check_disk(
    num_frames: int,
    num_channels: int,
    preset: Preset,
    output: Path,
    work: Path,
    limits: InputLimits,
    transparent: bool,
) -> None:
    """Refuse when the video may not fit: segments and a first copy in work, the finished file in output."""
    folder = output.parent
    size = Size.parse(preset.generation.size)
    video = math.ceil(size.width * size.height * num_frames * _BITS_PER_PIXEL / 8)
    sound = math.ceil(num_frames / FPS * num_channels * _SOUND_BYTES_PER_S)
    needs = {work: 2 * video + sound, folder: video + sound // 4}
    if transparent:  # a draft and the finished file, besides
        per_pixel = _TRANSPARENT_BITS_PER_PIXEL.get(output.suffix.lower(), _BITS_PER_PIXEL)
        more = math.ceil(size.width * size.height * num_frames * per_pixel / 8)
        needs = {work: needs[work] + 2 * more, folder: needs[folder] + more}
    if preset.generation.upscale != "off":  # a program's result, and the finished file beside the one before
        more = math.ceil(UPSCALED_AREA * num_frames * _BITS_PER_PIXEL / 8)
        needs = {work: needs[work] + more, folder: needs[folder] + more}
    if work.stat().st_dev == folder.stat().st_dev:
        needs = {folder: sum(needs.values())}
    for place, need in needs.items():
        free = shutil.disk_usage(place).free
        if free < need + limits.min_free_bytes:
            raise BadInput(
                f"The disk is nearly full: about {megabytes(need + limits.min_free_bytes)} MB are needed,"
                f" {megabytes(free)} MB are free.",
                "Delete old videos, or choose shorter speech.",
            )
