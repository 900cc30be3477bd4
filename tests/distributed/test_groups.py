"""Every layout, over processes that talk by gloo, gives what one device gives, also after a cancel."""

from __future__ import annotations

import dataclasses
import gc
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from avatar.distributed import stage
from avatar.distributed.coordinator import Coordinator, assist
from avatar.distributed.process_groups import Group
from avatar.errors import BadInput, Cancelled
from avatar.pipeline.layer_stack import CompiledPieces
from avatar.pipeline.rollout import rollout
from avatar.planning.layout import Layout
from tests.distributed import ranks
from tests.distributed.ranks import Case
from tests.distributed.streams import (
    CONFIG,
    QUANTISABLE,
    conditions,
    dismiss,
    geometry_of,
    latents,
    lead_or_assist,
    local_latents,
    schedule,
)
from tests.pipeline.streams import relative_error

TOLERANCE = 1e-5
# Where products are cut otherwise, values that differ by 1e-7 may round to different steps of 8 bits.
ROUNDED_DIFFERENTLY = {"layers": TOLERANCE, "timesteps": TOLERANCE, "ulysses": 2e-2, "fsdp": 2e-2}
PLAIN = {"num_steps": 4}
OTHER = {"num_steps": 3, "infer_frames": 32, "num_blocks": 6, "seed": 2}
REQUESTS = ({**PLAIN, "num_blocks": 8}, OTHER)  # many blocks in progress
UNSTAGED = (PLAIN, OTHER)  # where one block is in progress at a time
POSED = {"pose": True, "infer_frames": 16}
TWO = {"num_speakers": 2, "num_steps": 3}
FLOAT8_RINGS = {"ring_dtype": torch.float8_e4m3fn}
EIGHT_BIT = {"ring_dtype": torch.int8}
LONG = {"num_steps": 4, "num_blocks": 18}  # until blocks of a pipeline stand as far apart as they will
ONE_BLOCK = {"num_blocks": 1, "pose": True, "num_speakers": 2}


def of(kind: Any, stages: int = 1, size: int = 1, decodes_apart: bool = False) -> Layout:
    return Layout(kind, stages, size, decodes_apart, config=CONFIG)


def equal(group: Group, options: dict[str, Any]) -> dict[str, Any] | None:
    """Errors against one device over several requests, and what rank 0 counted."""
    conductor = lead_or_assist(group)
    if conductor is None:
        return None
    requests = options["requests"]
    errors = [relative_error(made(conductor, request), local_latents(request)) for request in requests]
    dismiss(conductor)
    return {"errors": errors, "busy_s": group.meter.busy_s, "sent_bytes": group.meter.sent_bytes}


def quantised(group: Group, options: dict[str, Any]) -> list[float] | None:
    """Errors of a model in 8 bits against one device."""
    conductor = lead_or_assist(group, format=options["format"])
    if conductor is None:
        return None
    requests = [{**request, "format": options["format"]} for request in options["requests"]]
    errors = [relative_error(made(conductor, request), local_latents(request)) for request in requests]
    dismiss(conductor)
    return errors


def made(conductor: Coordinator, request: dict[str, Any]) -> Tensor:
    denoiser = conductor.denoiser(geometry_of(request), schedule(request), request.get("ring_dtype"))
    try:
        return latents(denoiser, request)
    finally:
        denoiser.close()


EQUAL = {
    "decode_apart": (of("local", 1, 1, True), UNSTAGED),
    "layers_2": (of("layers", 2), (*REQUESTS, POSED, TWO, FLOAT8_RINGS, EIGHT_BIT)),
    "layers_2_decode": (of("layers", 2, 1, True), (*REQUESTS, {**POSED, **TWO}, FLOAT8_RINGS)),
    "layers_3_decode": (
        of("layers", 3, 1, True),
        (*REQUESTS, POSED, TWO, ONE_BLOCK, {"num_steps": 2}, {"num_steps": 5}),
    ),
    "layers_5": (of("layers", 5), (*REQUESTS, {"num_steps": 2}, LONG)),
    "timesteps_2": (of("timesteps", 2), (*REQUESTS, POSED, EIGHT_BIT)),
    "timesteps_3": (of("timesteps", 3), (*REQUESTS, TWO, ONE_BLOCK)),
    "timesteps_4_decode": (of("timesteps", 4, 1, True), (REQUESTS[0], {**POSED, "num_speakers": 2})),
    "ulysses_2": (of("ulysses", 1, 2), (*UNSTAGED, POSED, FLOAT8_RINGS, EIGHT_BIT)),
    "ulysses_3_decode": (of("ulysses", 1, 3, True), (*UNSTAGED, TWO, ONE_BLOCK)),
    "ulysses_4": (of("ulysses", 1, 4), (*UNSTAGED, {**POSED, **TWO})),
    "layers_2x2_decode": (of("layers", 2, 2, True), (*REQUESTS, {**POSED, **TWO})),
    "timesteps_2x2_decode": (of("timesteps", 2, 2, True), (*REQUESTS, {**POSED, **TWO})),
    "fsdp_2": (of("fsdp", 1, 2), (*UNSTAGED, POSED, EIGHT_BIT)),
    "fsdp_3_decode": (of("fsdp", 1, 3, True), (*UNSTAGED, TWO)),
}


IN_8_BITS = {
    "layers": of("layers", 2, decodes_apart=True),
    "timesteps": of("timesteps", 2),
    "ulysses": of("ulysses", 1, 2),
    "fsdp": of("fsdp", 1, 2),
}
FORMATS = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}


def cancelled(group: Group, options: dict[str, Any]) -> dict[str, Any] | None:
    """Runs that are cancelled once rank 0 has come so far, each followed by a whole one."""
    conductor = lead_or_assist(group)
    if conductor is None:
        return None
    request = {"num_steps": 3, "num_blocks": 4}
    expected, errors, stopped = local_latents(request), [], 0
    for progress in options["phases"]:
        denoiser = conductor.denoiser(geometry_of(request), schedule(request))
        given = conditions(denoiser.geometry)
        has_come = partial(int.__le__, group.meter.ticks + progress)
        blocks = rollout(
            given, denoiser, num_blocks=300, seed=7, cancelled=lambda come=has_come: come(group.meter.ticks)
        )
        try:
            list(blocks)
        except Cancelled:
            stopped += 1
        errors.append(relative_error(made(conductor, request), expected))
    dismiss(conductor)
    return {"errors": errors, "stopped": stopped, "phases": len(options["phases"])}


def repeated(group: Group, options: dict[str, Any]) -> dict[str, Any] | None:
    """Ten requests in a row: how many tensors and threads are alive after each, on every rank."""
    gc.collect()
    gc.freeze()  # what was there before is neither searched nor counted
    before = 0

    def watched(*arguments: Any) -> None:
        nonlocal before
        before = tensors_alive()
        assist(*arguments)

    conductor = lead_or_assist(group, watched)
    if conductor is None:
        assert tensors_alive() <= before, "an assisting rank keeps tensors"
        return None
    alive = []
    for number in range(10):
        request = {**REQUESTS[number % 2], "seed": number, "num_blocks": 2 + number % 2}
        made(conductor, request)
        alive.append((tensors_alive(), threading.active_count(), num_unread(conductor)))
    dismiss(conductor)
    return {"alive": alive}


def tensors_alive() -> int:
    gc.collect()
    return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())


def num_unread(conductor: Coordinator) -> int:
    """Messages, in two pieces each, that wait to be taken by other ranks."""
    return sum(len(unread) for unread in conductor.group.post._unread.values())


def compiled(group: Group, options: dict[str, Any]) -> dict[str, Any] | None:
    """Two requests with compiled pieces: errors, and how many graphs there are after each."""
    conductor = lead_or_assist(group, pieces=CompiledPieces.compiled(backend="aot_eager"))
    if conductor is None:
        return None
    errors, graphs = [], []
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for request in ({"num_blocks": 5}, {"num_blocks": 5, "pose": True}):
        errors.append(relative_error(made(conductor, request), local_latents(request)))
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"] - before)
    dismiss(conductor)
    return {"errors": errors, "graphs": graphs}


def rehearsed(group: Group, options: dict[str, Any]) -> dict[str, Any] | None:
    """Several requests, of which each needs graphs; every rank sees to it that none is built while it waits.

    A graph is built for each piece and the shapes and numbers that it is called with.
    """
    seen: dict[bool, set[tuple[Any, ...]]] = {True: set(), False: set()}
    rehearsing, num_rehearsals, real = False, 0, stage.rehearse

    def noted(name: str, piece: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            seen[rehearsing].add((name, *(shape_or_number(value) for value in arguments)))
            return piece(*arguments)

        return call

    def rehearse(*arguments: Any) -> None:
        nonlocal rehearsing, num_rehearsals
        rehearsing, num_rehearsals = True, num_rehearsals + 1
        real(*arguments)
        rehearsing = False

    stage.rehearse = rehearse
    try:
        pieces = CompiledPieces(
            **{name: noted(name, piece) for name, piece in vars(CompiledPieces()).items()}
        )
        conductor = lead_or_assist(group, pieces=pieces)
        if conductor is not None:
            requests = options["requests"]
            errors = [
                relative_error(made(conductor, request), local_latents(request)) for request in requests
            ]
            dismiss(conductor)
    finally:
        stage.rehearse = real
    assert seen[False] or (conductor is not None and conductor.stage is None)
    assert seen[False] <= seen[True], seen[False] - seen[True]
    return None if conductor is None else {"errors": errors, "num_rehearsals": num_rehearsals}


def shape_or_number(value: Any) -> Any:
    """What of an argument a graph is built for."""
    if isinstance(value, tuple):
        return tuple(shape_or_number(part) for part in value)
    if isinstance(value, Tensor):
        return value.shape, value.dtype
    return value if isinstance(value, int | float) else type(value)


def refused(group: Group, options: dict[str, Any]) -> str | None:
    """A bad request does not harm the group."""
    conductor = lead_or_assist(group)
    if conductor is None:
        return None
    with pytest.raises(BadInput) as error:
        made(conductor, {"num_steps": 2})
    fits = {"num_steps": 3}
    assert relative_error(made(conductor, fits), local_latents(fits)) < TOLERANCE
    dismiss(conductor)
    return str(error.value)


def failing(group: Group, options: dict[str, Any]) -> str | None:
    """What rank 0's rollout sees when its own stage fails in the middle of a run."""
    conductor = lead_or_assist(group)
    if conductor is None:
        return None
    assert conductor.stage is not None
    handle: Callable[..., None] = conductor.stage.handle
    calls = iter(range(12))

    def fail(message: Any) -> None:
        if next(calls) == 11:
            raise torch.OutOfMemoryError("no room")
        handle(message)

    conductor.stage.handle = fail  # type: ignore[method-assign]
    with pytest.raises(torch.OutOfMemoryError) as error:
        made(conductor, {})
    return str(error.value)


REHEARSED = ({}, {"num_steps": 3}, {"infer_frames": 32}, {**TWO, "pose": True}, FLOAT8_RINGS)
WATCHED = {
    "layers": of("layers", 2),
    "layers_that_share_one": of("layers", 3, 1, True),
    "timesteps": of("timesteps", 2, 1, True),
    "ulysses": of("ulysses", 1, 2),
    "fsdp": of("fsdp", 1, 2),
}
PHASES = (0, 1, 2, 3, 4, 6, 8, 11, 14, 18, 23, 29, 40, 60)
CASES = [
    *(Case(name, layout, equal, {"requests": requests}) for name, (layout, requests) in EQUAL.items()),
    *(
        Case(
            f"{layout}_in_{name}",
            dataclasses.replace(IN_8_BITS[layout], config=QUANTISABLE),
            quantised,
            {"requests": ({"num_steps": 4}, TWO), "format": format},
        )
        for name, format in FORMATS.items()
        for layout in IN_8_BITS
    ),
    Case("cancelled_layers", of("layers", 3), cancelled, {"phases": PHASES}),
    Case("cancelled_timesteps", of("timesteps", 2), cancelled, {"phases": PHASES[::2]}),
    Case("cancelled_2x2", of("layers", 2, 2), cancelled, {"phases": PHASES[1::2]}),
    Case("cancelled_fsdp", of("fsdp", 1, 2), cancelled, {"phases": PHASES[::3]}),
    Case("repeated_layers", of("layers", 3), repeated),
    Case("repeated_fsdp", of("fsdp", 1, 2), repeated),
    Case("compiled_layers", of("layers", 2), compiled),
    Case("compiled_fsdp", of("fsdp", 1, 2), compiled),
    *(
        Case(f"rehearsed_{name}", layout, rehearsed, {"requests": REHEARSED})
        for name, layout in WATCHED.items()
    ),
    Case("refused", of("timesteps", 3), refused),
    Case("failing", of("layers", 2), failing),  # the last one: it leaves the other rank waiting
]


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, Any]:
    return ranks.play(CASES, tmp_path_factory.mktemp("ranks"))


@pytest.mark.slow
@pytest.mark.parametrize("name", EQUAL)
def test_a_layout_gives_what_one_device_gives(name, results):
    result = results[name]
    assert isinstance(result, dict), result
    assert len(result["errors"]) == len(EQUAL[name][1])
    assert max(result["errors"]) < TOLERANCE
    layout = EQUAL[name][0]
    assert (result["busy_s"] > 0) == (not layout.decodes_apart)
    assert result["sent_bytes"] > 0


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("layout", IN_8_BITS)
def test_a_layout_of_a_model_in_8_bits_gives_the_same(layout, format, results):
    errors = results[f"{layout}_in_{format}"]
    assert isinstance(errors, list), errors
    assert len(errors) == 2
    assert max(errors) < ROUNDED_DIFFERENTLY[layout]


@pytest.mark.parametrize("name", [case.name for case in CASES if case.play is cancelled])
def test_after_a_cancel_at_any_phase_the_next_run_is_right(name, results):
    result = results[name]
    assert isinstance(result, dict), result
    assert result["stopped"] == result["phases"]
    assert max(result["errors"]) < TOLERANCE


@pytest.mark.parametrize("name", ["repeated_layers", "repeated_fsdp"])
def test_ten_requests_leave_nothing_behind(name, results):
    result = results[name]
    assert isinstance(result, dict), result
    settled = result["alive"][1]
    assert len(result["alive"]) == 10
    assert all(alive == settled for alive in result["alive"][1:])


@pytest.mark.parametrize("name", ["compiled_layers", "compiled_fsdp"])
def test_compiled_pieces_serve_stages_and_gathered_parameters(name, results):
    """One graph for all layers, and none that a second request would add."""
    result = results[name]
    assert isinstance(result, dict), result
    assert max(result["errors"]) < TOLERANCE
    assert 0 < result["graphs"][0] == result["graphs"][1] <= len(dataclasses.fields(CompiledPieces))


@pytest.mark.parametrize("name", WATCHED)
def test_all_graphs_are_built_before_a_rank_waits_for_another(name, results):
    """Once for each that differs in what graphs are built for; the number of steps does not count."""
    result = results[f"rehearsed_{name}"]
    assert isinstance(result, dict), result
    assert max(result["errors"]) < TOLERANCE
    decodes_apart = WATCHED[name].decodes_apart
    assert result["num_rehearsals"] == (0 if decodes_apart else len(REHEARSED) - 1)


def test_a_group_serves_on_after_a_request_that_it_cannot_serve(results):
    assert "3 stages, 2 steps" in results["refused"]


def test_a_failure_reaches_the_rollout(results):
    assert results["failing"] == "no room"
