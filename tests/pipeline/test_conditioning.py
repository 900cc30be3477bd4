"""Conditions: encoded once, remembered, and the same as the plain computation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from avatar.errors import BadInput
from avatar.geometry import MOTION_FRAMES, MOTION_LATENT_FRAMES, SPEECH_HZ, Size
from avatar.model.text_encoder import PromptTokenizer, TextEncoder
from avatar.model.vae.vae import VideoVAE
from avatar.model.wav2vec2 import SpeechEncoder, SpeechFeatures
from avatar.model.weights.checkpoint import CheckpointFiles, open_checkpoint
from avatar.pipeline.conditioning import (
    NUM_REMEMBERED,
    REFERENCE,
    AudioFeatures,
    ConditionEncoder,
    LocalTextEncoder,
    SpeechTrack,
    encode_portrait,
    prepare_portrait,
)
from avatar.pipeline.resume import anchor_at
from avatar.runtime.resume_state import ResumeState
from tests.pipeline.streams import relative_error

GOLDEN = Path(__file__).parents[1] / "golden"
SIZE = Size(64, 64)


@pytest.fixture(scope="module")
def files(tiny_checkpoint: Path) -> CheckpointFiles:
    return open_checkpoint(tiny_checkpoint)


@pytest.fixture
def encoder(files: CheckpointFiles) -> ConditionEncoder:
    vae = VideoVAE.load(files.vae, "cpu", torch.float32)
    speech = SpeechEncoder.load(files.speech_encoder, "cpu", torch.float32)
    encode_text = LocalTextEncoder(files.text_encoder, torch.device("cpu"), torch.float32)
    return ConditionEncoder(files, vae, speech, encode_text)


@pytest.fixture
def portrait(tmp_path: Path) -> Path:
    return paint(tmp_path / "portrait.png", 90, 70)


def paint(path: Path, width: int, height: int, seed: int = 0) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def track(num_samples: int = SPEECH_HZ, volume: float = 0.1) -> SpeechTrack:
    def listen(start: int, stop: int) -> np.ndarray:
        index = np.arange(start, stop)
        sound = volume * np.sin(index * 0.07)
        return np.where((index >= 0) & (index < num_samples), sound, 0).astype(np.float32)

    return SpeechTrack(listen, num_samples)


def test_the_reference_is_the_portrait_as_one_frame() -> None:
    """The encoder sees no future: the first of five frames' latents, and of 73 frames', is one frame's."""
    golden = load_file(GOLDEN / "vae.safetensors")
    vae = VideoVAE.load(GOLDEN / "Wan2.1_VAE.tiny.pth", "cpu", torch.float32)
    motion = encode_portrait(vae, golden["image"][0, :, 0])
    assert motion.shape == (16, MOTION_LATENT_FRAMES, 4, 6)
    expected = golden["image_latent_5frames"][0, :, :1]
    assert relative_error(motion[:, REFERENCE], expected) < 1e-5
    assert relative_error(motion[:, REFERENCE], vae.encode(golden["image"])[0]) < 1e-5
    standing = vae.encode(golden["image"].expand(-1, -1, MOTION_FRAMES, -1, -1))[0]
    assert relative_error(motion, standing) < 1e-5


def test_an_anchor_encoded_anew_stands_for_four_frames() -> None:
    """It is a generated latent, not a first frame: of five frames alike the second latent frame."""
    golden = load_file(GOLDEN / "vae.safetensors")
    vae = VideoVAE.load(GOLDEN / "Wan2.1_VAE.tiny.pth", "cpu", torch.float32)
    pixels = golden["image"][0, :, 0].permute(1, 2, 0).add(1).mul(127.5).round().to(torch.uint8).numpy()
    smaller = np.zeros((16, 1, 2, 2), np.float32)
    size = Size(pixels.shape[1], pixels.shape[0])
    anchor = anchor_at(ResumeState(0, 12, picture=pixels, anchor=smaller), size, vae)
    assert anchor is not None
    first, second = (
        relative_error(anchor, golden["image_latent_5frames"][0, :, index : index + 1]) for index in (0, 1)
    )
    assert second < 0.01 < first  # the picture was rounded to whole levels


def test_conditions_are_those_of_the_side_models(
    encoder: ConditionEncoder, files: CheckpointFiles, portrait: Path
) -> None:
    conditions = encoder.encode(portrait, "A  woman\nspeaks.", SIZE, [track()])
    ids = PromptTokenizer(files.tokenizer)("A woman speaks.")
    text = TextEncoder.load(files.text_encoder, "cpu", torch.float32).encode(ids)
    assert torch.equal(conditions.text, text)
    motion = encode_portrait(encoder._portraits._vae, prepare_portrait(portrait, SIZE))
    assert torch.equal(conditions.motion, motion)
    assert torch.equal(conditions.reference, motion[:, :1])
    speech = track()
    expected = SpeechFeatures(encoder.speech, speech.listen, speech.num_samples).frames(12, 12)
    assert torch.equal(conditions.audio.frames(12, 12), expected[None])
    assert len(conditions.audio) == 1


def test_several_speakers_are_stacked(encoder: ConditionEncoder) -> None:
    tracks = [track(), track(SPEECH_HZ // 2, 0.3)]
    speakers = [SpeechFeatures(encoder.speech, part.listen, part.num_samples) for part in tracks]
    features = AudioFeatures(speakers).frames(0, 24)
    assert features.shape == (2, 25, encoder.speech.width, 24)
    assert features[0, :, :, 20].any()
    assert not features[1, :, :, 20:].any()


def test_a_prompt_or_portrait_seen_before_is_not_encoded_again(
    encoder: ConditionEncoder, portrait: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encodings = []
    read, encode = TextEncoder.encode, VideoVAE.encode_still
    monkeypatch.setattr(TextEncoder, "encode", lambda *args: encodings.append("text") or read(*args))
    monkeypatch.setattr(VideoVAE, "encode_still", lambda *args: encodings.append("portrait") or encode(*args))
    first = encoder.encode(portrait, "one", SIZE, [track()])
    assert torch.equal(encoder.encode(portrait, " one ", SIZE, [track()]).motion, first.motion)
    assert encodings == ["text", "portrait"]
    encoder.encode(portrait, "two", SIZE, [track()])
    encoder.encode(paint(tmp_path / "other.png", 90, 70, seed=1), "two", SIZE, [track()])
    encoder.encode(portrait, "two", Size(64, 128), [track()])
    assert encodings == ["text", "portrait", "text", "portrait", "portrait"]


def test_what_is_remembered_is_bounded(encoder: ConditionEncoder, portrait: Path) -> None:
    for index in range(NUM_REMEMBERED + 3):
        encoder.encode(portrait, f"prompt {index}", SIZE, [track()])
    assert len(encoder._texts.entries) == NUM_REMEMBERED


def test_too_long_a_prompt_is_refused_before_encoding(encoder: ConditionEncoder, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"prompt is \d+ tokens long; the model reads at most 512"):
        encoder.encode(tmp_path / "absent.png", "word " * 600, SIZE, [track()])


@pytest.mark.parametrize(("width", "height"), [(64, 64), (200, 100), (100, 200), (30, 31), (1, 1), (640, 64)])
def test_a_portrait_covers_the_picture(width: int, height: int, tmp_path: Path) -> None:
    path = tmp_path / "portrait.png"
    Image.new("RGB", (width, height), (255, 128, 0)).save(path)
    image = prepare_portrait(path, Size(128, 64))
    assert image.shape == (3, 64, 128)
    colour = torch.tensor([1.0, 128 / 127.5 - 1, -1.0])[:, None, None]
    assert (image - colour).abs().max() < 1e-6


@pytest.mark.parametrize(("width", "first"), [(64, 0), (65, 0), (66, 1), (67, 2), (68, 2), (69, 2), (71, 4)])
def test_a_crop_begins_where_torchvisions_does(width: int, first: int, tmp_path: Path) -> None:
    """Its CenterCrop takes the half of an odd number to the even side."""
    pixels = np.zeros((64, width, 3), np.uint8)
    pixels[:, first] = 255
    Image.fromarray(pixels).save(tmp_path / "portrait.png")
    image = prepare_portrait(tmp_path / "portrait.png", SIZE)
    assert torch.equal(image[:, :, 0], torch.ones(3, 64))
    assert torch.equal(image[:, :, 1:], -torch.ones(3, 64, 63))


def test_a_portrait_is_cropped_about_its_centre(tmp_path: Path) -> None:
    pixels = np.zeros((64, 192, 3), np.uint8)
    pixels[:, 64:128] = 255
    Image.fromarray(pixels).save(tmp_path / "portrait.png")
    assert torch.equal(prepare_portrait(tmp_path / "portrait.png", SIZE), torch.ones(3, 64, 64))
