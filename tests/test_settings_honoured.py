"""Every setting, with every engine: it changes the video or the plan, or it is refused by name."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import soundfile

from avatar.errors import AvatarError, BadInput
from avatar.events import Finished
from avatar.geometry import SOUND_HZ
from avatar.hardware.inventory import Inventory
from avatar.media.intake import open_request
from avatar.pipeline.pipeline import DiffusionPipeline
from avatar.planning.planner import plan
from avatar.planning.preset_choice import choose
from avatar.preset import Preset, load_preset
from avatar.preview.source import PreviewSource
from avatar.runtime.stream import stream_frames
from avatar.runtime.upscaled_video import UpscaledVideo
from avatar.settings import SETTINGS, refusal

FACE = Path(__file__).parents[1] / "assets/portraits/astronaut.jpg"
SPEECH_S, SILENCE_S = 0.8, 0.5
ENGINES = {
    "preview": load_preset("cpu-preview").with_settings(size="128*128"),
    "diffusion": load_preset("self-test"),
}
IN_THE_VIDEO = {
    "size": "192*192",
    "seed": 7,
    "num_clip": 1,
    "trim": True,
    "motion": "lively",
    "upscale": "1080p",
    "infer_frames": 24,
    "sample_steps": 1,
    "shift": 9.0,
    "prompt": "A fox.",
    "lora": "nowhere.safetensors",
    "ring_dtype": "fp8",
    "attention_dtype": "int8",
    "weight_dtype": "bf16",
}
# What gives the same video: preset, the setting's value, and cards of so many GiB.
IN_THE_PLAN: dict[str, tuple[dict[str, Any], Any, tuple[int, float]]] = {
    "enable_online_decode": ({}, False, (1, 80)),
    "decoder": ({}, "tiny", (1, 80)),
    "offload_model": ({}, True, (1, 40)),
    "text_encoder": ({}, "cpu", (1, 80)),
    "layout": ({"num_gpus_dit": 4}, "layers", (4, 80)),
    "num_gpus_dit": ({"layout": "layers"}, 4, (4, 80)),
    "ulysses_size": ({"layout": "layers", "num_gpus_dit": 4}, 2, (4, 80)),
    "decode_gpu": ({"layout": "layers", "num_gpus_dit": 2}, True, (4, 80)),
}


def test_every_setting_is_looked_for_somewhere() -> None:
    assert IN_THE_VIDEO.keys() | IN_THE_PLAN.keys() == SETTINGS.keys()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A portrait and speech with silence before and after."""
    speech = tmp_path_factory.mktemp("inputs") / "speech.wav"
    hum = 0.3 * np.sin(np.arange(round(SPEECH_S * SOUND_HZ)) * 0.03)
    silence = np.zeros(round(SILENCE_S * SOUND_HZ))
    soundfile.write(speech, np.concatenate([silence, hum, silence]), SOUND_HZ)
    return FACE, speech


@pytest.fixture(scope="module")
def video(inputs: tuple[Path, Path], tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """From an engine and its preset to the frames of the finished video, uint8 (T, H, W, 3)."""

    @cache
    def made(preset: Preset) -> np.ndarray:
        folder = tmp_path_factory.mktemp("run")
        request = open_request(*inputs, preset, output=folder / "out.mp4", work=folder / "work")
        source = (
            PreviewSource() if preset.engine == "preview" else DiffusionPipeline(preset, tiny_checkpoint)
        )
        engine = SimpleNamespace(stream=lambda request: stream_frames(source, request))
        (finished,) = [e for e in UpscaledVideo(engine).stream(request) if isinstance(e, Finished)]
        return np.stack(list(frames_of(finished.video)))

    return made


def frames_of(path: Path) -> Iterator[np.ndarray]:
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format="rgb24")


@pytest.mark.slow
@pytest.mark.parametrize("name", IN_THE_VIDEO)
@pytest.mark.parametrize("engine", ENGINES)
def test_a_setting_changes_the_video_or_is_refused(engine: str, name: str, video: Any) -> None:
    base, value = ENGINES[engine], IN_THE_VIDEO[name]
    if reason := refusal(engine, name):
        refused_by_name(base, name, value, reason)
        return
    changed = base.with_settings(**{name: value})
    if name == "lora":  # merged by the engine, tested beside it
        with pytest.raises(AvatarError, match=value):
            video(changed)
        return
    before, after = video(base), video(changed)
    assert before.shape != after.shape or (before != after).any()


@pytest.mark.parametrize("name", IN_THE_PLAN)
def test_a_setting_changes_the_plan_or_is_refused(name: str) -> None:
    with_it, value, (num_gpus, vram_gib) = IN_THE_PLAN[name]
    machine, base = Inventory.imagine(num_gpus, vram_gib), load_preset("80gb").with_settings(**with_it)
    before, after = (plan(preset, machine) for preset in (base, base.with_settings(**{name: value})))
    assert before.devices != after.devices
    refused_by_name(ENGINES["preview"], name, value, refusal("preview", name))


def refused_by_name(preset: Preset, name: str, value: Any, reason: str) -> None:
    assert reason
    with pytest.raises(BadInput, match=f"cannot honour {name}: {reason}"):
        choose(preset.name, {name: value}, Inventory.imagine(0, 0))
