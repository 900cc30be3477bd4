"""How every ONNX model here is opened: on the CPU, quietly, and with nothing reported to anybody.

onnxruntime's packages send events to their maker and keep an identifier of the machine in the home folder,
unless `ORT_DISABLE_TELEMETRY` is set before it is imported (its Privacy.md).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnxruntime

_ERRORS_ONLY = 3


def report_to_nobody() -> None:
    """To be called before a library that imports onnxruntime by itself."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"


def open_onnx(model: Path | bytes, threads: int = 0) -> onnxruntime.InferenceSession:
    """model: a file, or what it holds. threads: of one operator; 0 for one a core.

    Raises: what onnxruntime says of a model that it cannot run.
    """
    report_to_nobody()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    if threads:
        options.intra_op_num_threads = options.inter_op_num_threads = threads
    content = str(model) if isinstance(model, Path) else model
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
