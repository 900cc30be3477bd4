"""Several speakers for the model: their speech, and where in the frame each voice acts."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from io import BytesIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from avatar.geometry import BLOCK_LATENT_FRAMES, PATCH, VAE_SPACE_STRIDE, Size, shown_part, within_part
from avatar.media.speech_reader import SpeechReader, silence
from avatar.pipeline.conditioning import SpeechTrack
from avatar.request import Box, Request, Speaker

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
    without a voice. A mask, a box or painted, holds that voice and no other. stream: the video's size;
    size: the model's.

    The public code masks voices as well, by the persons that SAM 2 tracks in a video: each voice acts in all
    of the picture but the other persons, so that all voices act on what is behind them. Source:
    Alibaba-Quark/LiveAvatar liveavatar/models/wan/causal_s2v_pipeline.py.
    """
    if not request.speakers:
        return None
    with Image.open(request.portrait) as portrait:
        width, height = portrait.size
    seen = shown_part(width, height, stream)
    rows, columns = size.height // TOKEN_PX, size.width // TOKEN_PX
    y, x = (
        (np.arange(count * SAMPLES, dtype=np.float32) + 0.5) / (count * SAMPLES) for count in (rows, columns)
    )
    boxes = (*(one.face for one in request.speakers), *request.other_faces)
    faces = [within_part(box, seen) for box in boxes]
    drawn = [_drawn(one, seen, x[None, :], y[:, None]) for one in request.speakers]
    shares = _shares(faces, drawn, x[None, :], y[:, None], stream.width / stream.height)
    shares = shares.reshape(len(drawn), rows, SAMPLES, columns, SAMPLES).mean(axis=(2, 4))
    of_frame = torch.from_numpy(np.ascontiguousarray(shares, dtype=np.float32))
    return of_frame[:, None].expand(-1, BLOCK_LATENT_FRAMES, -1, -1).contiguous()


def _shares(
    faces: Sequence[Box], drawn: Sequence[np.ndarray | None], x: np.ndarray, y: np.ndarray, aspect: float
) -> np.ndarray:
    """Each speaker's share of points, S H W. x, y: in fractions of the frame, (1, W) and (H, 1).

    drawn: the speakers' masks at these points, H W in 0..1, where they have any.
    """
    distances = [
        np.hypot((x - (left + right) / 2) * aspect, y - (top + bottom) / 2) / (bottom - top)
        for left, top, right, bottom in faces
    ]
    nearest = np.argmin(distances, axis=0)
    free = 1 - np.max([one for one in drawn if one is not None] or [np.zeros(nearest.shape)], axis=0)
    shares = np.stack(
        [(nearest == number) * free if mask is None else mask for number, mask in enumerate(drawn)]
    ).astype(np.float32)
    return shares / np.maximum(shares.sum(axis=0), 1)  # where masks overlap, they share


def _drawn(one: Speaker, seen: Box, x: np.ndarray, y: np.ndarray) -> np.ndarray | None:
    """A speaker's mask at points of the frame, H W in 0..1; None without one. seen: see shown_part."""
    if one.painted is not None:
        with Image.open(BytesIO(one.painted)) as mask:
            place = tuple(side * (mask.width, mask.height)[at % 2] for at, side in enumerate(seen))
            pixels = mask.resize((x.size, y.size), Image.Resampling.BOX, box=place)
        return np.asarray(pixels, np.float32) / 255
    if one.mask is None:
        return None
    left, top, right, bottom = within_part(one.mask, seen)
    return ((x >= left) & (x < right) & (y >= top) & (y < bottom)).astype(np.float32)
