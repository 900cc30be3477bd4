"""What the engines of this version honour; a setting that an engine cannot honour is refused by name.

As the engines learn more, entries leave this file; nothing else has to change.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from avatar.errors import BadInput

if TYPE_CHECKING:
    from avatar.preset import Preset

_NO_CLIPS = "it works frame by frame, without clips"
_NO_MODEL = "it has no transformer whose memory could be arranged"
_NO_GPU = "it runs on the CPU alone"

PREVIEW_REFUSES: Mapping[str, str] = {
    "prompt": "it is driven by the sound alone and reads no prompt",
    "infer_frames": _NO_CLIPS,
    "num_clip": _NO_CLIPS,
    "sample_steps": "it has no denoising steps",
    "shift": "it has no denoising steps",
    "sample_guide_scale": "it has no denoising steps",
    "enable_online_decode": _NO_MODEL,
    "offload_model": _NO_MODEL,
    "weight_dtype": _NO_MODEL,
    "ring_dtype": _NO_MODEL,
    "attention_dtype": _NO_MODEL,
    "text_encoder": _NO_MODEL,
    "layout": _NO_GPU,
    "num_gpus_dit": _NO_GPU,
    "ulysses_size": _NO_GPU,
    "decode_gpu": _NO_GPU,
    "ckpt_dir": "it uses no checkpoint",
}
DIFFUSION_REFUSES: Mapping[str, str] = {
    "points": "it works without face points",
    "head_only": "its model moves the whole person",
}
REFUSES: Mapping[str, Mapping[str, str]] = {
    "preview": PREVIEW_REFUSES,
    "diffusion": DIFFUSION_REFUSES,
    "auto": {},
}


def refuse_settings(engine: str, given: Iterable[str]) -> None:
    """Check the settings that a user gave by hand against a preset's engine.

    Raises: BadInput naming the first that it cannot honour, with the reason.
    """
    for name in given:
        if reason := REFUSES[engine].get(name):
            raise BadInput(
                f"The {engine} engine cannot honour {name}: {reason}.",
                f"Leave {name} out, or choose a preset with another engine.",
            )


def unsupported(preset: Preset) -> list[str]:
    """What this preset asks for and this version does not do yet, a sentence each; empty: it does all."""
    if preset.engine != "diffusion":
        return []
    parallel = preset.parallel
    if preset.memory.offload_model and (parallel.num_gpus_dit > 1 or parallel.decode_gpu):
        return ["This version offloads on one GPU alone; it cannot honour offload_model True on several yet."]
    return []
