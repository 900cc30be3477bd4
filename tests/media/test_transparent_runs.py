"""Runs with another background: what streams, what is finished, what is kept if a run breaks off."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from avatar.errors import AvatarError, BadInput, WorkerLost
from avatar.events import Event, Finished, Segment
from avatar.media.intake import open_request
from avatar.request import Caption, Request
from avatar.runtime.stream import finish_from_segments, stream_frames
from avatar.settings import Picture

PORTRAIT = Path(__file__).parents[2] / "assets" / "portraits" / "astronaut.jpg"


class Still:
    """The portrait again and again; raises before the frame fails_at."""

    label = "test"

    def __init__(self, fails_at: int = -1) -> None:
        self.fails_at = fails_at
        with Image.open(PORTRAIT) as opened:
            self.picture = np.asarray(opened.convert("RGB").resize((192, 192)))

    def frames(self, request: Request, cancelled: Callable[[], bool]) -> Iterator[np.ndarray]:
        for start in range(0, request.num_frames, 10):
            if start == self.fails_at:
                raise AvatarError("The engine stopped.")
            yield np.repeat(self.picture[None], min(10, request.num_frames - start), axis=0)

    def close(self) -> None:
        pass


def transparent(request: Request, output: Path) -> Request:
    return replace(request, background="transparent", output=output)


def run(request: Request, source: Still) -> tuple[list[Event], AvatarError | None]:
    request.output.parent.mkdir(exist_ok=True)
    events: list[Event] = []
    try:
        for event in stream_frames(source, request):
            events.append(event)
    except AvatarError as error:
        return events, error
    return events, None


def first(video: Path) -> np.ndarray:
    with av.open(str(video)) as container:
        return next(container.decode(video=0)).to_ndarray(format="rgb24")


def alphas(video: Path) -> list[np.ndarray]:
    with av.open(str(video)) as container:
        decoder = av.CodecContext.create("libvpx-vp9", "r")
        frames = [one for packet in container.demux(video=0) for one in decoder.decode(packet)]
    return [one.to_ndarray(format="rgba")[..., 3] for one in frames]


def test_the_stream_is_chequered_and_a_webm_lies_beside(ask, tmp_path):
    request = transparent(ask(2.0), tmp_path / "out" / "film.mp4")
    events, error = run(request, Still())
    assert error is None
    for shown in (next(one.path for one in events if isinstance(one, Segment)), request.output):
        corner = first(shown)[2:14, 2:14].mean(), first(shown)[2:14, 18:30].mean()
        assert corner == pytest.approx((90, 140), abs=4)
    found = alphas(request.output.with_suffix(".webm"))
    assert len(found) == 50
    assert found[10][:20, :20].max() < 4
    assert found[10][35, 75] > 250


def test_what_was_made_before_an_error_is_transparent(ask, tmp_path):
    request = transparent(ask(2.0), tmp_path / "out" / "film.webm")
    events, error = run(request, Still(fails_at=30))
    assert error is not None
    [finished] = [one for one in events if isinstance(one, Finished)]
    assert (finished.video, finished.stopped, finished.num_frames) == (request.output, True, 30)
    assert len(alphas(request.output)) == 30


@pytest.mark.parametrize("name", ["film.webm", "film.mp4"])
def test_a_killed_run_is_finished_from_its_draft(name, ask, tmp_path):
    request = transparent(ask(2.0), tmp_path / "out" / name)
    events, _ = run(request, Still())
    webm = request.output.with_suffix(".webm")
    for made in (webm, request.output):
        made.unlink(missing_ok=True)
    segments = [one for one in events if isinstance(one, Segment)]
    finished = finish_from_segments(request, segments, WorkerLost("The engine died."))
    assert finished is not None
    assert (finished.video, finished.num_frames) == (request.output, 50)
    assert len(alphas(webm)) == 50


def test_burned_captions_are_refused_with_a_transparent_background(ask, tmp_path):
    request = ask(2.0)
    with pytest.raises(BadInput, match="Captions cannot be burned into a transparent video"):
        open_request(
            PORTRAIT,
            request.speech,
            request.preset,
            output=tmp_path / "o.webm",
            work=tmp_path / "w",
            captions=(Caption(0, 1, "Hello."),),
            burn_captions=True,
            picture_settings=Picture(background="transparent"),
        )
    assert not (tmp_path / "w").exists()
