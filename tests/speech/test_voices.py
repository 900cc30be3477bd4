"""Which voice reads a text, what is refused at once, and how a text becomes a sound file."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest

from avatar.errors import BadInput
from avatar.media.limits import InputLimits
from avatar.media.speech_reader import check_speech
from avatar.media.turns import Turn
from avatar.settings import Speaking
from avatar.speech import hibari_voices
from avatar.speech.catalogue import Catalogue, speaking
from avatar.speech.hibari_voices import EmbeddedVoices
from avatar.speech.narration import Narrator, Script, load_spoken, save_spoken
from avatar.speech.voices import VoiceUnavailable

TEXT = "Hello there. On the 3rd of March 2024, Dr. Smith paid $9.99."


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return Catalogue()


def test_a_text_becomes_speech_that_intake_takes(catalogue: Catalogue, tmp_path: Path):
    narrator = Narrator.of(Script(TEXT), catalogue)
    said = list(narrator.write(tmp_path / "spoken.wav"))
    heard = check_speech(tmp_path / "spoken.wav")
    assert [one.text for one in said] == ["Hello there.", "On the 3rd of March 2024, Dr. Smith paid $9.99."]
    assert all(one.samples.dtype == np.float32 and np.abs(one.samples).max() > 0.05 for one in said)
    assert heard.source_hz == said[0].hz == 24_000
    assert heard.duration_s == pytest.approx(sum(len(one.samples) for one in said) / 24_000, abs=0.01)
    assert 4 < heard.duration_s < 9


def test_captions_stand_while_their_sentence_is_said(catalogue: Catalogue):
    first, second = (said.caption for said in Narrator.of(Script(TEXT), catalogue).sentences())
    assert 0 <= first.start_s < 0.2 < first.end_s <= second.start_s < second.end_s


def test_a_sentence_is_there_before_the_next_is_spoken(catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch):
    narrator, spoken = Narrator.of(Script("One. Two. Three."), catalogue), []

    def synthesise(text: str, voice: str, speed: float):
        spoken.append(text)
        yield np.ones(240, np.float32)

    monkeypatch.setattr(narrator.engine, "synthesise", synthesise)
    next(narrator.sentences())
    assert spoken == ["One."]


def test_the_same_text_sounds_the_same_and_speed_shortens_it(catalogue: Catalogue):
    def speak(speed: float) -> np.ndarray:
        narrator = Narrator.of(Script(TEXT, Speaking(speed=speed)), catalogue)
        return np.concatenate([said.samples for said in narrator.sentences()])

    assert np.array_equal(speak(1.0), speak(1.0))
    assert 0.45 < len(speak(2.0)) / len(speak(1.0)) < 0.8


@pytest.mark.parametrize(
    ("text", "voice", "words"),
    [
        ("你好，世界。", "heart", "does not read Han. Choose kokoro/zf_"),
        ("नमस्ते", "heart", "does not read Devanagari. Choose kokoro/hf_alpha"),
        ("こんにちは", "kokoro/zf_xiaobei", "does not read Hiragana. Choose kokoro/jf_alpha"),
        ("Привет", "heart", "does not read Cyrillic. No voice here does"),
        ("… 🙂", "heart", "nothing to say"),
        ("", "heart", "nothing to say"),
        ("Hello", "hart", "Did you mean 'heart'?"),
        ("Hello", "kokoro/af_hearth", "Did you mean 'kokoro/af_heart'?"),
        ("x" * 60_000, "heart", "too long: spoken, it may last 20 min"),
    ],
)
def test_what_cannot_be_spoken_is_refused_before_anything_loads(
    text: str, voice: str, words: str, monkeypatch: pytest.MonkeyPatch
):
    fresh = Catalogue()
    for engine in fresh.engines:
        for name in ("load", "synthesise"):
            monkeypatch.setattr(type(engine), name, lambda *_, **__: pytest.fail("it was used"))
    with pytest.raises(BadInput) as refused:
        Narrator.of(Script(text, Speaking(voice=voice)), fresh)
    assert words in str(refused.value)


def test_speech_that_grows_too_long_is_refused_and_nothing_stays(catalogue: Catalogue, tmp_path: Path):
    limits = InputLimits(max_speech_s=3.0)
    narrator = Narrator.of(Script(TEXT), catalogue, limits)
    with pytest.raises(BadInput, match="too long"):
        list(narrator.write(tmp_path / "spoken.wav", limits))
    assert list(tmp_path.iterdir()) == []


def test_speaking_that_is_left_leaves_no_file(catalogue: Catalogue, tmp_path: Path):
    writing = Narrator.of(Script(TEXT), catalogue).write(tmp_path / "spoken.wav")
    next(writing)
    writing.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"speed": 3.0}, "speed is 3.0. It must be from 0.5 to 2."),
        ({"speed": "fast"}, "speed must be a number."),
        ({"captions": "brned"}, "Did you mean 'burned'?"),
        ({"pace": 1.0}, "unknown key 'pace'"),
    ],
)
def test_wrong_ways_of_speaking_are_refused_in_words(given: dict[str, object], words: str):
    with pytest.raises(BadInput) as refused:
        speaking(**given)
    assert words in str(refused.value)


def test_a_library_that_was_changed_is_not_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, catalogue: Catalogue
):
    monkeypatch.setattr(hibari_voices, "checked", lambda: False)
    with pytest.raises(VoiceUnavailable, match="not hibari-tts"):
        EmbeddedVoices().load("heart")
    with pytest.raises(BadInput, match="pip install --force-reinstall"):
        Narrator.of(Script("Hello."), catalogue)


def test_the_digest_sees_any_change_of_a_package(tmp_path: Path):
    package = tmp_path / "package"
    (package / "__pycache__").mkdir(parents=True)
    (package / "a.py").write_text("x = 1")
    before = hibari_voices.digest(package)
    (package / "__pycache__" / "a.pyc").write_bytes(b"1")
    assert hibari_voices.digest(package) == before
    (package / "a.py").write_text("x = 2")
    changed = hibari_voices.digest(package)
    (package / "b.py").write_text("")
    assert len({before, changed, hibari_voices.digest(package)}) == 3
    assert hibari_voices.checked()


def test_kokoro_takes_over_from_an_embedded_voice(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("avatar.speech.hibari_voices.checked", lambda: False)
    reads = {"english": ""}
    monkeypatch.setattr("avatar.speech.kokoro.lacks", lambda letter: reads["english"])
    for name, namesake in (("heart", "kokoro/af_heart"), ("fable", "kokoro/bm_fable")):
        engine, voice = Catalogue().check("Hello.", name)
        assert voice.name == namesake
        assert namesake in [one.name for one in engine.voices()]
    reads["english"] = "Run: pip install something"
    with pytest.raises(BadInput, match="heart cannot speak here yet"):
        Catalogue().check("Hello.", "heart")


def test_what_was_spoken_is_known_again(tmp_path: Path, catalogue: Catalogue):
    script = Script("One. Two.")
    said = tuple(one.caption for one in Narrator.of(script, catalogue).sentences())
    turns = (Turn(0.0, 1.0, "Anna", 1),)
    save_spoken(tmp_path / "s.json", script.digest, said, turns)
    assert load_spoken(tmp_path / "s.json", script.digest) == (said, turns)
    burned = Script("One. Two.", Speaking(captions="burned"))
    assert load_spoken(tmp_path / "s.json", burned.digest) == (said, turns)
    assert load_spoken(tmp_path / "s.json", Script("One. Two.", Speaking(speed=1.5)).digest) is None
    assert load_spoken(tmp_path / "s.json", Script("One.").digest) is None
    (tmp_path / "s.json").write_text("[1]")
    assert load_spoken(tmp_path / "s.json", script.digest) is None


def test_the_file_is_plain_sixteen_bit_mono(catalogue: Catalogue, tmp_path: Path):
    list(Narrator.of(Script("Hello."), catalogue).write(tmp_path / "s.wav"))
    with wave.open(str(tmp_path / "s.wav")) as file:
        assert file.getparams()[:3] == (1, 2, 24_000)
