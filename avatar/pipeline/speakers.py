"""Several speakers for the model: their speech, and where in the frame each voice acts."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from avatar.geometry import BLOCK_LATENT_FRAMES, PATCH, VAE_SPACE_STRIDE, Size, covering_size
from avatar.media.speech_reader import SpeechReader, silence
from avatar.pipeline.conditioning import SpeechTrack
from avatar.request import Box, Request

SAMPLES = 4  # points along a token's side at which its share of each mask is taken
TOKEN_PX = VAE_SPACE_STRIDE * PATCH[1]


def speech_tracks(request: Request, open_files: ExitStack) -> list[SpeechTrack]:
    """The speech of each speaker, all as long as the whole: whoever is not heard is silent.

    open_files: closes them.
    """
    whole = open_files.enter_context(SpeechReader(request.speech))
    if not request.speakers:
        return [SpeechTrack(whole.listen, whole.num_samples_16k)]
    listens = [
        silence if one.voice is None else open_files.enter_context(SpeechReader(one.voice)).listen
        for one in request.speakers
    ]
    return [SpeechTrack(listen, whole.num_samples_16k) for listen in listens]


def speaker_masks(request: Request, stream: Size, size: Size) -> Tensor | None:
    """Where in a block each speaker's voice acts, S 3 rows columns float32 in 0..1; None for one speaker.

    A token belongs to the face to which it is nearest, in heights of that face: to nobody where that is one
    without a voice. A mask that a user has drawn holds that voice and no other. stream: the video's size;
    size: the model's.
    """
    if not request.speakers:
        return None
    with Image.open(request.portrait) as portrait:
        width, height = portrait.size
    boxes = [one.face for one in request.speakers]
    drawn = [one.mask for one in request.speakers]

    def seen(box: Box) -> Box:
        return _in_frame(box, width, height, stream)

    faces = [seen(box) for box in (*boxes, *request.other_faces)]
    masks = [None if mask is None else seen(mask) for mask in drawn]
    rows, columns = size.height // TOKEN_PX, size.width // TOKEN_PX
    y, x = (
        (np.arange(count * SAMPLES, dtype=np.float32) + 0.5) / (count * SAMPLES) for count in (rows, columns)
    )
    shares = _shares(faces, masks, x[None, :], y[:, None], stream.width / stream.height)
    shares = shares.reshape(len(boxes), rows, SAMPLES, columns, SAMPLES).mean(axis=(2, 4))
    of_frame = torch.from_numpy(np.ascontiguousarray(shares, dtype=np.float32))
    return of_frame[:, None].expand(-1, BLOCK_LATENT_FRAMES, -1, -1).contiguous()


def _shares(
    faces: Sequence[Box], masks: Sequence[Box | None], x: np.ndarray, y: np.ndarray, aspect: float
) -> np.ndarray:
    """Each speaker's share of points, S H W. x, y: in fractions of the frame, (1, W) and (H, 1)."""
    distances = [
        np.hypot((x - (left + right) / 2) * aspect, y - (top + bottom) / 2) / (bottom - top)
        for left, top, right, bottom in faces
    ]
    nearest = np.argmin(distances, axis=0)
    drawn = [
        None if mask is None else (x >= mask[0]) & (x < mask[2]) & (y >= mask[1]) & (y < mask[3])
        for mask in masks
    ]
    taken = np.any([one for one in drawn if one is not None] or [np.zeros(nearest.shape, bool)], axis=0)
    shares = np.stack(
        [
            (nearest == number) & ~taken if mask is None else np.broadcast_to(mask, nearest.shape)
            for number, mask in enumerate(drawn)
        ]
    ).astype(np.float32)
    return shares / np.maximum(shares.sum(axis=0), 1)  # where masks overlap, they share


def _in_frame(box: Box, width: int, height: int, frame: Size) -> Box:
    """A box of a portrait of width x height in the frame that it is scaled and cropped to, in fractions."""
    scaled = covering_size(width, height, frame)
    left, top = (scaled.width - frame.width) / 2, (scaled.height - frame.height) / 2
    return (
        (box[0] * scaled.width - left) / frame.width,
        (box[1] * scaled.height - top) / frame.height,
        (box[2] * scaled.width - left) / frame.width,
        (box[3] * scaled.height - top) / frame.height,
    )
