"""A short run of the full-size model with one fast path taken away.

`python -m tests.gpu.faulty_run FAULT FOLDER`, for PyTorch and Triton keep in a process what they have built.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import torch

from avatar.bench.random_parts import random_parts
from avatar.events import Notice
from avatar.geometry import FPS, Size
from avatar.media.intake import open_request
from avatar.media.sample_inputs import write_sample
from avatar.model import device_checks, linear_8bit, products_8bit
from avatar.model.kernels import selection
from avatar.pipeline.model_loading import MadeModels
from avatar.pipeline.pipeline import DiffusionPipeline
from avatar.planning.placement import Placement
from avatar.preset import load_preset

NUM_FRAMES = 57  # five blocks: rings of 16 frames are full
SMALL = load_preset("24gb").with_settings(size="384*256", infer_frames=16, sample_steps=2)
PRESET = SMALL.with_settings(ring_dtype="bf16", attention_dtype="bf16")
OF_FAULT = {  # what runs, where it is not PRESET
    "attention": SMALL.with_settings(attention_dtype="int8"),
    "float8_rings": PRESET.with_settings(ring_dtype="fp8"),  # nothing is taken away: the twin of "attention"
}
PLACEMENT = Placement(layers_on_host=8, side_models_on_host=True)


def refuse(*_: object, **__: object) -> None:
    raise RuntimeError("taken away by a test")


class Runtime:
    """CUDA's, but that it locks no memory."""

    def __init__(self) -> None:
        self._real = torch.cuda.cudart()

    def __getattr__(self, name: str) -> object:
        return getattr(self._real, name)

    def cudaHostRegister(self, address: int, num_bytes: int, flags: int) -> int:
        return 2


def take_away(fault: str, folder: Path) -> None:
    """Before anything runs."""
    os.environ["TRITON_CACHE_DIR"] = str(folder / "triton")
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "inductor")
    match fault:
        case "compile":
            (folder / "bin").mkdir()
            os.environ["PATH"] = str(folder / "bin")
            for name in ("CC", "CXX"):
                os.environ.pop(name, None)
        case "pinned":
            runtime = Runtime()
            torch.cuda.cudart = lambda: runtime
        case "fp8":
            products_8bit.multiply_float8 = linear_8bit.multiply_float8 = refuse
        case "cudnn":
            device_checks.cudnn_attention = refuse
        case "attention":
            selection._difference = refuse


def main(fault: str, folder: Path) -> None:
    """Save the frames, and print the codes of the notices."""
    take_away(fault, folder)
    preset = OF_FAULT.get(fault, PRESET)
    inputs = write_sample(folder, Size(384, 256), NUM_FRAMES / FPS)
    request = open_request(*inputs, preset, output=folder / "out.mp4", work=folder / "work", prompt="A face.")
    source = DiffusionPipeline(preset, models=MadeModels.given(random_parts(preset, PLACEMENT)))
    frames, reported = [], []
    for item in source.frames(request, lambda: False):
        if isinstance(item, np.ndarray):
            frames.append(item)
        elif isinstance(item, Notice):
            reported.append(item.code)
    np.save(folder / "frames.npy", np.concatenate(frames))
    sys.stdout.write(json.dumps(reported))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
