"""Open ONNX models: on the CPU, logging errors only, with onnxruntime's telemetry off.

onnxruntime's packages send events to their vendor and keep a machine identifier in the home folder, unless
`ORT_DISABLE_TELEMETRY` is set before the import (its Privacy.md).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnxruntime

_ERRORS_ONLY = 3


def report_to_nobody() -> None:
    """Turn onnxruntime's telemetry off; call this before importing a library that imports onnxruntime."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"


def open_onnx(model: Path | bytes, threads: int = 0) -> onnxruntime.InferenceSession:
    """Open a model. model: a file, or its content. threads: per operator; 0 for one per core.

    Raises: onnxruntime's exceptions for a model that it cannot run.
    """
    report_to_nobody()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    if threads:
        options.intra_op_num_threads = options.inter_op_num_threads = threads
    content = str(model) if isinstance(model, Path) else model
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
