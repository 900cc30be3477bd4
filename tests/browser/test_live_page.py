"""The tab Live in a real Chromium with a fake microphone: both transports, texts, keys, leaving."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count

import av
import numpy as np
import pytest
import soundfile
from visiting import (
    PATIENCE_MS,
    PORTRAIT,
    ROOT,
    SPEECH,
    Contexts,
    Visitor,
    open_page,
    wait_until,
)

NO_WEBRTC = "delete window.RTCPeerConnection"
NEVER_CONNECTS = "RTCPeerConnection.prototype.setRemoteDescription = () => Promise.resolve()"
ADDRESSES = (f"192.0.2.{number}" for number in count(1))  # one visitor may begin twelve sessions a minute
PLAYS = "document.querySelector('#live-video')?.getVideoPlaybackQuality().totalVideoFrames > {count}"


@pytest.fixture(scope="module")
def speaking(launch, tmp_path_factory) -> Iterator[Contexts]:
    """Contexts of a browser whose microphone hears speech, over and over."""
    sound, rate = soundfile.read(SPEECH)
    path = tmp_path_factory.mktemp("microphone") / "speech.wav"
    soundfile.write(path, np.concatenate([sound[: 4 * rate], np.zeros(2 * rate)]), rate)
    launched = launch(
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-audio-capture={path}",
    )
    yield Contexts(launched)
    launched.close()


@pytest.fixture
def refusing(launch) -> Iterator[Contexts]:
    """Contexts of a browser that grants nobody its microphone."""
    launched = launch("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream=deny")
    yield Contexts(launched)
    launched.close()


@pytest.fixture
def visit(server, speaking) -> Iterator[Callable[..., Visitor]]:
    """A function that opens the page at its tab Live."""
    with ExitStack() as visitors:

        def visit_live(script: str = "", contexts: Contexts = speaking, **options) -> Visitor:
            visitor = visitors.enter_context(open_page(contexts, f"{server.url}/?live", **options))
            visitors.callback(leave, visitor)
            visitor.context.set_extra_http_headers({"X-Forwarded-For": next(ADDRESSES)})
            visitor.page.wait_for_selector(".live-go", state="visible")
            if script:
                visitor.page.evaluate(script)
            visitor.page.set_input_files("#portrait input[type=file]", PORTRAIT)
            visitor.page.wait_for_selector("#portrait img")
            return visitor

        yield visit_live


def leave(visitor: Visitor) -> None:
    """End the session, if there is one."""
    if not visitor.page.is_closed():
        visitor.page.evaluate("window.liveSession?.token && document.querySelector('.live-go').click()")
        visitor.page.wait_for_function("!window.liveSession?.token")


def go(visitor: Visitor, mode: str = "mirror", frames: int = 10) -> None:
    """Go live, and wait until the player has shown this many frames."""
    visitor.page.click(f'[data-mode="{mode}"]')
    visitor.page.click(".live-go")
    visitor.page.wait_for_function(PLAYS.format(count=frames), timeout=PATIENCE_MS)


def state(visitor: Visitor) -> str:
    return visitor.page.inner_text(".live-state")


@pytest.mark.parametrize(
    ("script", "transport", "words"), [("", "webrtc", "WebRTC"), (NO_WEBRTC, "socket", "WebSocket")]
)
def test_a_mirrored_voice_is_seen_and_heard_by_either_transport(visit, script, transport, words):
    visitor = visit(script)
    go(visitor, frames=40)
    page = visitor.page
    assert page.evaluate("window.liveSession.transport") == transport
    page.wait_for_function("/\\d+ ms/.test(document.querySelector('.live-state').textContent)")
    assert words in state(visitor)
    page.wait_for_function("Number(document.querySelector('.live-meter').ariaValueNow) > 30")
    heard = """() => { const c = new AudioContext(), v = document.querySelector('#live-video');
        const s = v.srcObject ? c.createMediaStreamSource(v.srcObject) : c.createMediaElementSource(v);
        const a = c.createAnalyser(); s.connect(a); a.connect(c.destination);
        window.__loudest = 0; setInterval(() => { const d = new Float32Array(a.fftSize);
          a.getFloatTimeDomainData(d); window.__loudest = Math.max(window.__loudest, ...d); }, 50); }"""
    page.evaluate(heard)
    page.wait_for_function("window.__loudest > 0.01", timeout=PATIENCE_MS)
    assert visitor.errors == []


def test_typed_words_are_said_and_shown(visit):
    visitor = visit()
    go(visitor, "type")
    page = visitor.page
    page.fill(".live-type textarea", "Hello there. This was typed.")
    page.press(".live-type textarea", "Enter")
    page.wait_for_function("document.querySelectorAll('.live-said li').length === 2", timeout=PATIENCE_MS)
    assert page.inner_text(".live-said") == "Portrait Hello there.\nPortrait This was typed."
    assert page.input_value(".live-type textarea") == ""
    page.locator(".live-said").scroll_into_view_if_needed()
    assert page.locator("#stage").bounding_box()["y"] >= 0, "who speaks stays beside what is said"
    page.fill(".live-type textarea", "你好。")
    page.click('[data-do="say"]')
    page.wait_for_selector(".live-notice:visible")
    assert "does not read" in page.inner_text(".live-notice")


def test_what_was_cut_off_is_not_written_as_said(visit):
    visitor = visit()
    go(visitor, "type")
    page = visitor.page
    later = " ".join(f"This is number {number} of a good many sentences." for number in range(2, 6))
    page.fill(".live-type textarea", f"The first one is rather short. {later}")
    page.press(".live-type textarea", "Enter")
    page.wait_for_function("document.querySelectorAll('.live-said li').length >= 1", timeout=PATIENCE_MS)
    page.wait_for_function("window.liveSession.saying.size > 1", timeout=PATIENCE_MS)
    page.keyboard.press("Escape")
    page.wait_for_function("window.liveSession.saying.size === 0")
    said = page.inner_text(".live-said")
    page.wait_for_timeout(4000)
    assert page.inner_text(".live-said") == said


def test_mute_and_push_to_talk_close_the_microphone(visit):
    visitor = visit()
    go(visitor)
    page = visitor.page
    level = "Number(document.querySelector('.live-meter').ariaValueNow)"
    page.wait_for_function(f"{level} > 30")
    page.click('[data-do="mute"]')
    page.wait_for_function(f"{level} === 0")
    assert page.get_attribute('[data-do="mute"]', "aria-pressed") == "true"
    page.click('[data-do="mute"]')
    page.wait_for_function(f"{level} > 30", timeout=PATIENCE_MS)
    page.check('[data-do="held"]')
    page.wait_for_function(f"{level} === 0")
    page.hover('[data-do="push"]')
    page.mouse.down()
    page.wait_for_function(f"{level} > 30", timeout=PATIENCE_MS)
    page.mouse.up()
    page.wait_for_function(f"{level} === 0")
    page.focus('[data-do="push"]')
    page.keyboard.down(" ")
    page.wait_for_function(f"{level} > 30", timeout=PATIENCE_MS)
    page.keyboard.up(" ")
    page.wait_for_function(f"{level} === 0")


def test_webrtc_that_does_not_connect_gives_way_to_the_socket(visit):
    visitor = visit(NEVER_CONNECTS)
    go(visitor)
    page = visitor.page
    page.wait_for_function("window.liveSession.transport === 'socket'")
    page.wait_for_function("document.querySelector('.live-state').textContent.includes('WebSocket')")
    assert visitor.errors == []


@pytest.mark.slow
@pytest.mark.parametrize("script", ["", NO_WEBRTC], ids=["webrtc", "socket"])
def test_after_five_silent_seconds_the_portrait_moves_on(visit, server, script):
    visitor = visit(script)
    go(visitor, frames=30)
    page = visitor.page
    token = page.evaluate("window.liveSession.token")
    server.process.send_signal(signal.SIGSTOP)  # nothing of it gets through, as with a network that is gone
    try:
        page.wait_for_timeout(5000)
    finally:
        server.process.send_signal(signal.SIGCONT)
    heard = "window.liveSession.engineMs"
    page.evaluate(f"{heard} = 0")
    page.wait_for_function(f"{heard} > 0", timeout=PATIENCE_MS)
    shown = "document.querySelector('#live-video').getVideoPlaybackQuality().totalVideoFrames"
    before = page.evaluate(shown)
    page.wait_for_function(f"{shown} != {before}", timeout=PATIENCE_MS)
    assert page.evaluate("window.liveSession.token") == token
    page.wait_for_function("/\\d+ ms/.test(document.querySelector('.live-state').textContent)")


def test_a_refused_microphone_is_reported_and_the_session_goes_on(refusing, visit):
    visitor = visit(contexts=refusing)
    go(visitor)
    visitor.page.wait_for_selector(".live-notice:visible")
    assert "denied the microphone" in visitor.page.inner_text(".live-notice")


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (
            "void (navigator.mediaDevices.getUserMedia = async () => { throw { name: 'NotFoundError' } })",
            "No microphone was found",
        ),
        ("Object.defineProperty(navigator, 'mediaDevices', { value: undefined })", "over HTTPS"),
    ],
    ids=["absent", "no-https"],
)
def test_a_microphone_that_is_not_there_is_reported(visit, script, words):
    visitor = visit(script)
    go(visitor)
    visitor.page.wait_for_selector(".live-notice:visible")
    assert words in visitor.page.inner_text(".live-notice")


def test_a_lost_network_is_reported_and_found_again(visit):
    visitor = visit(NO_WEBRTC)
    go(visitor)
    page = visitor.page
    token = page.evaluate("window.liveSession.token")
    page.evaluate("window.liveSession.socket.close(3001)")
    page.wait_for_function("document.querySelector('.live-state').textContent.includes('reconnecting')")
    frames = page.evaluate("document.querySelector('#live-video').getVideoPlaybackQuality().totalVideoFrames")
    page.wait_for_function(
        "window.liveSession.socket?.readyState === 1 && window.liveSession.engineMs > 0", timeout=PATIENCE_MS
    )
    assert page.evaluate("window.liveSession.token") == token
    page.wait_for_function(
        f"document.querySelector('#live-video').getVideoPlaybackQuality().totalVideoFrames != {frames}",
        timeout=PATIENCE_MS,
    )


@pytest.mark.parametrize("leave", ["go elsewhere", "close the tab"])
@pytest.mark.parametrize("script", ["", NO_WEBRTC], ids=["webrtc", "socket"])
def test_a_closed_page_makes_way_for_the_next_visitor(visit, script, leave):
    first, second = visit(script), visit(script)
    go(first)
    second.page.click(".live-go")
    second.page.wait_for_function("document.querySelector('.live-state').textContent.includes('number 1')")
    if leave == "go elsewhere":
        first.page.goto("about:blank")
    else:
        first.page.close(run_before_unload=True)
    second.page.wait_for_function(PLAYS.format(count=5), timeout=PATIENCE_MS)


@pytest.mark.parametrize("script", ["", NO_WEBRTC], ids=["webrtc", "socket"])
def test_a_reloaded_page_can_go_live_again(visit, script):
    visitor = visit(script)
    go(visitor)
    visitor.page.reload()
    visitor.page.wait_for_selector(".live-go", state="visible")
    assert "then go live" in state(visitor)
    if script:
        visitor.page.evaluate(script)
    visitor.page.set_input_files("#portrait input[type=file]", PORTRAIT)
    visitor.page.wait_for_selector("#portrait img")
    go(visitor)


def test_a_recording_appears_in_the_gallery(visit, server):
    visitor, before = visit(), server.videos()
    go(visitor)
    visitor.page.click('[data-do="record"]')
    visitor.page.wait_for_selector('[data-do="record"][aria-pressed="true"]')
    visitor.page.wait_for_timeout(1500)
    visitor.page.click('[data-do="record"]')
    wait_until(lambda: len(server.videos()) > len(before), "the recording is kept")
    [video] = [path for path in server.videos() if path not in before]
    visitor.page.wait_for_selector(f'#gallery .video [data-id="{video.parent.name}"]')
    with av.open(str(video)) as movie:
        assert movie.duration / av.time_base > 0.5


def test_every_tab_stays_in_reach_beside_the_open_one(visit):
    tabs = visit().page.locator("#speech-source [role=tab]:visible")
    assert tabs.all_inner_texts() == ["Upload", "Record", "Type", "Live"]


def test_modes_are_chosen_by_arrow_keys(visit):
    page = visit().page
    page.focus('[data-mode="mirror"]')
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.dataset.mode") == "talk"
    assert page.get_attribute('[data-mode="talk"]', "aria-checked") == "true"
    assert page.is_visible('[data-for="talk"]')
    assert "--chat-url" in page.inner_text('[data-for="talk"]')


def test_the_tab_fits_a_phone_in_chinese(visit):
    visitor = visit(viewport={"width": 360, "height": 740}, locale="zh-CN")
    go(visitor)
    page = visitor.page
    assert page.inner_text(".live-go") == "结束"
    assert not re.search(r"[A-Za-z]{4,}", page.inner_text(".live-modes"))
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        page.evaluate("document.querySelector('.live-state').scrollIntoView({ block: 'nearest' })")
        stage, said = (page.locator(part).bounding_box() for part in ("#stage", ".live-state"))
        assert 0 <= stage["y"] < stage["y"] + stage["height"] <= said["y"], "who speaks stays above the words"
        assert stage["height"] <= 0.56 * 740
        shown = "[...document.querySelectorAll('.live button')].filter(b => b.offsetParent)"
        low = f"{shown}.filter(b => b.offsetHeight < 40).length"
        assert page.evaluate(low) == 0


@pytest.mark.slow
def test_the_documents_client_makes_a_video(server, tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "live.md").read_text("utf-8"), re.DOTALL)
    assert len(code.strip().splitlines()) <= 25
    (tmp_path / "client.py").write_text(code, encoding="utf-8")
    sound, rate = soundfile.read(SPEECH, dtype="int16")
    (tmp_path / "speech.s16le").write_bytes(sound[: 3 * rate : rate // 16_000].astype("<i2").tobytes())
    command = [sys.executable, "client.py", server.url, str(PORTRAIT), "speech.s16le"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    with av.open(str(tmp_path / "out.mp4")) as movie:
        assert len(list(movie.decode(video=0))) > 400
    with av.open(str(tmp_path / "out.mp4")) as movie:
        loudest = max(np.abs(frame.to_ndarray()).max() for frame in movie.decode(audio=0))
    assert loudest > 0.05


def test_what_makes_a_video_is_out_of_the_way(visit):
    """On the tab Live there is nothing to upload and nothing to generate; on the others there is."""
    visitor = visit(viewport={"width": 390, "height": 844})
    for part in ("#speech", "#speech-several", "#actions"):
        assert not visitor.page.locator(part).is_visible(), part
    go(visitor, "type")
    visitor.page.focus(".live-type textarea")
    stage, box = (visitor.page.locator(part).bounding_box() for part in ("#stage", ".live-type textarea"))
    assert 0 <= stage["y"] < stage["y"] + stage["height"] <= box["y"], "whoever types sees who speaks"
    visitor.page.click("#speech-source button[role=tab] >> nth=0")
    for part in ("#speech", "#speech-several", "#actions"):
        visitor.page.wait_for_selector(f"{part}:visible")
