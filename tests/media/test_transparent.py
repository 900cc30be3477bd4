"""Transparent videos: alpha decoded back from WebM and QuickTime, sound, marks, and drafts that break off."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from media_samples import write_wav

from avatar.media.side_files import is_output, made_here
from avatar.media.speech_reader import SpeechReader
from avatar.media.transparent import DRAFT, TransparentWriter, complete

NUM_FRAMES, HEIGHT, WIDTH = 60, 97, 128  # an odd height loses a row


@pytest.fixture
def speech(tmp_path: Path) -> Path:
    samples = np.random.default_rng(7).uniform(-0.4, 0.4, NUM_FRAMES * 1920)
    return write_wav(tmp_path / "speech.wav", samples, 48_000)


def frame(index: int) -> np.ndarray:
    """An orange square that moves to the right, half transparent on its left."""
    pixels = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    pixels[..., :3] = (220, 120, 40)
    left = 10 + index
    pixels[20:60, left : left + 40, 3] = 255
    pixels[20:60, left : left + 20, 3] = 128
    return pixels


def written(folder: Path, output: Path, speech: Path) -> None:
    writer = TransparentWriter(folder, output)
    frames = np.stack([frame(index) for index in range(NUM_FRAMES)])
    writer.write(frames[:7])
    writer.write(frames[7:])
    with SpeechReader(speech) as reader:
        writer.finish(reader)


def read(video: Path) -> list[av.VideoFrame]:
    """Its frames with alpha; of VP9, FFmpeg's own decoder leaves alpha out, so libvpx's is taken."""
    with av.open(str(video)) as container:
        if video.suffix == ".mov":
            return list(container.decode(video=0))
        decoder = av.CodecContext.create("libvpx-vp9", "r")
        return [one for packet in container.demux(video=0) for one in decoder.decode(packet)]


@pytest.mark.parametrize(
    ("suffix", "codec", "pixels"), [(".webm", "vp9", "yuva420p"), (".mov", "prores", "yuva444p12le")]
)
def test_alpha_is_read_back_as_it_was_written(suffix, codec, pixels, tmp_path, speech):
    video = tmp_path / f"o{suffix}"
    written(tmp_path, video, speech)
    frames = read(video)
    assert (len(frames), frames[0].format.name, frames[0].width, frames[0].height) == (60, pixels, 128, 96)
    for index in (0, 25, 59):
        found, wanted = frames[index].to_ndarray(format="rgba"), frame(index)[:96]
        assert np.abs(found[..., 3].astype(int) - wanted[..., 3]).mean() < 3
        assert np.abs(found[30:50, index + 35 : index + 45, :3].astype(int) - (220, 120, 40)).max() < 12
    with av.open(str(video)) as container:
        picture, sound = container.streams.video[0], container.streams.audio[0]
        assert picture.codec_context.name == codec
        assert picture.average_rate == 25
        if suffix == ".webm":
            assert picture.metadata["ALPHA_MODE"] == "1"
        else:
            assert picture.codec_context.codec_tag == "ap4h"
            assert picture.codec_context.profile == "4444"
        assert sound.codec_context.name == ("opus" if suffix == ".webm" else "aac")
        heard = sum(one.samples for one in container.decode(audio=0))
    assert heard == pytest.approx(NUM_FRAMES * 1920, abs=1024)


@pytest.mark.parametrize("suffix", [".webm", ".mov"])
def test_a_transparent_video_is_known_as_ours(suffix, tmp_path, speech):
    video = tmp_path / f"o{suffix}"
    written(tmp_path, video, speech)
    assert made_here(video)
    assert is_output(video)
    other = tmp_path / f"other{suffix}"
    other.write_bytes(b"#EXTM3U\nfile:///etc/passwd\n")
    assert not made_here(other)


@pytest.mark.parametrize("suffix", [".webm", ".mov"])
def test_a_draft_that_breaks_off_is_kept_up_to_there(suffix, tmp_path, speech):
    video = tmp_path / f"o{suffix}"
    written(tmp_path, video, speech)
    draft = tmp_path / DRAFT
    draft.write_bytes(draft.read_bytes()[: draft.stat().st_size * 2 // 3])
    with SpeechReader(speech) as reader:
        count = complete(tmp_path, reader, video)
    assert 10 < count < NUM_FRAMES
    frames = read(video)
    assert len(frames) == count
    assert (
        np.abs(frames[-1].to_ndarray(format="rgba")[..., 3].astype(int) - frame(count - 1)[:96, :, 3]).mean()
        < 3
    )
