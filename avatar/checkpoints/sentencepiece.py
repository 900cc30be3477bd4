"""The tokenizer inside a prompt encoder's single file, without the sentencepiece library.

ComfyUI's file stores the sentencepiece model as a tensor, GGUF's stores the pieces as metadata.
Source: google/sentencepiece src/sentencepiece_model.proto; transformers convert_slow_tokenizer.py
(SpmConverter, T5Converter); city96/ComfyUI-GGUF loader.py (gguf_tokenizer_loader).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avatar.checkpoints.gguf_header import read_gguf
from avatar.checkpoints.tensor_headers import GGUF
from avatar.checkpoints.tensor_names import GGUF_TOKENS, TOKENIZER_TENSOR

PIECES, NORMALIZER, CHARSMAP = 1, 3, 2  # fields of ModelProto, and of its NormalizerSpec
PIECE, SCORE = 1, 2  # fields of a piece
UNKNOWN, END = "<unk>", "</s>"


@dataclass(frozen=True)
class Pieces:
    """A unigram model: pieces with their scores, and the character map that normalises text first."""

    pieces: list[tuple[str, float]]
    charsmap: bytes = b""


def tokenizer_of(file: Path) -> Any:
    """The `tokenizers.Tokenizer` of a single file. Raises: OSError, ValueError, KeyError."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    found = _of_gguf(file) if file.suffix == GGUF else _of_model(_model_in(file))
    names = [piece for piece, _ in found.pieces]
    tokenizer = Tokenizer(
        models.Unigram(found.pieces, unk_id=names.index(UNKNOWN), byte_fallback="<0x00>" in names)
    )
    steps = [normalizers.Precompiled(found.charsmap)] if found.charsmap else [normalizers.NFKC()]
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, names.index(END))]
    )
    return tokenizer


def _model_in(file: Path) -> bytes:
    """The sentencepiece model that a safetensors file stores as a tensor."""
    from safetensors import safe_open

    with safe_open(file, framework="np") as tensors:
        return bytes(tensors.get_tensor(TOKENIZER_TENSOR).tobytes())


def _of_gguf(file: Path) -> Pieces:
    values = read_gguf(file).values
    tokens = [token.decode("utf-8", errors="replace") for token in values[GGUF_TOKENS]]
    charsmap = bytes(values.get("tokenizer.ggml.precompiled_charsmap", b""))
    return Pieces(list(zip(tokens, values["tokenizer.ggml.scores"], strict=True)), charsmap)


def _of_model(data: bytes) -> Pieces:
    pieces, charsmap = [], b""
    for number, value in _fields(data):
        if number == PIECES:
            found = dict(_fields(value))
            (score,) = struct.unpack("<f", found.get(SCORE, b"\0\0\0\0"))
            pieces.append((found[PIECE].decode("utf-8"), score))
        elif number == NORMALIZER:
            charsmap = dict(_fields(value)).get(CHARSMAP, b"")
    return Pieces(pieces, charsmap)


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """A protobuf message's fields, as number and bytes; the bytes of varint fields are empty.

    Raises: ValueError.
    """
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        length, kind = 0, key & 7
        if kind == 0:
            _, at = _varint(data, at)
        elif kind == 2:
            length, at = _varint(data, at)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError("no sentencepiece model")
        if at + length > len(data):
            raise ValueError("a sentencepiece model that is cut short")
        yield key >> 3, data[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A varint, and the offset after it."""
    value = shift = 0
    while True:
        if at >= len(data):
            raise ValueError("a sentencepiece model that is cut short")
        value |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 128:
            return value, at
