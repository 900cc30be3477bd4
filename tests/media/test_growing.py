"""A recording that is read while it is still written."""

from __future__ import annotations

import threading
import wave
from pathlib import Path

import numpy as np
import pytest

from avatar.errors import AvatarError, BadInput, Cancelled
from avatar.geometry import SOUND_HZ
from avatar.media.growing import GrowingRecording, can_grow
from avatar.media.intake import open_request
from avatar.media.limits import InputLimits
from avatar.media.speech_reader import SpeechReader, is_audible, write_speech
from avatar.preset import load_preset
from avatar.runtime.extent import Extent, segment_lengths
from tests.fixtures.growing import HZ, SlowVoice, sentence

LENGTHS_S = (1.3, 2.0, 0.777)
PORTRAIT = Path(__file__).parents[2] / "assets" / "portraits" / "mara.png"


def never() -> bool:
    return False


def reader_of(voice: SlowVoice, cancelled=never) -> SpeechReader:
    return SpeechReader(voice.wav, length=GrowingRecording(voice.journal, cancelled))


def test_the_file_is_the_one_that_intake_would_have_written(tmp_path: Path):
    voice = SlowVoice(tmp_path, LENGTHS_S).all()
    with wave.open(str(tmp_path / "whole.wav"), "wb") as whole:
        whole.setparams((1, 2, HZ, 0, "NONE", ""))
        for number, length_s in enumerate(LENGTHS_S):
            whole.writeframes(sentence(number, length_s).tobytes())
    write_speech(tmp_path / "whole.wav", tmp_path / "canonical.wav")
    assert voice.wav.read_bytes() == (tmp_path / "canonical.wav").read_bytes()


def test_what_is_heard_does_not_depend_on_when_it_is_read(tmp_path: Path):
    voice = SlowVoice(tmp_path, LENGTHS_S)
    voice.next()
    heard: list[np.ndarray] = []

    def listen() -> None:
        with reader_of(voice) as reader:
            heard.extend(reader.listen(start, start + 4000) for start in range(0, 66_000, 4000))

    listener = threading.Thread(target=listen)
    listener.start()
    voice.all()
    listener.join()
    with SpeechReader(voice.wav) as finished:
        assert np.array_equal(np.concatenate(heard), finished.listen(0, 68_000))
        assert finished.num_samples == round(sum(LENGTHS_S) * SOUND_HZ)


def test_reading_ahead_waits_until_it_is_cancelled(tmp_path: Path):
    voice, polls = SlowVoice(tmp_path, LENGTHS_S), []
    voice.next()
    with reader_of(voice, lambda: len(polls) > 2 or polls.append(1) is not None) as reader:
        assert len(reader.sound(0, 20)) == 20 * 1920
        with pytest.raises(Cancelled):
            reader.sound(30, 10)
    assert len(polls) == 3


def test_a_half_written_line_is_not_read(tmp_path: Path):
    voice = SlowVoice(tmp_path, LENGTHS_S)
    voice.next()
    lines = voice.journal.read_bytes()
    recording = GrowingRecording(voice.journal)
    voice.journal.write_bytes(lines[:-5])
    assert recording.look().num_samples == 0
    voice.journal.write_bytes(lines)
    assert recording.look().num_samples == pytest.approx(1.3 * SOUND_HZ, abs=100)


def test_the_expected_length_becomes_the_true_one(tmp_path: Path):
    voice = SlowVoice(tmp_path, LENGTHS_S)
    voice.next()
    recording = GrowingRecording(voice.journal)
    assert recording.look().expected_frames == round(sum(LENGTHS_S) * 25)
    voice.all()
    assert recording.look().expected_frames == 102
    assert [one.text for one in recording.look().captions][-1] == "This is sentence 3."


@pytest.mark.parametrize("lengths_s", [(1.0, 1.0, 0.3), (1.5, 1.5, 0.7, 1.1), (3.4, 0.2, 0.2, 0.2)])
def test_certain_segments_are_those_of_the_whole_speech(tmp_path: Path, lengths_s):
    voice, preset = SlowVoice(tmp_path, lengths_s), load_preset("cpu-preview")
    voice.next()
    request = open_request(
        PORTRAIT, voice.wav, preset, output=tmp_path / "o.mp4", work=tmp_path / "w", growing=voice.journal
    )
    extent, seen = Extent(request), []
    assert extent.most == 20 * 60 * 25
    while not voice.is_over:
        certain = GrowingRecording(voice.journal).look().num_frames - 9
        ends = np.cumsum(extent.segments)
        seen.append(extent.segments[: int((ends <= certain).sum())])
        voice.next()
    whole = segment_lengths(extent.most, request.segment_s, 25)
    assert extent.segments == whole
    assert sum(whole) == extent.most == int(np.ceil(round(sum(lengths_s) * 25, 6)))
    for some in seen:
        assert some == whole[: len(some)]
    assert any(seen), "something is certain before the end"


def test_the_cause_of_an_early_end_is_told(tmp_path: Path):
    voice, preset = SlowVoice(tmp_path, LENGTHS_S), load_preset("cpu-preview")
    voice.next()
    request = open_request(
        PORTRAIT, voice.wav, preset, output=tmp_path / "o.mp4", work=tmp_path / "w", growing=voice.journal
    )
    extent = Extent(request)
    assert extent.error is None
    voice.fail(AvatarError("The server is gone.", "Try again later."))
    assert str(extent.error) == "The server is gone. Try again later."
    assert extent.most == 33


def test_a_journal_that_cannot_be_written_ends_the_speech(tmp_path: Path):
    voice = SlowVoice(tmp_path, LENGTHS_S)
    voice.next()
    recording = GrowingRecording(voice.journal, never)
    there = recording.look().num_samples
    voice.writer.abandon()
    assert recording.until(10 * SOUND_HZ) == there
    for reader in (recording, GrowingRecording(voice.journal)):
        growth = reader.look()
        assert growth.error == ("The text's sound cannot be written.", "Free disk space, then run it again.")
        assert growth.ended
        assert (growth.num_samples, len(growth.captions)) == (there, 1)


def test_a_growing_speech_is_left_where_it_is_by_a_refusal(tmp_path: Path):
    voice, preset = SlowVoice(tmp_path, LENGTHS_S), load_preset("cpu-preview")
    voice.next()
    with pytest.raises(BadInput, match="disk is nearly full"):
        open_request(
            PORTRAIT,
            voice.wav,
            preset,
            output=tmp_path / "o.mp4",
            work=tmp_path / "w",
            growing=voice.journal,
            limits=InputLimits(min_free_bytes=2**60),
        )
    assert voice.wav.is_file()
    assert not (tmp_path / "w").exists()


def test_quiet_speech_and_settings_that_need_the_end_do_not_grow():
    loud = sentence(0, 1.0).astype(np.float32) / 32768
    assert is_audible(loud)
    assert not is_audible(loud / 200)
    assert not is_audible(loud * 0)
    preset = load_preset("80gb")
    assert can_grow(preset)
    assert not can_grow(preset.with_settings(trim=True))
    assert not can_grow(preset.with_settings(num_clip=3))
