"""A progressive JPEG whose last scan comes again and again: small to send, long to decode."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def many_scans(path: Path, side: int, repeats: int) -> Path:
    """side: of the picture, in pixels."""
    Image.fromarray(np.full((side, side, 3), 120, np.uint8)).save(path, progressive=True, quality=75)
    data = path.read_bytes()
    last = data.rindex(b"\xff\xda")
    before = max(data.rfind(b"\xff\xc4", 0, last), 0)  # with its table, if it has one of its own
    begin = before if b"\xff\xda" not in data[before:last] and before else last
    path.write_bytes(data[:-2] + data[begin:-2] * repeats + b"\xff\xd9")
    return path
