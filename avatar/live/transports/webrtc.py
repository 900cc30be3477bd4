"""A session over WebRTC: video and voice down, microphone up. It runs on the web server's event loop."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any
from urllib.parse import unquote

import av
import numpy as np
from aiortc import (
    MediaStreamTrack,
    RTCConfiguration,
    RTCIceCandidate,
    RTCIceServer,
    RTCPeerConnection,
    RTCSessionDescription,
)
from aiortc.mediastreams import MediaStreamError
from aiortc.rtcrtpreceiver import RTCRtpReceiver
from aiortc.sdp import candidate_from_sdp

from avatar.errors import BadInput
from avatar.geometry import FPS, SOUND_HZ
from avatar.live.session import LiveSession
from avatar.runtime.live_protocol import LiveFrames

log = logging.getLogger(__name__)

VIDEO_HZ = 90_000
PACKET = SOUND_HZ // 50
MOST_QUEUED_FRAMES = 24  # two blocks not yet sent over a slow network; older frames are dropped
MOST_SDP_BYTES = 64 * 2**10
MICROPHONE_PREFETCH = 1  # packets of 20 ms held back; late ones are still put in order
MOST_CANDIDATES = 64  # in an offer: the server sends to each of these addresses, to find which one answers
# stun:HOST:PORT, turn:HOST:PORT?transport=udp, or with turn:USER:PASSWORD@HOST:PORT
_ICE_SERVER = re.compile(
    r"(?P<kind>stuns?|turns?):(?:(?P<user>[^:@\s]+):(?P<password>[^:@\s]+)@)?"
    r"(?P<place>[\w.\-\[\]:]+?(?::\d{1,5})?(?:\?transport=(?:udp|tcp))?)"
)
_NAMED = re.compile(r"a=candidate:(?:\S+ ){4}\S+\.local\s")  # an address that is an mDNS name


@dataclass(frozen=True)
class IceServer:
    """A STUN or TURN server. url: in the browser's form, without name and password."""

    url: str
    user: str = ""
    password: str = ""

    @classmethod
    def parse(cls, text: str) -> IceServer:
        """Read "stun:host:port" or "turn:user:password@host:port?transport=tcp". Raises: BadInput.

        In user and password, %3A is a colon, %40 an at sign, %25 a per cent sign.
        """
        match = _ICE_SERVER.fullmatch(text.strip())
        if match is None or (match["kind"].startswith("turn") and not match["user"]):
            raise BadInput(
                "An ICE server is not understood.",
                "Write stun:HOST:PORT, or turn:USER:PASSWORD@HOST:PORT?transport=udp, where a name or"
                " password has %3A for : and %40 for @.",
            )
        user, password = (unquote(match[name] or "") for name in ("user", "password"))
        return cls(f"{match['kind']}:{match['place']}", user, password)

    @property
    def for_browser(self) -> dict[str, str]:
        """The server as an RTCPeerConnection argument."""
        secret = {"username": self.user, "credential": self.password} if self.user else {}
        return {"urls": self.url, **secret}


class Peer:
    """One browser's connection to one session, on the event loop; show, on_event and end are thread-safe."""

    def __init__(
        self,
        session: LiveSession,
        servers: Sequence[IceServer],
        hear: Callable[[np.ndarray], None],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        """hear: called with the microphone's int16 (n,) at SOUND_HZ."""
        ice = [RTCIceServer(one.url, one.user or None, one.password or None) for one in servers]
        self._connection = RTCPeerConnection(RTCConfiguration(iceServers=ice))
        self._session, self._hear, self._loop = session, hear, loop
        self._video, self._voice = _FrameTrack(), _VoiceTrack()
        self._listening: set[asyncio.Task[None]] = set()
        self._resolving: asyncio.Task[None] | None = None
        self._is_watching = False
        self._connection.on("track", self._on_track)
        self._connection.on("connectionstatechange", self._on_state)

    async def answer(self, sdp: str) -> str:
        """The SDP answer to a browser's offer. Raises: BadInput."""
        if sdp.count("a=candidate:") > MOST_CANDIDATES:
            await self.close()
            raise BadInput("The browser's WebRTC offer has too many addresses.")
        try:
            sdp, named = split_named(sdp)
            await self._connection.setRemoteDescription(RTCSessionDescription(sdp, "offer"))
            self._connection.addTrack(self._video)
            self._connection.addTrack(self._voice)
            self._take_one_microphone()
            await self._connection.setLocalDescription(await self._connection.createAnswer())
        except Exception as error:  # the library parses untrusted input and raises many errors
            log.info("an offer cannot be used: %r", error)
            await self.close()
            raise BadInput("The browser's WebRTC offer cannot be used.") from error
        if named:
            self._resolving = self._loop.create_task(self._resolve(named))
        return str(self._connection.localDescription.sdp)

    async def close(self) -> None:
        """Close the connection."""
        self._session.leave(self)
        self._video.stop()
        self._voice.stop()
        for task in self._listening:
            task.cancel()
        if self._resolving is not None:
            self._resolving.cancel()
        await self._connection.close()

    def show(self, made: LiveFrames) -> None:
        """See Watcher."""
        self._loop.call_soon_threadsafe(self._queue, made)

    def on_event(self, what: Mapping[str, Any]) -> None:
        """See Watcher. Does nothing: events go over the WebSocket."""

    def end(self, reason: str) -> None:
        """See Watcher."""
        asyncio.run_coroutine_threadsafe(self.close(), self._loop)

    def _take_one_microphone(self) -> None:
        """Answer that nothing but one microphone is received: what is not asked for is not decoded either."""
        for transceiver in self._connection.getTransceivers():
            if transceiver.sender.track is self._video:
                transceiver.direction = "sendonly"
            elif transceiver.sender.track is not self._voice:
                transceiver.direction = "inactive"

    def _queue(self, made: LiveFrames) -> None:
        self._video.add(made)
        self._voice.add(made)

    def _on_track(self, track: MediaStreamTrack) -> None:
        if track.kind == "audio" and not self._listening:
            for transceiver in self._connection.getTransceivers():
                if transceiver.receiver.track is track:
                    hold_back(transceiver.receiver, MICROPHONE_PREFETCH)
            task = self._loop.create_task(self._listen(track))
            self._listening.add(task)
            task.add_done_callback(self._listening.discard)

    async def _on_state(self) -> None:
        state = self._connection.connectionState
        if state == "connected" and not self._is_watching:
            self._is_watching = True
            self._session.watch(self)
        elif state in ("failed", "closed"):
            await self.close()

    async def _resolve(self, named: Sequence[RTCIceCandidate]) -> None:
        """Add the browser's addresses that are mDNS names, once they are resolved."""
        try:
            await asyncio.gather(*map(self._connection.addIceCandidate, named))
            await self._connection.addIceCandidate(None)
        except Exception as error:  # the network and the library raise many errors
            log.info("a browser's mDNS names cannot be used: %r", error)

    async def _listen(self, track: MediaStreamTrack) -> None:
        resampler = av.AudioResampler("s16", "mono", SOUND_HZ)
        try:
            while True:
                packet = await track.recv()
                assert isinstance(packet, av.AudioFrame)
                for frame in resampler.resample(packet):
                    self._hear(frame.to_ndarray().reshape(-1).astype(np.int16, copy=False))
        except MediaStreamError:
            log.debug("a microphone has ended")


def split_named(sdp: str) -> tuple[str, list[RTCIceCandidate]]:
    """An offer without the addresses that are mDNS names, nor then its end of candidates; and these.

    Browsers hide local addresses behind such names. Where nobody answers, resolving them takes a second, for
    which the answer had better not wait: the browser's own checks reach the server meanwhile.
    Raises: ValueError or AssertionError for a candidate that is none.
    """
    kept, named, section = [], [], -1
    lines = sdp.splitlines()
    for line in lines:
        section += line.startswith("m=")
        if _NAMED.match(line):
            candidate = candidate_from_sdp(line.removeprefix("a=candidate:"))
            candidate.sdpMLineIndex = section
            named.append(candidate)
        else:
            kept.append(line)
    if not named:
        return sdp, []
    return "".join(f"{line}\r\n" for line in kept if line != "a=end-of-candidates"), named


def hold_back(receiver: RTCRtpReceiver, num_packets: int) -> None:
    """Set how many later packets a receiver of sound waits for: aiortc always waits for 4, which is 80 ms.

    It has no setting for this; a release that keeps its buffer elsewhere goes on waiting for its own number.
    """
    buffer = getattr(receiver, "_RTCRtpReceiver__jitter_buffer", None)
    if buffer is not None and hasattr(buffer, "_prefetch"):
        buffer._prefetch = num_packets
    else:
        log.info("this aiortc's jitter buffer is not known: the microphone is heard some 60 ms later")


class _QueuedTrack(MediaStreamTrack):
    """A track whose frames wait to be encoded and sent; when full, the oldest are dropped."""

    def __init__(self) -> None:
        super().__init__()
        self._queued: asyncio.Queue[Any] = asyncio.Queue()
        self._most = MOST_QUEUED_FRAMES

    def _put(self, frame: Any, after_s: float) -> None:
        """Queue a frame, to be sent after_s from now at the earliest, because a block arrives all at once."""
        while self._queued.qsize() >= self._most:
            self._queued.get_nowait()
        self._queued.put_nowait((time.monotonic() + after_s, frame))

    def stop(self) -> None:
        """Stop the track and wake a waiting recv."""
        super().stop()
        self._queued.put_nowait(None)

    async def recv(self) -> Any:
        """The next frame, called by aiortc. Raises: MediaStreamError at the end."""
        found = None if self.readyState != "live" else await self._queued.get()
        if found is None:
            raise MediaStreamError
        due, frame = found
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        return frame


class _FrameTrack(_QueuedTrack):
    kind = "video"

    def add(self, made: LiveFrames) -> None:
        """Queue frames."""
        for index, pixels in enumerate(made.frames, made.first_frame):
            height, width = (side // 2 * 2 for side in pixels.shape[:2])
            even = np.ascontiguousarray(pixels[:height, :width])
            frame = av.VideoFrame.from_ndarray(even, "rgb24")
            frame.pts, frame.time_base = index * (VIDEO_HZ // FPS), Fraction(1, VIDEO_HZ)
            self._put(frame, (index - made.first_frame) / FPS)


class _VoiceTrack(_QueuedTrack):
    kind = "audio"

    def __init__(self) -> None:
        super().__init__()
        self._most = 2 * MOST_QUEUED_FRAMES

    def add(self, made: LiveFrames) -> None:
        """Queue their samples, in packets of 20 ms."""
        start = made.first_frame * (SOUND_HZ // FPS)
        for at in range(0, len(made.sound), PACKET):
            piece = np.ascontiguousarray(made.sound[at : at + PACKET])[None]
            frame = av.AudioFrame.from_ndarray(piece, "s16", "mono")
            frame.sample_rate, frame.pts, frame.time_base = SOUND_HZ, start + at, Fraction(1, SOUND_HZ)
            self._put(frame, max(0, at - PACKET) / SOUND_HZ if len(made.frames) > 1 else 0.0)
