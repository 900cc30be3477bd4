"""The vendored ONNX models (see NOTICE) and how they are opened."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnxruntime

FOLDER = Path(__file__).parent
FACE_TEMPLATE = FOLDER / "face_template.npy"  # (468, 3), frontal and symmetric, in units of face height


@cache
def session(name: str) -> onnxruntime.InferenceSession:
    """The model `name`.onnx of this folder, opened once, on one CPU thread; onnxruntime reports to nobody."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(FOLDER / f"{name}.onnx", options, providers=["CPUExecutionProvider"])
