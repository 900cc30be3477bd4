"""Channel mixing: surround to stereo, and stereo to the mono that engines take as input."""

from __future__ import annotations

import math

import numpy as np
from av.audio.layout import AudioLayout

_SIDE = math.sqrt(0.5)  # weight of speakers behind or above: half their power. Source: ITU-R BS.775
_LEFT = {"FL": 1.0, "FLC": 1.0, "DL": 1.0, "BL": _SIDE, "SL": _SIDE, "WL": _SIDE, "TFL": _SIDE, "TBL": _SIDE}
_RIGHT = {"FR": 1.0, "FRC": 1.0, "DR": 1.0, "BR": _SIDE, "SR": _SIDE, "WR": _SIDE, "TFR": _SIDE, "TBR": _SIDE}
# Speech is in the centre channel and keeps its loudness. Bass effects (LFE) are left out.
_BOTH = {"FC": 1.0, "BC": 0.5, "TC": 0.5, "TFC": 0.5, "TBC": 0.5}

_CANCELS = 1 / 8  # a mix below this share of the louder channel's power has lost the speech


def mix_matrix(layout: AudioLayout, num_channels: int) -> np.ndarray:
    """Weights that mix a layout's channels to mono or stereo, float32 (channels, num_channels).

    Channels of an unknown layout are taken for microphones: added up, so that a single one that is spoken
    into keeps its loudness.
    """
    names = [channel.name for channel in layout.channels]
    count = layout.nb_channels
    if count == 1:
        pair = np.ones((1, 2))
    elif count == 2:
        pair = np.eye(2)
    else:
        pair = np.array(
            [[side.get(name, _BOTH.get(name, 0.0)) for side in (_LEFT, _RIGHT)] for name in names]
        )
        if not pair.any(0).all():
            pair = np.ones((count, 2))
    return (pair if num_channels == 2 else pair.mean(1, keepdims=True)).astype(np.float32)


def mono_weights(sound: np.ndarray) -> np.ndarray | None:
    """Weights that mix sound (n, channels) to mono for an engine, (channels,); None for silence.

    The mean, or the louder channel alone where the two cancel out: one may be inverted or delayed.
    """
    samples = sound.astype(np.float32)
    powers = np.square(samples).mean(0)
    if not powers.any():
        return None
    mean = np.full(samples.shape[1], 1 / samples.shape[1], np.float32)
    if np.square(samples @ mean).mean() >= _CANCELS * powers.max():
        return mean
    return np.eye(len(mean), dtype=np.float32)[int(powers.argmax())]
