"""The page's panels as HTML: their text in both languages, and that nobody can inject markup."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from avatar.checkpoints.block_sizes import BlockSizes
from avatar.checkpoints.model_sizes import ModelSizes
from avatar.errors import BadInput
from avatar.events import Activity, Notice, Phase, Progress
from avatar.hardware.inventory import Inventory
from avatar.planning.gauges import GpuReading, HostReading, Reading
from avatar.planning.placement import ALL_ON_GPU, Placement
from avatar.planning.planner import plan
from avatar.planning.verdict import judge
from avatar.preset import load_preset, load_presets
from avatar.runtime.gallery import About, GalleryEntry
from avatar.runtime.report import RUNG_OOM, GpuUse, MemoryUse, RungTaken, RunReport
from avatar.ui.gallery.gallery_html import render_gallery
from avatar.ui.gallery.report_html import render_account
from avatar.ui.generate.status_html import Status, render_badge, render_status
from avatar.ui.language import program_words
from avatar.ui.machine.memory_gauges import NUM_COLOURS, render_gauges, render_machine, render_plan
from avatar.ui.notices_html import render_notices
from avatar.ui.presets.choice_cards import render_examples, render_presets
from avatar.ui.state.examples import Examples

GIB = 2**30
EVIL = '"><script>alert(1)</script>'
HOST = HostReading(8 * GIB, 16 * GIB, GIB, None, 42.0, 2 * GIB)


class Outline(HTMLParser):
    """Checks that tags close in order, and collects text and elements."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("img", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += f" {data}"

    def having(self, **attributes: str) -> list[dict[str, str | None]]:
        wanted = {key.replace("_", "-"): value for key, value in attributes.items()}
        return [found for _, found in self.elements if wanted.items() <= found.items()]


def gpu(index: int = 0, **changes: object) -> GpuReading:
    reading = GpuReading(index, "RTX 4090", 20 * GIB, 12 * GIB, 8 * GIB, 15 * GIB, 13 * GIB, 24 * GIB, 97, 61)
    return replace(reading, **changes)  # type: ignore[arg-type]


def translated_items() -> set[str]:
    return set(program_words("plan_items", "zh"))


@pytest.mark.parametrize("count", [1, 4, 8])
def test_one_row_for_each_gpu_and_the_host(count: int):
    host = replace(HOST, planned_bytes=3 * GIB, pinned_bytes=5 * GIB, pinned_peak_bytes=6 * GIB)
    seen = Outline(render_gauges(Reading(tuple(gpu(i) for i in range(count)), host), "en"))
    assert len(seen.having(**{"class": "gauge"})) == count + 3
    for words in (
        "RTX 4090",
        "20.0 / 24.0 GiB",
        "97 %",
        "61 °C",
        "ours 12.0",
        "others 8.0",
        "planned 15.0",
        "peak 13.0",
    ):
        assert seen.text.count(words) == count, words
    for words in ("42 %", "8.0 / 16.0 GiB", "ours 1.0", "others 7.0", "planned 3.0", "peak 2.0"):
        assert seen.text.count(words) == 1, words
    assert "Pinned memory 5.0 / 16.0 GiB peak 6.0" in seen.text
    assert len(seen.having(**{"class": "planned", "style": "left:62.5%"})) == count
    assert len(seen.having(**{"class": "peak", "style": "left:54.2%"})) == count


def test_pinned_memory_has_a_row_where_it_matters():
    assert "Pinned memory – / 16.0 GiB" in Outline(render_gauges(Reading((gpu(),), HOST), "en")).text
    assert "Pinned" not in render_gauges(Reading((), HOST), "en")
    assert "Pinned" not in render_gauges(Reading((), replace(HOST, pinned_bytes=0)), "en")
    assert "锁页内存" in render_gauges(Reading((), replace(HOST, pinned_bytes=1)), "zh")


def test_where_processes_are_hidden_the_cards_peak_is_shown():
    hidden = gpu(ours_bytes=None, others_bytes=None, peak_bytes=None, used_peak_bytes=21 * GIB)
    seen = Outline(render_gauges(Reading((hidden,), HOST), "en"))
    for words in ("ours –", "others –", "planned 15.0", "peak of the whole card 21.0"):
        assert words in seen.text
    assert seen.having(**{"class": "others", "style": "width:83.3%"})
    assert seen.having(**{"class": "peak", "style": "left:87.5%"})


def test_what_nvml_does_not_tell_is_a_dash():
    silent = gpu(name=None, used_bytes=None, ours_bytes=None, others_bytes=None, planned_bytes=None,
                 peak_bytes=None, total_bytes=None, utilization_percent=None, temperature_c=None)  # fmt: skip
    seen = Outline(render_gauges(Reading((silent,), HOST), "en"))
    assert "– / – GiB · – · –" in seen.text
    assert "None" not in seen.text


def test_without_a_driver_the_host_is_shown_and_it_is_said():
    seen = Outline(render_gauges(Reading((), HOST, "No NVIDIA driver is installed here."), "en"))
    assert "No NVIDIA driver" in seen.text
    assert len(seen.having(**{"class": "gauge"})) == 2
    assert "没有 NVIDIA 驱动" in render_gauges(Reading((), HOST), "zh")


def test_the_machine_in_a_line():
    assert "4 × imagined 24 GiB" in render_machine(Inventory.imagine(4, 24), "en")
    assert "16 cores" in render_machine(Inventory.imagine(0, 0), "en")


def test_a_plan_is_a_bar_for_each_device():
    seen = Outline(render_plan(plan(load_preset("80gb"), Inventory.imagine(1, 80)), "en"))
    assert len(seen.having(**{"class": "gauge"})) == 2
    widths = [
        float(found["style"][6:-1])
        for found in seen.having()
        if (found.get("style") or "").startswith("width")
    ]
    assert all(0 < width <= 100 for width in widths)
    assert "weights" in seen.text


def drawn(seen: Outline, kind: str) -> list[float]:
    """Widths of a class's bars, or positions of its marks, in percent."""
    found = seen.having(**{"class": kind})
    return [float((one["style"] or "").split(":")[1][:-1]) for one in found if "style" in one]


def test_a_plan_is_drawn_against_what_is_free():
    machine = Inventory.imagine(1, 160)
    taken = replace(machine.gpus[0], free_bytes=130 * GIB, used_bytes=30 * GIB, ours_bytes=10 * GIB)
    planned = plan(load_preset("80gb"), replace(machine, gpus=(taken,)))
    [device] = planned.gpus
    assert device.available_bytes == 140 * GIB, "our own processes give back what they hold"
    seen = Outline(render_plan(planned, "en"))
    assert drawn(seen, "others") == [12.5], "20 of 160 GiB"
    items = sum(width for number in range(NUM_COLOURS) for width in drawn(seen, f"item-{number}"))
    total = sum(one.num_bytes for one in device.peak_items) / device.total_bytes
    host = sum(one.num_bytes for one in planned.host.peak_items) / planned.host.total_bytes
    assert abs(items - 100 * (total + host)) < 2
    assert f"{device.peak_bytes / GIB:.1f} of 140.0 GiB free · 160.0 in all" in seen.text
    assert "others 20.0" in seen.text
    assert drawn(seen, "limit") == []
    assert "short" not in seen.text
    assert "Estimated" in seen.text


def test_a_plan_that_does_not_fit_shows_where_the_card_ends():
    planned = plan(load_preset("80gb"), Inventory.imagine(1, 24))
    [device] = planned.gpus
    seen = Outline(render_plan(planned, "en", "Too much."))
    assert drawn(seen, "limit") == [round(100 * 24 * GIB / device.peak_bytes, 1)]
    assert f"{device.shortfall_bytes / GIB:.1f} GiB short" in seen.text
    assert len(seen.having(data_short="yes")) == 1
    assert "缺" in render_plan(planned, "zh")


def test_a_plan_uses_one_colour_for_one_thing_on_every_device():
    planned = plan(load_preset("80gb"), Inventory.imagine(1, 80))
    two = replace(planned, gpus=(planned.gpus[0], replace(planned.gpus[0], label="GPU 1", index=1)))
    seen = Outline(render_plan(two, "en"))
    weights = max(planned.gpus[0].peak_items, key=lambda item: item.num_bytes)
    assert seen.text.count(f"transformer weights {weights.num_bytes / GIB:.1f}") == 2
    assert len(drawn(seen, "item-0")) == 2
    chinese = Outline(render_plan(two, "zh"))
    assert "扩散模型权重" in chinese.text
    assert "weights" not in chinese.text


def test_a_plan_says_what_waits_in_host_memory():
    planned = plan(load_preset("80gb"), Inventory.imagine(1, 80))
    assert "until needed" not in render_plan(replace(planned, placement=ALL_ON_GPU), "en")
    waiting = replace(planned, placement=Placement(18, 3, rings_on_host=True))
    assert "until needed: 18 layers, the K/V rings." in render_plan(waiting, "en")
    assert "18 层、K/V 环形缓存、辅助模型" in render_plan(
        replace(waiting, placement=replace(waiting.placement, side_models_on_host=True)), "zh"
    )


def test_a_plan_says_that_layers_wait_as_gguf_blocks():
    sizes = replace(ModelSizes.published(), blocks=BlockSizes((2**28,) * 40, 2**26))
    placement = Placement(18, layers_in_blocks=True)
    planned = plan(load_preset("24gb"), Inventory.imagine(1, 80), placement, sizes=sizes)
    english, chinese = (Outline(render_plan(planned, language)).text for language in ("en", "zh"))
    assert "until needed: 18 layers as GGUF blocks." in english
    assert "GGUF blocks 4.5" in english
    assert "18 层（保持 GGUF 分块格式）" in chinese
    assert "GGUF 分块 4.5" in chinese
    assert {item.name for device in planned.devices for item in device.items} <= translated_items()


def test_every_item_of_every_plan_has_a_chinese_name():
    for preset in load_presets():
        try:
            planned = plan(preset, Inventory.imagine(1, 80))
        except BadInput:  # auto, and layouts of several GPUs
            continue
        items = {item.name for device in planned.devices for item in device.items}
        assert items <= translated_items(), preset.name


def test_a_refused_plan_says_why():
    assert "It lacks 3 GiB" in Outline(render_plan(None, "en", "It lacks 3 GiB.")).text
    seen = Outline(render_plan(plan(load_preset("cpu-preview"), Inventory.imagine(0, 0)), "en"))
    assert "no GPU and about 0.4 GiB of RAM" in seen.text


@pytest.mark.parametrize("language", ["en", "zh"])
def test_cards_tell_what_runs_here_and_what_is_missing(language: str):
    presets, machine = load_presets(), Inventory.imagine(1, 24, with_checkpoint=False)
    found = {preset.name: judge(preset, machine) for preset in presets}
    html = render_presets(presets, found, "auto", load_preset("cpu-preview"), language)
    seen = Outline(html)
    cards = seen.having(role="radio")
    assert {card["data-id"] for card in cards} == {preset.name for preset in presets}
    assert [card["data-id"] for card in cards if card["aria-checked"] == "true"] == ["auto"]
    assert [card["data-id"] for card in cards if card["tabindex"] == "0"] == ["auto"]
    lacking = {name for name, one in found.items() if not one.ok}
    assert lacking
    words = {"en": "Missing", "zh": "缺少"}[language]
    assert seen.text.count(words) == len(lacking)
    assert "{" not in seen.text
    if language == "zh":
        assert "自动" in seen.text
        assert "CPU 预览" in seen.text


def test_the_fold_is_open_when_the_choice_is_in_it():
    presets, machine = load_presets(), Inventory.imagine(0, 0)
    found = {preset.name: judge(preset, machine) for preset in presets}
    assert "<details open>" in render_presets(presets, found, "80gb", None, "en")
    assert "<details>" in render_presets(presets, found, "auto", None, "en")


def test_examples_are_buttons_with_pictures_under_the_root():
    pairs = Examples().pairs
    seen = Outline(render_examples(pairs, "en", "/proxy"))
    assert len(seen.having(data_action="example")) == len(pairs) >= 4
    assert [found["src"] for found in seen.having(loading="lazy")] == [
        f"/proxy/examples/{i}" for i in range(len(pairs))
    ]
    assert render_examples([], "en", "") == ""


def test_every_example_has_a_chinese_title():
    pairs = Examples().pairs
    assert {pair.titles[0] for pair in pairs} == set(program_words("portraits", "zh"))
    assert "宇航员 说英语" in Outline(render_examples(pairs, "zh", "")).text.replace("  ", " ")


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (Status(), "Ready"),
        (Status("waiting", place=1), "You are next"),
        (Status("waiting", place=2), "One video is ahead"),
        (Status("waiting", place=3), "2 videos are ahead"),
        (Status("running", Progress(Phase.ENCODING)), "Analysing face and voice"),
        (Status("failed"), "The video could not be made"),
        (Status("stopped"), "Stopped"),
    ],
)
def test_the_status_says_how_it_stands(status: Status, words: str):
    assert words in Outline(render_status(status, "en")).text


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_status_says_what_a_start_does_and_how_long_it_takes(language: str):
    reported = set()
    for activity in Activity:
        for usual_s in (None, 12.3):
            doing = Progress(Phase.LOADING, activity=activity, usual_s=usual_s)
            seen = Outline(render_status(Status("running", doing), language)).text
            assert ("12 " in seen) == (usual_s is not None)
            reported.add(seen)
    assert len(reported) == 2 * len(Activity)
    encoding = Outline(render_status(Status("running", Progress(Phase.ENCODING, usual_s=0.6)), "en"))
    assert "Analysing face and voice (usually 1 s)" in encoding.text


def test_the_status_in_figures():
    progress = Progress(Phase.GENERATING, 100, 300, 2, 6, 4.0, 118.4, 0.83, 7.6)
    seen = Outline(render_status(Status("running", progress, label="preview"), "en"))
    for words in ("Generating", "preview", "Segment 3 of 6", "118 fps", "First frame 0.8 s", "8 s left"):
        assert words in seen.text
    [bar] = seen.having(role="progressbar")
    assert bar["aria-valuenow"] == "33"
    done = Outline(render_status(Status("done", replace(progress, frames_done=300), label="preview"), "en"))
    assert "12.0 s of video" in done.text
    assert "Segment" not in done.text
    assert done.having(role="progressbar")[0]["aria-valuenow"] == "100"


def test_notices_are_reported_once_warnings_first():
    info, warning = Notice("cut", "Cut."), Notice("head_only", "Only the head moves.", "warning")
    status = Status().with_notice(info).with_notice(warning).with_notice(info)
    seen = Outline(render_notices(status.notices, "en"))
    assert [found["data-level"] for found in seen.having() if "data-level" in found] == ["warning", "info"]
    assert "只有头部会动" in render_notices(status.notices, "zh")
    assert "Cut." in render_notices(status.notices, "zh"), "what has no translation is shown in English"
    assert render_notices((), "en") == ""


@pytest.mark.parametrize(("rung", "setting"), [("size", "尺寸"), ("offload", "卸载到主机内存")])
def test_a_rung_is_announced_with_what_changed_and_why(rung: str, setting: str):
    values = {"now": "384*256", "was": "704*384", "device": "GPU 0", "block": 12}
    notice = Notice(RUNG_OOM, "GPU 0 ran out of memory at block 12.", "warning", rung, values)
    seen = Outline(render_notices((notice,), "en"))
    assert "Settings were reduced.  GPU 0 ran out of memory at block 12." in seen.text
    chinese = Outline(render_notices((notice,), "zh")).text
    for words in ("已降低设置", setting, "704*384", "384*256", "GPU 0", "12"):
        assert words in chinese
    bare = replace(notice, values={})
    assert notice.text in render_notices((bare,), "zh"), "what lacks its values is shown in English"


def test_badges():
    assert "preview" in render_badge("preview", "en")
    assert "预览" in render_badge("preview", "zh")
    assert render_badge("", "en") == ""


def entry(**changes: object) -> GalleryEntry:
    about = About("me.jpg", "hi.wav", "", "cpu-preview", "preview", {"size": "704*704", "seed": 7}, 50, 2.0)
    return GalleryEntry("20260101-000000-0123456789", Path("/x"), replace(about, **changes), 10)  # type: ignore[arg-type]


def proxied(id: str, name: str) -> str:
    return f"/proxy/outputs/{id}/{name}?key=1"


def test_the_gallery_offers_all_it_should():
    html = render_gallery([entry(stopped=True)], "en", proxied, 30 * 86_400)
    seen = Outline(html)
    assert {found["data-action"] for found in seen.having() if "data-action" in found} == {
        "play",
        "use",
        "delete",
    }
    [link] = [found for tag, found in seen.elements if tag == "a"]
    assert link["href"] == "/proxy/outputs/20260101-000000-0123456789/avatar-20260101-000000.mp4?key=1"
    for words in ("stopped", "preview", "2.0 s", "704×704", "Seed 7", "30 days"):
        assert words in seen.text
    assert "/x" not in re.sub(r"/proxy\S*", "", html)
    assert "kept here" in render_gallery([], "en", proxied, 86_400)


def account(**changes: object) -> RunReport:
    """The report of `entry`, by the full model."""
    use = GpuUse(0, "RTX 4090", round(20.5 * GIB), 21 * GIB, 24 * GIB)
    plain = RunReport(
        video="a.mp4",
        thumbnail="a.jpg",
        portrait="me.jpg",
        speech="hi.wav",
        prompt="",
        engine="",
        preset=load_preset("80gb").as_dict(),
        created="2026-01-01T00:00:00+00:00",
        frames_asked=50,
        fps=25,
        frames_per_s=6.78,
        first_frame_s=12.34,
        plan=plan(load_preset("80gb"), Inventory.imagine(1, 80)).as_dict(),
        memory=MemoryUse((use,), 31 * GIB, 0, 29 * GIB),
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def test_the_gallery_tells_how_a_video_was_made():
    shown = entry()
    html = render_gallery([shown], "en", proxied, 86_400, {shown.id: account()})
    seen = Outline(html)
    planned = account().gpus[0].planned_bytes / GIB
    items = account().plan["gpus"][0]["items"]
    [weights] = [item["num_bytes"] for item in items if item["name"] == "transformer_weights"]
    for words in (
        "How it was made",
        "6.8 fps · First frame 12.3 s",
        "80gb · 704×384",
        "Sampling steps 4",
        "transformer weights bf16",
        f"peak 20.5 · planned {planned:.1f} / 24.0 GiB",
        f"transformer weights {weights / GIB:.1f}",
        "peak 31.0 · planned",
        "Pinned memory 29.0 GiB",
        "No: there was enough memory.",
    ):
        assert words in seen.text, words
    [link] = [one for one in seen.having() if ".json" in (one.get("href") or "")]
    assert link["download"] == "avatar-20260101-000000.report.json"
    assert (
        link["href"] == "/proxy/outputs/20260101-000000-0123456789/avatar-20260101-000000.report.json?key=1"
    )
    assert "<details class=" in html, "folded"
    assert "How it was made" not in render_gallery([shown], "en", proxied, 86_400), "without a report"


def test_rungs_are_reported_with_where_and_why_in_both_languages():
    values = {"now": "32", "was": "48", "device": "GPU 0", "block": 3}
    taken = [RungTaken("infer_frames", RUNG_OOM, "GPU 0 ran out.", 96, values), RungTaken("size")]
    shown = entry()
    reports = {shown.id: account(rungs=taken)}
    english = Outline(render_gallery([shown], "en", proxied, 86_400, reports)).text
    assert "At frame 96: GPU 0 ran out." in english
    assert " size " in english, "of an earlier version, which noted no reason"
    chinese = Outline(render_gallery([shown], "zh", proxied, 86_400, reports)).text
    for words in ("第 96 帧", "每个片段的帧数", "48", "32", "生成报告", "锁页内存"):
        assert words in chinese


def test_what_was_not_measured_is_a_dash():
    shown = entry()
    silent = account(plan=None, memory=None, frames_per_s=None, first_frame_s=None)
    seen = Outline(render_gallery([shown], "en", proxied, 86_400, {shown.id: silent}))
    for words in ("– fps · First frame – s", "peak – · planned – GiB"):
        assert words in seen.text
    assert "GPU 0" not in seen.text
    assert "None" not in seen.text
    hidden = account(memory=MemoryUse((GpuUse(0, None, None, 21 * GIB, 24 * GIB),)))
    seen = Outline(render_gallery([shown], "en", proxied, 86_400, {shown.id: hidden}))
    assert "peak of the whole card 21.0" in seen.text


def test_nothing_of_a_users_becomes_markup():
    html = render_gallery([entry(portrait=EVIL, speech=EVIL, prompt=EVIL, error=EVIL)], "en", proxied, 86_400)
    html += render_notices([Notice("x", EVIL)], "en")
    html += render_status(Status("failed", label=EVIL, more=EVIL), "en")
    html += render_gauges(Reading((gpu(name=EVIL),), HOST), "en")
    html += render_plan(None, "en", EVIL)
    evil = RungTaken(EVIL, RUNG_OOM, EVIL, 1, {"now": EVIL, "was": EVIL, "device": EVIL, "block": EVIL})
    gpus = (GpuUse(0, EVIL, 1, 1, 1),)
    report = account(rungs=[evil], preset=load_preset("80gb").as_dict() | {"name": EVIL})
    for language in ("en", "zh"):
        html += render_account(replace(report, memory=MemoryUse(gpus)), language, f"/{EVIL}", EVIL)
        html += render_notices([Notice(RUNG_OOM, EVIL, "warning", "size", evil.values)], language)
    seen = Outline(html)
    assert "script" not in {tag for tag, _ in seen.elements}
    assert html.count("<script") == 0
