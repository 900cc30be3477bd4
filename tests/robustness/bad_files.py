"""Files that somebody will hand over some day: each is made in a folder, by a name that its row gives."""

from __future__ import annotations

import os
import socket
import struct
import wave
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pillow_heif
from PIL import Image

from tests.media.media_samples import (
    as_piped,
    cut,
    picture,
    png_header,
    save,
    spoil,
    tone,
    write_film,
    write_sound,
    write_wav,
)

Make = Callable[[Path], object]
NOISE = np.random.default_rng(1).bytes(5000)
REFUSED, ACCEPTED, EITHER = "refused", "accepted", "either"
NOT_A_PICTURE, NOT_A_SOUND = (
    "not a picture that can be read",
    "(not a sound file that can be read|damaged or cut short)",
)
DAMAGED = "damaged or cut short"


@dataclass(frozen=True)
class Row:
    """One file. words: a pattern that the refusal matches. outcome: EITHER where versions of coders differ.

    uploads: whether a browser could send it: a file with bytes and a plain name.
    """

    name: str
    make: Make
    words: str = ""
    outcome: str = REFUSED
    uploads: bool = True

    def __str__(self) -> str:
        return repr(self.name)[1:40]


def data(content: bytes) -> Make:
    return lambda path: path.write_bytes(content)


def nothing(path: Path) -> None:
    """The file is not there."""


def noisy(path: Path, **options: object) -> Path:
    return save(path, np.random.default_rng(2).integers(0, 255, (120, 160, 3), np.uint8), **options)


def animated(path: Path) -> None:
    frames = [Image.fromarray(picture() // (n + 1)) for n in range(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def heic(path: Path) -> Path:
    pillow_heif.from_pillow(Image.fromarray(picture(320, 240))).save(path)
    return path


def mode(kind: str, **options: object) -> Make:
    """A picture in another of Pillow's modes."""
    return lambda path: Image.fromarray(picture()).convert(kind).save(path, **options)


def sixteen_bit(path: Path) -> None:
    Image.fromarray(picture()[..., 0].astype(np.uint16) * 257).save(path)


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of these chunks, whatever they hold."""
    made = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(made)


def ihdr(width: int, height: int, depth: int = 8, colour: int = 2) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)


IDAT, IEND = (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")
ROWS_100 = (b"IDAT", zlib.compress(bytes(301 * 100)))
BOMB = zlib.compress(bytes(200_000_000), 9)  # 200 KB


def jpeg_size(width: int, height: int) -> Make:
    """A JPEG whose header tells another size."""

    def make(path: Path) -> None:
        content = bytearray(save(path.with_suffix(".jpg")).read_bytes())
        at = content.index(b"\xff\xc0")
        content[at + 5 : at + 9] = struct.pack(">HH", height, width)
        path.write_bytes(content)

    return make


def with_sidecar(content: bytes | None) -> Make:
    """A good picture with a file of points beside it; None: a folder of that name."""

    def make(path: Path) -> None:
        save(path)
        beside = path.with_suffix(".json")
        if content is None:
            beside.mkdir()
        else:
            beside.write_bytes(content)

    return make


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def link_to(target: str) -> Make:
    return lambda path: path.symlink_to(target)


def listening(path: Path) -> None:
    """A socket's name."""
    with socket.socket(socket.AF_UNIX) as one:
        here = os.getcwd()
        os.chdir(path.parent)  # its name may be long
        one.bind(path.name)
        os.chdir(here)


LOCAL_PLACES = [  # what no browser can send
    ("folder", Path.mkdir, "is a folder"),
    ("fifo", os.mkfifo, "does not exist|is not a (regular )?file"),
    ("loop", loop, "does not exist|cannot be read"),
    ("dangling", dangling, "does not exist"),
    ("zero", link_to("/dev/zero"), "does not exist|is not a (regular )?file"),
    ("null", link_to("/dev/null"), "does not exist|is not a (regular )?file"),
    ("full", link_to("/dev/full"), "does not exist|is not a (regular )?file"),
    ("random", link_to("/dev/urandom"), "does not exist|is not a (regular )?file"),
    ("memory", link_to("/proc/self/mem"), "is empty|cannot be read"),
    ("socket", listening, "does not exist|is not a (regular )?file"),
    ("gone", nothing, "does not exist"),
    ("[red]x[/red]", nothing, "does not exist"),
    ("[/]", nothing, "does not exist"),
    ("[/nonsense]", nothing, "does not exist"),
    ("x" * 255, nothing, "does not exist"),
    ("x" * 300, nothing, "cannot be read|does not exist"),
    ("deep/" * 900 + "x", nothing, "cannot be read|does not exist"),
    ("a\0b", nothing, "does not exist|cannot be read"),
    ("file/in/it", lambda path: path.parents[1].write_bytes(b"x"), "does not exist|cannot be read"),
    ("-", nothing, "does not exist|expected one argument"),
    ("http://127.0.0.1:9/x", nothing, "does not exist"),
    ("file:///etc/passwd", nothing, "does not exist"),
    ("~/x", nothing, "does not exist"),
    ("*", nothing, "does not exist"),
    ("", nothing, "is a folder|names no file"),
    ("..", nothing, "is a folder"),
    ("/", nothing, "is a folder"),
]
ODD_NAMES = [  # of a file that is neither a picture nor a sound
    "two\nlines",
    "tab\there",
    "\x1b[31mred",
    "[red]markup",
    "right\u202eto left",
    "\udcff\udcfe",
    "😀" * 60,
    "a" * 251,
    "'; rm -rf x; '",
    "%s%n{0}",
    "<b>bold<",
]
TEXT = b"Dear reader, this is neither a picture nor a sound. " * 20

PICTURES = [
    Row("empty.png", data(b""), "is empty"),
    Row("note.png", data(TEXT), NOT_A_PICTURE),
    Row("page.jpg", data(b"<!DOCTYPE html><html>404</html>"), NOT_A_PICTURE),
    Row("noise.jpg", data(NOISE), NOT_A_PICTURE),
    Row("zeros.png", data(bytes(5000)), NOT_A_PICTURE),
    Row("one.png", data(b"\x89"), NOT_A_PICTURE),
    Row("shape.svg", data(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), NOT_A_PICTURE),
    Row("svg.png", data(b"<svg onload='alert(1)'/>"), NOT_A_PICTURE),
    Row("letter.pdf", data(b"%PDF-1.7\n%" + NOISE), NOT_A_PICTURE),
    Row("pack.png", data(b"PK\x03\x04" + NOISE), NOT_A_PICTURE),
    Row("program.png", data(b"\x7fELF" + NOISE), NOT_A_PICTURE),
    Row("photoshop.psd", data(b"8BPS\0\1" + bytes(100)), NOT_A_PICTURE),
    Row("script.eps", data(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n"), NOT_A_PICTURE),
    Row("voice.png", lambda p: write_wav(p, tone(), 16_000), NOT_A_PICTURE),
    Row("film.png", lambda p: write_film(p.with_suffix(".mp4")).rename(p), NOT_A_PICTURE),
    Row("mark.png", data(b"\x89PNG\r\n\x1a\n"), NOT_A_PICTURE),
    Row("head.png", data(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0"), NOT_A_PICTURE),
    Row("mark.jpg", data(b"\xff\xd8\xff\xe0"), NOT_A_PICTURE),
    Row("ends.jpg", data(b"\xff\xd8\xff\xd9"), NOT_A_PICTURE),
    Row("riff.webp", data(b"RIFF\x10\0\0\0WEBPVP8 "), NOT_A_PICTURE),
    Row("ftyp.avif", data(b"\0\0\0\x1cftypavif" + bytes(16)), NOT_A_PICTURE),
    Row("ftyp.heic", data(b"\0\0\0\x1cftypheic" + bytes(16)), NOT_A_PICTURE),
    Row("half.png", lambda p: cut(noisy(p), 0.5), DAMAGED),
    Row("tenth.png", lambda p: cut(noisy(p), 0.1), DAMAGED),
    Row("half.jpg", lambda p: cut(noisy(p), 0.5), DAMAGED),
    Row("tenth.jpg", lambda p: cut(noisy(p), 0.1), f"{DAMAGED}|{NOT_A_PICTURE}"),
    Row("half.webp", lambda p: cut(noisy(p), 0.5), f"{DAMAGED}|{NOT_A_PICTURE}"),
    Row("half.avif", lambda p: cut(noisy(p), 0.5), f"{DAMAGED}|{NOT_A_PICTURE}"),
    Row("half.heic", lambda p: cut(heic(p), 0.5), f"{DAMAGED}|{NOT_A_PICTURE}"),
    Row("spoilt.png", lambda p: spoil(noisy(p), 0.4, 0.6), DAMAGED),
    Row("spoilt.webp", lambda p: spoil(noisy(p), 0.4, 0.6), f"{DAMAGED}|{NOT_A_PICTURE}", EITHER),
    Row("spoilt.jpg", lambda p: spoil(noisy(p), 0.4, 0.6), DAMAGED, EITHER),
    Row("spoilt.heic", lambda p: spoil(heic(p), 0.4, 0.9), f"{DAMAGED}|{NOT_A_PICTURE}", EITHER),
    Row("nothing.png", data(png(ihdr(0, 0), IDAT, IEND)), f"{NOT_A_PICTURE}|too small"),
    Row("flat.png", data(png(ihdr(100, 0), IDAT, IEND)), f"{NOT_A_PICTURE}|too small"),
    Row("zero.jpg", jpeg_size(0, 0), f"{NOT_A_PICTURE}|too small"),
    Row("depth.png", data(png(ihdr(100, 100, 99), IDAT, IEND)), NOT_A_PICTURE),
    Row("colour.png", data(png(ihdr(100, 100, 8, 77), IDAT, IEND)), NOT_A_PICTURE),
    Row("norows.png", data(png(ihdr(100, 100), IEND)), DAMAGED),
    Row("fewrows.png", data(png(ihdr(100, 100), IDAT, IEND)), DAMAGED),
    Row("nopalette.png", data(png(ihdr(100, 100, 8, 3), ROWS_100, IEND)), DAMAGED, EITHER),
    Row(
        "crc.png",
        data(png(ihdr(100, 100), ROWS_100, IEND).replace(b"IHDR", b"IHDR", 1)[:-1]),
        DAMAGED,
        EITHER,
    ),
    Row("profile.png", data(png(ihdr(100, 100), (b"iCCP", b"x\0\0" + BOMB), ROWS_100, IEND)), "", EITHER),
    Row("text.png", data(png(ihdr(100, 100), (b"zTXt", b"x\0\0" + BOMB), ROWS_100, IEND)), "", EITHER),
    Row("pixels.png", data(png(ihdr(100, 100), (b"IDAT", BOMB), IEND)), "", EITHER),
    Row("bomb.png", lambda p: png_header(p, 20_000, 20_000), "too large"),
    Row("wide.png", lambda p: png_header(p, 9000, 9000), "too large"),
    Row("long.png", lambda p: png_header(p, 17_000, 100), "too large"),
    Row("huge.png", lambda p: png_header(p, 2**31 - 1, 2**31 - 1), "too large"),
    Row("huge.jpg", jpeg_size(65_535, 65_535), "too large"),
    Row("taller.jpg", jpeg_size(160, 4000), DAMAGED, EITHER),
    Row("dot.png", lambda p: save(p, picture(1, 1)), "too small"),
    Row("thumb.jpg", lambda p: save(p, picture(500, 63)), "too small"),
    Row("ribbon.png", lambda p: save(p, picture(4000, 64)), "too narrow"),
    Row("loop.webp", animated, "is animated"),
    Row("loop.png", animated, "is animated"),
    Row("loop.avif", animated, "is animated"),
    Row("dance.gif", animated, NOT_A_PICTURE, EITHER),
    Row("still.gif", save, NOT_A_PICTURE, EITHER),
    Row("old.bmp", save, NOT_A_PICTURE, EITHER),
    Row("scan.tiff", save, NOT_A_PICTURE, EITHER),
    Row("icon.ico", save, NOT_A_PICTURE, EITHER),
    Row("plain.ppm", save, NOT_A_PICTURE, EITHER),
    Row("wave.jp2", save, NOT_A_PICTURE, EITHER),
    Row("targa.tga", save, NOT_A_PICTURE, EITHER),
    Row("ghost.png", lambda p: Image.new("RGBA", (99, 99)).save(p), "wholly transparent"),
    Row("cmyk.jpg", mode("CMYK"), outcome=ACCEPTED),
    Row("palette.png", mode("P"), outcome=ACCEPTED),
    Row("grey.png", mode("L"), outcome=ACCEPTED),
    Row("greyalpha.png", mode("LA"), outcome=ACCEPTED),
    Row("bit.png", mode("1"), outcome=ACCEPTED),
    Row("deep.png", sixteen_bit, outcome=ACCEPTED),
    Row("badprofile.jpg", mode("RGB", icc_profile=NOISE), outcome=ACCEPTED),
    Row("badexif.jpg", mode("RGB", exif=b"Exif\0\0" + NOISE[:200]), outcome=ACCEPTED),
    *(Row(f"{name}.png", data(TEXT), NOT_A_PICTURE) for name in ODD_NAMES),
    *(
        Row(f"side{number}.png", with_sidecar(content), words, uploads=False)
        for number, (content, words) in enumerate(
            [
                (b"", "cannot be read as JSON"),
                (b"{", "cannot be read as JSON"),
                (b"\xff\xfe\xff", "cannot be read as JSON"),
                (b"[" * 100_000, "cannot be read as JSON"),
                (b"[]", 'has no "points"'),
                (b'{"points": 3}', "must be an object of named points"),
                (b'{"points": {}}', "incomplete"),
                (b'{"points": {"nose": [0, 0]}}', "not a face point"),
                (b'{"points": {"chin": [0.5]}}', "not a pair|missing"),
                (b'{"points": {"chin": [' + b"9" * 400 + b", 1]}}", "missing"),
                (b'{"points": {"chin": [' + b"9" * 5000 + b", 1]}}", "cannot be read as JSON"),
                (b'{"points": {"chin": [NaN, 1]}}', "missing"),
            ]
        )
    ),
    *(Row(name, make, words, uploads=False) for name, make, words in LOCAL_PLACES),
]


def header_only(rate: int, channels: int, num_bytes: int) -> Make:
    """A WAV of silence that takes hardly any disk."""

    def make(path: Path) -> None:
        with wave.open(str(path), "wb") as out:
            out.setparams((channels, 2, rate, 0, "NONE", ""))
            out.writeframes(b"")
        content = bytearray(path.read_bytes())
        content[4:8] = (36 + num_bytes).to_bytes(4, "little")
        content[40:44] = num_bytes.to_bytes(4, "little")
        path.write_bytes(content)
        os.truncate(path, 44 + num_bytes)

    return make


def patched(at: int, new: bytes) -> Make:
    """A good WAV with other bytes somewhere."""

    def make(path: Path) -> None:
        content = bytearray(write_wav(path, tone(), 16_000).read_bytes())
        content[at : at + len(new)] = new
        path.write_bytes(content)

    return make


def half(codec: str, rate: int = 48_000, share: float = 0.5) -> Make:
    return lambda path: cut(write_sound(path, tone(4, rate), rate, codec), share)


def floats(value: float) -> Make:
    return lambda path: write_wav(path, np.full(16_000, value, np.float32), 16_000, "FLOAT")


SOUNDS = [
    Row("empty.wav", data(b""), "is empty"),
    Row("note.wav", data(TEXT), NOT_A_SOUND),
    Row("page.mp3", data(b"<!DOCTYPE html><html>404</html>"), NOT_A_SOUND),
    Row("noise.mp3", data(NOISE), f"{NOT_A_SOUND}|{DAMAGED}"),
    Row("noise.wav", data(NOISE), NOT_A_SOUND),
    Row("zeros.wav", data(bytes(5000)), NOT_A_SOUND),
    Row("photo.wav", lambda p: save(p.with_suffix(".png")).rename(p), NOT_A_SOUND),
    Row("pack.wav", data(b"PK\x03\x04" + NOISE), NOT_A_SOUND),
    Row("letter.wav", data(b"%PDF-1.7\n%" + NOISE), NOT_A_SOUND),
    Row("tune.mid", data(b"MThd\0\0\0\x06\0\1\0\1\0\x60MTrk\0\0\0\4\0\xff\x2f\0"), NOT_A_SOUND),
    Row("words.srt", data(b"1\n00:00:00,000 --> 00:00:02,000\nHello\n"), NOT_A_SOUND),
    Row("list.m3u8", data(b"#EXTM3U\n#EXTINF:9,\na.ts\n"), NOT_A_SOUND),
    Row("remote.m3u8", data(b"#EXTM3U\n#EXTINF:9,\nhttp://127.0.0.1:9/a.ts\n"), NOT_A_SOUND),
    Row("passwd.m3u8", data(b"#EXTM3U\n#EXTINF:9,\nfile:///etc/passwd\n"), NOT_A_SOUND),
    Row("list.wav", data(b"ffconcat version 1.0\nfile /etc/passwd\n"), NOT_A_SOUND),
    Row("list.sdp", data(b"v=0\no=- 0 0 IN IP4 127.0.0.1\nm=audio 9 RTP/AVP 0\n"), NOT_A_SOUND),
    Row("list.mpd", data(b'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"/>'), NOT_A_SOUND),
    Row("riff.wav", data(b"RIFF"), NOT_A_SOUND),
    Row("wave.wav", data(b"RIFF\x04\0\0\0WAVE"), f"{NOT_A_SOUND}|no audio track"),
    Row("flac.flac", data(b"fLaC"), f"{NOT_A_SOUND}|{DAMAGED}|no audio track"),
    Row("ogg.ogg", data(b"OggS" + bytes(60)), f"{NOT_A_SOUND}|{DAMAGED}|no audio track"),
    Row("id3.mp3", data(b"ID3\x03\0\0\0\0\x0f\x76" + bytes(2038)), f"{NOT_A_SOUND}|no audio track|0 seconds"),
    Row("amr.amr", data(b"#!AMR\n"), f"{NOT_A_SOUND}|0 seconds"),
    Row("ebml.webm", data(b"\x1a\x45\xdf\xa3\x84webm"), f"{NOT_A_SOUND}|no audio track"),
    Row("ftyp.mp4", data(b"\0\0\0\x18ftypisom\0\0\0\0isommp42"), f"{NOT_A_SOUND}|no audio track"),
    Row(
        "moovless.m4a",
        data(b"\0\0\0\x18ftypM4A \0\0\0\0M4A mp42\0\0\x10\0mdat" + NOISE),
        f"{NOT_A_SOUND}|no audio",
    ),
    Row("mute.mp4", write_film, "no audio track"),
    Row("mute.mkv", write_film, "no audio track"),
    Row("mute.wav", lambda p: write_film(p.with_suffix(".mp4")).rename(p), "no audio track"),
    Row("still.wav", lambda p: write_wav(p, np.zeros(16_000), 16_000), "is silent"),
    Row("constant.wav", floats(0.0), "is silent"),
    Row("still.mp3", lambda p: write_sound(p, np.zeros(44_100), 44_100, "libmp3lame"), "is silent"),
    Row("nothing.wav", lambda p: write_wav(p, np.zeros(0), 16_000), "0 seconds"),
    Row("sample.wav", lambda p: write_wav(p, np.ones(1) / 2, 8000), "too short|0 seconds"),
    Row("click.wav", lambda p: write_wav(p, tone(0.1), 16_000), "too short"),
    Row("nan.wav", floats(float("nan")), "", EITHER),
    Row("inf.wav", floats(float("inf")), "", EITHER),
    Row("loud.wav", floats(1e30), "", EITHER),
    Row("half.wav", lambda p: cut(write_wav(p, tone(2), 16_000), 0.5), outcome=ACCEPTED),
    Row("tenth.wav", lambda p: cut(write_wav(p, tone(2), 16_000), 0.1), DAMAGED),
    Row("half.m4a", half("aac"), f"{NOT_A_SOUND}|{DAMAGED}|no audio"),
    Row("half.mp4", half("aac"), f"{NOT_A_SOUND}|{DAMAGED}|no audio"),
    Row("half.flac", half("flac"), outcome=ACCEPTED),
    Row("tenth.flac", half("flac", share=0.1), f"{DAMAGED}|{NOT_A_SOUND}"),
    Row("half.mp3", half("libmp3lame"), "", EITHER),
    Row("half.ogg", half("libopus"), "", EITHER),
    Row("half.webm", half("libopus"), "", EITHER),
    Row("half.mka", half("libopus"), "", EITHER),
    Row("half.aac", half("aac"), "", EITHER),
    Row("start.ogg", half("libopus", share=0.02), "", EITHER),
    Row("start.mp3", half("libmp3lame", share=0.02), "", EITHER),
    Row("spoilt.flac", lambda p: spoil(write_sound(p, tone(4), 16_000, "flac"), 0.2, 0.9), DAMAGED),
    Row(
        "spoilt.ogg",
        lambda p: spoil(write_sound(p, tone(4, 48_000), 48_000, "libopus"), 0.0, 0.9),
        f"{NOT_A_SOUND}|{DAMAGED}",
    ),
    Row("spoilt.mp3", lambda p: spoil(write_sound(p, tone(4), 16_000, "libmp3lame"), 0.1, 0.9), "", EITHER),
    Row("spoilt.m4a", lambda p: spoil(write_sound(p, tone(4), 16_000, "aac"), 0.1, 0.6), "", EITHER),
    Row("codec.wav", patched(20, b"\x77\x77"), f"no audio track|{DAMAGED}|{NOT_A_SOUND}"),
    Row("nobody.wav", patched(22, b"\0\0"), f"no audio|{NOT_A_SOUND}"),
    Row("crowd.wav", patched(22, b"\xff\xff"), "", REFUSED),
    Row("rateless.wav", patched(24, b"\0\0\0\0"), f"no audio track|sample rate|{NOT_A_SOUND}"),
    Row("bits.wav", patched(34, b"\xff\xff"), "", EITHER),
    Row("nobits.wav", patched(34, b"\0\0"), "", EITHER),
    Row("sizes.wav", patched(4, b"\0\0\0\0"), "", EITHER),
    Row("datasize.wav", patched(40, b"\xf0\xff\xff\xff"), "", EITHER),
    Row("orchestra.wav", lambda p: write_wav(p, np.ones((9000, 12)) / 9, 16_000), "has 12 channels"),
    Row("choir.wav", lambda p: write_wav(p, np.ones((9000, 24)) / 9, 16_000), "has 24 channels"),
    Row("slow.wav", lambda p: write_wav(p, tone(), 100), "sample rate of 100 Hz"),
    Row("fast.wav", lambda p: write_wav(p, tone(), 2_000_000_000), "sample rate|too short"),
    Row("lecture.wav", header_only(8000, 1, 60_000_000), "too long"),
    Row("piped.wav", lambda p: as_piped(write_wav(p, tone(), 16_000)), outcome=ACCEPTED),
    Row("eight.wav", lambda p: write_wav(p, tone(1.0, 8000), 8000), outcome=ACCEPTED),
    Row("bytes.wav", lambda p: write_wav(p, tone(), 16_000, "PCM_U8"), outcome=ACCEPTED),
    Row("wide.wav", lambda p: write_wav(p, np.stack([tone()] * 6, 1), 16_000), outcome=ACCEPTED),
    *(Row(f"{name}.wav", data(TEXT), NOT_A_SOUND) for name in ODD_NAMES),
    *(Row(name, make, words, uploads=False) for name, make, words in LOCAL_PLACES),
]
