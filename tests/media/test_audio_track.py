"""Sound keeps its time by the stamps of its packets; what is cut, broken or forged is reported or refused."""

from __future__ import annotations

import struct
import wave
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import soxr
from media_samples import cut, spoil, syllables, tone, write_film, write_sound, write_stamped, write_wav

from avatar.errors import BadInput
from avatar.media.limits import InputLimits
from avatar.media.speech_reader import SPEECH_SUFFIXES, Speech, SpeechReader, check_speech, write_speech

SOUND = syllables(6)


def read(path: Path, **options: object) -> tuple[Speech, np.ndarray]:
    """What intake makes of a file, and the mean of its channels in -1..1."""
    target = path.with_name("canonical.wav")
    speech = write_speech(path, target, **options)  # type: ignore[arg-type]
    with wave.open(str(target)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, file.getnchannels())
    assert len(samples) == speech.num_samples
    return speech, samples.mean(1) / 32768


def envelope(samples: np.ndarray) -> np.ndarray:
    """Loudness a hundred times a second."""
    whole = len(samples) // 480 * 480
    return np.sqrt(np.square(samples[:whole].reshape(-1, 480)).mean(1))


def lag_s(found: np.ndarray, truth: np.ndarray, start_s: float, stop_s: float) -> float:
    """By how much a stretch of the truth comes late in what was found."""
    first, last = round(start_s * 100), round(stop_s * 100)
    wanted, around = envelope(truth)[first:last], np.pad(envelope(found), 50)
    fits = [np.corrcoef(wanted, around[first + at : last + at])[0, 1] for at in range(100)]
    assert max(fits) > 0.85
    return (int(np.argmax(fits)) - 50) / 100


def hole(at_s: float) -> float | None:
    return None if 2 <= at_s < 4 else at_s


def silenced(start_s: float = 2.0, stop_s: float = 4.0) -> np.ndarray:
    truth = SOUND.copy()
    truth[round(start_s * 48_000) : round(stop_s * 48_000)] = 0
    return truth


STAMPED = [
    ("hole.mp4", "aac"),
    ("hole.m4a", "aac"),
    ("hole.mov", "aac"),
    ("hole.webm", "libopus"),
    ("hole.mka", "aac"),
    ("hole.mkv", "libmp3lame"),
    ("hole.ogg", "libopus"),
    ("hole.ts", "aac"),
    ("hole.flv", "aac"),
    ("hole.wma", "wmav2"),
]


@pytest.mark.parametrize(("name", "codec"), STAMPED, ids=[name for name, _ in STAMPED])
def test_a_hole_in_the_stamps_is_silence(name: str, codec: str, tmp_path: Path) -> None:
    rate = 44_100 if codec == "wmav2" or name.endswith("flv") else 48_000
    sound = syllables(6, rate)
    speech, found = read(write_stamped(tmp_path / name, sound, rate, codec, hole))
    assert speech.duration_s == pytest.approx(6, abs=0.1 if codec == "wmav2" else 0.04)  # it adds a frame
    truth = silenced()
    within_s = 0.06 if codec == "wmav2" else 0.04  # a frame of it lasts as long
    assert all(abs(lag_s(found, truth, *place)) <= within_s for place in ((0, 1.9), (1, 5), (4.2, 5.9)))
    pause = envelope(found)[210:395]
    assert pause.max() < 0.01, "the pause is there, and silent"
    assert f"{name} holds no sound from 0:0" in speech.notices[0].text
    assert "from 0:02.0 to 0:04.0" in speech.notices[0].text or codec == "wmav2"


def test_a_track_that_begins_late_in_its_film_keeps_its_place(tmp_path: Path) -> None:
    for name, codec in (("late.mp4", "aac"), ("late.webm", "libopus")):
        path = write_stamped(tmp_path / name, SOUND, 48_000, codec, lambda at_s: at_s + 1)
        speech, found = read(path)
        assert speech.duration_s == pytest.approx(7, abs=0.04)
        assert abs(lag_s(found, np.concatenate([np.zeros(48_000), SOUND]), 1, 6.5)) <= 0.04


def test_an_absurd_beginning_is_the_beginning(tmp_path: Path) -> None:
    live = "frag_keyframe+empty_moov"
    path = write_stamped(tmp_path / "l.mp4", SOUND, 48_000, "aac", lambda at_s: at_s + 3600, movflags=live)
    assert read(path)[0].duration_s == pytest.approx(6, abs=0.05)


def test_an_edit_list_is_obeyed(tmp_path: Path) -> None:
    """The first 1.5 s are cut off by the edit list alone: no player shows them."""
    path = write_stamped(tmp_path / "cut.mp4", SOUND, 48_000, "aac")
    content = bytearray(path.read_bytes())
    at = content.index(b"elst") + 4
    version, count, _, start = struct.unpack(">IIIi", content[at : at + 16])
    assert (version, count) == (0, 1)
    content[at + 12 : at + 16] = struct.pack(">i", start + 72_000)
    path.write_bytes(content)
    _, found = read(path)
    assert abs(lag_s(found, SOUND[72_000:], 0.5, 4)) <= 0.04


def test_stamps_that_fall_back_are_reported(tmp_path: Path) -> None:
    """Two recordings, one after the other in one file, as recorders leave them that were paused."""
    halves = [
        write_stamped(tmp_path / f"{n}.ts", SOUND[n * 144_000 :][:144_000], 48_000, "mp2") for n in (0, 1)
    ]
    path = tmp_path / "back.ts"
    path.write_bytes(b"".join(half.read_bytes() for half in halves))
    speech, found = read(path)
    assert "overlap or leap at 0:03" in speech.notices[0].text
    assert speech.duration_s == pytest.approx(6, abs=0.06), "nothing is lost"
    assert abs(lag_s(found, SOUND, 0, 2.8)) <= 0.04
    assert abs(lag_s(found, SOUND, 3.2, 5.8)) <= 0.08


def test_stamps_that_tremble_change_nothing(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "tremble.mka"
    write_stamped(path, SOUND, 48_000, "libopus", lambda at_s: max(0.0, at_s + rng.uniform(-0.009, 0.009)))
    speech, found = read(path)
    assert speech.notices == ()
    assert speech.duration_s == pytest.approx(6, abs=0.04)
    assert envelope(found)[40:60].min() > 0, "no clicks of silence within"


def test_silence_never_goes_beyond_the_promised_end(tmp_path: Path) -> None:
    path = write_stamped(tmp_path / "leap.mka", SOUND, 48_000, "flac", lambda at_s: at_s + 500 * (at_s >= 3))
    content = path.read_bytes()
    reported = content.index(b"00:08:26")  # the header of a recording of six seconds
    content = content[:reported] + b"00:00:06" + content[reported + 8 :]
    path.write_bytes(content)
    speech, _ = read(path)
    assert speech.duration_s == pytest.approx(6, abs=0.01)
    assert "overlap or leap" in speech.notices[0].text


def test_a_damaged_stretch_is_silent_and_what_follows_in_time(tmp_path: Path) -> None:
    sound = syllables(60)
    path = spoil(write_sound(tmp_path / "scratch.mka", sound, 48_000, "flac"), 0.5, 0.503)
    speech, found = read(path)
    assert speech.duration_s == pytest.approx(60, abs=0.05)
    assert abs(lag_s(found, sound, 50, 59)) <= 0.01


@pytest.mark.parametrize("share", [0.3, 0.4, 0.5, 0.6, 0.7])
def test_an_asf_file_is_cut_short_wherever_it_is_cut(share: float, tmp_path: Path) -> None:
    """Its packets are of one size and its decoder reports nothing; only its header states the size."""
    path = write_stamped(tmp_path / "talk.asf", syllables(4), 48_000, "wmav2")
    assert check_speech(path).notices == ()
    assert [one.code for one in check_speech(cut(path, share)).notices] == ["cut_short"]


HALVES = [
    ("half.wav", "pcm_s16le", None),
    ("half.w64", "pcm_s16le", None),
    ("half.aiff", "pcm_s16be", 6),
    ("half.au", "pcm_s16be", 6),
    ("half.caf", "pcm_s16be", None),
    ("half.flac", "flac", 6),
    ("half.oga", "flac", None),
    ("half.mp3", "libmp3lame", 6),
    ("half.ogg", "libopus", None),
    ("half.opus", "libopus", None),
    ("half.webm", "libopus", 6),
    ("half.mka", "aac", 6),
    ("half.aac", "aac", None),
    ("half.wv", "wavpack", 6),
    ("half.tta", "tta", 6),
    ("half.wma", "wmav2", None),
    ("half.asf", "wmav2", None),
    ("half.ac3", "ac3", None),
    ("half.eac3", "eac3", None),
    ("half.flv", "aac", None),
    ("half.ts", "aac", None),
    ("half.avi", "libmp3lame", None),
]


@pytest.mark.parametrize(("name", "codec", "promised_s"), HALVES, ids=[row[0] for row in HALVES])
def test_half_a_file_is_read_and_reported(
    name: str, codec: str, promised_s: int | None, tmp_path: Path
) -> None:
    rate = 44_100 if codec == "wmav2" else 48_000
    path = tmp_path / name
    if codec == "flac" or codec.startswith("pcm") or codec in ("tta", "wavpack"):
        write_sound(path, syllables(6, rate), rate, codec)
    else:
        write_stamped(path, syllables(6, rate), rate, codec)
    assert not [one for one in check_speech(path).notices if "cut short" in one.text], "the whole is whole"
    speech, found = read(cut(path, 0.503))
    assert 1.5 < speech.duration_s < 4.2
    reported = speech.notices[0].text
    assert (
        f"{name} is cut short: it breaks off after 0:0{int(speech.duration_s * 10 + 0.5) / 10:.1f}"
        in reported
    )
    assert not promised_s or "of the 0:06.0 that it should last" in reported
    assert abs(lag_s(found, SOUND, 0, min(speech.duration_s, 2.9) - 0.1)) <= 0.06


def test_half_an_mp4_is_reported_with_its_index_and_refused_without(tmp_path: Path) -> None:
    fast = write_stamped(tmp_path / "fast.mp4", SOUND, 48_000, "aac", movflags="faststart")
    speech, _ = read(cut(fast, 0.5))
    assert "fast.mp4 is cut short" in speech.notices[0].text
    slow = cut(write_stamped(tmp_path / "slow.mp4", SOUND, 48_000, "aac"), 0.5)
    with pytest.raises(BadInput, match=r"slow\.mp4 is damaged or cut short"):
        check_speech(slow)


def test_tags_behind_the_last_frame_are_no_damage(tmp_path: Path) -> None:
    path = write_stamped(tmp_path / "tagged.mp3", SOUND, 48_000, "libmp3lame")
    path.write_bytes(path.read_bytes() + b"TAG" + b"title".ljust(125, b"\0"))
    assert check_speech(path).notices == ()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
def test_samples_that_are_no_numbers_are_silenced_and_reported(bad: float, tmp_path: Path) -> None:
    samples = SOUND.copy()
    samples[96_000:96_100] = bad
    speech, found = read(write_wav(tmp_path / "odd.wav", samples, 48_000, "FLOAT"))
    assert [one.text for one in speech.notices] == [
        "100 samples of odd.wav are not numbers (NaN or infinite); they are silent."
    ]
    assert not found[96_000:96_100].any()
    assert np.abs(found[:96_000] - SOUND[:96_000]).max() < 1e-4


def test_sound_without_a_number_is_refused(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "none.wav", np.full(48_000, np.nan), 48_000, "DOUBLE")
    with pytest.raises(BadInput, match="its samples are not numbers"):
        check_speech(path)


def test_sound_over_full_scale_is_scaled_not_clipped(tmp_path: Path) -> None:
    speech, found = read(write_wav(tmp_path / "hot.wav", SOUND * 32768, 48_000, "FLOAT"))
    assert "hot.wav is louder than full scale" in speech.notices[0].text
    assert np.corrcoef(found, SOUND)[0, 1] > 0.9999
    assert 0.99 < np.abs(found).max() <= 1


FLAC_RATES = {655_350: 0b1110, 384_000: 0b0000}


def constant_flac(path: Path, rate: int, seconds: int, channels: int = 8) -> Path:
    """A FLAC of frames that are each one number a channel: minutes in a few kilobytes."""
    size = 65_535
    count = rate * seconds // size
    info = struct.pack(">HH", size, size) + bytes(6)
    info += struct.pack(">Q", rate << 44 | (channels - 1) << 41 | 15 << 36 | count * size) + bytes(16)
    content = b"fLaC\x80" + len(info).to_bytes(3, "big") + info
    for number in range(count):
        head = b"\xff\xf8" + bytes([0x70, (channels - 1) << 4 | 0b1000]) + chr(number).encode()
        head += struct.pack(">H", size - 1)
        head += bytes([crc(head, 0x07, 8)])
        frame = head + (b"\x00" + struct.pack(">h", 900)) * channels
        content += frame + struct.pack(">H", crc(frame, 0x8005, 16))
    path.write_bytes(content)
    return path


def crc(data: bytes, polynomial: int, bits: int) -> int:
    value, top, mask = 0, 1 << (bits - 1), (1 << bits) - 1
    for byte in data:
        value ^= byte << (bits - 8)
        for _ in range(8):
            value = (value << 1 ^ polynomial if value & top else value << 1) & mask
    return value


def test_a_forged_rate_is_refused_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(self: av.Packet) -> list[av.AudioFrame]:
        raise AssertionError("decoded")

    path = constant_flac(tmp_path / "bomb.flac", 655_350, 60)
    assert path.stat().st_size < 25_000
    monkeypatch.setattr(av.Packet, "decode", decode, raising=False)
    with pytest.raises(BadInput, match="sample rate of 655350 Hz"):
        check_speech(path)


def test_decoding_is_bounded_whatever_the_rate(tmp_path: Path) -> None:
    limits = InputLimits(max_speech_s=30)
    path = constant_flac(tmp_path / "dense.flac", 384_000, 30)
    with pytest.raises(BadInput, match=r"too much audio to decode \(8 channels at 384000 Hz\)"):
        check_speech(path, limits=limits)
    assert check_speech(constant_flac(tmp_path / "short.flac", 384_000, 3), limits=limits).duration_s > 2


CODECS = {
    "pcm_s16le": (".wav", ".w64", ".voc", ".mov"),
    "pcm_s16be": (".aif", ".aiff", ".aifc", ".au", ".snd", ".caf"),
    "flac": (".flac", ".oga"),
    "tta": (".tta",),
    "wavpack": (".wv",),
    "libmp3lame": (".mp3", ".mkv", ".avi", ".flv"),
    "mp2": (".mp2", ".mpg", ".mpeg"),
    "aac": (".m4a", ".m4b", ".aac", ".mka", ".mp4", ".m4v", ".3g2", ".ts", ".mts"),
    "ac3": (".ac3",),
    "eac3": (".eac3",),
    "libopus": (".ogg", ".opus", ".weba", ".webm"),
    "wmav2": (".wma", ".asf", ".wmv"),
    "libopencore_amrnb": (".amr", ".3gp"),
}
MUXERS = {".aifc": ".aiff", ".snd": ".au", ".m4b": ".m4a", ".weba": ".webm", ".m4v": ".mp4"}


@pytest.mark.parametrize("suffix", SPEECH_SUFFIXES)
def test_every_suffix_of_the_list_is_read(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"speech{MUXERS.get(suffix, suffix)}"
    codec = next((codec for codec, suffixes in CODECS.items() if suffix in suffixes), "")
    rate = 8000 if "amr" in codec else 44_100 if suffix in (".wma", ".asf", ".wmv", ".flv") else 48_000
    if suffix == ".awb":  # no coder is at hand: frames of noise, 20 ms each
        rng = np.random.default_rng(0)
        path.write_bytes(b"#!AMR-WB\n" + b"".join(b"\x14" + rng.bytes(32) for _ in range(300)))
    elif codec.startswith("pcm") or codec in ("flac", "tta", "wavpack"):
        write_sound(path, syllables(6, rate), rate, codec)
    else:
        write_stamped(path, syllables(6, rate), rate, codec)
    path = path.rename(tmp_path / f"speech{suffix}")
    speech, found = read(path)
    assert speech.duration_s == pytest.approx(6, abs=0.1 if codec == "wmav2" else 0.06)
    assert suffix == ".awb" or abs(lag_s(found, SOUND, 0.5, 5.5)) <= 0.05
    assert suffix == ".awb" or speech.notices == ()


def test_the_message_over_the_limit_says_what_makes_it_possible(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "talk.wav", tone(3), 16_000)
    with pytest.raises(
        BadInput, match=r"Speech may last 1 s at most; cut it or split it, or ask the choir\."
    ):
        check_speech(path, limits=InputLimits(max_speech_s=1, longer="ask the choir"))


@pytest.mark.parametrize("make", [lambda p: write_film(p), lambda p: p.write_bytes(b"x" * 999)])
def test_checking_refuses_what_writing_refuses(make: Callable[[Path], object], tmp_path: Path) -> None:
    make(tmp_path / "no.mp4")
    with pytest.raises(BadInput) as checked:
        check_speech(tmp_path / "no.mp4")
    with pytest.raises(BadInput) as written:
        write_speech(tmp_path / "no.mp4", tmp_path / "out.wav")
    assert str(checked.value) == str(written.value)
    assert not (tmp_path / "out.wav").exists()


def test_a_very_quiet_recording_is_raised_and_reported(tmp_path: Path) -> None:
    quiet = SOUND * np.float32(10 ** (-48 / 20) / np.abs(SOUND).max())
    speech, found = read(write_wav(tmp_path / "low.wav", quiet, 48_000, "FLOAT"))
    assert [one.text for one in speech.notices] == [
        "low.wav is very quiet (peak -48 dB); it was made louder by 30 dB."
    ]
    assert np.corrcoef(found, SOUND)[0, 1] > 0.9999
    assert 20 * np.log10(np.abs(found).max()) == pytest.approx(-48 + 30, abs=1)


def test_sound_is_resampled_as_librosa_does() -> None:
    """SpeechReader asks soxr itself: librosa takes seconds to import, and the first picture would wait."""
    import librosa

    sound = np.random.default_rng(0).uniform(-1, 1, 48_000).astype(np.float32)
    truth = librosa.resample(sound, orig_sr=48_000, target_sr=16_000, res_type="soxr_hq")
    assert np.array_equal(soxr.resample(sound, 48_000, 16_000, quality="HQ"), truth)


def test_reading_agrees_with_librosa(tmp_path: Path) -> None:
    import librosa

    path = write_wav(tmp_path / "speech.wav", syllables(5, 44_100), 44_100)
    truth, _ = librosa.load(path, sr=16_000)
    write_speech(path, tmp_path / "canonical.wav")
    with SpeechReader(tmp_path / "canonical.wav") as reader:
        found = reader.listen(0, len(truth))
    assert np.abs(found - truth)[200:-200].max() < 2e-3
