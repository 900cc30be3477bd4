"""Limits on inputs, set by the operator of the server; the defaults suit a small public machine."""

from __future__ import annotations

from dataclasses import dataclass, replace

MiB = 2**20


@dataclass(frozen=True)
class InputLimits:
    """Limits that intake enforces. Sizes in bytes, lengths in seconds, sides in pixels."""

    max_speech_s: float = 20 * 60.0
    min_speech_s: float = 0.2
    silence_dbfs: float = -60.0  # a peak below this counts as silence
    max_portrait_bytes: int = 64 * MiB
    max_speech_bytes: int = 1024 * MiB
    max_pixels: int = 64_000_000
    max_side_px: int = 16_384
    min_side_px: int = 64
    max_prompt_tokens: int = 512  # what the text encoder reads
    min_free_bytes: int = 256 * MiB  # disk space that must stay free in addition to the estimated video
    max_decode_bytes: int = 1536 * MiB  # data segment of the subprocess that decodes an untrusted file
    portrait_cpu_s: float = 15.0  # CPU time for decoding an untrusted portrait
    speech_cpu_s: float = 120.0
    longer: str = ""  # how to allow longer speech, for the error message

    @property
    def max_decoded_samples(self) -> float:
        """Most samples decoded from one file, over all channels: eight at 48 kHz, or two at 192 kHz."""
        return 8 * 48_000 * (self.max_speech_s + 1)

    def hosted(self) -> InputLimits:
        """Tighter limits for a public machine: no more than phones and recorders need."""
        return replace(
            self,
            max_pixels=25_000_000,
            max_decode_bytes=768 * MiB,
            portrait_cpu_s=5.0,
            speech_cpu_s=20.0,
        )
