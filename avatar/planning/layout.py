"""How one stream is divided among ranks: which rank has which layers, steps and heads. Pure, no torch.

The transformer's ranks form a grid: consecutive stages, each of which is a group of ranks that split its work
by heads. The stages of a pipeline differ in their layers, or in their denoising steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import accumulate, pairwise
from typing import Literal

from avatar.checkpoints.transformer_config import ModelConfig
from avatar.errors import BadInput
from avatar.geometry import Geometry, Size
from avatar.preset import Preset

Kind = Literal["local", "layers", "timesteps", "ulysses", "fsdp"]

# The time to decode one block, in units of one layer at one step, by weight format: on an H200 at 704*384
# decoding takes 72 ms, and about 85 where it overlaps with denoising; one layer at one step, in a stage that
# is never idle, takes 4.9 ms in bf16 and 3.9 in fp8; int8 is taken to be like it.
DECODE_LAYERS = {"bf16": 17, "fp8": 22, "int8": 22, "8bit": 22, "fp32": 17}
TINY_DECODE_LAYERS = 2  # by the tiny decoder, whatever the format: 7.7 ms
SPARE_ITEMS = 2  # in flight in a pipeline beyond one per stage, because a stage now and then takes longer
SPREAD_BLOCKS = 4  # after every 4 blocks, those in flight move one item further apart
TYPICAL = Geometry.of(Size(704, 384), 48)  # the geometry for which the stages are balanced


@dataclass(frozen=True)
class Role:
    """One transformer rank's part of the work. peer: its index in its group. layers: those that it holds.

    span: the part of them that it computes, counted in steps of layers: layer 5 at step 1 of 4 is 21. The
    first and last layer may be shared with the neighbouring stage, which computes their other steps;
    shares_last: whether the last one is.
    """

    stage: int
    peer: int
    layers: range
    steps: range
    heads: range
    span: range
    num_steps: int
    shares_last: bool = False

    def layers_at(self, step: int) -> range:
        """The layers that the rank computes at a step."""
        start, stop = (-((step - end) // self.num_steps) for end in (self.span.start, self.span.stop))
        return range(start, stop)

    @property
    def num_rings(self) -> int:
        """The number of KV rings: one per layer and step that the rank computes."""
        return sum(len(self.layers_at(step)) for step in self.steps)


@dataclass(frozen=True)
class Layout:
    """The parallel degrees and, given a model's config and a number of steps, every rank's role.

    Rank 0 always coordinates: it encodes the conditions, decodes, and hands out the work. decodes_apart: it
    holds no part of the transformer; otherwise it is also the first rank of the first stage.
    """

    kind: Kind = "local"
    num_stages: int = 1
    group_size: int = 1
    decodes_apart: bool = False
    num_steps: int = field(default=4, compare=False)
    decode_layers: int = field(default=DECODE_LAYERS["bf16"], compare=False)
    config: ModelConfig = field(default_factory=ModelConfig, compare=False)

    @classmethod
    def of(cls, preset: Preset) -> Layout:
        """The layout that a preset's settings describe. Raises: BadInput with a combination that is valid."""
        p, num_steps = preset.parallel, preset.generation.sample_steps
        gpus, group = p.num_gpus_dit, p.ulysses_size
        if gpus % group:
            raise BadInput(
                f"num_gpus_dit {gpus} does not divide into groups of ulysses_size {group}.",
                f"Take num_gpus_dit {-(-gpus // group) * group}, "
                f"or ulysses_size {_largest_divisor(gpus, group)}.",
            )
        kind: Kind = p.layout if p.layout != "local" or gpus == 1 else _meant(gpus, group)
        if kind in ("ulysses", "fsdp"):
            if group not in (1, gpus):  # 1 is the default
                raise BadInput(
                    f"{kind} shares all work among all {gpus} GPUs, not among groups of {group}.",
                    f"Take ulysses_size {gpus}; or layers or timesteps, whose stages may be groups.",
                )
            group = gpus
        memory = preset.memory
        decode_layers = TINY_DECODE_LAYERS if memory.decoder == "tiny" else DECODE_LAYERS[memory.weight_dtype]
        layout = cls(kind, gpus // group, group, p.decode_gpu, num_steps, decode_layers)
        layout.require_steps(num_steps)
        if preset.memory.text_encoder == "sharded" and layout.world_size == 1:
            raise BadInput(
                "text_encoder sharded (--t5_fsdp) spreads the prompt encoder over several GPUs; here is one.",
                "Take num_gpus_dit 2 or more, or enable_vae_parallel; or text_encoder gpu or cpu.",
            )
        return layout.for_model(layout.config)

    def for_model(self, config: ModelConfig) -> Layout:
        """The same layout for another model. Raises: BadInput when it has too few layers or heads."""
        if self.kind == "layers" and self.num_stages > config.num_layers:
            raise BadInput(
                f"{config.num_layers} layers cannot be spread over {self.num_stages} stages.",
                f"Take num_gpus_dit {config.num_layers * self.group_size} or less.",
            )
        if self.group_size > config.num_heads:
            raise BadInput(
                f"{config.num_heads} heads cannot be shared by {self.group_size} GPUs.",
                f"Take ulysses_size {config.num_heads} or less.",
            )
        return replace(self, config=config)

    def require_steps(self, num_steps: int) -> None:
        """Raises: BadInput when there are more stages than steps to share among them."""
        if self.kind == "timesteps" and self.num_stages > num_steps:
            gpus = num_steps * self.group_size
            raise BadInput(
                f"timesteps gives every stage a step: {self.num_stages} stages, {num_steps} steps.",
                f"Take num_gpus_dit {gpus}, and enable_vae_parallel for one more GPU; or the layout layers.",
            )

    @property
    def world_size(self) -> int:
        """The number of ranks, including rank 0."""
        return self.num_stages * self.group_size + self.decodes_apart

    @property
    def workers(self) -> range:
        """The ranks that compute the transformer, stage by stage."""
        return range(int(self.decodes_apart), self.world_size)

    def ranks_of(self, stage: int) -> range:
        """The ranks of a stage's group."""
        start = self.workers.start + stage * self.group_size
        return range(start, start + self.group_size)

    def role_of(self, rank: int, num_steps: int | None = None) -> Role | None:
        """A rank's role in a run of num_steps; None for a rank that only decodes."""
        if rank not in self.workers:
            return None
        stage, peer = divmod(rank - self.workers.start, self.group_size)
        num_steps = self.num_steps if num_steps is None else num_steps
        steps, span = range(num_steps), range(self.config.num_layers * self.num_steps)
        if self.kind == "layers":
            span = self._spans()[stage]
        if self.kind == "timesteps":
            steps = even_parts(num_steps, self.num_stages)[stage]
        return Role(
            stage=stage,
            peer=peer,
            layers=range(span.start // self.num_steps, -(-span.stop // self.num_steps)),
            steps=steps,
            heads=even_parts(self.config.num_heads, self.group_size)[peer],
            span=range(self._in_steps(span.start, num_steps), self._in_steps(span.stop, num_steps)),
            num_steps=num_steps,
            shares_last=span.stop % self.num_steps > 0,
        )

    def chain_of(self, step: int, num_steps: int) -> range:
        """The stages that a block passes through at a step, in order."""
        if self.kind == "timesteps":
            steps = even_parts(num_steps, self.num_stages)
            stage = next(stage for stage in range(self.num_stages) if step in steps[stage])
            return range(stage, stage + 1)
        return range(self.num_stages)

    def moves_after(self, step: int, num_steps: int) -> bool:
        """Whether the next step begins on another stage than the one where this step ends."""
        return self.chain_of(step, num_steps)[-1] != self.chain_of(step + 1, num_steps)[0]

    @property
    def most_items(self) -> int:
        """How many items may be in flight at once."""
        return self.num_stages + (SPARE_ITEMS if self._chains else 1)

    def lag_of(self, step: int, num_steps: int) -> int:
        """By how many blocks a block at this step trails the one at step 0, when all stages are busy.

        layers: a block's next step waits for its previous one, so all other items that may be in flight must
        lie between the two; with one block per step, each diagonal has num_steps of them.
        """
        if self.kind == "timesteps":
            return self.chain_of(step, num_steps).start
        return step * -(-(self.most_items - 1) // num_steps) if self._chains else 0

    def place_of(self, block: int, step: int, num_steps: int) -> int:
        """The diagonal on which an item is handed out: the block's number in the run plus its lag.

        The first blocks of a pipeline are packed just densely enough to keep all stages busy, so that the
        first frames come sooner; later blocks move gradually further apart.
        """
        lag = self.lag_of(step, num_steps)
        if self._chains:
            lag = min(lag, step * -(-(self.num_stages - 1) // num_steps) + block // SPREAD_BLOCKS)
        return block + lag

    def spread_from(self, num_steps: int) -> int:
        """The first block from which all blocks in flight have their final spacing."""
        last = num_steps - 1
        blocks = range(SPREAD_BLOCKS * last + 1)
        return next(
            b for b in blocks if self.place_of(b, last, num_steps) == b + self.lag_of(last, num_steps)
        )

    @property
    def _chains(self) -> bool:
        """Whether an item passes through several stages."""
        return self.kind == "layers" and self.num_stages > 1

    def describe(self, rank: int) -> str:
        """A rank's part in a few words, for progress and error messages."""
        role, parts = self.role_of(rank), []
        if role is not None and self.kind == "layers":
            parts.append(_span("layer", role.layers))
        if role is not None and self.kind == "timesteps":
            parts.append(_span("step", role.steps))
        if role is not None and self.group_size > 1:
            parts.append(_span("head", role.heads))
        if role is not None and not parts:
            parts.append("all layers")
        return ", ".join([*parts, "decode"] if rank == 0 else parts)

    def _spans(self) -> list[range]:
        """Each stage's span over all steps of all layers, as loaded for the preset's number of steps."""
        decode = 0.0 if self.decodes_apart else float(self.decode_layers * self.group_size)
        return stage_spans(self.config, self.num_stages, self.num_steps, decode)

    def _in_steps(self, place: int, num_steps: int) -> int:
        """Convert a position in steps of layers to a run with another number of steps."""
        layer, step = divmod(place, self.num_steps)
        return layer * num_steps + round(step * num_steps / self.num_steps)


def layer_costs(config: ModelConfig, geometry: Geometry = TYPICAL) -> list[float]:
    """Each layer's floating-point operations for a block with a full ring, relative to a plain layer's.

    Audio injection adds a projection of every token, and a sum over each head's few audio tokens.
    """
    dim, plain = config.dim, sum(plain_layer_flops(config, geometry))
    audio_tokens = config.num_audio_token + 1  # the last is learnt padding
    injection = 2 * dim * (dim + config.num_heads * audio_tokens) + 4 * dim * audio_tokens
    return [
        1.0 + (injection / plain if layer in config.audio_inject_layers else 0.0)
        for layer in range(config.num_layers)
    ]


def plain_layer_flops(config: ModelConfig, geometry: Geometry) -> tuple[float, float]:
    """Floating-point operations per token of a block with a full ring: of linear layers, and of attention.

    Assumes a short prompt: its tokens' outputs are summed, without an output projection.
    """
    dim, tokens_seen = config.dim, geometry.window_frames * geometry.frame_tokens + geometry.condition_tokens
    products = 2 * dim * (5 * dim + 2 * config.ffn_dim)  # q k v o of self-, q of cross-attention
    text = 2 * dim * (1 + config.num_heads) * config.short_text_tokens
    return products, 4 * dim * tokens_seen + text


@cache
def stage_spans(config: ModelConfig, num_stages: int, num_steps: int, decode: float) -> list[range]:
    """Split the steps of all layers, layer by layer, into stages; decode: the first stage's extra cost.

    Where two stages share a layer, both hold its weights, and each the rings of the steps that it computes.
    """
    costs = [cost for cost in layer_costs(config) for _ in range(num_steps)]
    return balance(costs, num_stages, decode, least=num_steps)


def balance(costs: Sequence[float], num_parts: int, first_extra: float = 0.0, least: int = 1) -> list[range]:
    """Cut a sequence of costs into consecutive parts, minimising the most expensive part.

    first_extra: the first part's extra cost. least: the fewest items per part.
    """
    sums = [0.0, *accumulate(costs)]
    best: dict[int, tuple[float, tuple[int, ...]]] = {
        end: (sums[end] + first_extra, (0, end)) for end in range(least, len(costs) + 1)
    }
    for part in range(2, num_parts + 1):
        best = {
            end: min(
                (max(best[cut][0], sums[end] - sums[cut]), (*best[cut][1], end))
                for cut in range((part - 1) * least, end - least + 1)
            )
            for end in range(part * least, len(costs) + 1)
        }
    return [range(start, end) for start, end in pairwise(best[len(costs)][1])]


def even_parts(total: int, num_parts: int) -> list[range]:
    """Split range(total) into parts that differ by at most one, the larger first: 40 in 3 is 14, 13, 13."""
    size, larger = divmod(total, num_parts)
    cuts = [0, *accumulate(size + (part < larger) for part in range(num_parts))]
    return [range(start, end) for start, end in pairwise(cuts)]


def _meant(gpus: int, group: int) -> Kind:
    """The layout of several GPUs when none is named, as the public code has it."""
    return "ulysses" if group == gpus else "timesteps"


def _largest_divisor(number: int, most: int) -> int:
    return next(divisor for divisor in range(min(most, number), 0, -1) if number % divisor == 0)


def _span(name: str, span: range) -> str:
    return f"{name} {span.start}" if len(span) == 1 else f"{name}s {span.start}–{span.stop - 1}"


def unsupported(preset: Preset) -> list[str]:
    """What this preset asks for and this version does not support yet, one sentence each; empty if none."""
    if preset.engine != "diffusion":
        return []
    parallel = preset.parallel
    if preset.memory.offload_model and (parallel.num_gpus_dit > 1 or parallel.decode_gpu):
        return ["This version offloads on one GPU alone; it cannot honour offload_model True on several yet."]
    return []
