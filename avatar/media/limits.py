"""How large an input may be; the host sets these, the defaults suit a small public machine."""

from __future__ import annotations

from dataclasses import dataclass, replace

MiB = 2**20


@dataclass(frozen=True)
class InputLimits:
    """What intake accepts at most. Sizes in bytes, lengths in seconds, sides in pixels."""

    max_speech_s: float = 20 * 60.0
    min_speech_s: float = 0.2
    silence_dbfs: float = -60.0  # a peak below this is silence
    max_portrait_bytes: int = 64 * MiB
    max_speech_bytes: int = 1024 * MiB
    max_pixels: int = 64_000_000
    max_side_px: int = 16_384
    min_side_px: int = 64
    max_prompt_tokens: int = 512  # what the text encoder reads
    min_free_bytes: int = 256 * MiB  # disk that must stay free beside the estimated video
    max_decode_bytes: int = 1536 * MiB  # data of the process that decodes a stranger's file
    portrait_cpu_s: float = 15.0  # CPU time that decoding a stranger's portrait may take
    speech_cpu_s: float = 120.0
    longer: str = ""  # what makes longer speech possible here, for the message that refuses it

    @property
    def max_decoded_samples(self) -> float:
        """Samples that are decoded of one file, of all channels: eight at 48 kHz, or two at 192 kHz."""
        return 8 * 48_000 * (self.max_speech_s + 1)

    def hosted(self) -> InputLimits:
        """The same for a machine that anybody may use: no more than phones and recorders need."""
        return replace(
            self,
            max_pixels=25_000_000,
            max_decode_bytes=768 * MiB,
            portrait_cpu_s=5.0,
            speech_cpu_s=20.0,
        )
