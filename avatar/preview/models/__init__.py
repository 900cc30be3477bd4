"""The vendored ONNX models (see NOTICE)."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from avatar.media.onnx import open_onnx

if TYPE_CHECKING:
    import onnxruntime

FOLDER = Path(__file__).parent
FACE_TEMPLATE = FOLDER / "face_template.npy"  # (468, 3), frontal and symmetric, in units of face height


@cache
def session(name: str) -> onnxruntime.InferenceSession:
    """The model `name`.onnx of this folder, opened once, running on one CPU thread."""
    return open_onnx(FOLDER / f"{name}.onnx", threads=1)
