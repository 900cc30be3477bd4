"""A pose video at the engine's rate and size: by its time stamps, lossless, black past its end."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from media_samples import PRESET_SETTINGS, save, tone, write_wav
from PIL import Image

from avatar.errors import BadInput
from avatar.long import unfinished
from avatar.media.intake import open_request
from avatar.media.limits import InputLimits
from avatar.media.pose_video import PoseReader, write_pose
from avatar.preset import Preset
from avatar.runtime.bounded_reader import ReaderCache
from avatar.runtime.fingerprint import origin
from avatar.runtime.request_bundle import RequestBundle
from tests.fixtures.pose_films import SIZE, film


def shown(path: Path, start: int, num_frames: int) -> list[int]:
    """Which frame of the film each is; -1: black."""
    with PoseReader(path) as reader:
        greys = reader.frames(start, num_frames)[:, 64, 32, 0].astype(int)
    return [(grey - 10) // 4 if grey else -1 for grey in greys]


@pytest.mark.parametrize(
    ("rate", "num_frames", "expected"),
    [
        (25, 6, [0, 1, 2, 3, 4, 5]),
        (50, 12, [0, 2, 4, 6, 8, 10]),
        (30, 12, [0, 1, 2, 3, 4, 6, 7, 8, 9, 10]),
        (10, 4, [0, 0, 0, 1, 1, 2, 2, 2, 3, 3]),
    ],
)
def test_frames_are_taken_by_their_time(rate, num_frames, expected, tmp_path):
    source = film(tmp_path / "pose.mkv", num_frames, rate)
    pose = write_pose(source, tmp_path / "out.mkv", size=SIZE, num_frames=100)
    assert shown(tmp_path / "out.mkv", 0, len(expected)) == expected
    assert pose.num_frames == len(expected)


def test_uneven_time_stamps_and_a_late_start_are_honoured(tmp_path):
    times = [500, 540, 700, 740]
    source = film(tmp_path / "pose.mkv", 4, 25, times=times)
    write_pose(source, tmp_path / "out.mkv", size=SIZE, num_frames=100)
    assert shown(tmp_path / "out.mkv", 0, 7) == [0, 1, 1, 1, 1, 2, 3]


def test_before_it_the_first_frame_and_past_it_black(tmp_path):
    source = film(tmp_path / "pose.mkv", 5, 25)
    pose = write_pose(source, tmp_path / "out.mkv", size=SIZE, num_frames=8, name="dance.mkv")
    assert shown(tmp_path / "out.mkv", -3, 12) == [0, 0, 0, 0, 1, 2, 3, 4, -1, -1, -1, -1]
    with PoseReader(tmp_path / "out.mkv") as reader:
        assert [len(reader.frames(start, 4)) for start in (-3, 1, 5)] == [4, 4, 4]
        assert reader.is_over
    assert shown(tmp_path / "out.mkv", 3, 4) == [3, 4, -1, -1]
    [notice] = pose.notices
    assert (notice.code, notice.level) == ("pose_short", "warning")
    assert "dance.mkv ends after 0.2 s of 0.3 s" in notice.text


def test_no_more_is_read_than_is_wanted(tmp_path):
    source = film(tmp_path / "pose.mkv", 40, 25)
    pose = write_pose(source, tmp_path / "out.mkv", size=SIZE, num_frames=7)
    assert (pose.num_frames, pose.notices) == (7, ())
    with av.open(str(tmp_path / "out.mkv")) as container:
        assert len(list(container.decode(video=0))) == 7


def test_it_is_scaled_to_cover_and_cut_about_its_centre(tmp_path):
    whole = np.zeros((90, 160, 3), np.uint8)
    whole[:, 70:90] = 255  # a post in the middle
    with av.open(str(tmp_path / "wide.mkv"), "w") as out:
        stream = out.add_stream("libx264rgb", rate=25, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = 160, 90, "rgb24"
        out.mux(stream.encode(av.VideoFrame.from_ndarray(whole, format="rgb24")))
        out.mux(stream.encode())
    write_pose(tmp_path / "wide.mkv", tmp_path / "out.mkv", size=SIZE, num_frames=1)
    with PoseReader(tmp_path / "out.mkv") as reader:
        [frame] = reader.frames(0, 1)
    assert frame.shape == (128, 64, 3)
    bright = np.flatnonzero(frame[64, :, 0] > 128)
    assert bright.mean() == pytest.approx(31.5, abs=0.6)
    assert len(bright) == pytest.approx(20 * 128 / 90, abs=1)


def test_what_is_no_video_is_refused(tmp_path):
    (tmp_path / "x.mp4").write_bytes(b"no video" * 100)
    write_wav(tmp_path / "s.wav", tone(1.0), 16_000)
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n/etc/passwd\n")
    (tmp_path / "empty.mp4").touch()
    for name in ("x.mp4", "s.wav", "list.m3u8", "empty.mp4", "nowhere.mp4"):
        with pytest.raises(BadInput, match=name):
            write_pose(tmp_path / name, tmp_path / "out.mkv", size=SIZE, num_frames=5)
    source = film(tmp_path / "pose.mkv", 2, 25)
    with pytest.raises(BadInput, match="has 64 x 128 pixels"):
        write_pose(source, tmp_path / "o.mkv", size=SIZE, num_frames=5, limits=InputLimits(max_pixels=8000))


@pytest.fixture
def asked(tmp_path):
    """Open a request of one second for the diffusion engine."""
    film(tmp_path / "pose.mkv", 10, 25)

    def build(engine: str = "diffusion", pose: str | None = "pose.mkv", **options):
        return open_request(
            save(tmp_path / "p.png", np.zeros((256, 128, 3), np.uint8)),
            write_wav(tmp_path / "s.wav", tone(1.0), 16_000),
            Preset(**PRESET_SETTINGS | {"engine": engine}).with_settings(size="64*128"),
            output=tmp_path / "out.mp4",
            work=tmp_path / "work",
            pose=tmp_path / pose if pose else None,
            **options,
        )

    return build


def test_a_request_holds_the_pose_at_the_videos_size(asked, tmp_path):
    request = asked(pose_name="dance.mp4")
    assert request.pose_name == "dance.mp4"
    assert [notice.code for notice in request.notices if notice.code == "pose_short"] == ["pose_short"]
    with PoseReader(request.pose) as reader:
        assert reader.frames(0, 2).shape == (2, 128, 64, 3)
    assert origin(request)["pose"]
    assert "pose" not in origin(asked(pose=None))


def test_the_preview_refuses_a_pose_by_name(asked, tmp_path):
    with pytest.raises(BadInput, match="preview engine cannot honour pose: it warps one picture"):
        asked("preview")
    with pytest.raises(BadInput, match=r"The pose nowhere\.mp4 does not exist"):
        asked(pose="nowhere.mp4")
    assert not (tmp_path / "work").exists()


def test_a_bad_pose_leaves_nothing_behind(asked, tmp_path):
    (tmp_path / "x.mp4").write_bytes(b"no video" * 100)
    with pytest.raises(BadInput, match=r"x\.mp4 is not a video"):
        asked(pose="x.mp4")
    assert not (tmp_path / "work").exists()


def test_uploads_are_read_in_a_bounded_process_once(asked, tmp_path):
    cache = ReaderCache(tmp_path / "cache", InputLimits())
    try:
        reader = cache.by("me")
        assert asked(reader=reader).pose.read_bytes()
        assert asked(reader=reader).pose.read_bytes()
        kinds = [key[2].split()[0] for key in cache._entries]
        assert sorted(kinds) == ["portrait", "pose", "speech"]
        (tmp_path / "x.mp4").write_bytes(b"no video" * 100)
        with pytest.raises(BadInput, match=r"x\.mp4 is not a video"):
            asked(reader=reader, pose="x.mp4")
    finally:
        cache.close()


def test_a_kept_request_and_one_sent_elsewhere_have_it(asked, tmp_path):
    request = asked()
    unfinished.keep(tmp_path / "kept", request)
    resumed, _ = unfinished.resume(tmp_path / "kept", work=tmp_path / "w", output=tmp_path / "o.mp4")
    assert resumed.pose.read_bytes() == request.pose.read_bytes()
    (tmp_path / "there").mkdir()
    there = RequestBundle.of(request).unpacked(request, tmp_path / "there")
    assert there.pose.parent == tmp_path / "there"
    assert there.pose.read_bytes() == request.pose.read_bytes()
    (tmp_path / "kept" / "pose.mkv").unlink()
    with pytest.raises(BadInput, match="damaged"):
        unfinished.resume(tmp_path / "kept", work=tmp_path / "w", output=tmp_path / "o.mp4")


def test_a_background_picture_is_sent_elsewhere_as_well(asked, tmp_path):
    Image.new("RGB", (8, 8), (9, 9, 9)).save(tmp_path / "sea.png")
    from dataclasses import replace

    request = replace(asked(), background="picture", background_picture=tmp_path / "sea.png")
    (tmp_path / "there").mkdir()
    there = RequestBundle.of(request).unpacked(request, tmp_path / "there")
    assert there.background_picture == tmp_path / "there" / "sea.png"
    assert there.background_picture.read_bytes() == (tmp_path / "sea.png").read_bytes()
