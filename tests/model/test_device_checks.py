"""Fast paths that are tried: each failure leaves the slow twin, is reported, and ends nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from torch._inductor import config as inductor
from torch.nn.attention import SDPBackend

from avatar.commands import doctor
from avatar.hardware.fast_paths import FAST_PATHS
from avatar.model import attention, device_checks, products_8bit
from avatar.model.compile import compiled
from avatar.model.device_checks import compiles, missing, reason_missing, works
from avatar.model.device_report import check_device
from avatar.model.kernels import selection
from avatar.model.products_8bit import multiply_plainly
from avatar.model.quantize import FLOAT8, INT8
from avatar.ui.translations import TRANSLATIONS

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing has been tried before, and nothing of these trials is left."""
    monkeypatch.setattr(device_checks, "_missing", {})
    cached = (
        device_checks._compiles,
        device_checks.has_cudnn_attention,
        device_checks.pins,
        device_checks.grows_segments,
        attention.cudnn_first,
        products_8bit._product,
        selection.eight_bit_on,
        selection.fused_on,
    )
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()


def codes() -> list[str]:
    return [code for code, _ in missing()]


def broken(*_: object, **__: object) -> None:
    raise RuntimeError("No execution plans support the graph.\nmore")


def test_without_a_c_compiler_nothing_is_compiled(monkeypatch, tmp_path):
    (tmp_path / "python").symlink_to(sys.executable)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CXX", str(tmp_path / "no-compiler"))
    with inductor.patch({"cpp.cxx": (None, str(tmp_path / "no-compiler"))}):
        assert not compiles(CPU)
    assert codes() == ["compile"]


def test_a_function_that_cannot_be_built_runs_as_it_is():
    def backend(module, inputs):
        raise RuntimeError("Failed to find C compiler.")

    double = compiled(lambda x: x * 2, backend=backend)
    assert torch.equal(double(torch.ones(3)), torch.full((3,), 2.0))
    assert codes() == ["compile"]
    assert "Failed to find C compiler." in device_checks._missing["compile"]
    assert torch.equal(double(torch.ones(4)), torch.full((4,), 2.0))


def test_a_functions_own_error_is_not_taken_for_a_missing_compiler():
    def wrong(x):
        return x @ torch.ones(7, 7)

    with pytest.raises(RuntimeError):
        compiled(wrong, backend="eager")(torch.ones(3, 3))
    assert codes() == []


def test_a_failure_is_reported_once_with_its_reason(caplog):
    assert not works("cudnn", broken, CUDA)
    assert not works("cudnn", broken, CUDA)
    assert missing() == [("cudnn", FAST_PATHS["cudnn"])]
    assert caplog.text.count("RuntimeError: No execution plans support the graph.") == 1


def test_full_memory_says_nothing_of_a_path():
    def full(_: torch.device) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        works("fp8", full, CUDA)
    assert codes() == []


def plain_attention(q, k, v):
    scores = q.float() @ k.float().transpose(-1, -2) * q.shape[-1] ** -0.5
    return (scores.softmax(-1) @ v.float()).to(q.dtype), scores.logsumexp(-1)


@pytest.mark.parametrize(
    ("cudnn", "ok"),
    [
        (plain_attention, True),
        (
            lambda q, k, v: (plain_attention(q, k, v)[0], plain_attention(q, k, v)[1] * 1.4427),
            False,
        ),  # base 2
        (lambda q, k, v: (plain_attention(q, k, v)[0] * 2, plain_attention(q, k, v)[1]), False),
        (broken, False),
    ],
)
def test_cudnns_attention_and_its_sums_are_compared(monkeypatch, cudnn, ok):
    monkeypatch.setattr(device_checks, "cudnn_attention", cudnn)
    assert device_checks.has_cudnn_attention(CPU) == ok
    assert codes() == ([] if ok else ["cudnn"])


@pytest.mark.parametrize(
    ("capability", "has_cudnn", "first"),
    [
        ((9, 0), True, SDPBackend.CUDNN_ATTENTION),
        ((9, 0), False, SDPBackend.FLASH_ATTENTION),
        ((8, 6), True, SDPBackend.FLASH_ATTENTION),  # not measured there
        ((12, 0), True, SDPBackend.CUDNN_ATTENTION),
    ],
)
def test_attention_begins_with_what_works(monkeypatch, capability, has_cudnn, first):
    asked = []

    def kernels(priority, set_priority):
        asked.append(priority)
        return torch.no_grad()

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(attention, "has_cudnn_attention", lambda _: has_cudnn)
    monkeypatch.setattr(attention, "sdpa_kernel", kernels)
    monkeypatch.setattr(attention, "sdpa", lambda q, k, v: q)
    q = SimpleNamespace(device=CUDA)
    assert attention.prioritised_sdpa(q, q, q) is q
    assert asked[0][0] == first
    assert (SDPBackend.CUDNN_ATTENTION in asked[0]) == (first == SDPBackend.CUDNN_ATTENTION)


def multiplied(*given):
    return multiply_plainly(*given).to(torch.bfloat16)


@pytest.mark.parametrize(
    ("multiply", "product"),
    [(multiplied, "scaled"), (broken, "widened"), (lambda *args: multiplied(*args) * 0, "widened")],
)
def test_products_are_tried_with_their_real_arguments(monkeypatch, multiply, product):
    monkeypatch.setattr(products_8bit, "TRIAL_SIDES", ((64, 96),))
    monkeypatch.setattr(products_8bit, "multiply_float8", multiply)
    works_on_cpu = device_checks.works
    monkeypatch.setattr(products_8bit, "works", lambda code, trial, _: works_on_cpu(code, trial, CPU))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 9))
    assert products_8bit._product(CUDA, FLOAT8) == product
    assert codes() == ([] if product == "scaled" else ["fp8"])


def test_an_older_cards_missing_fp8_cores_are_no_failure(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 6))
    assert products_8bit._product(CUDA, FLOAT8) == "widened"
    assert codes() == []


@pytest.mark.parametrize(
    ("kernel", "int_mm", "product"),
    [
        (multiplied, broken, "kernel"),
        (broken, multiplied, "int_mm"),
        (lambda *args: multiplied(*args) * 0, broken, "widened"),
    ],
)
def test_int8_is_multiplied_by_what_works(monkeypatch, kernel, int_mm, product):
    monkeypatch.setattr(products_8bit, "TRIAL_SIDES", ((64, 96),))
    monkeypatch.setattr(products_8bit, "multiply_by_kernel", kernel)
    monkeypatch.setattr(products_8bit, "multiply_by_int_mm", int_mm)
    works_on_cpu = device_checks.works
    monkeypatch.setattr(products_8bit, "works", lambda code, trial, _: works_on_cpu(code, trial, CPU))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 6))
    assert products_8bit._product(CUDA, INT8) == product
    assert codes() == ([] if product == "kernel" else ["int8"])


def test_without_triton_int8_is_multiplied_by_pytorch(monkeypatch):
    monkeypatch.setattr(products_8bit, "find_spec", lambda name: None)
    monkeypatch.setattr(products_8bit, "TRIAL_SIDES", ((64, 96),))
    works_on_cpu = device_checks.works
    monkeypatch.setattr(products_8bit, "works", lambda code, trial, _: works_on_cpu(code, trial, CPU))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 6))
    assert products_8bit._product(CUDA, INT8) == "int_mm"
    assert "Triton is not installed" in reason_missing("int8")


def test_segments_that_cannot_grow_are_given_up(monkeypatch):
    reported = []
    monkeypatch.setattr(device_checks, "set_expandable_segments", reported.append)
    monkeypatch.setattr(torch, "empty", broken)
    assert not device_checks.grows_segments(CUDA)
    assert reported == [True, False]
    assert codes() == ["segments"]


@pytest.mark.parametrize(("capability", "unsuited"), [((8, 6), {"attention", "fp8"}), ((9, 0), set())])
def test_the_table_has_a_row_for_each_path(monkeypatch, capability, unsuited):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    trials = {
        device_checks: ("_try_compiling", "_try_cudnn", "_try_pinning", "_try_segments"),
        products_8bit: ("_try_float8", "_try_kernel", "_try_int_mm"),
        selection: ("_try_attention", "_try_elementwise"),
    }
    for module, names in trials.items():
        for name in names:
            monkeypatch.setattr(module, name, broken)
    monkeypatch.setattr(device_checks, "set_expandable_segments", lambda on: None)
    table = {check.code: check for check in check_device(CUDA)}
    assert set(table) == set(FAST_PATHS)
    assert {code for code, check in table.items() if check.ok is None} == unsuited
    for code in set(FAST_PATHS) - unsuited:
        assert table[code].ok is False
        assert table[code].reason == "RuntimeError: No execution plans support the graph."
        assert table[code].text == FAST_PATHS[code]
    assert set(doctor.NAMES) == set(FAST_PATHS)


def test_every_missing_path_can_be_reported_in_chinese():
    assert {f"slow_{code}" for code in FAST_PATHS} <= set(TRANSLATIONS["zh"].program["notices"])


def test_the_self_tests_toy_model_is_not_compiled(monkeypatch):
    from avatar.distributed.roles import pieces_of
    from avatar.pipeline.layer_stack import EAGER, CompiledPieces
    from avatar.pipeline.pipeline import DiffusionPipeline
    from avatar.preset import load_preset

    toy, real = load_preset("self-test"), load_preset("80gb")
    marked = CompiledPieces()
    monkeypatch.setattr(CompiledPieces, "on", classmethod(lambda cls, device: marked))
    assert pieces_of(toy, CUDA) is EAGER
    assert pieces_of(real, CUDA) is marked
    for preset, pieces in ((toy, EAGER), (real, marked)):
        source = DiffusionPipeline(preset)
        source._use(SimpleNamespace(device=CUDA), preset)
        assert source.pieces is pieces
    decoders = []
    decoder = "avatar.pipeline.pipeline.StreamingDecoder"
    monkeypatch.setattr(decoder, lambda decoder, compile: decoders.append(compile))
    monkeypatch.setattr("avatar.pipeline.pipeline.compiles", lambda device: True)
    for preset in (toy, real):
        DiffusionPipeline(preset)._decoder(SimpleNamespace(decoder=None, device=CUDA))
    assert decoders == [False, True]
