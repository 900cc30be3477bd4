"""Compare on the page: what can be chosen, what is made, what is shown, and to whom."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import numpy as np
import pytest
import soundfile
from engines import ScriptedEngine
from PIL import Image

from avatar.compare.result import DONE, Comparison, Row
from avatar.compare.table import MEASURED, RUN
from avatar.errors import AvatarError, BadInput, Cancelled
from avatar.events import Event
from avatar.media.voices_file import read_voice, voices_beside
from avatar.preset import load_presets
from avatar.request import Request
from avatar.runtime.bounded_process import BoundedJob
from avatar.runtime.gallery import About, Gallery, owner_hash
from avatar.settings import FORM
from avatar.ui.compare.compare_choices import chosen_settings, labels, read_pair, value_choices
from avatar.ui.compare.compare_html import PlayedVideo, render_players, render_table
from avatar.ui.compare.compare_panel import ComparePanel
from avatar.ui.components import PageComponents
from avatar.ui.generate.generate import Generate
from avatar.ui.language import program_words
from avatar.ui.speakers.speakers_panel import NAMES as SPEAKERS
from avatar.ui.state.app_state import AppState
from avatar.ui.state.job_queue import JobQueue
from avatar.ui.state.machine_presets import flat
from avatar.ui.state.page_runs import PageRuns
from tests.fixtures.server import wait_until

ASSETS = Path(__file__).resolve().parents[2] / "assets"
PORTRAIT = ASSETS / "portraits" / "astronaut.jpg"
SPEECH = ASSETS / "speech" / "hello-en.flac"
SYNC = {"offset_ms": 12.0, "confidence": 0.8}
MEASURES = {
    "lip_sync": {**SYNC, "closure_recall": 1.0, "closure_chance": 0.5, "closures": 5},
    "smoothness": {"ratio": 2.0, "seam_is_seen": True, "why": ""},
    "naturalness": {"yaw": {"range": 2.0}, "blinks_per_min": 90.0, "blink_ms": 150.0, "unusual": ["blinks"]},
    "expression": {"brows": {"range": 1.0}, "why": "a face must be seen for some seconds"},
    "likeness": {"ssim": {"mean": 0.9, "per_min": -0.1, "drifts": True}},
}


class Measuring:
    """Stands for the measuring process: ends each job at once, with measures or an error, or never."""

    def __init__(self, never: bool = False, error: BaseException | None = None) -> None:
        self.never, self.error = never, error
        self.begun: list[Path] = []
        self.left: list[BoundedJob] = []

    def begin(self, video: Path, duration_s: float, visitor: str = "") -> BoundedJob:
        self.begun.append(video)
        job = BoundedJob(len, (), video.name, 1.0, visitor)
        if not self.never:
            job.end(MEASURES, self.error)
        return job

    def leave(self, job: BoundedJob) -> None:
        self.left.append(job)

    def close(self) -> None:
        self.begun.clear()


class FirstFails(ScriptedEngine):
    """The first run fails at once; the next goes on until it is stopped."""

    def stream(self, request: Request) -> Iterator[Event]:
        self.fail_at, self.hold = (None, True) if self.requests else (0, False)
        yield from super().stream(request)


class Page:
    """A page without Gradio: each component is its own name."""

    def __init__(self, folder: Path, engine: ScriptedEngine, **measuring: Any) -> None:
        self.engine, gallery = engine, Gallery(folder / "outputs")
        (folder / "scratch").mkdir()
        self.job_queue = JobQueue(lambda preset: engine, gallery)
        self.app_state = AppState(
            self.job_queue, gallery, load_presets(), "cpu-preview", folder / "scratch", shared=False
        )
        self.measuring = self.app_state.measuring = Measuring(**measuring)  # type: ignore[assignment]
        names: dict[str, Any] = {name: name for name in PageComponents.__dataclass_fields__}
        names["speakers"] = {name: name for name in SPEAKERS}
        ours = ("a", "b", "go", "differs", "value_a", "value_b", "make", "stop", "note", "players", "table")
        parts: Any = SimpleNamespace(
            **names | {"form": {name: name for name in FORM}, "compare": {name: name for name in ours}}
        )
        self.panel = ComparePanel(
            parts, self.app_state, Generate(parts, self.app_state, PageRuns(self.app_state))
        )

    def request(self, language: str = "en") -> gr.Request:
        request = gr.Request()
        request.kwargs = {"headers": {"accept-language": language}}
        request.session_hash = "v"
        return request

    def make(
        self,
        differs: str,
        a: str,
        b: str,
        portrait: Path = PORTRAIT,
        speech: Path | None = SPEECH,
        asked: Any = None,
        source: str = "upload",
        speakers: tuple[Any, ...] = (),
        **form: Any,
    ) -> Iterator[dict]:
        values = {**flat(self.app_state.machine.resolved("cpu-preview")), **form}
        typed = (source, "Hello.", "heart", 1.0, "file", None)
        given = [str(portrait), str(speech) if speech else None, "", "cpu-preview", asked, "me", *typed]
        own = (*(values[name] for name in FORM), None, *speakers)  # without a pose video
        return self.panel.make(self.request(), differs, a, b, *given, *own)

    def add(self, owner: str, **about: Any) -> str:
        """Add a finished video of this owner."""
        gallery = self.app_state.gallery
        draft = gallery.draft()
        (draft / f"avatar-{draft.name.removeprefix('.draft-')[:15]}.mp4").write_bytes(b"video")
        made = About("me.jpg", "hello.wav", "", "cpu-preview", "preview", {"size": "384*384"}, 50, 2.0)
        return gallery.keep(draft, replace(made, owner_hash=owner_hash(owner), **about)).id


@pytest.fixture
def page(tmp_path: Path):
    made: list[Page] = []

    def make(engine: ScriptedEngine | None = None, **options: Any) -> Page:
        made.append(Page(tmp_path, engine or ScriptedEngine(), **options))
        return made[-1]

    yield make
    for one in made:
        one.engine.go.set()
        one.app_state.close()


def last(updates: list[dict], name: str) -> Any:
    return [update[name] for update in updates if name in update][-1]


def test_two_videos_are_shown_at_once_and_measured(page):
    p = page()
    ids = [p.add("me"), p.add("me", settings={"size": "256*256"})]
    updates = list(p.panel.compare(p.request(), *ids, "me"))
    shown = next(at for at, update in enumerate(updates) if "<video" in update.get("players", ""))
    assert not any("+12" in update.get("table", "") for update in updates[: shown + 1]), (
        "playable before measured"
    )
    assert sum("players" in update for update in updates) == 2, (
        "emptied, then set: never again while they play"
    )
    players, table = last(updates, "players"), last(updates, "table")
    for id in ids:
        assert f"/outputs/{id}/" in players
    assert "A · Size 384*384" in table
    assert "B · Size 256*256" in table
    assert table.count("+12") == 2
    assert str(p.app_state.gallery.folder) not in players + table
    assert updates[0]["go"]["interactive"] is False
    assert updates[-1]["go"]["interactive"] is True
    assert updates[-1]["stop"]["visible"] is False
    assert len(p.measuring.left) == len(p.measuring.begun) == 2


def test_only_ones_own_videos_are_offered(page):
    p = page()
    mine = [p.add("me", created=1e9), p.add("me", created=2e9)]
    theirs = p.add("they")
    offered = p.panel.offered(p.request(), "me", "cpu-preview", "", "", "")
    assert [id for _, id in offered["a"]["choices"]] == mine[::-1]
    assert (offered["a"]["value"], offered["b"]["value"]) == tuple(mine), "the last two, as they were made"
    assert "384*384" not in [offered["value_b"]["value"]]
    kept = p.panel.offered(p.request(), "me", "cpu-preview", mine[1], mine[0], "size")
    assert (kept["a"]["value"], kept["b"]["value"]) == (mine[1], mine[0])
    assert "value_a" not in kept, "what was chosen stays"
    assert theirs not in str(offered)


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("owner", ["they", "", "0" * 32])
def test_anothers_video_is_not_compared(page, owner, language):
    p = page()
    ids = [p.add("me"), p.add("me")]
    with pytest.raises(BadInput) as error:
        list(p.panel.compare(p.request(language), *ids, owner))
    assert ("no longer here" in str(error.value)) == (language == "en")
    assert p.measuring.begun == []


@pytest.mark.parametrize(
    ("ids", "says"), [(("", ""), "Choose two"), (("x", "x"), "the same"), (("x", "../y"), "here")]
)
def test_what_cannot_be_compared_is_said(page, ids, says):
    p = page()
    with pytest.raises(BadInput, match=says):
        list(p.panel.compare(p.request(), *ids, "me"))


def test_a_video_that_cannot_be_measured_still_plays(page):
    p = page(error=BadInput("x.mp4 takes too long to read.", "Export it again."))
    updates = list(p.panel.compare(p.request(), p.add("me"), p.add("me"), "me"))
    assert last(updates, "players").count("<video") == 2
    assert "could not be measured: x.mp4 takes too long to read." in last(updates, "table")
    assert "Export" not in last(updates, "table")


def test_a_long_video_is_played_and_not_measured(page):
    p = page()
    updates = list(p.panel.compare(p.request(), p.add("me"), p.add("me", duration_s=900.0), "me"))
    assert len(p.measuring.begun) == 1
    assert "B is longer than 5 minutes" in last(updates, "table")


def test_stop_ends_the_measuring(page):
    p = page(never=True)
    updates = p.panel.compare(p.request(), p.add("me"), p.add("me"), "me")
    seen = [next(updates) for _ in range(4)]
    assert any("Measuring A" in update.get("note", "") for update in seen)
    p.panel.stop(p.request())
    rest = list(updates)
    assert len(p.measuring.left) == len(p.measuring.begun) == 1
    assert "Stopped" in rest[-1]["note"]
    assert rest[-1]["go"]["interactive"] is True


def test_two_videos_are_made_that_differ_in_one_setting(page):
    p = page()
    updates = list(p.make("size", "320*320", "256*256", seed=7))
    first, second = (request.preset.generation for request in p.engine.requests)
    assert (first.size, second.size) == ("320*320", "256*256")
    assert replace(first, size="") == replace(second, size="")
    assert first.seed == 7
    assert len(p.app_state.gallery.entries(owner_hash("me"))) == 2
    assert "Making B" in " ".join(
        update.get("note", "") for update in updates if isinstance(update.get("note"), str)
    )
    assert "A · Size 320*320" in last(updates, "table")
    assert last(updates, "players").count("<video") == 2
    assert [left.name for left in p.app_state.scratch.iterdir()] == []


@pytest.fixture
def two(tmp_path: Path) -> dict[str, Path]:
    """A portrait of two people, and a recording for each."""
    faces = [Image.open(PORTRAIT.parent / name).convert("RGB") for name in ("astronaut.jpg", "mara.png")]
    pair = np.concatenate([np.asarray(face.resize((256, 256))) for face in faces], axis=1)
    Image.fromarray(pair).save(tmp_path / "us.png")
    for name, step in (("a", 0.03), ("b", 0.04)):
        soundfile.write(tmp_path / f"{name}.wav", np.sin(np.arange(48_000) * step) * 0.3, 48_000)
    return {"portrait": tmp_path / "us.png", "a": tmp_path / "a.wav", "b": tmp_path / "b.wav"}


def spoken_by(way: str, *audios: Path) -> dict[str, Any]:
    """Two faces in the portrait's panel, of which the second speaks first; and the section of speakers."""
    box = {"left": 0.1, "top": 0.2, "right": 0.3, "bottom": 0.6}
    asked = {"for": "us.png", "engine": "preview", "faces": [{"box": box}] * 2, "face": 0}
    section = (way, None, "around", None, None, 2, 1, 3, 4, *(*map(str, audios), None, None, None, None)[:4])
    return {"asked": asked, "speakers": section}


def test_several_speakers_are_the_same_in_both_videos(page, two):
    p = page()
    several = spoken_by("own", two["b"], two["a"])
    list(p.make("size", "320*320", "256*256", portrait=two["portrait"], speech=None, **several))
    for request in p.engine.requests:
        assert [(one.name, one.face[0] > 0.5) for one in request.speakers] == [
            ("b.wav", True),
            ("a.wav", False),
        ]
        assert request.face is None
    assert [request.preset.generation.size for request in p.engine.requests] == ["320*320", "256*256"]
    for entry in p.app_state.gallery.entries(owner_hash("me")):
        voices = [read_voice(voices_beside(entry.video), number) for number in (0, 1)]
        assert [len(voice) for voice in voices] == [16_000, 16_000], "each is measured by its own"
        assert not np.allclose(*voices, atol=0.1)
        name = voices_beside(entry.video).name
        key = p.app_state.gallery.key(entry.id, name)
        assert p.app_state.gallery.file(entry.id, name, key) is None, "nobody downloads them"


def test_a_text_cannot_be_shared_in_a_comparison(page, two):
    p = page()
    making = p.make("size", "320*320", "256*256", two["portrait"], source="type", **spoken_by("stereo"))
    with pytest.raises(BadInput, match="typed text cannot be split"):
        list(making)
    assert p.engine.requests == []


def test_stop_ends_both_runs(page):
    p = page(ScriptedEngine(hold=True))
    updates = p.make("size", "320*320", "256*256")
    for update in updates:
        if "Making A" in update.get("note", ""):
            break
    p.panel.stop(p.request())
    rest = list(updates)
    assert "Stopped" in rest[-1]["note"]
    assert len(p.engine.requests) == 1, "the second never began"
    assert p.job_queue.running is None


def test_what_fails_is_said_and_the_other_run_ends(page):
    p = page(FirstFails(error=AvatarError("The disk is full.", "Free some.")))
    with pytest.raises(AvatarError, match="disk is full"):
        list(p.make("size", "320*320", "256*256"))
    wait_until(lambda: p.job_queue.running is None, "the second has ended")
    [left] = p.app_state.gallery.entries()
    assert not left.about.duration_s, "what failed can be resumed, what was stopped is gone"


@pytest.mark.parametrize(
    ("differs", "a", "b"),
    [
        ("size", "320*320", "320*320"),
        ("size", "", "256*256"),
        ("size", "320*320", "256*256,128*128"),
        ("size", "320*320", "big"),
        ("seed", "1", "-4"),
        ("infer_frames", "48", "32"),
        ("preset", "cpu-preview", "/etc/hosts.toml"),
        ("preset", "cpu-preview", "../presets/self-test.toml"),
        ("host_ram_gib", "1", "2"),
        ("", "1", "2"),
    ],
)
def test_wrong_values_are_refused_before_anything_is_made(page, differs, a, b):
    p = page()
    with pytest.raises(BadInput) as error:
        list(p.make(differs, a, b))
    assert "--vary" not in str(error.value), "words of a command line"
    assert p.engine.requests == []
    assert p.app_state.gallery.entries() == []


def test_presets_bring_their_own_settings(page):
    p = page()
    chosen = {**flat(p.app_state.machine.resolved("cpu-preview")), "seed": 9, "size": "320*320"}
    form = [chosen[name] for name in FORM]
    cells = read_pair(p.app_state, "preset", ("cpu-preview", "self-test"), "en")
    found = [chosen_settings(p.app_state, "cpu-preview", form, cell) for cell in cells]
    assert [name for name, _ in found] == ["cpu-preview", "self-test"]
    for _, settings in found:
        assert settings["seed"] == 9
        assert "size" not in settings
    offered = [name for _, name in value_choices(p.app_state, "preset", "en")]
    assert "cpu-preview" in offered
    assert "80gb" not in offered, "it does not run here"


def test_videos_that_differ_in_nothing_are_told_apart(page):
    p = page()
    a, b = (p.app_state.gallery.get(p.add("me", created=at)) for at in (1e9, 1e9 + 60))
    assert a is not None
    assert b is not None
    first, second = labels(a, b, "en")
    assert first != second
    assert first.startswith("2001-")


def test_a_comparison_is_told_in_chinese():
    assert set(RUN) | set(MEASURED) <= set(program_words("compared", "zh")), "each heading"
    gpus = [{"peak_bytes": 2**30, "card_peak_bytes": None}]
    run = {
        "gpus": gpus,
        "host_peak_bytes": 2**30,
        "out_of_memory": True,
        "average_fps": 3.0,
        "first_frame_s": 1.0,
    }
    row = Row("x", "A · no of yes.mp4", state=DONE, run=run, measures=MEASURES)
    said = re.sub("<[^>]*>", " ", render_table(Comparison(Path(), [row]), "zh"))
    assert "A · no of yes.mp4, 表情: 脸需要出现数秒以上" in said
    own = said.replace("no of yes.mp4", "")
    assert "有接缝" in own
    assert set(re.findall(r"[A-Za-z]{2,}", own)) <= {"GiB", "SSIM"}


def test_remarks_on_a_speaker_are_told_in_chinese():
    listens = {"name": "1: b.wav", "lip_sync": {"offset_ms": None, "why": "it listens"}}
    row = Row("x", "A · size", state=DONE, measures={**MEASURES, "speakers": [listens]})
    said = re.sub("<[^>]*>", " ", render_table(Comparison(Path(), [row]), "zh"))
    assert "A · size – 1: b.wav, 口型同步: 只在倾听" in said


def test_nobody_injects_markup_by_a_label():
    evil = '"><script>alert(1)</script>'
    row = Row("x", evil, state=DONE, error=evil)
    for made in (
        render_table(Comparison(Path(), [row]), "en"),
        render_players([PlayedVideo("A", evil, evil)], "en"),
    ):
        assert "<script" not in made


def test_a_cancelled_measuring_is_a_stop(page):
    p = page(error=Cancelled("The server is stopping."))
    updates = list(p.panel.compare(p.request(), p.add("me"), p.add("me"), "me"))
    assert "Stopped" in updates[-1]["note"]
