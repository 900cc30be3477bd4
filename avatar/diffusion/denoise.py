"""Denoising blocks on one device: layers with their caches, one work item (block, step) at a time.

LayerStack is any run of consecutive layers, so that a pipeline stage can own some of them; LocalDenoiser owns all.
Neither knows of noise, audio files, decoding or the order of blocks: rollout does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from avatar.diffusion.schedule import Schedule
from avatar.errors import BadInput
from avatar.geometry import BLOCK_LATENT_FRAMES, Geometry
from avatar.models.attention import attention
from avatar.models.audio_encoder import AudioTokens, Injection, InjectionContext
from avatar.models.kv_cache import KeysValues, LayerCache, Ring, window
from avatar.models.layer import TransformerLayer
from avatar.models.rope import REFERENCE_TIME, ConditionTable, block_table, reference_time, rotate
from avatar.models.transformer import StreamingTransformer, TimeEmbedding


@dataclass(frozen=True)
class Conditions:
    """What a generation is conditioned on, encoded once.

    text: L C of the prompt's own tokens. reference: 16 1 h w. motion: 16 19 h w. audio: S 25 C T, one feature for each
    video frame, T of any length (zeros follow). pose: 16 F h w for the whole video, or None. masks: S 3 rows columns in
    0..1, which speaker speaks where; needed when S > 1.
    """

    text: Tensor
    reference: Tensor
    motion: Tensor
    audio: Tensor
    pose: Tensor | None = None
    masks: Tensor | None = None

    def __post_init__(self) -> None:
        num_speakers = len(self.audio)
        if num_speakers > 1 and self.masks is None:
            raise BadInput(f"{num_speakers} speakers need a mask each.", "Give masks that say who speaks where.")
        if self.masks is not None and len(self.masks) != num_speakers:
            raise BadInput(f"{len(self.masks)} masks for {num_speakers} speakers.", "Give one mask for each speaker.")


@dataclass(frozen=True)
class Block:
    """One block to denoise.

    noise: 16 3 h w float32, on the CPU. audio: S 25 C 12. pose: 16 3 h w or None. distances: for each step the
    reference's distance in latent frames.
    """

    index: int
    noise: Tensor
    audio: Tensor
    pose: Tensor | None
    distances: tuple[int, ...]

    @property
    def first_frame(self) -> int:
        """The index in the video of the block's first latent frame."""
        return self.index * BLOCK_LATENT_FRAMES


class Denoiser(Protocol):
    """Turns blocks of noise into latents, on one device or spread over several, with the same result."""

    geometry: Geometry
    schedule: Schedule
    device: torch.device
    num_in_flight: int  # blocks that may be submitted before the first of them is collected

    def begin(self, conditions: Conditions) -> None:
        """Start a generation: fresh rings, text and condition caches."""
        ...

    def refresh(self, reference: Tensor) -> None:
        """Replace the reference latent, 16 1 h w, for the blocks submitted from now on."""
        ...

    def submit(self, block: Block) -> None:
        """Hand over the next block."""
        ...

    def collect(self, check: Callable[[], None]) -> Tensor:
        """The latents of the oldest submitted block, 16 3 h w float32; check is called before each step."""
        ...


class Item(NamedTuple):
    """The work item (block, step) as every layer sees it.

    modulation: 6 C float32. table, condition_table: rotary tables of the block's and the condition's tokens.
    """

    block: int
    step: int
    modulation: Tensor
    table: Tensor
    condition_table: Tensor
    audio: AudioTokens
    masks: Tensor | None


@dataclass(frozen=True)
class Pieces:
    """The code between attentions, compiled or not; every layer goes through the same functions."""

    project: Callable[..., tuple[Tensor, KeysValues]] = TransformerLayer.project_rotated
    window: Callable[..., KeysValues] = window
    after_self_attention: Callable[..., tuple[Tensor, Tensor]] = TransformerLayer.after_self_attention
    after_cross_attention: Callable[..., Tensor] = TransformerLayer.after_cross_attention
    audio_query: Callable[..., Tensor] = Injection.query
    audio_add: Callable[..., Tensor] = Injection.add

    @classmethod
    def compiled(cls, **options: Any) -> Pieces:
        """Each piece as one graph of static shapes, built at its first use. options: torch.compile's."""
        eager = cls()
        return cls(
            **{name: torch.compile(f, fullgraph=True, dynamic=False, **options) for name, f in vars(eager).items()}
        )


@dataclass
class LayerStack:
    """A run of consecutive layers and what they keep during one generation.

    visit: entered around the use of each layer with its index; an offloader makes the layer resident there.
    """

    transformer: StreamingTransformer
    geometry: Geometry
    num_steps: int
    layers: range
    pieces: Pieces = field(default_factory=Pieces)
    ring_dtype: torch.dtype | None = None  # None: the residual stream's
    visit: Callable[[int], AbstractContextManager[Any]] = lambda layer: nullcontext()

    def __post_init__(self) -> None:
        self.caches: dict[int, LayerCache] = {}
        self.injections = {i: self.transformer.audio_injector.after_layer(i) for i in self.layers}
        self._audio: dict[tuple[int, int], InjectionContext] = {}  # by block and layer

    def begin(self, text: Tensor) -> None:
        """Forget the last generation. text: the embedded prompt, L C."""
        self.caches.clear()
        self._audio.clear()
        config, device = self.transformer.config, self.transformer.device
        dtype = self.ring_dtype or self.transformer.dtype
        for index, layer in self._visited():
            rings = [
                Ring.allocate(self.geometry, config.num_heads, config.head_dim, dtype, device)
                for _ in range(self.num_steps)
            ]
            self.caches[index] = LayerCache(layer.cross_attn.keys_values(text), rings)

    def prefill(self, x: Tensor, modulation: Tensor, table: Tensor) -> Tensor:
        """Run the condition tokens, N C, and keep each layer's keys and values, keys not rotated."""
        for index, layer in self._visited():
            cache = self.caches[index]
            q, own = layer.project(x, modulation)
            cache.condition = own
            attended = _attend(rotate(q, table), KeysValues(rotate(own.k, table), own.v))
            x, query = layer.after_self_attention(x, attended, modulation)
            x = layer.after_cross_attention(x, _attend(query, cache.text), modulation)
        return x

    def forward(self, x: Tensor, item: Item) -> Tensor:
        """Run a block's tokens, N C, through the layers at one step; the step's rings take in the block."""
        pieces = self.pieces
        for index, layer in self._visited():
            cache = self.caches[index]
            q, own = pieces.project(layer, x, item.modulation, item.table)
            attended = _attend(q, self._window(cache, own, item))
            x, query = pieces.after_self_attention(layer, x, attended, item.modulation)
            x = pieces.after_cross_attention(layer, x, _attend(query, cache.text), item.modulation)
            injection = self.injections[index]
            if injection is not None:
                context = self._injection_context(injection, index, item)
                query = pieces.audio_query(injection, x, context.shift, context.scale)
                x = pieces.audio_add(injection, x, attention(query, *context.audio), item.masks)
        return x

    def _window(self, cache: LayerCache, own: KeysValues, item: Item) -> KeysValues:
        ring, condition = cache.rings[item.step], cache.condition
        assert condition is not None, "prefill comes before the first block"
        whole = self.pieces.window(own, condition, item.condition_table, KeysValues(ring.k, ring.v))
        num_tokens = len(condition.k) + len(own.k) + ring.num_valid * self.geometry.frame_tokens
        ring.append(own)
        return KeysValues(whole.k[:num_tokens], whole.v[:num_tokens])

    def _injection_context(self, injection: Injection, layer: int, item: Item) -> InjectionContext:
        key = (item.block, layer)
        if key not in self._audio:
            self._audio[key] = injection.context(item.audio)
        last = item.step == self.num_steps - 1
        return self._audio.pop(key) if last else self._audio[key]

    def _visited(self) -> Iterable[tuple[int, TransformerLayer]]:
        for index in self.layers:
            with self.visit(index):
                yield index, self.transformer.blocks[index]


class LocalDenoiser:
    """All layers on one device, one block after another."""

    num_in_flight = 1

    def __init__(
        self,
        transformer: StreamingTransformer,
        geometry: Geometry,
        schedule: Schedule,
        *,
        pieces: Pieces | None = None,
        ring_dtype: torch.dtype | None = None,
    ) -> None:
        self.transformer, self.geometry, self.schedule = transformer, geometry, schedule
        self.device = transformer.device
        layers = range(transformer.config.num_layers)
        self.stack = LayerStack(
            transformer, geometry, schedule.num_steps, layers, pieces or Pieces(), ring_dtype=ring_dtype
        )
        self._submitted: list[Block] = []

    @torch.no_grad()
    def begin(self, conditions: Conditions) -> None:
        """See Denoiser. All that depends on neither block nor anchor is computed here."""
        model, head_dim = self.transformer, self.transformer.config.head_dim
        self._submitted.clear()
        self._motion = conditions.motion.to(self.device)
        self._masks = mask_tokens(conditions.masks, self.device, model.dtype)
        self._times = [model.embed_time(t) for t in self.schedule.timesteps]
        self._condition_time = model.embed_time(0.0)
        self._condition_table = ConditionTable(self.geometry, head_dim, self.device)
        self.stack.begin(model.embed_text(conditions.text.to(self.device)))
        self.refresh(conditions.reference)

    @torch.no_grad()
    def refresh(self, reference: Tensor) -> None:
        """See Denoiser."""
        tokens = self.transformer.embed_condition(reference.to(self.device), self._motion)
        self.stack.prefill(tokens, self._condition_time.layers, self._condition_table.at(REFERENCE_TIME))

    def submit(self, block: Block) -> None:
        """See Denoiser."""
        self._submitted.append(block)

    @torch.no_grad()
    def collect(self, check: Callable[[], None] = lambda: None) -> Tensor:
        """See Denoiser."""
        block, model = self._submitted.pop(0), self.transformer
        latents = block.noise.to(self.device, non_blocking=True)
        pose = None if block.pose is None else block.pose.to(self.device)
        audio = model.casual_audio_encoder(block.audio.to(self.device))
        table = block_table(self.geometry, block.first_frame, model.config.head_dim, self.device)
        for step, time in enumerate(self._times):
            check()
            moved = self._condition_table.at(reference_time(block.first_frame, block.distances[step]))
            item = Item(block.index, step, time.layers, table, moved, audio, self._masks)
            latents = self.schedule.advance(latents, self._velocity(latents, pose, item, time), step)
        return latents

    def _velocity(self, latents: Tensor, pose: Tensor | None, item: Item, time: TimeEmbedding) -> Tensor:
        x = self.stack.forward(self.transformer.embed_block(latents, pose), item)
        return self.transformer.velocity(x, time.head, self.geometry)


def mask_tokens(masks: Tensor | None, device: torch.device, dtype: torch.dtype) -> Tensor | None:
    """Speakers' masks, S F rows columns, as S N 1."""
    return None if masks is None else masks.to(device, dtype).flatten(1)[..., None]


def _attend(q: Tensor, keys: KeysValues) -> Tensor:
    """Attention without a batch: N h d."""
    return attention(q[None], keys.k[None], keys.v[None])[0]
