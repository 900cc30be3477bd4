"""Enlarging a finished video: sizes, sound and marks; a failure leaves it as it was."""

from __future__ import annotations

import hashlib
import sys
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from media_samples import PRESET_SETTINGS, picture, save, tone, write_wav

from avatar.errors import AvatarError, BadInput
from avatar.geometry import Size
from avatar.media import upscale
from avatar.media.intake import open_request
from avatar.media.side_files import made_here
from avatar.media.upscale import check_larger, check_upscale, enlarge_by, rewritten, upscaled_size
from avatar.preset import Preset
from avatar.runtime.stream import stream_frames
from avatar.settings import Picture


class Moving:
    """A source of a picture that slides."""

    label = ""

    def frames(self, request, cancelled):
        whole = picture(160, 96)
        for index in range(request.num_frames):
            yield np.roll(whole, index, axis=1)[None]

    def close(self):
        pass


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """A finished video of 160 x 96 pixels and two seconds."""
    speech = write_wav(tmp_path / "s.wav", tone(2.0), 16_000)
    request = open_request(
        save(tmp_path / "p.png"),
        speech,
        Preset(**PRESET_SETTINGS),
        output=tmp_path / "out.mp4",
        work=tmp_path / "work",
    )
    assert list(stream_frames(Moving(), request))
    return tmp_path / "out.mp4"


def packets(path: Path) -> list[tuple[int, str]]:
    """Place and digest of every packet of the sound."""
    with av.open(str(path)) as container:
        return [
            (packet.pts, hashlib.sha256(bytes(packet)).hexdigest())
            for packet in container.demux(audio=0)
            if packet.dts is not None
        ]


def pictures(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((704, 384), (1920, 1048)),
        ((384, 704), (1048, 1920)),
        ((512, 512), (1080, 1080)),
        ((1280, 720), (1920, 1080)),
        ((628, 786), (1080, 1352)),
        ((1920, 1080), None),
        ((2048, 512), None),
    ],
)
def test_sizes_keep_the_shape_within_1080p(size, expected):
    found = upscaled_size(Size(*size))
    assert (found and (found.width, found.height)) == expected


def test_pictures_are_larger_and_sound_and_marks_are_the_same(video):
    before, sound = pictures(video), packets(video)
    counted = list(rewritten(video, video, video, Size(480, 288)))
    after = pictures(video)
    assert counted == list(range(1, len(before) + 1))
    assert {frame.shape for frame in after} == {(288, 480, 3)}
    assert packets(video) == sound
    assert made_here(video)
    for old, new in zip(before[::12], after[::12], strict=True):
        small = np.asarray(av.VideoFrame.from_ndarray(new).reformat(160, 96).to_ndarray(format="rgb24"))
        assert np.abs(small.astype(int) - old).mean() < 3
    with av.open(str(video)) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == 25
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert Fraction(container.duration, av.time_base) == pytest.approx(2.0, abs=0.05)


def test_nothing_is_lost_when_it_breaks_off(video):
    whole = video.read_bytes()
    writing = rewritten(video, video, video, Size(480, 288))
    assert next(writing) == 1
    writing.close()
    assert video.read_bytes() == whole
    assert {one.name for one in video.parent.glob(".*")} == set()


def test_pictures_of_another_length_are_refused(video, tmp_path):
    whole = video.read_bytes()
    with av.open(str(tmp_path / "short.mp4"), "w") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 320, 192, "yuv420p"
        out.mux(stream.encode(av.VideoFrame.from_ndarray(picture(320, 192), format="rgb24")))
        out.mux(stream.encode())
    check_larger(tmp_path / "short.mp4", video, "tool")
    with pytest.raises(AvatarError, match="has 1 frames instead of 50"):
        list(rewritten(tmp_path / "short.mp4", video, video, Size(480, 288)))
    assert video.read_bytes() == whole


def test_what_is_no_larger_or_no_video_is_refused(video, tmp_path):
    with pytest.raises(AvatarError, match=r"tool wrote a video of 160\*96, no larger"):
        check_larger(video, video, "tool")
    (tmp_path / "x.mp4").write_bytes(b"no video")
    with pytest.raises(AvatarError, match="tool wrote no video that can be read"):
        check_larger(tmp_path / "x.mp4", video, "tool")
    with pytest.raises(AvatarError, match="could not be read"):
        list(rewritten(tmp_path / "x.mp4", video, tmp_path / "y.mp4", Size(480, 288)))
    assert not (tmp_path / "y.mp4").exists()


def test_what_cannot_be_upscaled_is_refused_by_name(monkeypatch):
    check_upscale("off", Size(4000, 4000), True)
    with pytest.raises(BadInput, match="transparent video cannot be upscaled"):
        check_upscale("1080p", Size(512, 512), True)
    with pytest.raises(BadInput, match=r"1920\*1088 without upscale"):
        check_upscale("1080p", Size(1920, 1088), False)
    monkeypatch.setattr(upscale, "version", lambda name: "2.2.7")  # which has another interface
    with pytest.raises(BadInput, match='pip install "pyanime4k>=3"'):
        check_upscale("1080p-arnet", Size(512, 512), False)
    monkeypatch.setattr(upscale, "version", lambda name: "3.1.0")
    check_upscale("1080p-arnet", Size(512, 512), False)


def test_intake_refuses_before_anything_is_made(tmp_path):
    speech = write_wav(tmp_path / "s.wav", tone(1.0), 16_000)
    preset = Preset(**PRESET_SETTINGS | {"engine": "diffusion"})
    preset = preset.with_settings(upscale="1080p", size="1920*1088")
    places = {"output": tmp_path / "out.mp4", "work": tmp_path / "work"}
    with pytest.raises(BadInput, match="no smaller than 1080p"):
        open_request(save(tmp_path / "p.png", picture(1920, 1088)), speech, preset, **places)
    assert not (tmp_path / "work").exists()
    with pytest.raises(BadInput, match="transparent"):
        open_request(
            Path(__file__).parents[2] / "assets" / "portraits" / "mara.png",
            speech,
            Preset(**PRESET_SETTINGS).with_settings(upscale="1080p"),
            picture_settings=Picture(background="transparent"),
            **places,
        )


def test_the_network_runs_on_the_first_device_that_works(video, monkeypatch):
    """With a stand-in for the package, which is not among the requirements."""
    asked = []

    class Processor:
        def __init__(self, kind, device, model):
            self.kind, self.model = kind, model

        def ok(self):
            asked.append((self.kind, self.model))
            return self.kind == "opencl"

        def __call__(self, pixels, factor):
            assert pixels.dtype == np.uint8
            assert pixels.flags.c_contiguous
            assert factor == 3.0
            return np.full((288, 480, 3), 200, np.uint8)

    pyac = SimpleNamespace(core=SimpleNamespace(Processor=Processor))
    monkeypatch.setitem(sys.modules, "pyanime4k", SimpleNamespace(pyac=pyac))
    enlarge = enlarge_by("1080p-arnet", Size(480, 288))
    assert asked == [("cuda", "arnet-hdn"), ("opencl", "arnet-hdn")]
    assert list(rewritten(video, video, video, Size(480, 288), enlarge))[-1] == 50
    assert all(np.abs(one.astype(int) - 200).max() < 4 for one in pictures(video)[::10])
    Processor.ok = lambda self: False
    with pytest.raises(AvatarError, match="works on no device here"):
        enlarge_by("1080p-arnet", Size(480, 288))
