"""The table of texts, the choice of language, and how errors are shown."""

from __future__ import annotations

import ast
import pickle
import string
from dataclasses import replace
from pathlib import Path
from typing import get_args

import gradio as gr
import pytest

import avatar.planning.verdict as fit
from avatar.checkpoints.locations import Checkpoint
from avatar.errors import AvatarError, BadInput
from avatar.hardware.inventory import Inventory
from avatar.live.service_address import ServiceAddress, ServiceDown, no_answer, refused, unreached
from avatar.preset import Rung, load_preset, load_presets
from avatar.settings import SETTINGS
from avatar.speech.catalogue import Unreadable
from avatar.speech.voices import Voice
from avatar.ui.error_messages import message_of, reports_errors
from avatar.ui.language import browser_table, compared_words, language_of, notice_words, program_words, text
from avatar.ui.state.job_queue import QueueFull
from avatar.ui.theme import css
from avatar.ui.translations import TRANSLATIONS, read
from tests.ui.test_notices_in_chinese import sound_notices

UI = Path(__file__).resolve().parents[2] / "avatar" / "ui"


def fields(words: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(words) if name}


def request(language: str = "") -> gr.Request:
    made = gr.Request()
    made.kwargs = {"headers": {"accept-language": language}}
    return made


@pytest.mark.parametrize("language", sorted(TRANSLATIONS))
@pytest.mark.parametrize("part", ["page", "live"])
def test_every_language_has_the_same_texts_and_blanks(language: str, part: str):
    english, translated = (getattr(TRANSLATIONS[one], part) for one in ("en", language))
    assert list(translated) == list(english), "the same keys in the same order"
    for key, words in translated.items():
        assert words, key
        assert fields(words) == fields(english[key]), key


def test_a_key_in_two_sections_is_refused(tmp_path: Path):
    (tmp_path / "xx.toml").write_text("[page.a]\nspeed = '1'\n[page.b]\nspeed = '2'\n")
    with pytest.raises(ValueError, match=r"xx.toml has speed twice"):
        read(tmp_path / "xx.toml")


def test_a_language_is_added_by_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    english = (UI / "translations" / "en.toml").read_text(encoding="utf-8")
    french = english.replace('["en"]', '["fr", "fr-CA"]').replace('"Generate"', '"Créer"')
    (tmp_path / "fr.toml").write_text(french, encoding="utf-8")
    monkeypatch.setitem(TRANSLATIONS, "fr", read(tmp_path / "fr.toml"))
    assert language_of(request("fr-CA,fr;q=0.9,en;q=0.8")) == "fr"
    assert text("generate", "fr") == "Créer"
    assert browser_table().translations_dict["fr-CA"]["generate"] == "Créer"
    assert notice_words("head_only", "Only the head moves.", {}, "fr") == "Only the head moves."
    assert compared_words("lip sync", "fr") == "lip sync"
    assert ':lang(fr) .toast-title.error::before { content: "Error"' in css()


def test_every_key_that_is_asked_for_is_there():
    used = set()
    for path in UI.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in ("text", "word")
            ):
                first = node.args[0]
                if isinstance(first, ast.Constant):
                    used.add(first.value)
    assert len(used) > 40
    assert used <= TRANSLATIONS["en"].page.keys()


def test_no_words_lie_idle():
    source = "".join(path.read_text(encoding="utf-8") for path in UI.parent.rglob("*.py"))
    source += (UI / "static" / "points.js").read_text(encoding="utf-8")
    # Keys that the code composes.
    made = ("phase_", "error_", "points_", "source_", "captions_", "framing_", "aspect_", "background_")
    made += ("motion_", "upscale_", "speakers_", "speaks_", "decoder_", "service_", "unreadable_")
    made += ("activity_",)
    source = source.replace("'", '"')
    idle = [key for key in TRANSLATIONS["en"].page if f'"{key.removesuffix("_info")}"' not in source]
    assert [
        key for key in idle if not key.startswith(made) and key.removesuffix("_info") not in SETTINGS
    ] == []


@pytest.mark.parametrize(
    ("accepted", "language"),
    [
        ("", "en"),
        ("en-US,en;q=0.9", "en"),
        ("zh-CN,zh;q=0.9,en;q=0.8", "zh"),
        ("de-DE,de;q=0.9,zh;q=0.5,en;q=0.7", "en"),
        ("fr,zh-TW;q=0.8", "zh"),
        ("garbage;;q=x,,", "en"),
    ],
)
def test_the_browsers_language(accepted: str, language: str):
    assert language_of(request(accepted)) == language
    assert language_of(None) == "en"


def test_gradio_gets_the_same_table():
    table = browser_table().translations_dict
    assert table["zh-CN"]["generate"] == text("generate", "zh")
    assert table["en"]["generate"] == "Generate"


def test_what_is_missing_can_be_said_in_chinese():
    small = Inventory.imagine(1, 8, host_ram_gib=2)
    large = Inventory.imagine(4, 95, compute_capability="12.0")
    instances = tuple(replace(gpu, uuid=f"MIG-{gpu.index}") for gpu in large.gpus)
    translated, reported = program_words("shortfalls", "zh"), set()
    for machine in (
        Inventory.imagine(0, 0, host_ram_gib=0.1),
        replace(small, gpus=(replace(small.gpus[0], compute_capability="7.0"),)),
        replace(small, gpus=(replace(small.gpus[0], free_bytes=None),), checkpoint=Checkpoint()),
        small,
        replace(large, gpus=instances),
        replace(large, torch_cuda="12.6"),
        replace(large, driver_cuda="12.8"),
        replace(large, torch_cuda=""),
        replace(large, torch_cuda="", torch_build=""),
        replace(large, system="windows"),
    ):
        changed = [load_preset("4x80gb-realtime").with_settings(offload_model=True)]
        changed.append(load_preset("80gb").with_settings(decoder="tiny"))
        for preset in [*load_presets(), *changed]:
            for shortfall in fit.judge(preset, machine).shortfalls:
                assert translated[shortfall.code].format_map(shortfall.values)
                assert shortfall.remedy
                reported.add(shortfall.code)
    assert reported == set(translated)


def test_notices_have_no_blank_that_is_not_filled():
    rungs = {"rung", "now", "was", "device", "block"}  # every notice about a rung has these values
    portrait = {"small_portrait": {"name", "width", "height"}, "small_face": {"name", "pixels"}}
    portrait |= {key: {"name"} for key in ("mouth_cut_off", "chin_cut_off", "mouth_covered")}
    portrait |= {key: {"name", "count", "number"} for key in ("several_faces", "face_chosen", "everybody")}
    portrait["small_crop"] = {"name", "width", "height"}
    live = {"live_size": {"ms", "fps", "size"}, "live_lighter": {"speed", "fps", "rung"}}
    live |= {"live_behind": {"speed", "fps"}, "live_starts_lighter": {"size", "steps"}}
    live["voice_slow"] = {"voice"}
    intake = {one.code: set(one.values) for one in sound_notices()}
    intake |= {"transparent": {"name"}, "colour_profile": {"name"}, "trimmed": {"name", "first", "last"}}
    intake |= {code: {"name", "who", "silent"} for code in ("speakers", "speakers_listen")}
    intake |= {"speakers_unseen": {"name", "who"}, "mix_quieter": {"change"}}
    intake |= {"same_voice": {"count", "voice"}, "mask_beside_face": {"name", "number"}}
    intake |= {"idle_faces": {"name", "count"}, "idle_faces_most": {"name", "count", "of"}}
    intake["smaller_video"] = {"name", "size", "width", "height", "made", "full"}
    intake["num_clip"] = {"name", "seconds", "of", "num_clip", "infer_frames"}
    intake["pose_short"] = {"name", "seconds", "of"}
    run = {"restarted": {"cause"}, "resumed": {"done", "total"}, "frames_cut": {"count"}}
    others = {**portrait, **live, **intake, **run}
    for code, words in program_words("notices", "zh").items():
        assert fields(words) <= {"text"} | (rungs if code.startswith("rung_") else others.get(code, set()))


def test_every_rung_has_a_name():
    assert set(program_words("rungs", "zh")) == set(get_args(Rung))


@pytest.mark.parametrize(
    ("raised", "language", "says"),
    [
        (BadInput("x.png is no picture.", "Use a PNG."), "en", "x.png is no picture. Use a PNG."),
        (QueueFull(3), "zh", "3 个视频在等待"),
        (AvatarError("No."), "en", "No."),
    ],
)
def test_our_errors_are_explained_in_words(raised: AvatarError, language: str, says: str):
    def handler(request: gr.Request) -> None:
        raise raised

    with pytest.raises(gr.Error) as error:
        reports_errors(handler)(request(language))
    assert says in error.value.message


@pytest.mark.parametrize(
    ("other", "chinese"),
    [
        (None, "声音 heart 不能朗读汉字和泰文。此处没有能朗读的声音"),
        (Voice("v", "zh-CN", (), "a"), "请选择能朗读的 v。"),
        (Voice("v", "zh-CN", (), "a", fetch_mb=94), "请选择能朗读的 v（首次使用需下载 94 MB）。"),
        (Voice("v", "zh-CN", (), "a", missing="Run: pip install x"), "（Run: pip install x）。"),
    ],
)
def test_a_voice_that_cannot_read_a_text_names_one_that_can(other: Voice | None, chinese: str):
    error = Unreadable("heart", ["Han", "Thai"], other)
    assert chinese in message_of(error, "zh")
    assert message_of(error, "en").lower() == str(error).lower()
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_reason_why_a_live_service_is_down_has_words(language: str):
    address = ServiceAddress("http://chat.example/v1", "m")
    errors = [refused("chat", address, status) for status in (401, 404, 429, 500)]
    errors += [unreached("recognition", address, OSError()), no_answer("chat", address)]
    for error in errors:
        said = message_of(error, language)
        assert "chat.example" in said
        assert "{" not in said
        assert language != "en" or said.partition(" chat.example")[0] in str(error)
    for why in ("library", "model"):
        assert "--hear-url" in message_of(ServiceDown("Not here.", why=why), language)


@pytest.mark.parametrize("kind", ["function", "generator"])
def test_any_other_error_is_a_code_that_the_log_explains(kind: str, caplog: pytest.LogCaptureFixture):
    def function(request: gr.Request) -> None:
        raise RuntimeError("/secret/place is on fire")

    def generator(request: gr.Request):
        yield 1
        raise RuntimeError("/secret/place is on fire")

    handler = reports_errors(generator if kind == "generator" else function)
    with pytest.raises(gr.Error) as error:
        list(handler(request()) or ())
    message = error.value.message
    assert "secret" not in message
    code = message.rsplit(" ", 1)[1]
    assert f"fault {code}" in caplog.text
    assert "on fire" in caplog.text


def test_gradios_own_errors_pass():
    def handler(request: gr.Request) -> None:
        raise gr.Error("mine")

    with pytest.raises(gr.Error, match="mine"):
        reports_errors(handler)(request())
