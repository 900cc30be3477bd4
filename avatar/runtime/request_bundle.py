"""The contents of a request's files, sent with it to another machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from avatar.request import Request

OTHERS = ("background_picture", "pose")


@dataclass(frozen=True)
class RequestBundle:
    """The contents of a request's files. carry: the previous part's file, None without one.

    others: those that not every request has, by the request's field. voices: those of several speakers.
    """

    portrait: bytes
    speech: bytes
    carry: bytes | None
    others: Mapping[str, bytes] = field(default_factory=dict)
    voices: tuple[bytes, ...] = ()

    @classmethod
    def of(cls, request: Request) -> RequestBundle:
        carry = request.part.carry if request.part else None
        return cls(
            request.portrait.read_bytes(),
            request.speech.read_bytes(),
            None if carry is None else carry.read_bytes(),
            other_files(request),
            tuple(voice.read_bytes() for voice in request.voices),
        )

    def unpacked(self, request: Request, folder: Path) -> Request:
        """Write the files to a folder of this machine, and return the request that names them."""
        part = request.part
        portrait, speech = folder / request.portrait.name, folder / request.speech.name
        portrait.write_bytes(self.portrait)
        speech.write_bytes(self.speech)
        if part is not None:
            carry = None if self.carry is None else folder / "carry"
            if carry is not None and self.carry is not None:
                carry.write_bytes(self.carry)
            part = replace(part, carry=carry, leave=folder / "leave" if part.leave else None)
        output = folder / request.output.name
        voices = [folder / voice.name for voice in request.voices]
        for place, voice in zip(voices, self.voices, strict=True):
            place.write_bytes(voice)
        others: dict[str, Any] = {}
        for name, content in self.others.items():
            others[name] = folder / getattr(request, name).name
            others[name].write_bytes(content)
        others |= {"portrait": portrait, "speech": speech, "work": folder, "output": output}
        return replace(request.with_voices(voices), part=part, **others)


def other_files(request: Request) -> dict[str, bytes]:
    """The contents of those files that not every request has, by the request's field."""
    return {name: path.read_bytes() for name in OTHERS if (path := getattr(request, name)) is not None}
