"""Detect sound files that are cut off, where no decoder reports it."""

from __future__ import annotations

from pathlib import Path

_WAS_SOUND = (  # magic numbers of sound files; byte offset and mark
    (0, b"RIFF"),
    (0, b"RF64"),
    (0, b"riff"),
    (0, b"FORM"),
    (0, b"fLaC"),
    (0, b"OggS"),
    (0, b"ID3"),
    (0, b"caff"),
    (0, b".snd"),
    (0, b"#!AMR"),
    (0, b"\x1a\x45\xdf\xa3"),
    (4, b"ftyp"),
)
_TAGS = (b"TAG", b"APETAGEX", b"LYRICS", b"ID3", b"\0")  # may legitimately follow the last frame
_UNKNOWN_BYTES = 0x7FFF_0000  # larger RIFF sizes are placeholders of programs that write into a pipe
_MISSING = 0.02  # share of the stated bytes that must be missing
_LARGEST_PAGE = 65_307  # bytes of an Ogg page
_ASF_SIZES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")  # before an ASF file's length and size
_AC3_KBPS = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512, 576, 640)
_TS_BYTES = 188  # of each packet of an MPEG transport stream


def begins_like_sound(path: Path) -> bool:
    """Whether a file that cannot be opened begins like sound and is therefore damaged or cut short."""
    with path.open("rb") as file:
        head = file.read(16)
    return any(head[at:].startswith(mark) for at, mark in _WAS_SOUND)


def breaks_off(path: Path, last_packet: tuple[int, int] | None) -> bool:
    """Whether the file ends before its structure says it does.

    last_packet: where the last packet read begins and ends, None where that is unknown.
    """
    size = path.stat().st_size
    first_byte, last_byte = last_packet or (0, None)
    with path.open("rb") as file:
        head = file.read(4096)
        file.seek(max(0, size - _LARGEST_PAGE))
        tail = file.read()
    if head[:4] == b"RIFF":
        return _short(size, int.from_bytes(head[4:8], "little") + 8)
    if head[:4] == b"OggS":
        return _within_page(tail)
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return _short(size, _matroska_bytes(head))
    if head[:4] == b"\x30\x26\xb2\x75":
        return _short(size, _asf_bytes(head))
    if head[:2] == b"\x0b\x77" and last_byte is not None:
        frame = tail[first_byte - size :][:8]
        return last_byte - first_byte < _ac3_bytes(frame)
    if head[:1] == head[_TS_BYTES : _TS_BYTES + 1] == b"G":
        return size % _TS_BYTES != 0
    if last_byte is not None and (head[:3] == b"ID3" or head[:1] == b"\xff"):  # a plain sequence of frames
        rest = tail[last_byte - size :] if last_byte < size else b""
        return bool(rest) and not rest.startswith(_TAGS)
    return False


def tells_length(path: Path) -> bool:
    """Whether an MP3 file's first frame states the number of frames; otherwise its length is an estimate."""
    with path.open("rb") as file:
        head = file.read(10)
        if head[:3] == b"ID3":  # its size: seven bits per byte
            file.seek(10 + sum((byte & 127) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0))))
        else:
            file.seek(0)
        first = file.read(256)
    return any(mark in first for mark in (b"Xing", b"Info", b"VBRI"))


def _short(size: int, promised: int) -> bool:
    return 0 < promised <= _UNKNOWN_BYTES and size < (1 - _MISSING) * promised


def _within_page(tail: bytes) -> bool:
    """Whether the last Ogg page is incomplete."""
    at = tail.rfind(b"OggS")
    page = tail[at:] if at >= 0 else b""
    if len(page) < 27 or len(page) < 27 + page[26]:
        return True
    return len(page) < 27 + page[26] + sum(page[27 : 27 + page[26]])


def _matroska_bytes(head: bytes) -> int:
    """Size in bytes of a complete Matroska file; 0 where the header does not state it."""
    at, header = _number(head, 4)
    at += header
    if head[at : at + 4] != b"\x18\x53\x80\x67":  # the segment, which holds everything else
        return 0
    end, length = _number(head, at + 4)
    return end + length if 0 < length < _UNKNOWN_BYTES else 0


def _asf_bytes(head: bytes) -> int:
    """Size in bytes of a complete ASF or WMA file; 0 where the header does not state it."""
    at = head.find(_ASF_SIZES)
    return int.from_bytes(head[at + 40 : at + 48], "little") if at >= 0 else 0


def _ac3_bytes(frame: bytes) -> int:
    """Size of an AC-3 or E-AC-3 frame by its first bytes; 0 where they do not state it. Source: ATSC A/52."""
    if len(frame) < 6 or frame[:2] != b"\x0b\x77":
        return 0
    if frame[5] >> 3 > 10:  # E-AC-3
        return 2 * (1 + int.from_bytes(frame[2:4], "big") % 2048)
    rate, code = frame[4] >> 6, frame[4] & 63
    if rate == 3 or code >= 2 * len(_AC3_KBPS):
        return 0
    kbps = _AC3_KBPS[code >> 1]
    return (4 * kbps, 2 * (320 * kbps // 147 + code % 2), 6 * kbps)[rate]


def _number(data: bytes, at: int) -> tuple[int, int]:
    """Read a Matroska number of one to eight bytes: (end, value); value 0 for all ones, "unknown"."""
    if at >= len(data) or not data[at]:
        return at, 0
    width = 9 - data[at].bit_length()
    value = int.from_bytes(data[at : at + width], "big") - (1 << 7 * width)
    return at + width, 0 if value == (1 << 7 * width) - 1 else value
