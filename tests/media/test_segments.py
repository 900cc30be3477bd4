"""Segments that any player takes, sample-exact sound, and a finished file that ffprobe finds clean."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import av
import numpy as np
import pytest
from media_samples import coded_pictures, decode_pictures, decode_sound, moving, picture, probe, write_wav

from avatar.events import Segment
from avatar.media import segments as segments_module
from avatar.media.segments import SegmentWriter, join_segments
from avatar.media.speech_reader import SpeechReader

SAMPLES = 1920  # a frame's
IDR, NON_IDR = 5, 1


@pytest.fixture
def speech(tmp_path: Path) -> SpeechReader:
    """4.2 s of speech-like noise: the fifth second of video has silence at its end."""
    loudness = np.repeat(np.random.default_rng(5).uniform(0.05, 0.4, 42), 4800)
    samples = np.random.default_rng(6).standard_normal(len(loudness)) * loudness
    return SpeechReader(write_wav(tmp_path / "speech.wav", samples.clip(-1, 1), 48_000))


def write(
    speech: SpeechReader, tmp_path: Path, frames: np.ndarray, lengths: list[int], batch: int = 7, **more: int
) -> tuple[list[Segment], Path, SegmentWriter]:
    folder, output = tmp_path / "work", tmp_path / "out" / "film.mp4"
    folder.mkdir(exist_ok=True)
    output.parent.mkdir(exist_ok=True)
    writer = SegmentWriter(speech, folder, output, lengths=lengths, **more)
    made = [
        segment
        for start in range(0, len(frames), batch)
        for segment in writer.write(frames[start : start + batch])
    ]
    return [*made, *writer.finish()], output, writer


def nal_types(picture: bytes) -> list[int]:
    """Kinds of the NAL units of a picture in an .mp4, where each has its length before it."""
    kinds = []
    while picture:
        length = int.from_bytes(picture[:4], "big")
        kinds.append(picture[4] & 31)
        picture = picture[4 + length :]
    return kinds


def test_each_segment_plays_by_itself(speech: SpeechReader, tmp_path: Path) -> None:
    made, _, _ = write(speech, tmp_path, moving(104), [25, 25, 50, 50])
    assert [(s.index, s.start_frame, s.num_frames) for s in made] == [
        (0, 0, 25),
        (1, 25, 25),
        (2, 50, 50),
        (3, 100, 4),
    ]
    for segment in made:
        with av.open(str(segment.path)) as container:
            packets = [packet for packet in container.demux(video=0) if packet.dts is not None]
            assert [packet.pts for packet in packets] == [packet.dts for packet in packets], "no B-frames"
            assert [float(p.pts * p.time_base) for p in packets] == pytest.approx(
                np.arange(segment.num_frames) / 25
            )
        assert IDR in nal_types(bytes(packets[0]))
        assert all(IDR not in nal_types(bytes(packet)) for packet in packets[1:])
        probed = probe(segment.path)
        seconds = segment.num_frames / 25
        for kind, codec in (("video", "h264"), ("audio", "alac")):
            assert probed[kind]["codec_name"] == codec
            assert float(probed[kind]["start_time"]) == 0
            assert float(probed[kind]["duration"]) == pytest.approx(seconds, abs=1e-4)
        frames = decode_pictures(segment.path)
        assert np.abs(frames.astype(int) - moving(segment.num_frames, start=segment.start_frame)).mean() < 4


def test_sound_of_segments_is_the_speech_to_the_sample(speech: SpeechReader, tmp_path: Path) -> None:
    made, _, _ = write(speech, tmp_path, moving(110), [10, 33, 1, 60, 50])
    pieces = [decode_sound(segment.path)[0] for segment in made]
    assert [len(piece) for piece in pieces] == [segment.num_frames * SAMPLES for segment in made]
    assert np.array_equal(np.concatenate(pieces), speech.sound(0, 110)[:, 0])


def test_the_finished_file_holds_the_same_pictures(speech: SpeechReader, tmp_path: Path) -> None:
    made, output, _ = write(speech, tmp_path, moving(105), [25, 25, 55])
    assert coded_pictures(output) == [data for segment in made for data in coded_pictures(segment.path)]
    assert decode_pictures(output).shape == (105, 64, 96, 3)
    assert list(output.parent.iterdir()) == [output]
    assert sorted(path.name for path in (tmp_path / "work").iterdir()) == [
        f"segment-0000{n}.mp4" for n in range(3)
    ]


@pytest.mark.parametrize("num_frames", [1, 5, 30, 104, 105])
def test_the_finished_file_is_clean_also_when_stopped_early(
    num_frames: int, speech: SpeechReader, tmp_path: Path
) -> None:
    _, output, _ = write(speech, tmp_path, moving(num_frames), [25, 25, 50, 5])
    probed = probe(output)
    assert probed["video"]["avg_frame_rate"] == "25/1"
    assert probed["video"]["nb_read_packets"] == str(num_frames)
    assert (probed["video"]["pix_fmt"], probed["video"]["has_b_frames"]) == ("yuv420p", 0)
    for kind in ("video", "audio", "format"):
        assert float(probed[kind]["start_time"]) == 0
        assert abs(float(probed[kind]["duration"]) - num_frames / 25) < 0.04
    data = output.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat"), "the index comes first"


def test_sound_of_the_finished_file_is_in_time(speech: SpeechReader, tmp_path: Path) -> None:
    _, output, _ = write(speech, tmp_path, moving(105), [25, 80])
    heard, truth = decode_sound(output)[0], speech.sound(0, 105)[:, 0] / 32768
    assert len(truth) <= len(heard) < len(truth) + 1024
    spectrum = np.fft.rfft(heard[: len(truth)]) * np.fft.rfft(truth).conj()
    assert np.argmax(np.fft.irfft(spectrum)) == 0, "no lag at all"


def test_colours_are_tagged_and_true(speech: SpeechReader, tmp_path: Path) -> None:
    patches = [
        (255, 0, 0),
        (0, 255, 0),
        (0, 0, 255),
        (128, 128, 128),
        (255, 255, 255),
        (0, 0, 0),
        (220, 170, 140),
    ]
    frames = np.array(patches, np.uint8)[:, None, None].repeat(64, 1).repeat(64, 2)
    _, output, _ = write(speech, tmp_path, frames, [7])
    probed = probe(output)["video"]
    tags = (probed["color_space"], probed["color_primaries"], probed["color_transfer"], probed["color_range"])
    assert tags == ("bt709", "bt709", "bt709", "tv")
    with av.open(str(output)) as container:
        luma = [int(frame.to_ndarray()[32, 32]) for frame in container.decode(video=0)]
    red, green, blue = np.array(patches).T
    assert luma == pytest.approx(16 + (0.2126 * red + 0.7152 * green + 0.0722 * blue) * 219 / 255, abs=2)


def test_odd_sizes_lose_a_row_or_column(speech: SpeechReader, tmp_path: Path) -> None:
    frames = moving(5, 97, 65)
    made, output, writer = write(speech, tmp_path, frames, [5])
    assert (writer.width, writer.height) == (96, 64)
    for path in (output, made[0].path):
        assert np.abs(decode_pictures(path).astype(int) - frames[:, :64, :96]).mean() < 4


def test_frames_of_another_size_are_scaled(speech: SpeechReader, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    writer = SegmentWriter(speech, folder, tmp_path / "film.mp4", lengths=[4, 4])
    made = [*writer.write(moving(4)), *writer.write(np.repeat(picture(48, 32)[None], 4, 0)), *writer.finish()]
    assert len(made) == 2
    frames = decode_pictures(tmp_path / "film.mp4")
    assert frames.shape == (8, 64, 96, 3)
    assert np.abs(frames[7].astype(int) - picture(96, 64)).mean() < 5


@pytest.mark.parametrize("threads", [1, 2])
def test_batches_do_not_matter(threads: int, speech: SpeechReader, tmp_path: Path) -> None:
    files = []
    for batch in (1, 40, 200):
        made, output, _ = write(speech, tmp_path, moving(90), [25, 25, 40], batch, threads=threads)
        files.append([path.read_bytes() for path in (output, *(segment.path for segment in made))])
    assert files[0] == files[1] == files[2]


@pytest.mark.parametrize("frames", [np.zeros((2, 64, 64, 3), np.float32), np.zeros((64, 64, 3), np.uint8)])
def test_only_pictures_are_taken(frames: np.ndarray, speech: SpeechReader, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="uint8"):
        write(speech, tmp_path, frames, [5])


def test_more_frames_than_segments_are_an_error(speech: SpeechReader, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="more frames"):
        write(speech, tmp_path, moving(6), [5])


def test_abort_leaves_whole_segments_alone(speech: SpeechReader, tmp_path: Path) -> None:
    writer = SegmentWriter(speech, tmp_path, tmp_path / "film.mp4", lengths=[5, 5])
    made = list(writer.write(moving(8)))
    writer.abort()
    assert sorted(tmp_path.glob("*.mp4")) == [made[0].path]
    assert len(decode_pictures(made[0].path)) == 5


def test_segments_joined_are_the_finished_file(speech: SpeechReader, tmp_path: Path) -> None:
    made, output, _ = write(speech, tmp_path, moving(90), [25, 25, 40])
    joined = tmp_path / "joined.mp4"
    join_segments(made[:2], speech, joined)
    assert coded_pictures(joined) == coded_pictures(output)[:50]
    assert float(probe(joined)["audio"]["duration"]) == pytest.approx(2, abs=0.03)
    join_segments(made, speech, joined)
    assert np.array_equal(decode_sound(joined), decode_sound(output))


def test_the_finished_file_may_lie_on_another_disk(
    speech: SpeechReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    within_a_disk = os.replace

    def replace(source: Path, target: Path) -> None:
        if source.parent != target.parent:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        within_a_disk(source, target)

    monkeypatch.setattr(segments_module.atomic.os, "replace", replace)
    _, output, _ = write(speech, tmp_path, moving(10), [10])
    assert len(coded_pictures(output)) == 10
    assert list(output.parent.iterdir()) == [output]
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["segment-00000.mp4"]
