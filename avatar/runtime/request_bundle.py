"""The contents of a request's files, sent with it to another machine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from avatar.request import Request


@dataclass(frozen=True)
class RequestBundle:
    """The contents of a request's files.

    carry: the previous part's file, None without one. voices: those of several speakers.
    """

    portrait: bytes
    speech: bytes
    carry: bytes | None
    voices: tuple[bytes, ...] = ()

    @classmethod
    def of(cls, request: Request) -> RequestBundle:
        carry = request.part.carry if request.part else None
        return cls(
            request.portrait.read_bytes(),
            request.speech.read_bytes(),
            None if carry is None else carry.read_bytes(),
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
        request = request.with_voices(voices)
        return replace(request, portrait=portrait, speech=speech, work=folder, output=output, part=part)
