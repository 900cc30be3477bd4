"""The page's own parts as HTML: what they say, in both languages, and that nobody can inject markup."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from avatar.events import Notice, Phase, Progress
from avatar.gallery import About, Entry
from avatar.memory.fit import availability
from avatar.memory.gauges import GpuReading, HostReading, Reading
from avatar.memory.inventory import Inventory
from avatar.memory.planner import plan
from avatar.preset import load_preset, load_presets
from avatar.ui.examples import Examples
from avatar.ui.panels.cards import render_examples, render_presets
from avatar.ui.panels.machine import render_gauges, render_machine, render_plan
from avatar.ui.panels.shelf import render_shelf
from avatar.ui.panels.status import Status, render_badge, render_notices, render_status

GB = 10**9
EVIL = '"><script>alert(1)</script>'
HOST = HostReading(8 * GB, 16 * GB, GB, None, 42.0)


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
    reading = GpuReading(index, "RTX 4090", 20 * GB, 12 * GB, 8 * GB, 15 * GB, 13 * GB, 24 * GB, 97, 61)
    return replace(reading, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [1, 4, 8])
def test_one_row_for_each_gpu_and_the_host(count: int):
    seen = Outline(render_gauges(Reading(tuple(gpu(i) for i in range(count)), HOST), "en"))
    assert len(seen.having(**{"class": "gauge"})) == count + 2
    for words in (
        "RTX 4090",
        "20.0 / 24.0 GB",
        "97 %",
        "61 °C",
        "ours 12.0",
        "others 8.0",
        "planned 15.0",
        "peak 13.0",
    ):
        assert seen.text.count(words) == count, words
    assert "42 %" in seen.text


def test_what_nvml_does_not_tell_is_a_dash():
    silent = gpu(name=None, used_bytes=None, ours_bytes=None, others_bytes=None, planned_bytes=None,
                 peak_bytes=None, total_bytes=None, utilization_percent=None, temperature_c=None)  # fmt: skip
    seen = Outline(render_gauges(Reading((silent,), HOST), "en"))
    assert "– / – GB · – · –" in seen.text
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


def test_a_refused_plan_says_why():
    assert "It lacks 3 GiB" in Outline(render_plan(None, "en", "It lacks 3 GiB.")).text
    seen = Outline(render_plan(plan(load_preset("cpu-preview"), Inventory.imagine(0, 0)), "en"))
    assert "no GPU" in seen.text


@pytest.mark.parametrize("language", ["en", "zh"])
def test_cards_tell_what_runs_here_and_what_is_missing(language: str):
    presets, machine = load_presets(), Inventory.imagine(1, 24, with_checkpoint=False)
    found = {preset.name: availability(preset, machine) for preset in presets}
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
    found = {preset.name: availability(preset, machine) for preset in presets}
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


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (Status(), "Ready"),
        (Status("waiting", place=1), "You are next"),
        (Status("waiting", place=3), "2 videos are ahead"),
        (Status("running", Progress(Phase.ENCODING)), "Studying face and voice"),
        (Status("failed"), "It did not work out"),
        (Status("stopped"), "Stopped"),
    ],
)
def test_the_status_says_how_it_stands(status: Status, words: str):
    assert words in Outline(render_status(status, "en")).text


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


def test_notices_are_told_once_warnings_first():
    info, warning = Notice("cut", "Cut."), Notice("head_only", "Only the head moves.", "warning")
    status = Status().with_notice(info).with_notice(warning).with_notice(info)
    seen = Outline(render_notices(status.notices, "en"))
    assert [found["data-level"] for found in seen.having() if "data-level" in found] == ["warning", "info"]
    assert "只有头部会动" in render_notices(status.notices, "zh")
    assert "Cut." in render_notices(status.notices, "zh"), "what has no translation is told in English"
    assert render_notices((), "en") == ""


def test_badges():
    assert "preview" in render_badge("preview", "en")
    assert "预览" in render_badge("preview", "zh")
    assert render_badge("", "en") == ""


def entry(**changes: object) -> Entry:
    about = About("me.jpg", "hi.wav", "", "cpu-preview", "preview", {"size": "704*704", "seed": 7}, 50, 2.0)
    return Entry("20260101-000000-0123456789", Path("/x"), replace(about, **changes), 10)  # type: ignore[arg-type]


def test_the_gallery_offers_all_it_should():
    html = render_shelf([entry(stopped=True)], "en", "/proxy", 30 * 86_400)
    seen = Outline(html)
    assert {found["data-action"] for found in seen.having() if "data-action" in found} == {
        "play",
        "use",
        "delete",
    }
    [link] = [found for tag, found in seen.elements if tag == "a"]
    assert link["href"] == "/proxy/outputs/20260101-000000-0123456789/avatar-20260101-000000.mp4"
    for words in ("stopped", "preview", "2.0 s", "704×704", "Seed 7", "30 days"):
        assert words in seen.text
    assert "/x" not in re.sub(r"/proxy\S*", "", html)
    assert "kept here" in render_shelf([], "en", "", 86_400)


def test_nothing_of_a_users_becomes_markup():
    html = render_shelf([entry(portrait=EVIL, speech=EVIL, prompt=EVIL, error=EVIL)], "en", "", 86_400)
    html += render_notices([Notice("x", EVIL)], "en")
    html += render_status(Status("failed", label=EVIL, more=EVIL), "en")
    html += render_gauges(Reading((gpu(name=EVIL),), HOST), "en")
    html += render_plan(None, "en", EVIL)
    seen = Outline(html)
    assert "script" not in {tag for tag, _ in seen.elements}
    assert html.count("<script") == 0
