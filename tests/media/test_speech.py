"""Any recording becomes the same canonical sound, and slices of it are exact."""

from __future__ import annotations

import resource
import wave
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soxr
from media_samples import as_piped, spoil, tone, write_sound, write_wav

from avatar.media.limits import InputLimits
from avatar.media.speech_reader import SpeechReader, write_speech

SECONDS, HZ = 1.5, 220.0
TRUTH = tone(SECONDS, 48_000, HZ)


def stereo(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return np.stack([left, right], 1)


def wav(rate: int, subtype: str = "PCM_16", channels: int = 1) -> Callable[[Path], object]:
    return lambda p: write_wav(p, np.repeat(tone(SECONDS, rate, HZ)[:, None], channels, 1), rate, subtype)


def into_the_last_of(channels: int, rate: int) -> Callable[[Path], object]:
    silence = np.zeros((round(SECONDS * rate), channels - 1), np.float32)
    return lambda p: write_wav(p, np.column_stack([silence, tone(SECONDS, rate, HZ)]), rate)


def coded(rate: int, codec: str, layout: str = "mono", **more: int) -> Callable[[Path], object]:
    channels = {"mono": 1, "stereo": 2}[layout]
    return lambda p: write_sound(
        p, np.repeat(tone(SECONDS, rate, HZ)[:, None], channels, 1), rate, codec, layout=layout, **more
    )


LOSSLESS, LOSSY = 0.0005, 0.03  # RMS of the error; the tone's is 0.35
ODD = [
    ("8khz.wav", wav(8000), LOSSLESS),
    ("11khz.wav", wav(11_025), LOSSLESS),
    ("22khz.wav", wav(22_050), LOSSLESS),
    ("44khz.wav", wav(44_100), LOSSLESS),
    ("48khz.wav", wav(48_000), 2e-5),
    ("96khz.wav", wav(96_000), LOSSLESS),
    ("192khz.wav", wav(192_000), LOSSLESS),
    ("float.wav", wav(44_100, "FLOAT"), LOSSLESS),
    ("double.wav", wav(44_100, "DOUBLE"), LOSSLESS),
    ("24bit.wav", wav(44_100, "PCM_24"), LOSSLESS),
    ("8bit.wav", wav(44_100, "PCM_U8"), 0.005),
    ("ulaw.wav", wav(8000, "ULAW"), 0.02),
    ("stereo.wav", wav(44_100, channels=2), LOSSLESS),
    ("eight-channels.wav", into_the_last_of(8, 44_100), LOSSLESS),
    ("speech.mp3", coded(44_100, "libmp3lame", "stereo"), LOSSY),
    ("speech.m4a", coded(44_100, "aac", "stereo"), LOSSY),
    ("lossless.m4a", coded(44_100, "alac"), LOSSLESS),
    ("speech.aac", coded(44_100, "aac"), LOSSY),
    ("opus.ogg", coded(48_000, "libopus"), LOSSY),
    ("speech.flac", coded(96_000, "flac", "stereo"), LOSSLESS),
    ("film.mp4", coded(48_000, "aac", "stereo", picture_frames=30), LOSSY),
    ("film.webm", coded(48_000, "libopus", "stereo", picture_frames=30), LOSSY),
    ("recording.webm", coded(48_000, "libopus"), LOSSY),
    ("film.mkv", coded(44_100, "libmp3lame", picture_frames=30), LOSSY),
    ("piped.wav", lambda p: as_piped(write_wav(p, tone(SECONDS, 16_000, HZ), 16_000)), LOSSLESS),
]


def canonical(source: Path, **options: object) -> np.ndarray:
    """What write_speech makes of a file, the mean of its channels, (N,) in units of int16."""
    target = source.with_name("canonical.wav")
    speech = write_speech(source, target, **options)  # type: ignore[arg-type]
    with wave.open(str(target)) as file:
        found = file.getframerate(), file.getnchannels(), file.getsampwidth()
        assert found == (48_000, min(speech.channels, 2), 2)
        assert file.getnframes() == speech.num_samples
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    return samples.reshape(-1, found[1]).mean(1)


@pytest.mark.parametrize(("name", "make", "tolerance"), ODD, ids=[row[0] for row in ODD])
def test_odd_recordings_come_out_right(
    name: str, make: Callable[[Path], object], tolerance: float, tmp_path: Path
) -> None:
    make(tmp_path / name)
    samples = canonical(tmp_path / name) / 32768
    extra = 2200 if tolerance == LOSSY else 4  # coders without gapless marks add a frame or two
    assert len(TRUTH) - 4 <= len(samples) <= len(TRUTH) + extra
    lag = best_lag(samples, TRUTH) if tolerance == LOSSY else 0
    assert abs(lag) <= 1200, "in time within 25 ms"
    middle = slice(9000, 60_000)  # away from resamplers' and coders' edges
    error = np.roll(samples[: len(TRUTH)], -lag)[middle] - TRUTH[middle]
    assert np.sqrt(np.square(error).mean()) < tolerance


def best_lag(samples: np.ndarray, truth: np.ndarray) -> int:
    """Shift of samples against truth; a tone tells it only within a period, the onset tells the rest."""
    onset = int(np.argmax(np.abs(samples) > 0.1)) - int(np.argmax(np.abs(truth) > 0.1))
    lags = range(onset - 120, onset + 121)
    return min(
        lags,
        key=lambda lag: float(np.square(samples[20_000 + lag : 40_000 + lag] - truth[20_000:40_000]).sum()),
    )


def test_one_sided_stereo_is_mixed(tmp_path: Path) -> None:
    write_wav(tmp_path / "left.wav", stereo(TRUTH, np.zeros_like(TRUTH)), 48_000)
    assert np.abs(canonical(tmp_path / "left.wav") / 32768 - TRUTH / 2).max() < 1e-4


def test_facts_about_the_file(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", stereo(tone(1, 44_100), tone(1, 44_100)), 44_100)
    speech = write_speech(tmp_path / "a.wav", tmp_path / "b.wav")
    assert (speech.num_samples, speech.source_hz, speech.channels) == (48_000, 44_100, 2)
    assert speech.duration_s == 1.0
    assert speech.num_frames() == 25
    assert speech.peak_dbfs == pytest.approx(-6, abs=0.2)


@pytest.mark.parametrize(("num_samples", "frames"), [(9600, 5), (9601, 6), (11_519, 6), (11_520, 6)])
def test_frames_cover_the_speech(num_samples: int, frames: int, tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", tone(1, 48_000)[:num_samples], 48_000)
    assert write_speech(tmp_path / "a.wav", tmp_path / "b.wav").num_frames() == frames


def test_a_little_damage_is_reported_and_left_out(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "scratch.mp3", tone(20, 44_100), 44_100, "libmp3lame")
    spoil(path, 0.5, 0.502)
    speech = write_speech(path, tmp_path / "b.wav")
    assert speech.duration_s == pytest.approx(20, abs=0.3)


@pytest.mark.slow
def test_long_speech_is_decoded_in_little_memory(tmp_path: Path) -> None:
    minute = tone(60, 16_000).astype(np.float32)
    with wave.open(str(tmp_path / "long.wav"), "wb") as out:
        out.setparams((1, 2, 16_000, 0, "NONE", ""))
        for _ in range(20):
            out.writeframes((minute * 32767).astype("<i2").tobytes())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    speech = write_speech(tmp_path / "long.wav", tmp_path / "b.wav", limits=InputLimits(max_speech_s=1200))
    with SpeechReader(tmp_path / "b.wav") as reader:
        for start in range(0, reader.num_samples_16k, 160_000):
            reader.listen(start, start + 160_000)
    assert speech.duration_s == 1200
    grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown_mib < 40, "twenty minutes at 48 kHz would be 110 MiB"


@pytest.fixture
def spoken(tmp_path: Path) -> Path:
    """Noise of 5.01 s, the most telling signal for slices."""
    samples = np.random.default_rng(3).uniform(-0.5, 0.5, 240_500)
    return write_wav(tmp_path / "noise.wav", samples, 48_000)


def test_frames_have_their_own_samples(spoken: Path) -> None:
    with wave.open(str(spoken)) as file:
        truth = np.frombuffer(file.readframes(file.getnframes()), "<i2")[:, None]
    with SpeechReader(spoken) as reader:
        pieces = np.concatenate([reader.sound(start, 7) for start in range(0, 140, 7)])
        assert np.array_equal(pieces[:240_500], truth)
        assert not pieces[240_500:].any(), "silence past the end"
        assert np.array_equal(reader.sound(100, 3), truth[192_000:197_760])


def test_listening_is_the_same_however_it_is_cut(spoken: Path) -> None:
    with SpeechReader(spoken) as reader:
        whole = reader.listen(0, reader.num_samples_16k)
    rng = np.random.default_rng(4)
    for _ in range(20):
        with SpeechReader(spoken) as reader:
            cuts = [0, *sorted(rng.integers(0, len(whole), 9)), len(whole)]
            pieces = [reader.listen(a, b) for a, b in pairwise(cuts)]
        assert np.array_equal(np.concatenate(pieces), whole)


def test_listening_equals_resampling_at_once(spoken: Path) -> None:
    with SpeechReader(spoken) as reader:
        heard = reader.listen(0, reader.num_samples_16k)
        at_once = soxr.resample(
            reader.sound(0, 126)[:, 0].astype(np.float32) / 32768, 48_000, 16_000, quality="HQ"
        )
    assert heard.dtype == np.float32
    assert len(heard) == -(-240_500 // 3)
    assert np.abs(heard - at_once[: len(heard)]).max() < 2e-6


def test_outside_the_speech_there_is_silence(spoken: Path) -> None:
    with SpeechReader(spoken) as reader:
        end = reader.num_samples_16k
        around = reader.listen(-500, end + 900)
        assert not around[:500].any()
        assert not around[-900:].any()
        assert np.array_equal(around[500:-900], reader.listen(0, end))
        assert reader.listen(end + 5, end + 10).tolist() == [0.0] * 5
        assert len(reader.listen(10, 10)) == 0


def test_only_canonical_files_are_read(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", tone(), 16_000)
    with pytest.raises(ValueError, match="48000"):
        SpeechReader(tmp_path / "a.wav")
