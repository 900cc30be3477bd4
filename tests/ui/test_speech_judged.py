"""Speech is checked once it is uploaded, and converted to a format that browsers play."""

from __future__ import annotations

import wave
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import gradio as gr
import numpy as np
import pytest

from avatar.errors import BadInput
from avatar.media.limits import InputLimits
from avatar.media.readers import Reader
from avatar.ui.speech import recording_panel
from avatar.ui.speech.recording_panel import RecordingPanel


@pytest.fixture
def page() -> RecordingPanel:
    """A page of which only the speech is used; each component is its own name."""
    limits = InputLimits(max_speech_s=5, longer="ask the host")
    app_state = SimpleNamespace(limits=limits, reader=lambda visitor: Reader())
    return RecordingPanel(SimpleNamespace(speech="speech"), app_state)  # type: ignore[arg-type]


@pytest.fixture
def infos(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    reported: list[str] = []
    monkeypatch.setattr(recording_panel.gr, "Info", lambda text, **options: reported.append(text))
    return reported


def request() -> gr.Request:
    asked = gr.Request()
    asked.kwargs = {"headers": {}}
    return asked


def last(updates: Iterator[dict[str, Any]]) -> dict[str, Any]:
    """A handler's last update."""
    return list(updates)[-1]


def record(path: Path, seconds: float = 2.0, level: float = 0.4) -> Path:
    """Record a tone, in the container that the suffix names."""
    samples = (level * 32767 * np.sin(np.arange(round(48_000 * seconds)) / 30)).astype(np.int16)
    with av.open(str(path), "w") as out:
        stream = out.add_stream(
            "pcm_s16be" if path.suffix != ".wav" else "pcm_s16le", rate=48_000, layout="mono"
        )
        frame = av.AudioFrame.from_ndarray(samples[None], "s16", "mono")
        frame.sample_rate, frame.pts = 48_000, 0
        out.mux([*stream.encode(frame), *stream.encode(None)])
    return path


def test_good_speech_stays_as_it_is(page: RecordingPanel, infos: list[str], tmp_path: Path) -> None:
    reported = last(page.changed(request(), str(record(tmp_path / "a.wav"))))
    assert reported == {"speech": gr.skip()}
    assert infos == []
    assert last(page.changed(request(), None)) == {"speech": gr.skip()}


def test_bad_speech_is_refused_at_once(page: RecordingPanel, infos: list[str], tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"long\.wav is too long .* or ask the host"):
        last(page.changed(request(), str(record(tmp_path / "long.wav", 9))))
    with pytest.raises(BadInput, match=r"hush\.wav is silent"):
        last(page.changed(request(), str(record(tmp_path / "hush.wav", level=0))))
    (tmp_path / "film.mp4").write_bytes(b"no film" * 99)
    with pytest.raises(BadInput, match=r"film\.mp4 is (not a sound file|damaged or cut short)"):
        last(page.changed(request(), str(tmp_path / "film.mp4")))


def test_what_is_odd_is_reported_at_once(page: RecordingPanel, infos: list[str], tmp_path: Path) -> None:
    last(page.changed(request(), str(record(tmp_path / "low.wav", level=0.003))))
    assert infos[0].startswith("low.wav is very quiet")


@pytest.mark.parametrize("kind", ["speech", "video"])
def test_sound_that_browsers_cannot_play_becomes_a_wav(
    kind: str, page: RecordingPanel, infos: list[str], tmp_path: Path
) -> None:
    path = record(tmp_path / "memo.aiff")
    handle = page.changed if kind == "speech" else page.video_taken
    assert last(handle(request(), str(path))) == {"speech": str(tmp_path / "memo.wav")}
    with wave.open(str(tmp_path / "memo.wav")) as made:
        assert made.getnframes() == 96_000


def test_a_video_is_handed_to_the_speech_box(page: RecordingPanel, tmp_path: Path) -> None:
    assert last(page.video_taken(request(), str(tmp_path / "film.mp4"))) == {
        "speech": str(tmp_path / "film.mp4")
    }
