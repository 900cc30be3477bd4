"""The voices of several speakers in one file beside their video, so that each can be measured by its own.

Matroska with a FLAC track for each speaker that has a voice, 16 kHz mono; its title is the speaker's place in
the run report, from 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from avatar.errors import BadInput
from avatar.geometry import SPEECH_HZ
from avatar.media.atomic import disk_error
from avatar.media.speech_reader import SpeechReader
from avatar.request import Speaker

SUFFIX = ".voices.mka"
_BLOCK = 10 * SPEECH_HZ


def voices_beside(video: Path) -> Path:
    """Where the voices of a video are kept."""
    return video.with_name(f"{video.stem}{SUFFIX}")


def write_voices_file(speakers: Sequence[Speaker], target: Path) -> None:
    """Write the voices of a request's speakers. Raises: AvatarError."""
    try:
        _write(speakers, target)
    except OSError as error:
        raise disk_error(error) from error


def _write(speakers: Sequence[Speaker], target: Path) -> None:
    """As write_voices_file. Raises: OSError."""
    same = {"fflags": "+bitexact"}  # the same voices, the same file: it is measured once
    with av.open(str(target), "w", format="matroska", options=same) as out:
        tracks = []
        for number, speaker in enumerate(speakers):
            if speaker.voice is not None:
                track = out.add_stream("flac", rate=SPEECH_HZ, layout="mono", format="s16")
                track.metadata["title"] = str(number)
                tracks.append((track, speaker.voice))
        for track, voice in tracks:
            with SpeechReader(voice) as reader:
                for start in range(0, reader.num_samples_16k, _BLOCK):
                    heard = reader.listen(start, min(start + _BLOCK, reader.num_samples_16k))
                    samples = np.rint(heard * 32767).astype(np.int16)
                    frame = av.AudioFrame.from_ndarray(samples[None], "s16", "mono")
                    frame.sample_rate, frame.pts, frame.time_base = SPEECH_HZ, start, Fraction(1, SPEECH_HZ)
                    out.mux(track.encode(frame))
            out.mux(track.encode(None))


def read_voice(path: Path, number: int) -> np.ndarray | None:
    """A speaker's voice, float32 (n,) at SPEECH_HZ; None where it has none. Raises: BadInput."""
    try:
        with av.open(str(path)) as container:
            tracks = [one for one in container.streams.audio if one.metadata.get("title") == str(number)]
            if not tracks:
                return None
            parts = [frame.to_ndarray().reshape(-1) for frame in container.decode(tracks[0])]
    except (av.FFmpegError, OSError, ValueError) as error:
        raise BadInput(f"{path.name} cannot be read.", "Delete it: the video is measured without.") from error
    samples = np.concatenate(parts) if parts else np.zeros(0, np.int16)
    return samples.astype(np.float32) / 32768
