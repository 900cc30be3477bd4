"""Kokoro: what is fetched, what is fed to the model, and which languages are read how."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from avatar.errors import BadInput
from avatar.settings import Speaking
from avatar.speech import phonemes, voice_files
from avatar.speech.catalogue import Catalogue
from avatar.speech.hibari_voices import EmbeddedVoices
from avatar.speech.kokoro import MODEL, REPO, TOKENIZER, KokoroVoices
from avatar.speech.narration import Narrator, Script
from avatar.speech.voices import VoiceUnavailable
from tests.fixtures.hub_server import Hub
from tests.speech.conftest import SAMPLES_A_TOKEN

ROOT = Path(__file__).parents[2]


@pytest.fixture
def kokoro(kokoro_hub: Hub) -> KokoroVoices:
    return KokoroVoices(EmbeddedVoices().phonemes)


def tokens(samples: np.ndarray) -> int:
    """How many the tiny model was given, but for those at the ends."""
    return len(samples) // SAMPLES_A_TOKEN - 2


def test_it_is_fetched_once_and_speaks(kokoro: KokoroVoices, kokoro_hub: Hub):
    (samples,) = kokoro.synthesise("Hello there.", "kokoro/af_heart")
    assert samples.dtype == np.float32
    assert tokens(samples) == len("həlˈO ðˈɛɹ.")
    list(kokoro.synthesise("Again.", "kokoro/af_heart"))
    list(KokoroVoices(EmbeddedVoices().phonemes).synthesise("Again.", "kokoro/af_heart"))
    assert sorted(name for name, _ in kokoro_hub.fetched) == sorted([MODEL, TOKENIZER, "voices/af_heart.bin"])


def test_the_style_is_that_of_the_length_and_speed_is_passed_on(kokoro: KokoroVoices):
    (short,) = kokoro.synthesise("Hi.", "kokoro/af_heart")
    (slow,) = kokoro.synthesise("Hi.", "kokoro/af_heart", 0.5)
    (long,) = kokoro.synthesise("Hi there, how do you do this fine day?", "kokoro/af_heart")
    assert np.abs(short).max() == pytest.approx(0.3 + tokens(short) / 5100, rel=0.01)
    assert np.abs(long).max() == pytest.approx(0.3 + tokens(long) / 5100, rel=0.01)
    assert np.abs(slow).max() == pytest.approx(2 * np.abs(short).max(), rel=0.01)


def test_more_than_the_model_takes_comes_in_pieces(kokoro: KokoroVoices):
    pieces = list(kokoro.synthesise("wonderful " * 120, "kokoro/af_heart"))
    assert len(pieces) > 1
    assert max(map(tokens, pieces)) <= 510


def test_chinese_is_read_with_the_english_words_in_it(kokoro: KokoroVoices):
    spoken = phonemes.phonemes("我喜欢Python，2024年。", "z", EmbeddedVoices().phonemes)
    assert "xwa→n" in spoken
    assert "pˈIθˌɑn" in spoken
    assert not any(char.isdigit() for char in spoken)
    (samples,) = kokoro.synthesise("你好，世界。", "kokoro/zf_xiaobei")
    assert tokens(samples) > 12


def test_spanish_is_read_by_the_users_own_espeak(kokoro: KokoroVoices, tmp_path: Path, monkeypatch):
    program = tmp_path / "espeak-ng"
    program.write_text(
        "#!/bin/sh\nread text\n[ \"$*\" = '-q --ipa --tie=^ -v es --stdin' ] || exit 1\n"
        '[ "$text" = mucho ] && echo " m\'ut^ʃo" || echo " (en)h\'o^ʊla(es)"\n'
    )
    program.chmod(0o755)
    assert phonemes.lacks("e") == "" or "espeak-ng" in phonemes.lacks("e")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert phonemes.lacks("e") == ""
    assert phonemes.phonemes("¡Hola, mucho!", "e", EmbeddedVoices().phonemes) == "h'Ola, m'uʧo!"
    assert list(kokoro.synthesise("Hola, mucho.", "kokoro/ef_dora"))


def test_a_language_that_cannot_be_read_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(phonemes.shutil, "which", lambda name: None)
    with pytest.raises(BadInput) as refused:
        Narrator.of(Script("Hola.", Speaking(voice="kokoro/ef_dora")), Catalogue())
    assert "apt install espeak-ng" in str(refused.value)


def test_what_reads_chinese_is_among_the_requirements():
    lines = (ROOT / "requirements-preview.txt").read_text().splitlines()
    assert 'misaki[zh]>=0.9.4,<1; python_version < "3.13"' in lines
    assert (phonemes.lacks("z") == "") == (sys.version_info < phonemes._MISAKI_ENDS)


@pytest.mark.parametrize(("ends", "words"), [((9, 0), 'pip install "misaki[zh]"'), ((3, 0), "Python 3.12")])
def test_without_misaki_chinese_says_what_it_needs(monkeypatch: pytest.MonkeyPatch, ends, words):
    monkeypatch.setattr(phonemes, "_MISAKI", {"z": ("zh", ("no_such_library",))})
    monkeypatch.setattr(phonemes, "_MISAKI_ENDS", ends)
    assert words in phonemes.lacks("z")


def test_without_the_embedded_voice_english_is_read_by_misaki(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(phonemes.hibari_voices, "checked", lambda: False)
    monkeypatch.setattr(phonemes, "_misaki_english", lambda british: lambda text: (f"{text}-{british}", None))
    assert phonemes.phonemes("hi", "b", EmbeddedVoices().phonemes) == "hi-True"


def test_a_hub_out_of_reach_is_reported_and_no_more(kokoro: KokoroVoices, kokoro_hub: Hub, monkeypatch):
    monkeypatch.setattr(voice_files, "log", voice_files.log)
    kokoro_hub.repos.clear()
    with pytest.raises(VoiceUnavailable) as reported:
        list(kokoro.synthesise("Hello.", "kokoro/af_heart"))
    assert "cannot be fetched" in str(reported.value)
    assert "heart needs no download" in str(reported.value)
    assert "/tmp" not in str(reported.value)


@pytest.mark.parametrize("broken", [MODEL, TOKENIZER, "voices/af_heart.bin"])
def test_a_damaged_file_is_reported(kokoro: KokoroVoices, kokoro_files: Path, broken: str):
    (kokoro_files / broken).write_bytes(b"not what it should be")
    with pytest.raises(VoiceUnavailable, match="damaged"):
        list(kokoro.synthesise("Hello.", "kokoro/af_heart"))


def test_a_file_with_another_digest_is_not_kept(kokoro_hub: Hub, kokoro_files: Path):
    with pytest.raises(VoiceUnavailable, match="has the wrong checksum"):
        voice_files.fetched(REPO, TOKENIZER, "0" * 64)
    assert not voice_files.here(REPO, TOKENIZER)
    assert voice_files.fetched(REPO, TOKENIZER).read_bytes() == (kokoro_files / TOKENIZER).read_bytes()


def test_the_listing_says_what_a_first_use_downloads(kokoro: KokoroVoices):
    before = {voice.name: voice.fetch_mb for voice in kokoro.voices()}
    kokoro.load("kokoro/af_heart")
    after = {voice.name: voice.fetch_mb for voice in kokoro.voices()}
    assert (before["kokoro/af_heart"], after["kokoro/af_heart"], after["kokoro/af_bella"]) == (94, 0, 1)
