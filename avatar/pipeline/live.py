"""Live sessions of the diffusion engine: a block starts as soon as its sound and look-ahead have arrived.

The block loop is the same as in every run: it requests the next block's speech features, and LiveTrack blocks
until they are available.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import Tensor

from avatar.errors import Cancelled
from avatar.events import Notice, Progress
from avatar.geometry import BLOCK_FRAMES, FPS, SOUND_HZ
from avatar.media.timeline import SAMPLES_PER_FRAME, Timeline
from avatar.model.live_wav2vec2 import LOOK_AHEAD_S, LiveSpeechFeatures
from avatar.model.wav2vec2 import SpeechEncoder
from avatar.preset import Preset
from avatar.request import LiveRequest, Request
from avatar.runtime.engine import FrameItem
from avatar.runtime.live_protocol import LiveFrames

ENDLESS_FRAMES = 400 * 86_400 * FPS  # length of a live session's request: more than a year
KEEP_S = 30.0  # of sound: the encoder's window, plus the most that an engine may lag behind
MOST_BEHIND_S = 4.0  # sound that may queue up for a slow engine; any more is dropped
# What is waiting when the engine keeps up: a block, its look-ahead, and what arrives while a block is made.
USUAL_WAIT_S = 2 * BLOCK_FRAMES / FPS + LOOK_AHEAD_S + 0.1
SILENCE = 32768 * 10 ** (-50 / 20)  # peak of int16 sound that may be dropped sooner, to catch up
WAIT_S = 0.1

MEASURED_BLOCKS = 4  # two seconds of video, to decide whether the machine keeps up
SETTLING_BLOCKS = 1  # excluded before that, as graphs are built at first use
# A block may take at most this fraction of its duration. On several GPUs, which begin a block before the last
# one is done, blocks of a session that keeps up are one duration apart, give or take what a block varies by.
HELD_SHARE = 1.03
STEPS = (3, 2)  # numbers of sampler steps to fall back to in turn; then come the sizes
SIZES = ("512*320", "384*256")


class LiveTrack:
    """Live speech, with features once an encoder is set; see conditioning.AnyTrack."""

    def __init__(self, sound: Iterator[np.ndarray], cancelled: Callable[[], bool]) -> None:
        """sound: int16 (n,) at SOUND_HZ; read in a separate thread, so that none is lost."""
        self._timeline, self._come = Timeline(KEEP_S), threading.Condition()
        self._features: LiveSpeechFeatures | None = None
        self._cancelled, self._ended = cancelled, False
        self.on_heard: Callable[[], None] = lambda: None  # called when a block's sound has arrived
        self._taken_frames = 0  # model frames whose features were requested
        self._gaps: list[
            tuple[int, int]
        ] = []  # (where in the timeline, samples dropped there), if not yet shown
        self._num_left_out = 0  # samples dropped before the frames shown last
        threading.Thread(target=self._follow, args=(sound,), name="live-sound", daemon=True).start()

    def features(self, encoder: SpeechEncoder) -> LiveTrack:
        """See AnyTrack. A repeated call keeps the voice level measured so far."""
        if self._features is None:
            self._features = LiveSpeechFeatures(encoder, self._timeline.listen)
        return self

    def is_ready(self, block: int) -> bool:
        """Whether a block's features are available without waiting."""
        assert self._features is not None
        return self._timeline.num_heard >= self._features.needs(block * BLOCK_FRAMES, BLOCK_FRAMES)

    def frames(self, start: int, num_frames: int) -> Tensor:
        """See SpeechFeatures; waits until the sound has arrived. Raises: Cancelled when the sound ends."""
        assert self._features is not None
        needed = self._features.needs(start, num_frames)
        with self._come:
            while self._timeline.num_heard < needed:
                if self._cancelled() or self._ended:
                    raise Cancelled("The session has ended.")
                self._come.wait(WAIT_S)
            self._taken_frames = start + num_frames
            self.on_heard()
            return self._features.frames(start, num_frames)

    def sound(self, first_frame: int, num_frames: int) -> np.ndarray:
        """The sound that belongs to given video frames, int16 (n,) at SOUND_HZ."""
        start = first_frame * SAMPLES_PER_FRAME
        with self._come:
            return self._timeline.sound(start, start + num_frames * SAMPLES_PER_FRAME).copy()

    def num_left_out(self, first_frame: int) -> int:
        """Samples dropped before a video frame's sound, as the engine was behind; call in order of frames."""
        with self._come:
            while self._gaps and self._gaps[0][0] <= first_frame * SAMPLES_PER_FRAME:
                self._num_left_out += self._gaps.pop(0)[1]
            return self._num_left_out

    def _follow(self, sound: Iterator[np.ndarray]) -> None:
        for samples in sound:
            with self._come:
                for start in range(0, len(samples), SAMPLES_PER_FRAME):
                    self._take(samples[start : start + SAMPLES_PER_FRAME])
                self._come.notify_all()
        with self._come:
            self._ended = True
            self._come.notify_all()

    def _take(self, samples: np.ndarray) -> None:
        """Append samples, or drop them: silence once the engine is behind, speech when it is far behind."""
        come = self._timeline.num_samples
        waiting_s = (come - self._taken_frames * SAMPLES_PER_FRAME) / SOUND_HZ
        is_silent = int(samples.max()) < SILENCE and int(samples.min()) > -SILENCE
        if waiting_s > MOST_BEHIND_S or (is_silent and waiting_s > USUAL_WAIT_S):
            if self._gaps and self._gaps[-1][0] == come:
                self._gaps[-1] = come, self._gaps[-1][1] + len(samples)
            else:
                self._gaps.append((come, len(samples)))
        else:
            self._timeline.append(samples)


Make = Callable[[Request], Generator[FrameItem]]
"""What a request asks for from where the session stands, as its preset makes it."""


def live_frames(
    request: Request,
    track: LiveTrack,
    make: Make,
    lightened: Callable[[Preset], None],
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[LiveFrames | Notice | Progress]:
    """Yield frames with their sound; switch to a lighter preset when the machine is too slow.

    lightened: called with that preset.
    """
    next_frame, rungs = 0, lighter(request.preset)
    while True:
        pace = BlockPace(clock)
        track.on_heard = pace.begins
        made = make(request)
        lighter_one: tuple[str, Preset] | None = None
        for one in made:
            if isinstance(one, Notice | Progress):
                yield one
            if not isinstance(one, np.ndarray):
                continue
            left_out = track.num_left_out(next_frame) // SAMPLES_PER_FRAME
            yield LiveFrames(next_frame, one, track.sound(next_frame, len(one)), left_out)
            next_frame += len(one)
            block_s = pace.ends()
            if block_s is None or not too_slow(block_s):
                continue
            lighter_one = next(rungs, None)
            if lighter_one is not None:
                yield stepped_down(block_s, lighter_one[0])
                break
            yield too_slow_for_all(block_s)
        made.close()
        if lighter_one is None:
            return
        request = replace(request, preset=lighter_one[1])
        lightened(request.preset)


class BlockPace:
    """Measures whether blocks are generated as fast as they play, over the first two seconds of video.

    A block's time runs from its sound's arrival, or from the last block's end if that came later.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self._ended_at = clock, clock()
        self._begun_at: deque[float] = deque()  # of blocks in progress
        self._seen, self._spent_s = 0, 0.0

    def begins(self) -> None:
        """Called when a block's sound has arrived and it begins."""
        self._begun_at.append(self._clock())

    def ends(self) -> float | None:
        """Called when a block has been shown. Returns the mean seconds per block, once, when it is known."""
        since = max(self._begun_at.popleft(), self._ended_at)
        self._seen, self._ended_at = self._seen + 1, self._clock()
        if self._seen > SETTLING_BLOCKS:
            self._spent_s += self._ended_at - since
        if self._seen != SETTLING_BLOCKS + MEASURED_BLOCKS:
            return None
        return self._spent_s / MEASURED_BLOCKS


def too_slow(block_s: float) -> bool:
    """Whether a machine that takes block_s per block falls behind."""
    return block_s > HELD_SHARE * BLOCK_FRAMES / FPS


def lighter(preset: Preset) -> Iterator[tuple[str, Preset]]:
    """Yield the presets to fall back to, with a name for each: first fewer steps, then smaller sizes."""
    for steps in STEPS:
        if steps < preset.generation.sample_steps:
            preset = preset.with_settings(sample_steps=steps)
            yield f"{steps} steps", preset
    for size in SIZES:
        if _area(size) < _area(preset.generation.size):
            preset = preset.with_settings(size=size)
            yield size, preset


def stepped_down(block_s: float, lighter_name: str) -> Notice:
    """The notice for a fallback to a lighter preset."""
    fps = BLOCK_FRAMES / block_s
    text = f"This machine made {fps:.1f} frames a second of {FPS}; it goes on with {lighter_name}."
    values = {"speed": f"{fps:.1f}", "fps": FPS, "rung": lighter_name}
    return Notice("live_lighter", text, "warning", values=values)


def starts_lighter(preset: Preset) -> Notice:
    """The notice for a session that starts with the preset that an earlier one had to fall back to."""
    size, steps = preset.generation.size, preset.generation.sample_steps
    text = f"It starts with {steps} steps at {size}, which this machine kept up with before."
    return Notice("live_starts_lighter", text, values={"steps": steps, "size": size})


def too_slow_for_all(block_s: float) -> Notice:
    """The notice when no lighter preset is left."""
    fps = BLOCK_FRAMES / block_s
    text = f"This machine makes {fps:.1f} frames a second of {FPS}: some of the sound is left out."
    return Notice("live_behind", text, "warning", values={"speed": f"{fps:.1f}", "fps": FPS})


def as_request(request: LiveRequest) -> Request:
    """An endless request for the same picture and preset; its speech file is never opened."""
    preset = request.preset.with_settings(enable_online_decode=True)
    return Request(
        portrait=request.portrait,
        speech=Path(),
        work=request.work,
        output=request.work / "live.mp4",
        preset=preset,
        num_frames=ENDLESS_FRAMES,
        portrait_name=request.portrait_name,
        speech_name="",
        prompt=request.prompt,
    )


def _area(size: str) -> int:
    width, height = size.split("*")
    return int(width) * int(height)
