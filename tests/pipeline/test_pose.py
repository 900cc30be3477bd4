"""A pose video leads the diffusion engine: its latents, clip by clip, and what they do to the video."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from avatar.geometry import LEAD_IN_FRAMES, Size
from avatar.hardware.inventory import Inventory
from avatar.media.intake import open_request
from avatar.media.pose_video import PoseReader
from avatar.media.sample_inputs import write_sample
from avatar.model.vae.vae import VideoVAE
from avatar.model.weights.checkpoint import open_checkpoint
from avatar.pipeline.pipeline import DiffusionPipeline
from avatar.pipeline.pose import _latents, with_pose
from avatar.planning.planner import plan
from avatar.preset import load_preset
from avatar.request import Request
from tests.pipeline.streams import Stream

PRESET = load_preset("self-test")
SIZE = Size(64, 64)


def film(path: Path, frames: np.ndarray) -> Path:
    """uint8 (T, H, W, 3), lossless, at 25 frames a second."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264rgb", rate=25, options={"qp": "0", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "rgb24"
        for pixels in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        out.mux(stream.encode())
    return path


def noise(num_frames: int) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (num_frames, 64, 64, 3), np.uint8)


@pytest.fixture(scope="module")
def vae(tiny_checkpoint: Path) -> VideoVAE:
    return VideoVAE.load(open_checkpoint(tiny_checkpoint).vae, "cpu", torch.float32)


def latents(path: Path, vae: VideoVAE, infer_frames: int, first_block: int, num_blocks: int) -> torch.Tensor:
    with PoseReader(path) as reader:
        return _latents(reader, SIZE, vae, infer_frames, first_block, num_blocks, lambda: None)


def test_each_clip_is_encoded_alone_behind_its_own_first_frame(vae, tmp_path):
    """As in the public code, given the frames after our lead-in."""
    frames = noise(40)
    path = film(tmp_path / "pose.mkv", frames)
    found = latents(path, vae, 16, 0, 4)  # 12 latent frames: three clips of 4
    led = np.concatenate([frames[:1].repeat(LEAD_IN_FRAMES, 0), frames, np.zeros((20, 64, 64, 3), np.uint8)])
    expected = []
    for clip in led[:48].reshape(3, 16, 64, 64, 3):
        video = torch.from_numpy(np.concatenate([clip[:1], clip])).permute(3, 0, 1, 2)[None] / 255 * 2 - 1
        expected.append(vae.encode(video)[0][:, 1:])
    assert torch.allclose(found, torch.cat(expected, 1), atol=1e-4)


def test_past_its_end_it_is_black_as_long_as_the_video_lasts(vae, tmp_path):
    found = latents(film(tmp_path / "pose.mkv", noise(5)), vae, 16, 0, 8)
    black = latents(film(tmp_path / "black.mkv", np.zeros((2, 64, 64, 3), np.uint8)), vae, 16, 0, 8)
    assert found.shape == (16, 24, 8, 8)
    assert not torch.equal(found[:, :4], black[:, :4])
    assert torch.equal(found[:, 4:], black[:, 4:])
    assert black.abs().max() > 0.01, "black is a picture like others to the VAE"


def test_a_later_stretch_is_the_same_as_in_the_whole(vae, tmp_path):
    path = film(tmp_path / "pose.mkv", noise(90))
    whole = latents(path, vae, 16, 0, 7)
    later = latents(path, vae, 16, 4, 3)  # from latent frame 12, where a clip begins
    assert later.shape == whole.shape
    assert torch.equal(later[:, 12:], whole[:, 12:])
    straddling = latents(path, vae, 16, 3, 4)  # from latent frame 9, within a clip
    assert torch.equal(straddling[:, 9:], whole[:, 9:])


def test_long_clips_are_cut_to_bound_memory(vae, tmp_path):
    path = film(tmp_path / "pose.mkv", noise(8))
    assert torch.equal(latents(path, vae, 96, 0, 9), latents(path, vae, 1000, 0, 9))


def test_it_stops_between_two_clips(vae, tmp_path):
    path, asked = film(tmp_path / "pose.mkv", noise(60)), []

    def check():
        asked.append(1)
        if len(asked) == 2:
            raise InterruptedError

    with PoseReader(path) as reader, pytest.raises(InterruptedError):
        _latents(reader, SIZE, vae, 16, 0, 5, check)


def test_without_a_pose_the_conditions_are_the_same(vae):
    given = Stream.load("basic").conditions
    options = {"infer_frames": 16, "first_block": 0, "num_blocks": 2, "check": lambda: None}
    assert with_pose(given, None, SIZE, vae, **options) is given


@pytest.fixture
def ask(tmp_path: Path):
    def build(pose: Path | None, seconds: float = 0.8) -> Request:
        folder = Path(tmp_path, f"request-{len(list(tmp_path.iterdir()))}")
        folder.mkdir()
        portrait, speech = write_sample(folder, Size(96, 96), seconds)
        return open_request(
            portrait, speech, PRESET, output=folder / "o.mp4", work=folder / "work", pose=pose, prompt="a fox"
        )

    return build


def video(engine: DiffusionPipeline, request: Request) -> np.ndarray:
    found = engine.frames(request, lambda: False)
    return np.concatenate([item for item in found if isinstance(item, np.ndarray)])


def test_a_pose_changes_the_video_and_black_is_no_pose_either(ask, tiny_checkpoint, tmp_path):
    """In the public code no pose is latents of zero, and a black video is not: both are kept so."""
    engine = DiffusionPipeline(PRESET, tiny_checkpoint)
    dance = film(tmp_path / "dance.mkv", noise(30))
    black = film(tmp_path / "black.mkv", np.zeros((30, 64, 64, 3), np.uint8))
    none = video(engine, ask(None))
    posed = video(engine, ask(dance))
    assert posed.shape == none.shape
    assert not np.array_equal(posed, none)
    assert np.array_equal(posed, video(engine, ask(dance)))
    in_black = video(engine, ask(black))
    assert not np.array_equal(in_black, posed)
    assert not np.array_equal(in_black, none)
    short = film(tmp_path / "short.mkv", np.zeros((1, 64, 64, 3), np.uint8))
    assert np.array_equal(video(engine, ask(short)), in_black), "past its end it goes on in black"


def test_only_what_follows_a_change_of_the_pose_differs(ask, tiny_checkpoint, tmp_path):
    """A block is led by its own clip at the latest: frames before it are the same to the bit."""
    engine = DiffusionPipeline(PRESET, tiny_checkpoint)
    infer_frames = PRESET.generation.infer_frames
    frames = noise(3 * infer_frames)
    other = frames.copy()
    other[infer_frames:] = 255 - other[infer_frames:]
    seconds = (infer_frames + 12) / 25
    first = video(engine, ask(film(tmp_path / "a.mkv", frames), seconds))
    second = video(engine, ask(film(tmp_path / "b.mkv", other), seconds))
    same = infer_frames - LEAD_IN_FRAMES - 12
    assert np.array_equal(first[:same], second[:same])
    assert not np.array_equal(first, second)


def test_its_memory_is_planned():
    preset = load_preset("80gb")
    inventory = Inventory.imagine(1, 80, host_ram_gib=64)
    without, led = (plan(preset, inventory, speech_s=600.0, pose=pose) for pose in (False, True))
    names = {item.name for item in led.gpus[0].items} - {item.name for item in without.gpus[0].items}
    assert names == {"pose_clip"}
    [latent] = [item for item in led.host.items if item.name == "pose_latents"]
    assert latent.num_bytes == pytest.approx(16 * 48 * 88 * 2 * 600 * 25 / 4, rel=0.01)
    assert led.host.peak_bytes - without.host.peak_bytes == latent.num_bytes
    assert led.gpus[0].peak_bytes == without.gpus[0].peak_bytes, "other phases need more"


def test_a_request_with_a_pose_is_planned_with_it(ask, tiny_checkpoint, tmp_path, monkeypatch):
    engine = DiffusionPipeline(PRESET, tiny_checkpoint)
    asked = []
    whole = engine._denoising.plan

    def noted(preset, **options):
        asked.append(options["pose"])
        return whole(preset, **options)

    monkeypatch.setattr(engine._denoising, "plan", noted)
    request = ask(film(tmp_path / "dance.mkv", noise(30)))
    engine.plan_for(request)
    engine.plan_for(replace(request, pose=None))
    assert asked == [True, False]
