"""Several speakers' texts: spoken one after another, each with its own voice, and handed to its speaker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from avatar.errors import BadInput
from avatar.geometry import SOUND_HZ
from avatar.media.limits import InputLimits
from avatar.media.speaker_choice import AskedSpeaker, AskedSpeakers, asked_speakers
from avatar.media.speech_reader import SpeechReader
from avatar.settings import Speaking
from avatar.speech.catalogue import Catalogue
from avatar.speech.dialogue import Dialogue
from avatar.speech.voices import Voice
from avatar.speech.writing_systems import LATIN

HZ = {"low": 220.0, "high": 880.0, "far": 440.0}


class Tones:
    """A speech engine whose voices hum a tone for a tenth of a second per letter, at a rate of its own."""

    def __init__(self, hz: int, *voices: Voice) -> None:
        self.hz, self._voices = hz, list(voices)

    def voices(self) -> list[Voice]:
        return self._voices

    def load(self, voice: str) -> None:
        """There is nothing to load."""

    def synthesise(self, text: str, voice: str, speed: float = 1.0) -> Iterator[np.ndarray]:
        count = round(len(text) * self.hz / 10 / speed)
        yield (0.5 * np.sin(2 * np.pi * HZ[voice] * np.arange(count) / self.hz)).astype(np.float32)


def catalogue(*, far_mb: int = 0) -> Catalogue:
    """Voices low and high, and far, which is Chinese, at another rate, and downloaded first."""
    found = Catalogue()
    near = [Voice(name, "en-US", (LATIN,), name) for name in ("low", "high")]
    engines = Tones(24_000, *near), Tones(16_000, Voice("far", "zh-CN", (), "far", fetch_mb=far_mb))
    found.__dict__["engines"] = engines
    return found


def spoken(
    asked: AskedSpeakers | None, folder: Path, voices: Catalogue | None = None
) -> tuple[Dialogue, AskedSpeakers, Path | None]:
    assert asked is not None
    dialogue = Dialogue.of(asked, voices or catalogue())
    for _ in dialogue.write(folder / "said.wav"):
        pass
    return dialogue, *dialogue.handed_over(folder / "said.wav", dialogue.spoken, folder)


def tone_of(path: Path, start_s: float, stop_s: float) -> float:
    """The loudest frequency of a stretch, 0 for silence."""
    with SpeechReader(path) as reader:
        samples = reader.samples(round(start_s * SOUND_HZ), round(stop_s * SOUND_HZ))[:, 0].astype(float)
    if not samples.any():
        return 0.0
    return float(np.abs(np.fft.rfft(samples)).argmax() * SOUND_HZ / len(samples))


LOW = Speaking(voice="low")


def test_texts_take_turns_each_with_its_own_voice(tmp_path: Path) -> None:
    texts = [AskedSpeaker("1", text="0123456789."), AskedSpeaker("2", text="012345.", voice="far", speed=0.5)]
    asked = asked_speakers([*texts, AskedSpeaker("3")], None, recording=False, speaking=LOW)
    dialogue, given, split = spoken(asked, tmp_path)
    first, second = dialogue.spoken.turns
    assert (first.start_s, first.end_s, first.speaker) == (0, pytest.approx(1.1, abs=0.01), "1")
    assert (second.start_s, second.end_s) == (first.end_s, pytest.approx(2.5, abs=0.01))
    assert [one.text for one in dialogue.spoken.captions] == ["0123456789.", "012345."]
    assert dialogue.spoken.captions[1].start_s == pytest.approx(first.end_s, abs=0.1)
    assert split is None
    assert (given.speakers[2], given.notices) == (AskedSpeaker("3"), ())
    a, b = given.recordings
    tones = [[tone_of(path, at + 0.1, at + 0.9) for at in (0.0, 1.3)] for path in (a, b)]
    assert tones == [[pytest.approx(220, abs=2), 0.0], [0.0, pytest.approx(440, abs=2)]]
    assert [one.name for one in given.speakers] == ["“0123456789.”", "“012345.”", ""]


def test_a_text_with_names_becomes_turns(tmp_path: Path) -> None:
    text = "Anna: 0123456789.\nBen: 0123456789.\nAnna: 0123456789."
    asked = asked_speakers(
        [AskedSpeaker("2", label="Ben")], "names", recording=False, text=text, speaking=LOW
    )
    _, given, split = spoken(asked, tmp_path)
    assert [turn.speaker for turn in given.turns] == ["Anna", "Ben", "Anna"]
    assert split == tmp_path / "said.wav"
    assert [tone_of(split, at, at + 0.8) for at in (0.1, 1.2, 2.3)] == [
        pytest.approx(hz, abs=2) for hz in (220, 880, 220)
    ]


def test_voices_differ_where_others_are_here(tmp_path: Path) -> None:
    def voices(*named: str, far_mb: int = 0) -> list[str]:
        texts = [AskedSpeaker(str(n), text=f"{n}23.", voice=voice) for n, voice in enumerate(named, 1)]
        asked = asked_speakers(texts, None, recording=False, speaking=LOW)
        assert asked is not None
        dialogue = Dialogue.of(asked, catalogue(far_mb=far_mb))
        found = [narrator.voice.name for narrator in dialogue._narrators]
        same = len(found) - len(set(found)) > 0 and not all(named)
        assert [notice.code for notice in dialogue.notices] == (["same_voice"] if same else [])
        return found

    assert voices("", "", "") == ["low", "high", "far"]
    assert voices("", "low") == ["high", "low"]
    assert voices("", "", "", far_mb=94) == ["low", "high", "low"]
    assert voices("low", "low") == ["low", "low"]


def test_what_cannot_be_spoken_names_its_speaker(tmp_path: Path) -> None:
    for text, voice, words in (
        ("你好。", "low", "Speaker 2: The voice low does not read Han"),
        ("...", "", "Speaker 2: There is nothing to say"),
        ("Hi.", "lo", "Speaker 2: There is no voice 'lo'. Did you mean 'low'"),
    ):
        texts = [AskedSpeaker("1", text="Hi."), AskedSpeaker("2", text=text, voice=voice)]
        asked = asked_speakers(texts, None, recording=False, speaking=LOW)
        with pytest.raises(BadInput, match=words):
            spoken(asked, tmp_path)
    asked = asked_speakers([], "names", recording=False, text="Ben: 你好。", speaking=LOW)
    with pytest.raises(BadInput, match="Ben: The voice low does not read"):
        spoken(asked, tmp_path)


def test_a_dialogue_that_is_too_long_leaves_no_file(tmp_path: Path) -> None:
    texts = [AskedSpeaker(str(n), text="0123456789.") for n in (1, 2)]
    asked = asked_speakers(texts, None, recording=False, speaking=LOW)
    assert asked is not None
    dialogue = Dialogue.of(asked, catalogue(), InputLimits(max_speech_s=2.0))
    with pytest.raises(BadInput, match="The text is too long"):
        list(dialogue.write(tmp_path / "said.wav"))
    assert list(tmp_path.iterdir()) == []
