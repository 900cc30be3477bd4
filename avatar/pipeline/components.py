"""The models for a generation on one device: from a checkpoint, or with random weights for timing."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from avatar.checkpoints.locations import cache_folder
from avatar.checkpoints.transformer_config import ModelConfig
from avatar.model.transformer import StreamingTransformer
from avatar.model.vae.vae import VideoVAE
from avatar.model.weights.checkpoint import CheckpointFiles
from avatar.model.weights.loading import Check, go_on, load_transformer
from avatar.model.weights.weight_cache import is_cached, load_quantised
from avatar.pipeline.conditioning import EncodeText
from avatar.pipeline.decode import LatentDecoder
from avatar.pipeline.device import DTYPES, best_device, quantised_dtype
from avatar.pipeline.offload.block_layers import BlockLayers, load_beside_blocks
from avatar.pipeline.offload.host_layers import HostLayers, RingMemory, settle_on_host
from avatar.pipeline.side_models import Conditioner, SideModels
from avatar.planning.placement import ALL_ON_GPU, Placement, spread
from avatar.settings import Memory

log = logging.getLogger(__name__)


@dataclass
class Components:
    """The models of a generation, with their placement.

    decoder: what decodes, the VAE itself unless it is the tiny decoder.
    make_transformer: from a checkpoint or with random weights; offloaded layers are already on the host.
    transformer: None before it is loaded and after release. host_layers: its offloaded layers. ring_memory:
    host memory for offloaded rings, reused from run to run. files: the checkpoint, None for random weights.
    sides: those of these models that another transformer could be used with, None likewise.
    """

    device: torch.device
    dtype: torch.dtype
    vae: VideoVAE
    conditions: Conditioner
    make_transformer: Callable[[Check], StreamingTransformer]
    decoder: LatentDecoder
    placement: Placement = ALL_ON_GPU
    transformer: StreamingTransformer | None = None
    host_layers: HostLayers | None = None
    ring_memory: RingMemory = field(default_factory=RingMemory)
    files: CheckpointFiles | None = None
    sides: SideModels | None = None

    @classmethod
    def load(
        cls,
        memory: Memory,
        files: CheckpointFiles,
        check: Check = go_on,
        placement: Placement = ALL_ON_GPU,
        encode_text: EncodeText | None = None,
        device: torch.device | None = None,
        kept: SideModels | None = None,
    ) -> Components:
        """Load the side models; load_transformer loads the transformer.

        device: None for the best available one.
        kept: side models that serve, instead of loading them; see SideModels.key_of.
        encode_text: how ranks encode a prompt together; None: on the device that memory.text_encoder names.
        Raises: WeightsMissing, DoesNotFit when the host cannot lock the memory, whatever check raises.
        """
        device, dtype = device or best_device(), DTYPES[memory.weight_dtype]
        sides = kept or SideModels.load(memory, files, check, placement, encode_text, device)

        def make(check: Check) -> StreamingTransformer:
            config, format = ModelConfig.load(files.config), quantised_dtype(memory)
            if placement.layers_in_blocks:
                away = spread(config.num_layers, placement.layers_on_host)
                return load_beside_blocks(files, device, dtype, away, format=format, check=check)
            settle = settle_on_host(config, placement)
            if format is not None:
                return load_quantised(
                    files, device, dtype, format, folder=cache_folder(), settle=settle, check=check
                )
            return load_transformer(files, device, dtype, place=lambda *_: check(), settle=settle)

        return cls(
            device,
            dtype,
            sides.vae,
            sides.conditions,
            make,
            sides.decoder,
            placement,
            files=files,
            sides=sides,
        )

    def must_convert(self, memory: Memory) -> bool:
        """Whether the transformer is still to be merged and quantised, rather than read from the cache."""
        format = quantised_dtype(memory)
        if self.files is None or format is None:
            return False
        return not is_cached(self.files, cache_folder(), self.dtype, format)

    def load_transformer(self, check: Check = go_on) -> StreamingTransformer:
        """The transformer, loaded if necessary.

        Raises: WeightsMissing, DoesNotFit when the host cannot lock the memory, whatever check raises.
        """
        if self.transformer is None:
            log.info("loading the transformer")
            model = self.make_transformer(check).fuse()
            self.host_layers = self._offloaded(model, check)
            self.transformer = model
        return self.transformer

    def _offloaded(self, model: StreamingTransformer, check: Check) -> HostLayers | None:
        """The layers that the placement keeps on the host; None if there are none."""
        if not self.placement.layers_on_host:
            return None
        indices, ahead = (
            spread(model.config.num_layers, self.placement.layers_on_host),
            self.placement.layers_ahead,
        )
        if not self.placement.layers_in_blocks:
            return HostLayers(model, indices, ahead, self.device)
        assert self.files is not None
        return BlockLayers(model, indices, ahead, self.device, self.files, check)

    def release_transformer(self) -> None:
        """Free the transformer's memory; the next run loads it again."""
        self.transformer = self.host_layers = None
        self.ring_memory = RingMemory()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
