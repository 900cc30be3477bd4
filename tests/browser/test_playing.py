"""A stream from the press of Generate to the downloaded file."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import soundfile
from playback import WATCH, read_playback
from visiting import SPEECH, Contexts, Server, Visitor, open_page

log = logging.getLogger(__name__)

DURATION_S = 6.0


@pytest.fixture(scope="module")
def watched(server: Server, contexts: Contexts, tmp_path_factory: pytest.TempPathFactory):
    """One whole visit, watched: samples of the player, the downloaded file, and the page's status."""
    folder = tmp_path_factory.mktemp("watched")
    sound, rate = soundfile.read(SPEECH)
    soundfile.write(folder / "speech.wav", sound[: round(DURATION_S * rate)], rate)
    with open_page(contexts, server.url) as visitor:
        yield watch(visitor, folder)


def watch(visitor: Visitor, folder: Path) -> dict[str, Any]:
    """Generate from speech.wav in this folder, and watch the video play to its end; download it there."""
    page = visitor.page
    visitor.choose(speech=folder / "speech.wav")
    page.evaluate(WATCH)
    visitor.generate()
    visitor.wait_state("running")
    said = set()
    page.wait_for_selector("#live video", state="attached")
    for _ in range(600):
        said.add(page.inner_text("#status"))
        if page.query_selector("#live video") is None:  # the finished player has replaced it
            break
        page.wait_for_timeout(100)
    visitor.wait_state("done")
    page.wait_for_selector("#final video")
    seen = page.evaluate("window.__watch")
    with page.expect_download() as download:
        page.click("#download")
    path = folder / download.value.suggested_filename
    download.value.save_as(path)
    final = page.evaluate(
        "(() => { const v = document.querySelector('#final video'); return [v.duration, v.error]; })()"
    )
    return {"seen": seen, "download": path, "said": said, "final": final, "errors": visitor.errors}


def test_the_stream_plays_to_its_end(watched, record_property):
    playback = read_playback(watched["seen"], DURATION_S)
    record_property("playback", str(playback))
    log.info(playback)
    assert playback.media_s >= DURATION_S - 0.6
    *others, longest = sorted(playback.stalls)
    assert longest <= 1.0, playback  # a busy machine may hold it up once
    assert max(others, default=0.0) <= 0.3, playback
    free_s = playback.wall_s - playback.dry_s - playback.blocked_s - longest
    assert playback.media_s >= 0.95 * free_s - 0.1, playback
    assert playback.most_ranges == 1, "the segments leave a gap"
    assert playback.frames >= 25 * (DURATION_S - 1) * 0.5  # a busy browser drops frames, but never half
    assert watched["errors"] == []


def test_the_sound_is_decoded(watched):
    assert read_playback(watched["seen"], DURATION_S).audio_bytes > 15_000


def test_the_status_tells_phase_segment_speed_and_label(watched):
    said = " ".join(watched["said"])
    for words in ("Generating", "Segment", "fps", "First frame", "preview", "Done"):
        assert words in said


def test_gauges_tick_throughout(watched, record_property):
    ticks = [t for t in watched["seen"]["gauges"] if t >= watched["seen"]["pressed"]]
    rounds = [t for before, t in pairwise(ticks) if t - before > 0.2]
    gaps = [now - before for before, now in pairwise(rounds)]
    record_property("longest gap between gauges", max(gaps))
    log.info("gauges: %d ticks, longest gap %.2f s", len(gaps), max(gaps))
    assert len(gaps) >= DURATION_S / 3


def test_the_download_is_the_file_on_disk(watched, server: Server):
    digest = hashlib.sha256(watched["download"].read_bytes()).hexdigest()
    assert digest in {hashlib.sha256(path.read_bytes()).hexdigest() for path in server.videos()}
    assert watched["download"].suffix == ".mp4"


def test_the_download_is_sound(watched):
    streams = {stream["codec_type"]: stream for stream in probe(watched["download"])["streams"]}
    video, audio = streams["video"], streams["audio"]
    assert video["r_frame_rate"] == "25/1"
    assert video["codec_name"] == "h264"
    assert audio["codec_name"] == "aac"
    assert abs(float(video["start_time"]) - float(audio["start_time"])) <= 1 / 25
    assert abs(float(video["duration"]) - float(audio["duration"])) <= 1 / 25
    assert abs(float(video["duration"]) - DURATION_S) <= 0.1


def test_the_finished_player_shows_the_whole(watched):
    duration, error = watched["final"]
    assert error is None
    assert abs(duration - DURATION_S) < 0.2


def test_nothing_is_left_behind(watched, server: Server):
    assert server.leftovers() == []


def test_a_page_can_generate_again(server: Server, visit, short_speech: Path):
    visitor = visit(server.url)
    page = visitor.page
    visitor.choose(speech=short_speech)
    for _ in range(2):
        visitor.generate()
        visitor.wait_state("running")
        page.wait_for_function("document.querySelector('#live video')?.currentTime > 0.5")
        assert not page.is_visible("#final video")
        visitor.wait_state("done")
        page.wait_for_selector("#final video")  # once the live player has reached its end
        assert page.is_visible("#download")
    assert visitor.errors == []


NEVER_TOLD = "document.addEventListener('ended', (event) => event.stopImmediatePropagation(), true)"
STAND_SHORT_OF_THE_END = """
setInterval(() => {
  const video = document.querySelector('#live video');
  if (video && video.currentTime > video.duration - 0.3) video.playbackRate = 0;
}, 10)"""
PAUSE = "(v => v?.currentTime > 0.3 && (v.pause(), true))(document.querySelector('#live video'))"


@pytest.mark.slow
@pytest.mark.parametrize(
    "trouble", [NEVER_TOLD, NEVER_TOLD + STAND_SHORT_OF_THE_END], ids=["unheard", "stands"]
)
def test_the_finished_player_comes_though_the_live_one_never_tells(
    server: Server, visit, short_speech: Path, trouble: str
):
    visitor = visit(server.url)
    page = visitor.page
    page.evaluate(f"() => {{ {trouble} }}")
    visitor.choose(speech=short_speech)
    visitor.generate()
    visitor.wait_state("done")
    page.evaluate("document.querySelector('#replay').addEventListener('click', () => window.pressed = true)")
    page.wait_for_selector("#final video")
    assert page.evaluate("window.pressed"), "the end was announced after all"
    assert page.query_selector("#live video") is None
    assert visitor.errors == []


@pytest.mark.slow
def test_a_paused_live_player_stays_until_its_viewer_goes_on(server: Server, visit, short_speech: Path):
    visitor = visit(server.url)
    page = visitor.page
    visitor.choose(speech=short_speech)
    visitor.generate()
    page.wait_for_function(PAUSE)
    visitor.wait_state("done")
    page.wait_for_timeout(5000)  # twice as long as a player may stand at its end
    assert page.evaluate("document.querySelector('#live video').paused")
    assert not page.is_visible("#final video")
    page.evaluate("document.querySelector('#live video').play()")
    page.wait_for_selector("#final video")
    visitor.generate()
    page.wait_for_function(PAUSE)
    visitor.wait_state("done")
    page.click("#replay")
    page.wait_for_selector("#final video")
    assert page.is_hidden("#replay")
    assert visitor.errors == []


def probe(path: Path) -> dict:
    """What ffprobe reports about a file."""
    from avatar.media.ffmpeg import put_on_path

    put_on_path()
    program = shutil.which("ffprobe")
    assert program
    command = [program, "-v", "error", "-show_streams", "-of", "json", str(path)]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
