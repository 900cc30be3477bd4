"""Where a pipeline's models come from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from avatar.model.text_encoder import PromptTokenizer
from avatar.model.weights.checkpoint import CheckpointFiles
from avatar.model.weights.loading import Check
from avatar.pipeline.checkpoint_choice import find_files
from avatar.pipeline.components import Components
from avatar.pipeline.conditioning import EncodeText
from avatar.planning.placement import Placement
from avatar.preset import Preset
from avatar.request import Request

Make = Callable[[Request, Placement, Check], Components]


class Models(Protocol):
    """Makes the models that a request needs."""

    @property
    def lasting(self) -> bool:
        """Whether they may be kept for the next run."""
        ...

    @property
    def placement(self) -> Placement | None:
        """The only one that they come in, None for any."""
        ...

    def load(self, request: Request, placement: Placement, check: Check) -> Components:
        """The models, placed so; the transformer may come later.

        Raises: WeightsMissing, BadInput, DoesNotFit, what check raises.
        """
        ...


class CheckpointModels:
    """The models of a checkpoint: the named one, or the self-test's toy, built in each run's own folder."""

    placement: Placement | None = None

    def __init__(
        self,
        preset: Preset,
        weights: Path | None,
        text_encoder: Callable[[CheckpointFiles], EncodeText] | None = None,
    ) -> None:
        """weights: the checkpoint's folder, when named. text_encoder: None: where the preset says, alone."""
        self._weights, self._text_encoder = weights, text_encoder
        self.lasting = weights is not None or preset.requires.weights != "tiny"
        self.files: CheckpointFiles | None = None  # those that were loaded last

    def load(self, request: Request, placement: Placement, check: Check) -> Components:
        """See Models. The prompt is measured first."""
        self.files = files = find_files(request.preset, self._weights, request.work)
        PromptTokenizer(files.tokenizer)(request.prompt)
        encode_text = None if self._text_encoder is None else self._text_encoder(files)
        return Components.load(request.preset.memory, files, check, placement, encode_text)


@dataclass(frozen=True)
class MadeModels:
    """Models that a function makes, with random weights for example."""

    make: Make
    lasting: bool = True
    placement: Placement | None = None

    @classmethod
    def given(cls, parts: Components) -> MadeModels:
        """Models that are there already, as they are placed."""
        return cls(lambda *_: parts, placement=parts.placement)

    def load(self, request: Request, placement: Placement, check: Check) -> Components:
        """See Models."""
        return self.make(request, placement, check)
