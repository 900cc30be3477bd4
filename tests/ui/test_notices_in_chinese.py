"""Every notice that can reach the page has Chinese words, with blanks that the notice fills."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
from PIL import Image

from avatar.events import Notice
from avatar.media.audio_track import TrackFindings
from avatar.media.intake import open_request
from avatar.media.sound_notices import fault_notices, gain_notices
from avatar.preset import Preset
from avatar.ui.language import notice_words, program_words
from avatar.ui.speech import recording_panel
from tests.media.media_samples import PRESET_SETTINGS, tone, write_wav
from tests.ui.test_speech_judged import last, page, record  # noqa: F401 (page is a fixture)

SOURCE = Path(__file__).resolve().parents[2] / "avatar"
ENGLISH_ONLY = {"measured"}  # rank 0's figures for `bench`, which the page does not run


def constants() -> dict[str, str]:
    """Every string constant of the source that is assigned to a name in capitals."""
    found = {}
    for path in SOURCE.rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
                found |= {
                    target.id: node.value.value for target in node.targets if isinstance(target, ast.Name)
                }
    return found


def calls(tree: ast.AST, name: str) -> Iterator[ast.Call]:
    """The calls of a function or method of this name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == name:
            yield node


def values_of(node: ast.expr, module: ast.Module, named: dict[str, str]) -> set[str]:
    """The strings that an expression can be; a part that cannot be known is "*"."""
    if isinstance(node, ast.Constant):
        return {str(node.value)}
    if isinstance(node, ast.JoinedStr):
        parts = [
            values_of(part.value if isinstance(part, ast.FormattedValue) else part, module, named)
            for part in node.values
        ]
        return {"".join(chosen) for chosen in product(*parts)}
    if isinstance(node, ast.Name) and node.id in named:
        return {named[node.id]}
    found = set()
    for function in ast.walk(module):  # a parameter: what the function's callers give it
        if (
            isinstance(function, ast.FunctionDef)
            and isinstance(node, ast.Name)
            and node in ast.walk(function)
        ):
            names = [one.arg for one in function.args.args if one.arg != "self"]
            if node.id in names:
                at = names.index(node.id)
                for call in calls(module, function.name):
                    found |= values_of(call.args[at], module, named)
    return found or {"*"}


def codes() -> set[str]:
    """The codes of all notices that the source makes."""
    found, named = set(), constants()
    for path in SOURCE.rglob("*.py"):
        module = ast.parse(path.read_text(encoding="utf-8"))
        for call in calls(module, "Notice"):
            if call.args:
                found |= values_of(call.args[0], module, named)
    return found


def test_every_notice_has_words_in_chinese() -> None:
    found, translated = codes(), program_words("notices", "zh")
    assert {"head_only", "mouth_covered", "rung_oom", "cut_short", "damaged_places", "slow_*"} <= found
    unknown = {one for one in found - ENGLISH_ONLY if not any(fnmatchcase(key, one) for key in translated)}
    assert unknown == set()
    assert "*" not in found, "a code that this test cannot read"
    idle = {key for key in translated if not any(fnmatchcase(key, one) for one in found)}
    assert idle == set()


def sound_notices() -> list[Notice]:
    """Every notice about sound."""
    one, three = [(2.0, 2.0)], [(2.0, 2.0), (6.0, 1.0), (8.0, 0.5)]
    found = [
        TrackFindings(broken=True),
        TrackFindings(bad_packets=1),
        TrackFindings(bad_packets=1, gaps=one),
        TrackFindings(bad_packets=1, gaps=three),
        TrackFindings(gaps=one),
        TrackFindings(gaps=three),
        TrackFindings(gaps=[(2.0, 2.0), (6.0, 1.0)]),
        TrackFindings(astray_s=3.0, not_numbers=7),
    ]
    made = [notice for each in found for notice in fault_notices("{a} b.wav", each, None, 10.0)]
    made += fault_notices("{a} b.wav", TrackFindings(broken=True), 60.0, 10.0)
    return [*made, *gain_notices("{a} b.wav", 10.0, -48.0), *gain_notices("{a} b.wav", 0.5, 6.0)]


@pytest.mark.parametrize("notice", sound_notices(), ids=lambda notice: notice.code)
def test_notices_of_sound_fill_their_blanks(notice: Notice) -> None:
    assert "{a} b.wav" in notice.text
    said = notice_words(notice.code, notice.text, notice.values, "zh")
    assert said != notice.text
    assert "{a} b.wav" in said
    for value in map(str, notice.values.values()):
        assert value in said


def intake_notices(tmp_path: Path) -> list[Notice]:
    """Notices about a portrait with glass and a speech between silences, of which one clip is made."""
    sound = np.zeros(6 * 48_000, np.float32)
    sound[96_000:240_000] = tone(3, 48_000)
    Image.new("RGBA", (99, 99), (9, 9, 9, 99)).save(tmp_path / "p.png", icc_profile=b"no profile")
    wav = write_wav(tmp_path / "s.wav", sound, 48_000)
    preset = Preset(**PRESET_SETTINGS).with_settings(trim=True, num_clip=1, infer_frames=48)
    made = open_request(tmp_path / "p.png", wav, preset, output=tmp_path / "o.mp4", work=tmp_path / "work")
    return list(made.notices)


def test_notices_of_intake_fill_their_blanks(tmp_path: Path) -> None:
    made = intake_notices(tmp_path)
    assert [one.code for one in made] == [
        "colour_profile",
        "transparent",
        "smaller_video",
        "trimmed",
        "num_clip",
    ]
    for one in made:
        said = notice_words(one.code, one.text, one.values, "zh")
        assert said != one.text
        assert all(str(value) in said for value in one.values.values())


def test_gaps_are_told_apart() -> None:
    assert [one.text for one in sound_notices()[3:7]] == [
        "A small part of {a} b.wav is damaged and was left out from 0:02.0 to 0:04.0"
        " and in 2 more places, 1.5 s in all.",
        "{a} b.wav holds no sound from 0:02.0 to 0:04.0; the video is silent there.",
        "{a} b.wav holds no sound from 0:02.0 to 0:04.0 and in 2 more places, 1.5 s in all;"
        " the video is silent there.",
        "{a} b.wav holds no sound from 0:02.0 to 0:04.0 and in 1 more place, 1 s in all;"
        " the video is silent there.",
    ]


def test_an_upload_is_judged_in_the_pages_language(page, monkeypatch, tmp_path) -> None:  # noqa: F811
    said: list[str] = []
    monkeypatch.setattr(recording_panel.gr, "Info", lambda words, **options: said.append(words))
    asked = gr.Request()
    asked.kwargs = {"headers": {"accept-language": "zh-CN"}}
    last(page.changed(asked, str(record(tmp_path / "low.wav", level=0.003))))
    assert said == ["low.wav 声音很小（峰值 -50 dB），已调高 27 dB。"]
