"""The pipeline where a GPU is lent for one run at a time: loaded on the CPU before, then moved to it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch

from avatar.errors import DoesNotFit
from avatar.events import PlanMade
from avatar.model.speech_encoder import SpeechEncoder
from avatar.model.vae.vae import VideoVAE
from avatar.model.weights.checkpoint import CheckpointFiles
from avatar.model.weights.loading import Check
from avatar.pipeline.checkpoint_choice import find_files
from avatar.pipeline.components import Components
from avatar.pipeline.conditions import ConditionEncoder, LocalTextEncoder
from avatar.pipeline.device import best_device, is_out_of_memory
from avatar.pipeline.pipeline import DiffusionPipeline
from avatar.planning.placement import ALL_ON_GPU, Placement
from avatar.planning.plan import Plan
from avatar.preset import Preset
from avatar.request import Request
from avatar.runtime.engine import FrameItem
from avatar.runtime.fallback import Descent
from avatar.runtime.resume_state import ResumeState

CPU = torch.device("cpu")


class LentPipeline(DiffusionPipeline):
    """See DiffusionPipeline; it lives in the page's own process between runs, and compiles nothing.

    Models that were moved to a GPU stay there for the next run, if the process that had it lives so long.
    """

    def __init__(self, preset: Preset, weights: Path | None = None) -> None:
        """See DiffusionPipeline."""
        super().__init__(preset, weights, self._moved)
        self._preset, self._compiles, self._keeps = preset, False, True
        self._ahead: Components | None = None
        self._files: CheckpointFiles | None = None
        self._folder: Path | None = None  # of the self-test's toy model

    def load(self) -> None:
        """Read all models but the prompt's encoder into the host's memory.

        Raises: WeightsMissing, BadInput.
        """
        # Not TemporaryDirectory, which a fork that has no more use for this object would remove.
        self._folder = Path(tempfile.mkdtemp(prefix="avatar-lent-"))
        self._files = find_files(self._preset, self._weights, self._folder)
        self._ahead = Components.load(self._preset.memory, self._files, device=CPU)
        self._ahead.load_transformer()

    def frames(self, request: Request, cancelled: Callable[[], bool]) -> Iterator[FrameItem]:
        """See FrameSource. Where the plan does not fit, rungs are taken before the run, none in its course.

        Raises: DoesNotFit, also where memory ran out all the same: this process cannot begin anew.
        """
        state, descent = ResumeState.of(request), Descent(request)
        descent.skip(state.num_rungs)
        asked = state.rest(request, request.work)
        while _is_short(plan := self.plan_for(asked)):
            yield descent.step_down_planned(plan)
            state.num_rungs = descent.num_taken
            asked = state.rest(request, request.work)
        if state.num_rungs:
            yield PlanMade(plan)
        try:
            yield from super().frames(asked, cancelled)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise DoesNotFit(
                "The lent GPU ran out of memory.", "Choose a smaller size, or a preset that needs less."
            ) from error

    def plan_for(self, request: Request, cancelled: Callable[[], bool] = lambda: False) -> Plan:
        """See DiffusionPipeline; nobody need wait for it."""
        return super().plan_for(request)

    def files(self, request: Request) -> CheckpointFiles:
        """See DiffusionPipeline: those that were loaded ahead."""
        return self._files or super().files(request)

    def close(self) -> None:
        """See FrameSource."""
        super().close()
        self._ahead = None
        if self._folder is not None:
            shutil.rmtree(self._folder)
            self._folder = None

    def _moved(self, request: Request, placement: Placement, check: Check) -> Components:
        """What was loaded ahead, on the GPU; read anew where some of it is to wait on the host."""
        files, memory = self._files, request.preset.memory
        ahead, self._ahead = self._ahead, None  # from now on they are the run's
        as_loaded = memory.weight_dtype == self._preset.memory.weight_dtype and placement == ALL_ON_GPU
        if ahead is None or files is None or not as_loaded:
            return self._from_checkpoint(request, placement, check)
        assert isinstance(ahead.conditions, ConditionEncoder)
        device, speech = best_device(), ahead.conditions.speech
        check()
        vae = VideoVAE(ahead.vae.model.to(device))  # type: ignore[arg-type]  # diffusers hides its own
        speech = SpeechEncoder(speech.model.to(device), speech.normalise)
        check()
        transformer = ahead.load_transformer(check).to(device)
        places = {"gpu": device, "cpu": CPU}
        encode_text = LocalTextEncoder(files.text_encoder, places[memory.text_encoder], ahead.dtype)
        conditions = ConditionEncoder(files, vae, speech, encode_text)
        return replace(
            ahead,
            device=device,
            vae=vae,
            conditions=conditions,
            transformer=transformer,
            make_transformer=lambda check: ahead.make_transformer(check).to(device),
        )


def _is_short(plan: Plan) -> bool:
    """Whether a card that is there lacks memory."""
    return any(gpu.total_bytes and gpu.shortfall_bytes for gpu in plan.gpus)
