"""Several speakers in the diffusion engine: where each voice acts, and that it acts nowhere else."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from avatar.geometry import Size
from avatar.media.intake import open_request
from avatar.media.sample_inputs import write_sample
from avatar.media.speech_reader import write_speech
from avatar.model.audio_injection import AdaLN, AudioTokens, Injection
from avatar.model.transformer_layer import Attention
from avatar.pipeline.denoiser import LocalDenoiser
from avatar.pipeline.pipeline import DiffusionPipeline
from avatar.pipeline.speakers import speaker_masks, speech_tracks
from avatar.preset import load_preset
from avatar.request import Box, Request, Speaker
from tests.fixtures.local_ranks import LocallyRanked

PRESET = load_preset("self-test")
LEFT, RIGHT, MIDDLE = (0.1, 0.2, 0.3, 0.6), (0.7, 0.2, 0.9, 0.6), (0.4, 0.2, 0.6, 0.6)


@pytest.fixture
def ask(tmp_path: Path) -> Callable[..., Request]:
    """A request of two seconds for speakers with these faces; voices: their WAVs, the sample's by default."""
    portrait, speech = write_sample(tmp_path, Size(96, 96), 2.0)

    def build(*faces: Box, voices: tuple[Path | None, ...] | None = None, **given: object) -> Request:
        request = open_request(
            portrait, speech, PRESET, output=tmp_path / "o.mp4", work=tmp_path / "work", prompt="two foxes"
        )
        voices = voices or (request.speech,) * len(faces)
        speakers = tuple(Speaker(face, "a", voice) for face, voice in zip(faces, voices, strict=True))
        return replace(request, speakers=speakers, **given)

    return build


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Another voice: the sample's, backwards, and shorter."""
    import soundfile

    _, speech = write_sample(tmp_path, Size(96, 96), 2.0)
    samples, rate = soundfile.read(speech)
    soundfile.write(tmp_path / "other.in.wav", samples[::-1][: rate * 3 // 2], rate)
    write_speech(tmp_path / "other.in.wav", tmp_path / "other.wav")
    return tmp_path / "other.wav"


def of_frame(request: Request, stream: Size, size: Size | None = None) -> Tensor:
    masks = speaker_masks(request, stream, size or stream)
    assert masks is not None
    assert masks.shape[1] == 3
    assert torch.equal(masks[:, 0], masks[:, 2])
    return masks[:, 0]


def test_each_part_of_the_frame_belongs_to_the_nearest_face(ask: Callable[..., Request]) -> None:
    masks = of_frame(ask(LEFT, RIGHT), Size(128, 128))
    assert masks.shape == (2, 8, 8)
    assert torch.equal(masks.sum(0), torch.ones(8, 8))
    assert masks[0, :, :4].min() == 1 == masks[1, :, 4:].min()
    assert speaker_masks(ask(), Size(128, 128), Size(128, 128)) is None


def test_a_face_without_a_voice_takes_none_of_the_others(ask: Callable[..., Request]) -> None:
    masks = of_frame(ask(LEFT, RIGHT, other_faces=(MIDDLE,)), Size(128, 128))
    middle = masks[:, :, 3:5]
    assert middle.max() == 0
    assert masks[0, :, :2].min() == 1 == masks[1, :, 6:].min()


def test_a_large_face_reaches_farther_than_a_small_one(ask: Callable[..., Request]) -> None:
    large, small = (0.0, 0.1, 0.4, 0.9), (0.8, 0.4, 0.9, 0.6)
    masks = of_frame(ask(large, small), Size(256, 256))
    assert masks[0].mean() > 0.75
    assert masks[1, 8, 13] == 1


def test_a_drawn_mask_holds_its_voice_and_no_other(ask: Callable[..., Request]) -> None:
    request = ask(LEFT, RIGHT)
    first, second = request.speakers
    masks = of_frame(
        replace(request, speakers=(replace(first, mask=(0.5, 0.0, 0.75, 0.5)), second)), Size(128, 128)
    )
    expected = torch.zeros(8, 8)
    expected[:4, 4:6] = 1
    assert torch.equal(masks[0], expected)
    assert torch.equal(masks[1, :4, 4:6], torch.zeros(4, 2))
    assert masks[1, 4:, 4:].min() == 1 > masks[1, :, :4].max() == 0
    overlapping = replace(first, mask=(0.0, 0.0, 1.0, 1.0)), replace(second, mask=(0.5, 0.0, 1.0, 1.0))
    shared = of_frame(replace(request, speakers=overlapping), Size(128, 128))
    assert shared[:, 0, 0].tolist() == [1.0, 0.0]
    assert shared[:, 0, 7].tolist() == [0.5, 0.5]


def painted(*boxes: tuple[int, int, int, int], size: tuple[int, int] = (96, 96), grey: int = 255) -> bytes:
    """A PNG of grey with boxes of another one."""
    mask, out = Image.new("L", size), io.BytesIO()
    for box in boxes:
        mask.paste(grey, box)
    mask.save(out, "PNG")
    return out.getvalue()


def test_a_painted_mask_holds_its_voice_in_any_shape(ask: Callable[..., Request]) -> None:
    request = ask(LEFT, RIGHT)
    first, second = request.speakers
    boxes = ((48, 0, 72, 24), (48, 24, 60, 48))  # an L, in pixels of 96
    brush = replace(first, painted=painted(*boxes))
    masks = of_frame(replace(request, speakers=(brush, second)), Size(128, 128))
    expected = torch.zeros(8, 8)
    expected[:2, 4:6] = 1
    expected[2:4, 4] = 1
    assert torch.allclose(masks[0], expected, rtol=0, atol=0.01)
    assert torch.allclose(masks[1, :, 4:], 1 - expected[:, 4:], rtol=0, atol=0.01)
    assert masks[1, :, :4].max() == 0
    grey = replace(first, painted=painted((0, 0, 96, 96), grey=51))
    soft = of_frame(replace(request, speakers=(grey, second)), Size(128, 128))
    assert torch.allclose(soft[:, 0, 7], torch.tensor([0.2, 0.8]), rtol=0, atol=0.01)


def test_a_painted_box_is_the_same_as_a_box(ask: Callable[..., Request]) -> None:
    request = ask(LEFT, RIGHT)
    with Image.open(request.portrait) as portrait:
        portrait.resize((192, 96)).save(request.portrait)
    first, second = request.speakers
    box = replace(first, mask=(0.25, 0.25, 0.5, 0.75))
    brush = replace(first, painted=painted((128, 64, 256, 192), size=(512, 256)))
    for frame in (Size(128, 128), Size(192, 64)):
        drawn, filled = (of_frame(replace(request, speakers=(one, second)), frame) for one in (box, brush))
        assert torch.allclose(drawn, filled, rtol=0, atol=0.02)
        assert 0 < drawn[0].mean() < 0.6


def test_masks_follow_the_crop_of_the_frame(ask: Callable[..., Request]) -> None:
    request = ask(LEFT, RIGHT)
    with Image.open(request.portrait) as portrait:
        portrait.resize((192, 96)).save(request.portrait)
    first, second = request.speakers
    request = replace(request, speakers=(replace(first, mask=(0.25, 0.0, 0.5, 0.5)), second))
    masks = of_frame(request, Size(128, 128))  # the middle half of a picture twice as wide as high
    expected = torch.zeros(8, 8)
    expected[:4, :4] = 1
    assert torch.equal(masks[0], expected)
    smaller = of_frame(request, Size(128, 128), Size(64, 64))
    assert torch.equal(smaller[0], expected[::2, ::2])


def test_an_injection_reaches_its_mask_alone() -> None:
    torch.manual_seed(0)
    injection = Injection(Attention(24, 2, 1e-6), AdaLN(24)).requires_grad_(False)
    local, overall = torch.randn(2, 3, 5, 24), torch.randn(2, 3, 24)
    x = torch.randn(12, 24)
    mask = (torch.arange(12) % 3 == 0).float()
    masks = torch.stack([mask, 1 - mask])[..., None]
    together = injection.add(x, injection.context(AudioTokens(local, overall)), masks)
    for number, own in enumerate((mask, 1 - mask)):
        tokens = AudioTokens(local[number : number + 1], overall[number : number + 1])
        alone = injection.add(x, injection.context(tokens), None)
        assert torch.allclose(together[own > 0], alone[own > 0], rtol=0, atol=1e-5)
        assert not torch.allclose(together[own == 0], alone[own == 0])
    nobody = injection.add(x, injection.context(AudioTokens(local, overall)), torch.zeros(2, 12, 1))
    assert torch.equal(nobody, x)


def test_each_voice_moves_what_was_painted_for_it(
    tiny_checkpoint: Path, ask: Callable[..., Request], other: Path
) -> None:
    """The same voices, of which one acts in half of the frame: only there its tokens hear it."""
    request = ask(LEFT, RIGHT, voices=(ask().speech, other))
    first, second = request.speakers
    nowhere = replace(second, painted=painted((0, 0, 1, 1), grey=0))
    everywhere = replace(first, painted=painted((0, 0, 96, 96)))
    engine = DiffusionPipeline(PRESET, tiny_checkpoint)
    alone = frames_of(engine, ask()).astype(int)
    held = frames_of(engine, replace(request, speakers=(everywhere, nowhere)))
    shared = frames_of(engine, request)
    assert np.abs(held - alone).max() <= 1
    assert np.abs(shared - alone).mean() > 100 * np.abs(held - alone).mean()


def test_speech_is_as_long_as_the_whole(ask: Callable[..., Request], other: Path) -> None:
    request = ask(LEFT, RIGHT, MIDDLE, voices=(ask().speech, other, None))
    with ExitStack() as open_files:
        tracks = speech_tracks(request, open_files)
        assert [track.num_samples for track in tracks] == [32_000] * 3
        heard = [track.listen(0, 32_000) for track in tracks]
    assert [len(part) for part in heard] == [32_000] * 3
    assert heard[1][:23_000].any()
    assert not heard[1][24_100:].any()
    assert not heard[2].any()


def frames_of(engine: DiffusionPipeline, request: Request) -> np.ndarray:
    made = engine.frames(request, lambda: False)
    return np.concatenate([item for item in made if isinstance(item, np.ndarray)])


def test_equal_voices_are_one_voice(tiny_checkpoint: Path, ask: Callable[..., Request], other: Path) -> None:
    engine = DiffusionPipeline(PRESET, tiny_checkpoint)
    speech = ask().speech
    alone = frames_of(engine, ask()).astype(int)
    twice = frames_of(engine, ask(LEFT, RIGHT))
    mixed = frames_of(engine, ask(LEFT, RIGHT, voices=(speech, other)))
    swapped = frames_of(engine, ask(LEFT, RIGHT, voices=(other, speech)))
    assert np.abs(twice - alone).max() <= 1
    assert min(np.abs(made - alone).mean() for made in (mixed, swapped)) > 100 * np.abs(twice - alone).mean()


def test_the_denoiser_hears_every_voice(
    tiny_checkpoint: Path, ask: Callable[..., Request], other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = []
    begin = LocalDenoiser.begin
    monkeypatch.setattr(
        LocalDenoiser, "begin", lambda self, given: (heard.append(given), begin(self, given))[1]
    )
    engine = DiffusionPipeline(PRESET, tiny_checkpoint)
    speech = ask().speech
    request = ask(LEFT, RIGHT, voices=(speech, other))
    frames_of(engine, request)
    frames_of(engine, ask())
    (both, alone) = heard
    assert (len(both.audio), len(alone.audio)) == (2, 1)
    assert torch.equal(both.masks, speaker_masks(request, Size(64, 64), Size(64, 64)))
    first, second = both.audio.frames(0, 24)
    assert torch.equal(first, alone.audio.frames(0, 24)[0])
    assert not torch.allclose(first, second)


def test_ranks_make_the_same_of_several_voices(
    tiny_checkpoint: Path, ask: Callable[..., Request], other: Path
) -> None:
    request = ask(LEFT, RIGHT, voices=(ask().speech, other))
    expected = frames_of(DiffusionPipeline(PRESET, tiny_checkpoint), request)
    ranked = LocallyRanked(PRESET, lambda: DiffusionPipeline(PRESET, tiny_checkpoint))
    try:
        assert np.array_equal(frames_of(ranked, request), expected)
    finally:
        ranked.close()


def test_a_text_that_is_split_among_speakers_moves_both(ask, other, tiny_checkpoint) -> None:
    request = ask(LEFT, RIGHT, voices=(None, other), num_frames=20)
    engine = DiffusionPipeline(PRESET, tiny_checkpoint)
    recorded, spoken = (
        np.concatenate([item for item in engine.frames(one, lambda: False) if isinstance(item, np.ndarray)])
        for one in (request, replace(request, spoken="a digest"))
    )
    assert np.array_equal(recorded, spoken)
