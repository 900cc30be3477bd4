"""Sources of a pipeline's models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from avatar.media.prompt import prompt_for
from avatar.model.text_encoder import PromptTokenizer
from avatar.model.weights.checkpoint import CheckpointFiles
from avatar.model.weights.loading import Check
from avatar.pipeline.checkpoint_choice import find_files
from avatar.pipeline.components import Components
from avatar.pipeline.conditioning import EncodeText
from avatar.pipeline.device import best_device
from avatar.pipeline.side_models import SideModels
from avatar.planning.placement import Placement
from avatar.preset import Preset
from avatar.request import Request

Make = Callable[[Request, Placement, Check], Components]


class Models(Protocol):
    """Loads the models that a request needs."""

    @property
    def lasting(self) -> bool:
        """Whether the models may be kept for the next run."""
        ...

    @property
    def placement(self) -> Placement | None:
        """The only placement that they support; None for any."""
        ...

    def load(self, request: Request, placement: Placement, check: Check) -> Components:
        """Load the models with the given placement; the transformer may be loaded later.

        Raises: WeightsMissing, BadInput, DoesNotFit, whatever check raises.
        """
        ...


class CheckpointModels:
    """The models of a checkpoint: a real one, or the self-test's toy, built in each run's work folder."""

    placement: Placement | None = None

    def __init__(
        self,
        preset: Preset,
        weights: Path | None,
        text_encoder: Callable[[CheckpointFiles], EncodeText] | None = None,
    ) -> None:
        """weights: the checkpoint's folder, if given. text_encoder: None for one device (see the preset)."""
        self._weights, self._text_encoder = weights, text_encoder
        self.lasting = weights is not None or preset.requires.weights != "tiny"
        self.files: CheckpointFiles | None = None  # loaded last
        self._sides: SideModels | None = None  # of the last load, for one that only needs another transformer

    def load(self, request: Request, placement: Placement, check: Check) -> Components:
        """See Models. The prompt's length is checked first."""
        self.files = files = find_files(request.preset, self._weights, request.work)
        PromptTokenizer(files.tokenizer)(prompt_for(request))
        encode_text = None if self._text_encoder is None else self._text_encoder(files)
        memory, device = request.preset.memory, best_device()
        if self._sides is not None and self._sides.key != SideModels.key_of(memory, files, placement, device):
            self._sides = None  # freed before others are loaded
        parts = Components.load(memory, files, check, placement, encode_text, device, self._sides)
        self._sides = parts.sides if self.lasting and encode_text is None else None
        return parts


@dataclass(frozen=True)
class MadeModels:
    """Models that a function makes, for example with random weights."""

    make: Make
    lasting: bool = True
    placement: Placement | None = None

    @classmethod
    def given(cls, parts: Components) -> MadeModels:
        """Models that are already loaded, with their current placement."""
        return cls(lambda *_: parts, placement=parts.placement)

    def load(self, request: Request, placement: Placement, check: Check) -> Components:
        """See Models."""
        return self.make(request, placement, check)
