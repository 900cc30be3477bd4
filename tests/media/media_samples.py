"""Pictures, sounds and films for the tests, made when they are needed; nothing is stored."""

from __future__ import annotations

import json
import struct
import subprocess
import zlib
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from avatar.media.ffmpeg import put_on_path
from avatar.settings import Generation

PRESET_SETTINGS: dict[str, Any] = {  # the size is that of picture() enlarged as far as the preview enlarges
    "name": "test",
    "title": "Test",
    "summary": "For tests.",
    "engine": "preview",
    "generation": Generation(size="320*240"),
}


def picture(width: int = 160, height: int = 120) -> np.ndarray:
    """A smooth picture whose four corners differ, uint8 (H, W, 3)."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    return np.stack([40 + 170 * x, 30 + 180 * y, 200 - 120 * x * y], -1).round().astype(np.uint8)


def save(path: Path, pixels: np.ndarray | None = None, **options: object) -> Path:
    Image.fromarray(picture() if pixels is None else pixels).save(path, **options)
    return path


def png_header(path: Path, width: int, height: int) -> Path:
    """A PNG that promises a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    rows = chunk(b"IDAT", zlib.compress(bytes(1000)))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + rows + chunk(b"IEND", b""))
    return path


def tone(seconds: float = 1.0, rate: int = 16_000, hz: float = 220.0, level: float = 0.5) -> np.ndarray:
    """A sine, float32 (N,) in [-1, 1]."""
    return (level * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def write_wav(path: Path, samples: np.ndarray, rate: int, subtype: str = "PCM_16") -> Path:
    """samples: float (N,) or (N, channels)."""
    import soundfile

    soundfile.write(path, samples, rate, subtype=subtype, format="WAV")
    return path


def write_sound(
    path: Path, samples: np.ndarray, rate: int, codec: str, *, layout: str = "mono", picture_frames: int = 0
) -> Path:
    """Any container by the path's suffix, with picture_frames also a film. samples: float (N,) or (N, C)."""
    samples = samples[:, None] if samples.ndim == 1 else samples
    with av.open(str(path), "w") as out:
        sound = out.add_stream(codec, rate=rate, layout=layout)
        if picture_frames:
            film = out.add_stream(
                "libvpx" if path.suffix == ".webm" else "libx264", rate=25, width=64, height=64
            )
            film.pix_fmt = "yuv420p"
            for index in range(picture_frames):
                frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), index % 256, np.uint8), "rgb24")
                frame.pts, frame.time_base = index, Fraction(1, 25)
                out.mux(film.encode(frame))
            out.mux(film.encode(None))
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples.T, np.float32), "fltp", layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        out.mux(sound.encode(frame))
        out.mux(sound.encode(None))
    return path


def write_film(path: Path, frames: int = 10) -> Path:
    """A video without sound."""
    with av.open(str(path), "w") as out:
        film = out.add_stream("libx264", rate=25, width=64, height=64)
        film.pix_fmt = "yuv420p"
        for index in range(frames):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), index, np.uint8), "rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 25)
            out.mux(film.encode(frame))
        out.mux(film.encode(None))
    return path


def cut(path: Path, share: float) -> Path:
    """The file without its end."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def spoil(path: Path, start: float, stop: float) -> Path:
    """The file with a stretch of it overwritten by noise."""
    data = bytearray(path.read_bytes())
    first, last = int(len(data) * start), int(len(data) * stop)
    data[first:last] = np.random.default_rng(0).bytes(last - first)
    path.write_bytes(data)
    return path


def decode_sound(path: Path) -> np.ndarray:
    """All samples of the audio track as they come out of the decoder, int16 or float (channels, N)."""
    with av.open(str(path)) as container:
        return np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], axis=1)


def decode_pictures(path: Path) -> np.ndarray:
    """All frames, uint8 (T, H, W, 3)."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def as_piped(path: Path) -> Path:
    """The WAV as a program writes it into a pipe: sizes left at their placeholders."""
    content = bytearray(path.read_bytes())
    at = content.index(b"data")
    content[4:8] = content[at + 4 : at + 8] = b"\xff\xff\xff\xff"
    path.write_bytes(content)
    return path


def moving(num_frames: int, width: int = 96, height: int = 64, start: int = 0) -> np.ndarray:
    """Frames whose every number can be known from its picture, uint8 (T, H, W, 3)."""
    frames = np.repeat(picture(width, height)[None], num_frames, axis=0)
    for n in range(num_frames):
        frames[n, : height // 2, : width // 2] = ((start + n) * 7 % 200) + 20
    return frames


def probe(path: Path) -> dict[str, dict[str, str]]:
    """What ffprobe says: the format, and each stream by its kind."""
    put_on_path()
    command = [
        "ffprobe",
        "-v",
        "error",
        "-of",
        "json",
        "-show_format",
        "-show_streams",
        "-count_packets",
        str(path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    reported = json.loads(done.stdout)
    return {"format": reported["format"]} | {stream["codec_type"]: stream for stream in reported["streams"]}


def coded_pictures(path: Path) -> list[bytes]:
    """The coded pictures of the video track, in order."""
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(video=0) if packet.dts is not None]


def write_stamped(
    path: Path,
    samples: np.ndarray,
    rate: int,
    codec: str,
    shift: Callable[[float], float | None] = lambda at_s: at_s,
    layout: str = "mono",
    **options: str,
) -> Path:
    """Sound whose packets are stamped by shift: of a time in seconds its stamp, or None to leave it out.

    samples: float (N,) or (N, channels). options: of the container.
    """
    samples = samples[:, None] if samples.ndim == 1 else samples
    with av.open(str(path), "w", container_options=options) as out:
        sound = out.add_stream(codec, rate=rate, layout=layout)
        if codec.startswith("wma"):
            sound.bit_rate = 128_000
        packets: list[av.Packet] = []
        step = 2048  # some coders take no more at once
        for start in range(0, len(samples), step):
            piece = np.ascontiguousarray(samples[start : start + step].T.astype(np.float32))
            if codec.startswith("wma"):
                piece = np.pad(piece, ((0, 0), (0, step - piece.shape[1])))
            frame = av.AudioFrame.from_ndarray(piece, "fltp", layout)
            frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
            packets += sound.encode(frame)
        for packet in [*packets, *sound.encode(None)]:
            stamp = shift(float(packet.pts * packet.time_base))
            if stamp is not None:
                packet.pts = packet.dts = round(stamp / packet.time_base)
                out.mux(packet)
    return path


def syllables(seconds: float, rate: int = 48_000) -> np.ndarray:
    """Noise in bursts at irregular times, so that any stretch of it is found in its place; float32 (N,)."""
    rng = np.random.default_rng(11)
    loudness = np.repeat(rng.uniform(0, 1, round(seconds * 10) + 1) ** 2, rate // 10)[: round(seconds * rate)]
    t = np.arange(len(loudness)) / rate
    carrier = sum(np.sin(2 * np.pi * hz * t + phase) for hz, phase in ((231, 0.0), (517, 1.0), (1130, 2.0)))
    return (0.2 * carrier * loudness).astype(np.float32)
