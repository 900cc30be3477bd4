"""How channels are mixed: surround to stereo, and stereo to the one channel that an engine hears."""

from __future__ import annotations

import math

import numpy as np
from av.audio.layout import AudioLayout

_SIDE = math.sqrt(0.5)  # of what stands behind or above: half its power. Source: ITU-R BS.775
_LEFT = {"FL": 1.0, "FLC": 1.0, "DL": 1.0, "BL": _SIDE, "SL": _SIDE, "WL": _SIDE, "TFL": _SIDE, "TBL": _SIDE}
_RIGHT = {"FR": 1.0, "FRC": 1.0, "DR": 1.0, "BR": _SIDE, "SR": _SIDE, "WR": _SIDE, "TFR": _SIDE, "TBR": _SIDE}
# Speech is in the centre, and is to be as loud as it was there. Bass effects (LFE) are left out.
_BOTH = {"FC": 1.0, "BC": 0.5, "TC": 0.5, "TFC": 0.5, "TBC": 0.5}

_CANCELS = 1 / 8  # share of the louder channel's power below which a mix has lost what was said


def mix_matrix(layout: AudioLayout, num_channels: int) -> np.ndarray:
    """Weights of a layout's channels in mono or stereo, float32 (channels, num_channels).

    Channels in no known order of speakers are taken for microphones, and count alike.
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
            pair = np.full((count, 2), 1 / count)
    return (pair if num_channels == 2 else pair.mean(1, keepdims=True)).astype(np.float32)


def mono_weights(sound: np.ndarray) -> np.ndarray | None:
    """How to mix a stretch of sound (n, channels) for an engine, (channels,); None where it is silent.

    The mean, or the louder channel alone where the two cancel each other: one may be inverted, or late.
    """
    samples = sound.astype(np.float32)
    powers = np.square(samples).mean(0)
    if not powers.any():
        return None
    mean = np.full(samples.shape[1], 1 / samples.shape[1], np.float32)
    if np.square(samples @ mean).mean() >= _CANCELS * powers.max():
        return mean
    return np.eye(len(mean), dtype=np.float32)[int(powers.argmax())]
