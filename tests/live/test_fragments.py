"""Fragments of MP4: what a browser is sent decodes to the frames and samples that went in, none kept back."""

from __future__ import annotations

import io

import av
import numpy as np
import pytest

from avatar.geometry import FPS
from avatar.live.transports.fragments import FragmentWriter
from avatar.media.timeline import SAMPLES_PER_FRAME
from avatar.runtime.live_protocol import LiveFrames

WIDTH, HEIGHT = 96, 130


def made(index: int, count: int = 1) -> LiveFrames:
    frames = np.stack(
        [np.full((HEIGHT, WIDTH, 3), 40 + (index + k) * 3 % 180, np.uint8) for k in range(count)]
    )
    places = np.arange(index * SAMPLES_PER_FRAME, (index + count) * SAMPLES_PER_FRAME)
    return LiveFrames(index, frames, (8000 * np.sin(places * 0.05)).astype(np.int16))


def boxes(data: bytes) -> list[tuple[str, bytes]]:
    found = []
    while data:
        size = int.from_bytes(data[:4], "big")
        found.append((data[4:8].decode(), data[8:size]))
        data = data[size:]
    return found


@pytest.mark.parametrize("count", [1, 2, 12])
def test_all_frames_and_sound_come_out_in_step(count):
    writer = FragmentWriter(WIDTH, HEIGHT)
    data = writer.header + b"".join(writer.write(made(at, count)) for at in range(0, 48, count))
    with av.open(io.BytesIO(data)) as movie:
        pictures = [(float(frame.time), frame.to_ndarray(format="rgb24")) for frame in movie.decode(video=0)]
    with av.open(io.BytesIO(data)) as movie:
        heard = np.concatenate([frame.to_ndarray().reshape(-1) for frame in movie.decode(audio=0)])
    assert [time for time, _ in pictures] == pytest.approx([index / FPS for index in range(48)])
    for index, (_, pixels) in enumerate(pictures):
        assert abs(float(pixels.mean()) - (40 + index * 3 % 180)) < 4
    assert abs(len(heard) - 48 * SAMPLES_PER_FRAME) < SAMPLES_PER_FRAME
    assert np.abs(heard).max() > 0.1


def test_each_call_gives_one_whole_fragment_at_once():
    writer = FragmentWriter(WIDTH, HEIGHT)
    assert [name for name, _ in boxes(writer.header)] == ["ftyp", "moov"]
    for index in range(5):
        assert [name for name, _ in boxes(writer.write(made(index)))] == ["moof", "mdat"]


def test_after_a_gap_a_stream_starts_from_a_whole_picture():
    writer = FragmentWriter(WIDTH, HEIGHT)
    first = writer.write(made(0))
    data = writer.header + first + writer.write(made(50))
    with av.open(io.BytesIO(data)) as movie:
        packets = [packet for packet in movie.demux(video=0) if packet.dts is not None]
    assert [float(packet.pts * packet.time_base) for packet in packets] == pytest.approx([0.0, 2.0])
    assert all(packet.is_keyframe for packet in packets)


def test_the_codecs_are_named_as_a_browser_wants_them():
    assert FragmentWriter(WIDTH, HEIGHT).codecs.startswith('video/mp4; codecs="avc1.64')
