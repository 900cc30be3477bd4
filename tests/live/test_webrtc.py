"""WebRTC over loopback: frames and voice come down in step, the microphone goes up, a hang-up frees all."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import numpy as np
import pytest
from aiortc import RTCPeerConnection, RTCSessionDescription
from aiortc.contrib.media import MediaStreamTrack
from aiortc.mediastreams import VideoStreamTrack
from av import AudioFrame

from avatar.errors import BadInput
from avatar.live.session import LiveSession
from avatar.live.transports.webrtc import (
    MICROPHONE_PREFETCH,
    MOST_CANDIDATES,
    IceServer,
    Peer,
    split_named,
)
from avatar.preset import Preset
from avatar.request import LiveRequest
from avatar.runtime.live_protocol import LiveFrames
from tests.live.engines import QuickEngine

REQUEST = LiveRequest(Path(), Path(), Preset("test", "Test", "For tests", "preview"), "me.png")
PATIENCE_S = 40


class Tone(MediaStreamTrack):
    """A microphone that hears a tone."""

    kind = "audio"
    pts = 0

    async def recv(self) -> AudioFrame:
        await asyncio.sleep(0.02)
        places = np.arange(self.pts, self.pts + 960)
        frame = AudioFrame.from_ndarray((9000 * np.sin(places * 0.06)).astype(np.int16)[None], "s16", "mono")
        frame.sample_rate, frame.pts = 48_000, self.pts
        self.pts += 960
        return frame


@pytest.fixture
def session():
    session = LiveSession(QuickEngine(), REQUEST)
    yield session
    session.end()


async def connected(session, heard) -> tuple[RTCPeerConnection, Peer, dict[str, MediaStreamTrack]]:
    """A browser's side, as far as a browser has one."""
    browser, tracks = RTCPeerConnection(), {}
    browser.on("track", lambda track: tracks.__setitem__(track.kind, track))
    browser.addTransceiver("video", direction="recvonly")
    browser.addTrack(Tone())
    await browser.setLocalDescription(await browser.createOffer())
    peer = Peer(session, [], heard.append, asyncio.get_running_loop())
    answer = await peer.answer(browser.localDescription.sdp)
    await browser.setRemoteDescription(RTCSessionDescription(answer, "answer"))
    return browser, peer, tracks


def test_frames_and_voice_come_down_and_the_microphone_goes_up(session):
    async def watch():
        heard: list[np.ndarray] = []
        browser, peer, tracks = await connected(session, heard)
        session.say((8000 * np.sin(np.arange(48_000 * 4) * 0.05)).astype(np.int16))
        async with asyncio.timeout(PATIENCE_S):
            frames = [await tracks["video"].recv() for _ in range(30)]
            voice = [(await tracks["audio"].recv()).to_ndarray() for _ in range(60)]
            while sum(map(len, heard)) < 48_000:
                await asyncio.sleep(0.05)
        await browser.close()
        await peer.close()
        return frames, np.concatenate(voice, 1), np.concatenate(heard)

    frames, voice, heard = asyncio.run(watch())
    assert {(frame.width, frame.height) for frame in frames} == {(48, 64)}
    times = np.array([frame.time for frame in frames])
    assert np.allclose(np.diff(times), np.rint(np.diff(times) / 0.04) * 0.04, atol=1e-3)
    levels = np.array([frame.to_ndarray(format="rgb24").mean() for frame in frames])
    assert (np.diff(levels) > -3).all()  # the frames' own numbers are their brightness
    assert np.abs(voice).max() > 1000
    assert np.abs(heard).max() > 1000
    assert session.num_watchers == 0


def test_the_microphone_is_held_back_by_one_packet(session):
    """aiortc keeps this number to itself; if a release moves it, the delay is 60 ms longer."""

    async def prefetched() -> list[int]:
        browser, peer, _ = await connected(session, [])
        receivers = [each.receiver for each in peer._connection.getTransceivers() if each.kind == "audio"]
        found = [receiver._RTCRtpReceiver__jitter_buffer._prefetch for receiver in receivers]
        await browser.close()
        await peer.close()
        return found

    assert asyncio.run(prefetched()) == [MICROPHONE_PREFETCH]


def test_only_one_microphone_is_received(session):
    async def directions() -> list[str]:
        heard: list[np.ndarray] = []
        browser = RTCPeerConnection()
        for track in (Tone(), VideoStreamTrack(), Tone()):
            browser.addTransceiver(track, direction="sendrecv")
        await browser.setLocalDescription(await browser.createOffer())
        peer = Peer(session, [], heard.append, asyncio.get_running_loop())
        answer = await peer.answer(browser.localDescription.sdp)
        await browser.setRemoteDescription(RTCSessionDescription(answer, "answer"))
        async with asyncio.timeout(PATIENCE_S):
            while sum(map(len, heard)) < 9_600:
                await asyncio.sleep(0.05)
        found = [each.currentDirection for each in peer._connection.getTransceivers()]
        await browser.close()
        await peer.close()
        return found

    assert asyncio.run(directions()) == ["sendrecv", "sendonly", "inactive"]


OFFER = """v=0
m=audio 9 UDP/TLS/RTP/SAVPF 111
a=candidate:1 1 udp 2113937151 0a1b2c3d-0000-4000-8000-000000000000.local 53705 typ host generation 0
a=candidate:2 1 udp 1677729535 192.0.2.7 53705 typ srflx raddr 0.0.0.0 rport 0 generation 0
a=mid:0
m=video 9 UDP/TLS/RTP/SAVPF 96
a=candidate:3 1 udp 2113937151 4e5f6a7b-0000-4000-8000-000000000000.local 53706 typ host generation 0
a=end-of-candidates
a=mid:1
""".replace("\n", "\r\n")


def test_addresses_that_are_names_are_taken_out_of_an_offer():
    sdp, named = split_named(OFFER)
    assert [(one.ip[:8], one.port, one.sdpMLineIndex) for one in named] == [
        ("0a1b2c3d", 53705, 0),
        ("4e5f6a7b", 53706, 1),
    ]
    assert ".local" not in sdp
    assert "end-of-candidates" not in sdp, "they are still to come"
    assert "192.0.2.7" in sdp
    without = sdp.replace("\r\n", "\n")
    assert split_named(without) == (without, []), "an offer without any stays as it is"


def test_an_offer_of_names_alone_is_answered_before_they_are_resolved(session, monkeypatch):
    asked, answers = [], asyncio.Event()

    async def resolve(protocol, hostname, timeout=None):
        asked.append(hostname)
        await answers.wait()

    monkeypatch.setattr("aioice.mdns.MDnsProtocol.resolve", resolve)

    async def run() -> None:
        browser = RTCPeerConnection()
        for kind in ("video", "audio"):
            browser.addTransceiver(kind, direction="recvonly")
        await browser.setLocalDescription(await browser.createOffer())
        offer = re.sub(
            r"(?m)^(a=candidate:(?:\S+ ){4})\S+", r"\g<1>0a1b2c3d.local", browser.localDescription.sdp
        )
        peer = Peer(session, [], lambda samples: None, asyncio.get_running_loop())
        answer = await asyncio.wait_for(peer.answer(offer), PATIENCE_S)
        await browser.setRemoteDescription(RTCSessionDescription(answer, "answer"))
        for _ in range(100 * PATIENCE_S):
            if browser.connectionState == "connected" and asked:
                break
            await asyncio.sleep(0.01)
        assert browser.connectionState == "connected", "by the browser's own checks"
        assert "0a1b2c3d.local" in asked
        await browser.close()
        await peer.close()

    asyncio.run(run())


def test_the_session_ends_its_peers(session):
    async def watch():
        browser, peer, tracks = await connected(session, [])
        async with asyncio.timeout(PATIENCE_S):
            await tracks["video"].recv()
            await asyncio.to_thread(session.end)
            while peer._connection.connectionState != "closed":
                await asyncio.sleep(0.05)
        await browser.close()

    asyncio.run(watch())
    assert session.num_watchers == 0


TOO_MANY = "a=candidate:1 1 udp 1 10.0.0.1 9 typ host\r\n" * (MOST_CANDIDATES + 1)


@pytest.mark.parametrize("sdp", ["", "v=0", "m=video 9 x\r\n" * 50, TOO_MANY])
def test_an_offer_that_is_none_is_refused_in_words(session, sdp):
    async def offer():
        await Peer(session, [], lambda _: None, asyncio.get_running_loop()).answer(sdp)

    with pytest.raises(BadInput, match="offer"):
        asyncio.run(offer())


@pytest.mark.parametrize(
    ("text", "browser"),
    [
        ("stun:stun.cloudflare.com:3478", {"urls": "stun:stun.cloudflare.com:3478"}),
        (
            "turn:me:s3cret@turn.example.org:3478?transport=tcp",
            {"urls": "turn:turn.example.org:3478?transport=tcp", "username": "me", "credential": "s3cret"},
        ),
        (
            "turns:me:s3cret@turn.example.org:443",
            {"urls": "turns:turn.example.org:443", "username": "me", "credential": "s3cret"},
        ),
        (
            "turn:1796000000%3Ame:c2VjcmV0+/%40=@turn.example.org:3478",
            {"urls": "turn:turn.example.org:3478", "username": "1796000000:me", "credential": "c2VjcmV0+/@="},
        ),
    ],
)
def test_ice_servers_are_written_in_one_line(text, browser):
    assert IceServer.parse(text).for_browser == browser


@pytest.mark.parametrize(
    "text", ["", "http://x", "turn:host:3478", "stun:", "stun:a b", "turn:me@host", "turn:17:me:secret@host"]
)
def test_a_wrong_ice_server_is_refused(text):
    with pytest.raises(BadInput, match="ICE"):
        IceServer.parse(text)


def test_a_block_of_frames_leaves_one_after_another(session):
    """The diffusion engine gives twelve frames at once; they are sent as they are to be seen."""

    async def sent() -> list[float]:
        peer = Peer(session, [], lambda _: None, asyncio.get_running_loop())
        frames = np.zeros((6, 64, 48, 3), np.uint8)
        begin = asyncio.get_running_loop().time()
        peer._queue(LiveFrames(0, frames, np.zeros(6 * 1920, np.int16)))
        times = []
        for _ in range(6):
            await peer._video.recv()
            times.append(asyncio.get_running_loop().time() - begin)
        await peer.close()
        return times

    for index, time_s in enumerate(asyncio.run(sent())):
        assert time_s >= index * 0.04 - 0.005
