"""Parts join without a coder: the same pictures, sound without a gap, no drift; nothing else is joined."""

from __future__ import annotations

import errno
import os
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from media_samples import coded_pictures, decode_pictures, decode_sound, moving, probe, write_film, write_wav

from avatar.cli import main
from avatar.errors import AvatarError, BadInput
from avatar.media import atomic
from avatar.media.join import join_parts
from avatar.media.segments import SegmentWriter
from avatar.media.speech_reader import SpeechReader
from avatar.request import Part

NUM_FRAMES = 300
CUTS = (0, 45, 93, 141, 200, NUM_FRAMES)  # most of them within a packet of sound
SAMPLES = 1920  # of a frame


def voice(seconds: float) -> np.ndarray:
    """A gliding tone in syllables, float (N,) at 48 kHz, as its WAV keeps it."""
    t = np.arange(round(seconds * 48_000)) / 48_000
    glide = np.sin(2 * np.pi * (200 + 150 * np.sin(2 * np.pi * 0.7 * t)) * t)
    sound = 0.3 * glide * np.abs(np.sin(np.pi * 3 * t)) + 0.01 * np.random.default_rng(0).normal(size=len(t))
    return (sound * 32768).astype(np.int16) / 32768


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    samples = voice(NUM_FRAMES / 25)
    return write_wav(tmp_path_factory.mktemp("speech") / "s.wav", samples, 48_000), samples


def make(speech: Path, path: Path, first: int, end: int, run: str | None = "run", width: int = 96) -> Path:
    """A film of frames first..end of the speech."""
    with SpeechReader(speech) as reader:
        part = Part(run, first, NUM_FRAMES) if run else None
        writer = SegmentWriter(reader, path.parent, path, lengths=[end - first], part=part)
        list(writer.write(moving(end - first, width, start=first)))
        list(writer.finish())
    return path


@pytest.fixture
def parts(speech, tmp_path) -> list[Path]:
    return [make(speech[0], tmp_path / f"part_{a:03d}.mp4", a, b) for a, b in pairwise(CUTS)]


def noise_db(found: np.ndarray, expected: np.ndarray) -> float:
    """How far below the sound the error lies."""
    return float(10 * np.log10((expected**2).mean() / ((found - expected) ** 2).mean()))


def test_the_whole_is_the_parts_one_after_another(speech, parts, tmp_path):
    joined = tmp_path / "film.mp4"
    assert join_parts(parts, joined) == NUM_FRAMES
    assert coded_pictures(joined) == [picture for part in parts for picture in coded_pictures(part)]
    assert np.array_equal(decode_pictures(joined), np.concatenate([decode_pictures(part) for part in parts]))
    with av.open(str(joined)) as film:
        times = [
            packet.pts * packet.time_base * 25 for packet in film.demux(video=0) if packet.dts is not None
        ]
    assert times == list(range(NUM_FRAMES))
    reported = probe(joined)
    assert float(reported["video"]["duration"]) == float(reported["audio"]["duration"]) == NUM_FRAMES / 25
    assert (reported["video"]["start_time"], reported["audio"]["start_time"]) == ("0.000000", "0.000000")


def test_sound_goes_on_over_a_join_as_if_there_were_none(speech, parts, tmp_path):
    path, samples = speech
    joined, one = tmp_path / "film.mp4", make(path, tmp_path / "one.mp4", 0, NUM_FRAMES, None)
    join_parts(parts, joined)
    found, uncut = decode_sound(joined)[0], decode_sound(one)[0]
    assert len(found) - NUM_FRAMES * SAMPLES < 1024
    for cut in CUTS[1:-1]:
        near = slice(cut * SAMPLES - 1500, cut * SAMPLES + 1500)
        assert noise_db(found[near], samples[near]) > noise_db(uncut[near], samples[near]) - 6
        assert np.abs(found[near] - samples[near]).max() < 0.05  # no click


def test_each_part_plays_alone_in_time(speech, parts):
    for part, (first, end) in zip(parts, pairwise(CUTS)):
        reported, expected = probe(part), speech[1][first * SAMPLES : end * SAMPLES]
        assert float(reported["audio"]["duration"]) == pytest.approx((end - first) / 25, abs=1e-6)
        assert float(reported["audio"]["start_time"]) == pytest.approx(0, abs=0.03)
        assert len(decode_pictures(part)) == end - first
        found = decode_sound(part)[0][: len(expected)]
        assert noise_db(found, expected) > 15


def test_what_is_joined_can_be_joined_again(parts, tmp_path):
    first, second, joined, again = (tmp_path / f"{name}.mp4" for name in ("a", "b", "joined", "again"))
    join_parts(parts[:2], first)
    join_parts(parts[2:], second)
    join_parts([first, second], again)
    join_parts(parts, joined)
    assert coded_pictures(again) == coded_pictures(joined)
    assert np.array_equal(decode_sound(again), decode_sound(joined))


@pytest.mark.slow
def test_no_drift_however_long(tmp_path):
    """Fifteen parts of a minute, of tiny pictures all alike: clicks of the speech are where they were."""
    minutes, rate = 15, 48_000
    samples = np.zeros(minutes * 60 * rate, np.float32)
    clicks = [minute * 60 * rate + 30 * rate for minute in range(minutes)]
    for click in clicks:
        samples[click : click + 200] = 0.8
    path = write_wav(tmp_path / "long.wav", samples, rate)
    frame, parts = moving(1, 16, 16), []
    with SpeechReader(path) as reader:
        for minute in range(minutes):
            parts.append(tmp_path / f"part_{minute}.mp4")
            first = 1500 * minute - 3 * (minute > 0)  # as the diffusion engine's parts lie
            count = (1500 * (minute + 1) - 3 if minute < minutes - 1 else 1500 * minutes) - first
            part = Part("run", first, 1500 * minutes)
            writer = SegmentWriter(reader, tmp_path, parts[-1], lengths=[count], part=part)
            list(writer.write(np.broadcast_to(frame, (count, *frame.shape[1:]))))
            list(writer.finish())
    joined = tmp_path / "long.mp4"
    assert join_parts(parts, joined) == 1500 * minutes
    reported = probe(joined)
    assert float(reported["video"]["duration"]) == float(reported["audio"]["duration"]) == 60 * minutes
    sound = decode_sound(joined)[0]
    for click in (clicks[0], clicks[-1]):
        near = np.abs(sound[click - rate : click + rate])
        assert abs(int(np.argmax(near > 0.4)) - rate) < 24  # half a millisecond


def test_what_does_not_belong_together_is_refused(speech, parts, tmp_path):
    other = make(speech[0], tmp_path / "other.mp4", 45, 93, "another run")
    wide = make(speech[0], tmp_path / "wide.mp4", 45, 93, width=128)
    plain = write_film(tmp_path / "plain.mp4")
    (tmp_path / "rust.mp4").write_bytes(b"rust" * 100)
    output = tmp_path / "film.mp4"
    for given, words in (
        ([parts[0], parts[2]], "part_093.mp4 does not follow part_000.mp4: it begins with frame 93, not 45"),
        ([parts[1], parts[0]], "does not follow"),
        ([parts[0], other], "different videos"),
        ([parts[0], wide], "encoded differently"),
        ([parts[0], plain], "plain.mp4 is not a part"),
        ([parts[0], tmp_path / "rust.mp4"], "rust.mp4 cannot be read"),
        ([parts[0], tmp_path / "gone.mp4"], "gone.mp4 cannot be read"),
        ([], "nothing to join"),
    ):
        with pytest.raises(BadInput, match=words) as caught:
            join_parts(given, output)
        assert str(tmp_path) not in str(caught.value)
        assert not output.exists()
    before = parts[0].read_bytes()
    with pytest.raises(BadInput, match="one of the parts"):
        join_parts(parts, parts[0])
    assert parts[0].read_bytes() == before


def test_a_full_disk_leaves_what_was_there(parts, tmp_path, monkeypatch):
    output = tmp_path / "film.mp4"
    join_parts(parts[:1], output)
    data = output.read_bytes()

    def full(path: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(atomic, "replace", full)
    with pytest.raises(AvatarError, match="No space left"):
        join_parts(parts, output)
    assert output.read_bytes() == data
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".film")]


def test_the_command(parts, tmp_path, capsys):
    output = tmp_path / "film.mp4"
    assert main(["join", *map(str, parts), "-o", str(output)]) == 0
    assert capsys.readouterr().out == f"{output}\n"
    assert main(["join", str(parts[1]), str(parts[0]), "--output", str(output)]) == 2
