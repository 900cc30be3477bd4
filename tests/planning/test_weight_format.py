"""What a preset leaves to its cards, what is said of another choice, and that plans and runs agree."""

from __future__ import annotations

from dataclasses import replace

import pytest

from avatar.events import Notice
from avatar.hardware.inventory import GIB, Gpu, Inventory
from avatar.pipeline import pipeline
from avatar.pipeline.pipeline import DiffusionPipeline
from avatar.planning import weight_format
from avatar.planning.plan import Plan
from avatar.planning.planner import plan
from avatar.planning.verdict import judge, require, resolve
from avatar.planning.weight_format import advice, faster_format, settled, settled_here
from avatar.preset import PRESETS_DIR, Preset, load_preset, load_presets

CARDS = {
    "NVIDIA GeForce RTX 3090": ("8.6", "int8"),
    "NVIDIA A100-SXM4-80GB": ("8.0", "int8"),
    "NVIDIA A10G": ("8.6", "int8"),
    "NVIDIA RTX A6000": ("8.6", "int8"),
    "NVIDIA GeForce RTX 4090": ("8.9", "int8"),
    "NVIDIA L40S": ("8.9", "fp8"),
    "NVIDIA L4": ("8.9", "fp8"),
    "NVIDIA RTX 6000 Ada Generation": ("8.9", "fp8"),
    "NVIDIA H200": ("9.0", "fp8"),
    "NVIDIA B200": ("10.0", "fp8"),
    "NVIDIA GeForce RTX 5090": ("12.0", "int8"),
    "NVIDIA RTX PRO 6000 Blackwell Workstation Edition": ("12.0", "fp8"),
}
PRESET = load_preset("24gb")


def card(name: str, index: int = 0) -> Gpu:
    memory = 100 * GIB
    return Gpu(index, name, f"GPU-{index}", memory, memory, 0, CARDS[name][0])


def machine(*names: str) -> Inventory:
    cards = tuple(card(name, index) for index, name in enumerate(names))
    return replace(Inventory.imagine(len(names), 100.0), gpus=cards)


@pytest.mark.parametrize("name", CARDS)
def test_a_card_gets_what_it_multiplies_faster(name):
    assert faster_format((card(name),)) == CARDS[name][1]


def test_one_card_that_is_slow_in_fp8_decides_for_all():
    cards = [card(name) for name in ("NVIDIA L40S", "NVIDIA GeForce RTX 3090")]
    assert faster_format(cards) == faster_format(cards[::-1]) == "int8"
    assert faster_format(cards[:1] * 2) == "fp8"


def test_a_card_that_hides_its_capability_gets_int8():
    assert faster_format((replace(card("NVIDIA L40S"), compute_capability=None),)) == "int8"


def test_a_named_format_is_kept():
    for weight_dtype in ("bf16", "fp8", "int8", "fp32"):
        preset = PRESET.with_settings(weight_dtype=weight_dtype, attention_dtype="bf16")
        assert settled(preset, (card("NVIDIA GeForce RTX 3090"),)) is preset


@pytest.mark.parametrize(
    ("names", "attention"),
    [
        (("NVIDIA GeForce RTX 4090",), "int8"),
        (("NVIDIA H200",), "int8"),
        (("NVIDIA GeForce RTX 3090",), "bf16"),
        (("NVIDIA GeForce RTX 5090", "NVIDIA A100-SXM4-80GB"), "bf16"),
        ((), "int8"),
    ],
)
def test_attention_in_8_bits_is_left_to_cards_with_fp8_cores(names, attention):
    """Rings take the place of its own form in fp8, as the engine does where its kernel fails."""
    assert PRESET.memory.attention_dtype == "int8"
    asked = PRESET.with_settings(weight_dtype="int8", ring_dtype="bf16")
    found = settled(asked, machine(*names).gpus).memory
    assert found.attention_dtype == attention
    assert found.ring_dtype == ("bf16" if attention == "int8" else "fp8")


def test_a_plan_counts_the_rings_that_the_card_will_keep():
    old, new = (machine(name) for name in ("NVIDIA RTX A6000", "NVIDIA L40S"))
    preset = load_preset("48gb").with_settings(weight_dtype="int8")
    rings = [ring_bytes(plan(preset, here)) for here in (old, new)]
    assert rings[0] == ring_bytes(plan(preset.with_settings(attention_dtype="bf16"), new)) > rings[1]


def ring_bytes(planned: Plan) -> int:
    return next(item.num_bytes for item in planned.gpus[0].items if item.name == "kv_rings")


@pytest.mark.parametrize("name", ["NVIDIA GeForce RTX 3090", "NVIDIA L40S"])
def test_plan_verdict_and_auto_settle_alike(name):
    here = machine(name)
    assert PRESET.memory.weight_dtype == "8bit"
    for found in (judge(PRESET, here), require(PRESET, here)):
        assert found.preset.memory.weight_dtype == CARDS[name][1]
        assert found.plan.weight_dtype == CARDS[name][1]
        assert found.plan.as_dict()["weight_dtype"] == CARDS[name][1]
    auto = resolve(load_preset("auto").with_settings(weight_dtype="8bit"), here)
    assert auto.memory.weight_dtype == CARDS[name][1]


def test_the_card_that_is_chosen_decides():
    """Of two that both fit, the newer one is taken."""
    found = judge(PRESET, machine("NVIDIA GeForce RTX 3090", "NVIDIA L40S"))
    assert [gpu.index for gpu in found.gpus] == [1]
    assert found.preset.memory.weight_dtype == "fp8"


def test_both_formats_take_the_same_memory():
    here = machine("NVIDIA L40S")
    plans = [plan(PRESET.with_settings(weight_dtype=name), here) for name in ("fp8", "int8", "8bit")]
    assert len({tuple(found.gpus) for found in plans}) == 1
    assert len({found.host for found in plans}) == 1
    assert [found.weight_dtype for found in plans] == ["fp8", "int8", "fp8"]


def test_fp8_where_int8_is_faster_is_said():
    fp8 = PRESET.with_settings(weight_dtype="fp8")
    slow, fast = (card(name) for name in ("NVIDIA GeForce RTX 4090", "NVIDIA H200"))
    assert "int8 weights are faster than fp8 on GPU 0 (NVIDIA GeForce RTX 4090)" in advice(fp8, (slow,))
    assert advice(fp8, (fast,)) == ""
    assert advice(fp8.with_settings(weight_dtype="int8"), (slow,)) == ""


def test_a_run_settles_and_says_the_same(monkeypatch):
    """For presets that come from elsewhere, as those of attached pages do."""
    here = machine("NVIDIA GeForce RTX 3090")
    monkeypatch.setattr(weight_format, "probe", lambda: here)
    assert settled_here(PRESET).memory.weight_dtype == "int8"
    source = DiffusionPipeline(PRESET)
    (notice,) = source._advised(PRESET.with_settings(weight_dtype="fp8"))
    assert isinstance(notice, Notice)
    assert "set weight_dtype to int8" in notice.text
    assert not list(source._advised(PRESET))
    monkeypatch.setattr(weight_format, "probe", None)  # nothing is looked at where nothing is open
    plain = PRESET.with_settings(weight_dtype="int8", attention_dtype="bf16")
    assert settled_here(plain) is plain
    assert not list(source._advised(plain))


def test_a_plan_and_a_run_name_models_alike(monkeypatch):
    """So that a preset named by the page as 8bit does not load the models again."""
    monkeypatch.setattr(weight_format, "probe", lambda: machine("NVIDIA L40S"))
    assert settled_here(PRESET).models == PRESET.with_settings(weight_dtype="fp8").models
    assert settled_here(PRESET).models != PRESET.models


def test_the_presets_leave_the_format_to_the_card():
    named: dict[str, list[Preset]] = {}
    for preset in (*load_presets(), *load_presets(PRESETS_DIR / "live")):
        named.setdefault(preset.memory.weight_dtype, []).append(preset)
    assert "fp8" not in named
    assert "int8" not in named
    assert len(named["8bit"]) >= 10


def test_the_notice_can_be_told_in_chinese():
    from avatar.ui.translations import TRANSLATIONS

    assert "int8_is_faster" in TRANSLATIONS["zh"].program["notices"]
    assert pipeline.advice_here is weight_format.advice_here
