"""Channels: what cancels is heard all the same, speech in the centre keeps its level, stereo stays stereo."""

from __future__ import annotations

import wave
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from media_samples import decode_sound, moving, syllables, write_sound, write_wav
from PIL import Image

from avatar.media.intake import open_request
from avatar.media.join import join_parts
from avatar.media.segments import SegmentWriter, join_segments
from avatar.media.speech_reader import SpeechReader, write_speech
from avatar.preset import Preset
from avatar.request import Part

LEFT = syllables(6)
RIGHT = np.roll(LEFT[::-1], 4800) * np.float32(0.5)


def heard(path: Path) -> np.ndarray:
    """What an engine hears of a recording, at 16 kHz."""
    target = path.with_name("canonical.wav")
    write_speech(path, target)
    with SpeechReader(target) as reader:
        return reader.listen(0, reader.num_samples_16k)


def of_16k(samples: np.ndarray, folder: Path) -> np.ndarray:
    """The same samples as an engine hears them when they are all there is."""
    return heard(write_wav(folder / "alone.wav", samples, 48_000))


def decibels(found: np.ndarray, truth: np.ndarray) -> float:
    return float(10 * np.log10(np.square(found).mean() / np.square(truth).mean()))


def test_an_inverted_channel_is_no_silence(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "inverted.wav", np.stack([LEFT, -0.9 * LEFT], 1), 48_000)
    assert np.abs(heard(path) - of_16k(LEFT, tmp_path)).max() < 1e-3


def test_only_where_the_mix_cancels_one_channel_is_taken(tmp_path: Path) -> None:
    right = LEFT.copy()
    right[96_000:192_000] *= -1  # two seconds, as a block is
    found = heard(write_wav(tmp_path / "partly.wav", np.stack([LEFT, right], 1), 48_000))
    away = np.ones(len(found), bool)
    for border in (32_000, 64_000):  # of blocks, where one way of mixing passes into the other
        away[border - 900 : border + 900] = False
    assert np.abs(found - of_16k(LEFT, tmp_path))[away].max() < 1e-3
    plain = heard(write_wav(tmp_path / "two.wav", np.stack([LEFT, RIGHT], 1), 48_000))
    assert np.abs(plain - of_16k((LEFT + RIGHT) / 2, tmp_path)).max() < 1e-3


def test_listening_to_two_channels_is_the_same_however_it_is_cut(tmp_path: Path) -> None:
    right = LEFT.copy()
    right[90_000:200_000] *= -1
    write_speech(write_wav(tmp_path / "s.wav", np.stack([LEFT, right], 1), 48_000), tmp_path / "c.wav")
    with SpeechReader(tmp_path / "c.wav") as reader:
        whole = reader.listen(0, reader.num_samples_16k)
        rng = np.random.default_rng(0)
        for _ in range(10):
            cuts = [0, *sorted(rng.integers(0, len(whole), 7)), len(whole)]
            assert np.array_equal(np.concatenate([reader.listen(a, b) for a, b in pairwise(cuts)]), whole)


@pytest.mark.parametrize(("layout", "channels", "centre"), [("5.1", 6, 2), ("5.0", 5, 2), ("3.0", 3, 2)])
def test_speech_in_the_centre_keeps_its_level(
    layout: str, channels: int, centre: int, tmp_path: Path
) -> None:
    samples = np.zeros((len(LEFT), channels), np.float32)
    samples[:, centre] = LEFT
    path = write_sound(tmp_path / "surround.flac", samples, 48_000, "flac", layout=layout)
    assert decibels(heard(path), of_16k(LEFT, tmp_path)) == pytest.approx(0, abs=0.1)


@pytest.mark.parametrize(("channels", "spoken_into"), [(6, 2), (6, 3), (4, 3), (3, 0)])
def test_one_of_several_microphones_keeps_its_level(channels: int, spoken_into: int, tmp_path: Path) -> None:
    """A WAV of more than two channels without a mask does not say which speakers they are for."""
    samples = np.zeros((len(LEFT), channels), np.float32)
    samples[:, spoken_into] = LEFT
    path = write_wav(tmp_path / "recorder.wav", samples, 48_000)
    with av.open(str(path)) as container:
        assert container.streams.audio[0].layout.channels[0].name == "NONE"
    assert decibels(heard(path), of_16k(LEFT, tmp_path)) == pytest.approx(0, abs=0.1)


def test_loud_surround_is_scaled_not_clipped(tmp_path: Path) -> None:
    samples = np.repeat(LEFT[:, None], 6, 1)
    found = heard(write_sound(tmp_path / "loud.flac", samples, 48_000, "flac", layout="5.1"))
    truth = of_16k(LEFT, tmp_path)
    assert np.corrcoef(found, truth)[0, 1] > 0.9999
    assert np.abs(found).max() <= 1


@pytest.fixture
def stereo(tmp_path: Path) -> Path:
    """A canonical recording whose two channels differ."""
    path = write_wav(tmp_path / "in.wav", np.stack([LEFT, RIGHT], 1), 48_000)
    assert write_speech(path, tmp_path / "speech.wav").num_channels == 2
    return tmp_path / "speech.wav"


def film(stereo: Path, folder: Path, lengths: list[int], first: int = 0) -> tuple[list, Path]:
    folder.mkdir()
    with SpeechReader(stereo) as reader:
        writer = SegmentWriter(
            reader, folder, folder / "film.mp4", lengths=lengths, part=Part("run", first, 150)
        )
        made = list(writer.write(moving(sum(lengths), start=first)))
        made += list(writer.finish())
    return made, folder / "film.mp4"


def channels_of(path: Path) -> tuple[str, np.ndarray]:
    """Layout of the sound in a file, and its samples (2, N)."""
    with av.open(str(path)) as container:
        layout = container.streams.audio[0].layout.name
    return layout, decode_sound(path)


def test_segments_keep_both_channels_to_the_sample(stereo: Path, tmp_path: Path) -> None:
    made, _ = film(stereo, tmp_path / "w", [25, 50, 75])
    found = [channels_of(segment.path) for segment in made]
    assert [layout for layout, _ in found] == ["stereo"] * 3
    with wave.open(str(stereo)) as file:
        truth = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, 2)
    assert np.array_equal(np.concatenate([samples for _, samples in found], 1), truth.T)


def test_film_join_and_rescue_keep_both_channels(stereo: Path, tmp_path: Path) -> None:
    made, whole = film(stereo, tmp_path / "whole", [75, 75])
    _, first = film(stereo, tmp_path / "first", [93])
    _, second = film(stereo, tmp_path / "second", [57], 93)
    joined, rescued = tmp_path / "joined.mp4", tmp_path / "rescued.mp4"
    assert join_parts([first, second], joined) == 150
    with SpeechReader(stereo) as reader:
        join_segments(made, reader, rescued)
    truth = np.stack([LEFT, RIGHT])
    for path in (whole, joined, rescued):
        layout, found = channels_of(path)
        assert layout == "stereo"
        assert truth.shape[1] <= found.shape[1] < truth.shape[1] + 1024
        for side in (0, 1):
            spectrum = np.fft.rfft(found[side][: truth.shape[1]]) * np.fft.rfft(truth[side]).conj()
            assert np.argmax(np.fft.irfft(spectrum)) == 0, "in time"
            assert np.corrcoef(found[side][: truth.shape[1]], truth[side])[0, 1] > 0.98, "its own channel"
    uncut, seamed = decode_sound(whole)[:, 177_000:180_500], decode_sound(joined)[:, 177_000:180_500]
    assert np.abs(uncut - seamed).max() < 0.05, "no click where the parts meet"


@pytest.mark.parametrize("recording", ["inverted", "stereo", "mono"])
def test_an_engine_gets_what_it_can_hear(recording: str, tmp_path: Path) -> None:
    right = {"inverted": -LEFT, "stereo": RIGHT, "mono": None}[recording]
    samples = LEFT if right is None else np.stack([LEFT, right], 1)
    Image.new("RGB", (300, 300), "tan").save(tmp_path / "me.png")
    request = open_request(
        tmp_path / "me.png",
        write_wav(tmp_path / "in.wav", samples, 48_000),
        Preset(name="t", title="", summary="", engine="preview"),
        output=tmp_path / "out.mp4",
        work=tmp_path / "work",
    )
    assert request.num_frames == 150
    assert request.notices == ()
    with SpeechReader(request.speech) as reader:
        assert reader.num_channels == (1 if recording == "mono" else 2)
        assert np.abs(reader.listen(0, 96_000)).max() > 0.2
