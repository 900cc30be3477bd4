"""The audio of a video: lossless in segments, and AAC on one packet grid for the whole speech.

An AAC packet holds 1024 samples, and decoding it needs the packet before. Every part's packets lie where
one encoder for the whole speech would have put them, and are encoded with the speech around the part as
context. A join can therefore continue from one part's packets to the next part's without re-encoding.
"""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import OutputContainer

from avatar.geometry import SOUND_HZ
from avatar.media.speech_reader import SpeechReader

PACKET = 1024  # samples
_BEFORE = 8 * PACKET  # samples encoded ahead of a part, so that the encoder's state is as in mid-speech
_AFTER = 4 * PACKET  # and after its end
_AAC_BITS_PER_S = {1: 128_000, 2: 192_000}  # by number of channels
_LAYOUTS = {1: "mono", 2: "stereo"}


def packet_start(sample: int) -> int:
    """The first sample of the packet that contains a sample of the speech."""
    return sample // PACKET * PACKET


class LosslessSound:
    """ALAC of the speech from a frame on, with exactly as many samples as the frames last."""

    def __init__(self, container: OutputContainer, speech: SpeechReader, first_frame: int) -> None:
        self._container, self._speech, self._frame = container, speech, first_frame
        self._start = first_frame * speech.samples_per_frame
        self._stream = _add(container, "alac", speech.num_channels)
        self._stream.format = "s16p"  # the speech's own format

    def add(self, num_frames: int) -> None:
        """Write the sound of the next frames."""
        at = self._frame * self._speech.samples_per_frame - self._start
        self._container.mux(self._stream.encode(_frame(self._speech.sound(self._frame, num_frames), at)))
        self._frame += num_frames

    def end(self) -> None:
        """Flush the encoder."""
        self._container.mux(self._stream.encode(None))


class GridSound:
    """AAC of the speech from a frame on. Its first packet only primes the decoder."""

    def __init__(self, container: OutputContainer, speech: SpeechReader, first_frame: int) -> None:
        self._container, self._speech = container, speech
        self._start = self._end = first_frame * speech.samples_per_frame
        self._first_packet = packet_start(self._start) - PACKET
        self._fed = max(0, packet_start(self._start) - _BEFORE)
        self._stream = _add(container, "aac", speech.num_channels)
        self._stream.bit_rate = _AAC_BITS_PER_S[speech.num_channels]
        self._held: list[av.Packet] = []  # held back until it is known which packet is the last

    def add(self, num_frames: int) -> None:
        """Write the sound of the next frames."""
        self._end += num_frames * self._speech.samples_per_frame
        self._feed(self._end)
        self._write(self._end - PACKET)

    def end(self) -> None:
        """Write the remaining packets; the last one ends with the last frame."""
        self._feed(self._end + _AFTER)
        self._held += self._stream.encode(None)
        self._write(self._end - 1)

    def _feed(self, stop: int) -> None:
        samples = self._speech.samples(self._fed, stop)
        self._held += self._stream.encode(_frame(samples, self._fed))
        self._fed = stop

    def _write(self, last: int) -> None:
        """Write the packets that begin at sample `last` or before."""
        held, self._held = self._held, []
        for packet in held:
            assert packet.pts is not None
            if packet.pts > last:
                self._held.append(packet)
            elif packet.pts >= self._first_packet:
                duration = min(PACKET, self._end - packet.pts)
                at = packet.pts - self._start
                self._container.mux(sound_packet(self._stream, bytes(packet), at, duration))


def sound_packet(stream: AudioStream, data: bytes, at: int, duration: int) -> av.Packet:
    """A packet to write. at, duration: in samples; at counts from the start of the file's video."""
    packet = av.Packet(data)
    packet.stream, packet.time_base = stream, Fraction(1, SOUND_HZ)
    packet.pts = packet.dts = at
    packet.duration, packet.is_keyframe = duration, True
    return packet


def _add(container: OutputContainer, codec: str, num_channels: int) -> AudioStream:
    stream = container.add_stream(codec, rate=SOUND_HZ, layout=_LAYOUTS[num_channels])
    assert isinstance(stream, AudioStream)
    return stream


def _frame(samples: np.ndarray, at: int) -> av.AudioFrame:
    """samples: int16 (n, channels)."""
    frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), "s16", _LAYOUTS[samples.shape[1]])
    frame.sample_rate, frame.pts, frame.time_base = SOUND_HZ, at, Fraction(1, SOUND_HZ)
    return frame
