"""The pipeline on ZeroGPU, which attaches a GPU for one run at a time: load on the CPU first, then move."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch

from avatar.errors import DoesNotFit
from avatar.events import PlanMade
from avatar.model.vae.tiny_decoder import TinyDecoder
from avatar.model.vae.vae import VideoVAE
from avatar.model.wav2vec2 import SpeechEncoder
from avatar.model.weights.checkpoint import CheckpointFiles
from avatar.model.weights.loading import Check
from avatar.pipeline.checkpoint_choice import find_files
from avatar.pipeline.components import Components
from avatar.pipeline.conditioning import ConditionEncoder, LocalTextEncoder
from avatar.pipeline.device import best_device, is_out_of_memory
from avatar.pipeline.model_loading import CheckpointModels
from avatar.pipeline.pipeline import DiffusionPipeline
from avatar.planning.placement import ALL_ON_GPU, Placement
from avatar.planning.plan import Plan
from avatar.planning.weight_format import settled_here
from avatar.preset import Preset
from avatar.request import Request
from avatar.runtime.engine import FrameItem
from avatar.runtime.out_of_memory import FallbackDescent
from avatar.runtime.resume_state import ResumeState

CPU = torch.device("cpu")


class ZeroGpuModels:
    """Models that are read into host memory before the runs, and moved to the GPU when there is one."""

    lasting = True
    placement: Placement | None = None

    def __init__(self, preset: Preset, weights: Path | None) -> None:
        self._preset, self._weights = settled_here(preset), weights
        self._checkpoint = CheckpointModels(preset, weights)
        self._ahead: Components | None = None
        self._files: CheckpointFiles | None = None
        self._folder: Path | None = None  # for the self-test's toy model

    def read(self) -> None:
        """Read all models except the prompt encoder. Raises: WeightsMissing, BadInput."""
        # Not TemporaryDirectory: a forked process that drops this object would remove the folder.
        self._folder = Path(tempfile.mkdtemp(prefix="avatar-zero-gpu-"))
        self._files = find_files(self._preset, self._weights, self._folder)
        self._ahead = Components.load(self._preset.memory, self._files, device=CPU)
        self._ahead.load_transformer()

    def load(self, request: Request, placement: Placement, check: Check) -> Components:
        """See Models. Moves the models to the GPU; reads them again if some of them must be offloaded."""
        files, memory = self._files, request.preset.memory
        ahead, self._ahead = self._ahead, None  # from now on they belong to the run
        read = self._preset.memory
        same = memory.weight_dtype == read.weight_dtype and memory.decoder == read.decoder
        as_read = same and placement == ALL_ON_GPU
        if ahead is None or files is None or not as_read:
            return self._checkpoint.load(request, placement, check)
        assert isinstance(ahead.conditions, ConditionEncoder)
        device, speech = best_device(), ahead.conditions.speech
        check()
        vae = VideoVAE(ahead.vae.model.to(device))  # type: ignore[arg-type]  # diffusers hides its own
        decoder = ahead.decoder.beside(vae) if isinstance(ahead.decoder, TinyDecoder) else vae
        speech = SpeechEncoder(speech.model.to(device), speech.normalise)
        check()
        transformer = ahead.load_transformer(check).to(device)
        places = {"gpu": device, "cpu": CPU}
        encode_text = LocalTextEncoder(files.text_encoder, places[memory.text_encoder], ahead.dtype)
        return replace(
            ahead,
            device=device,
            vae=vae,
            decoder=decoder,
            conditions=ConditionEncoder(files, vae, speech, encode_text),
            transformer=transformer,
            make_transformer=lambda check: ahead.make_transformer(check).to(device),
        )

    def close(self) -> None:
        """Free the models, and delete the toy model's folder."""
        self._ahead = None
        if self._folder is not None:
            shutil.rmtree(self._folder)
            self._folder = None


class ZeroGpuPipeline:
    """A FrameSource that stays in the web page's process between runs, and compiles nothing.

    Models that were moved to a GPU stay there for the next run, if the process that had the GPU still runs.
    """

    def __init__(self, preset: Preset, weights: Path | None = None) -> None:
        """See DiffusionPipeline."""
        self._models = ZeroGpuModels(preset, weights)
        self._pipeline = DiffusionPipeline(preset, weights, models=self._models, compiles=False)
        self.label = self._pipeline.label

    def load(self) -> None:
        """Read the models before a GPU is attached. Raises: WeightsMissing, BadInput."""
        self._models.read()

    def frames(self, request: Request, cancelled: Callable[[], bool]) -> Iterator[FrameItem]:
        """See FrameSource. A plan that does not fit steps the preset down before the run, never during it.

        Raises: DoesNotFit, also when memory runs out despite the plan: this process cannot be restarted.
        """
        state, descent = ResumeState.of(request), FallbackDescent(request)
        descent.skip(state.num_rungs)
        asked = state.rest(request, request.work)
        while _is_short(plan := self.plan_for(asked)):
            yield descent.step_down_planned(plan)
            state.num_rungs = descent.num_taken
            asked = state.rest(request, request.work)
        if state.num_rungs:
            yield PlanMade(plan)
        try:
            yield from self._pipeline.frames(asked, cancelled)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise DoesNotFit(
                "ZeroGPU ran out of memory.", "Choose a smaller size, or a preset that needs less."
            ) from error

    def plan_for(self, request: Request, cancelled: Callable[[], bool] = lambda: False) -> Plan:
        """See DiffusionPipeline. cancelled: unused, as planning here does not wait."""
        return self._pipeline.plan_for(request)

    def pinned_bytes(self) -> int:
        """See FrameSource."""
        return self._pipeline.pinned_bytes()

    def close(self) -> None:
        """See FrameSource."""
        self._pipeline.close()
        self._models.close()


def _is_short(plan: Plan) -> bool:
    """Whether an existing GPU lacks memory."""
    return any(gpu.total_bytes and gpu.shortfall_bytes for gpu in plan.gpus)
