"""The voices that are kept beside a video: read back as they were, the same file each time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from media_samples import tone, write_wav

from avatar.errors import BadInput
from avatar.media.speech_reader import SpeechReader, write_speech
from avatar.media.voices_file import read_voice, voices_beside, write_voices_file
from avatar.request import Speaker

FACE = (0.1, 0.1, 0.3, 0.5)


@pytest.fixture
def speakers(tmp_path: Path) -> list[Speaker]:
    """Two voices of different lengths, and between them one that listens."""
    found = []
    for name, seconds in (("a", 12.5), ("b", 1.0)):
        write_speech(
            write_wav(tmp_path / f"{name}.in.wav", tone(seconds, 48_000, 220, 0.4), 48_000),
            tmp_path / f"{name}.wav",
        )
        found.append(Speaker(FACE, name, tmp_path / f"{name}.wav"))
    return [found[0], Speaker(FACE, ""), found[1]]


def test_each_voice_is_read_back_as_it_was(speakers: list[Speaker], tmp_path: Path) -> None:
    place = voices_beside(tmp_path / "film.of us.mp4")
    assert place.name == "film.of us.voices.mka"
    write_voices_file(speakers, place)
    for number, one in enumerate(speakers):
        voice = read_voice(place, number)
        if one.voice is None:
            assert voice is None
            continue
        with SpeechReader(one.voice) as reader:
            assert voice is not None
            assert np.abs(voice - reader.listen(0, reader.num_samples_16k)).max() < 2 / 32768
    assert read_voice(place, 3) is None
    before = place.read_bytes()
    write_voices_file(speakers, place)
    assert place.read_bytes() == before


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.voices.mka").write_bytes(b"no sound")
    with pytest.raises(BadInput, match=r"x.voices.mka cannot be read"):
        read_voice(tmp_path / "x.voices.mka", 0)
