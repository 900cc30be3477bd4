"""Training: what torch computes is what numpy computes, and batches are what they say."""

import io
from itertools import groupby

import numpy as np
import pytest
import torch

from avatar.preview.visemes import HOP, NUM_MELS, VISEMES, VisemeNetwork, log_mels
from tests.preview.truth import clips
from training import dataset
from training.align import offsets
from training.dataset import CROP_FRAMES, Batches
from training.evaluate import CLOSURE_FRAMES, bilabials, report
from training.fit import TrainingNetwork, class_weights, train
from training.people import align, judge
from training.sentences import Sentence, load


@pytest.fixture(scope="module")
def spoken() -> list[Sentence]:
    """Sentences under the names of voices that training knows."""
    return [
        Sentence(voice, clip.sentence.samples, clip.sentence.labels.astype(np.int64))
        for voice, clip in zip(("hibari", "kokoro", "espeak-es", "flite-slt"), clips()[::5], strict=True)
    ]


def test_numpy_computes_what_torch_trained() -> None:
    torch.manual_seed(0)
    network = TrainingNetwork()
    with torch.no_grad():
        for _ in range(3):  # moves the running means and variances away from their start
            network(torch.randn(4, NUM_MELS, 60))
        for norm in network.norms:
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(0, 0.2)
        mels = torch.randn(1, NUM_MELS, 120)
        expected = network.eval()(mels).softmax(1)[0].T.numpy()
    file = io.BytesIO()
    np.savez_compressed(file, **network.export())
    file.seek(0)
    found = VisemeNetwork.load(file)(mels[0].T.numpy())
    context = VisemeNetwork.CONTEXT
    assert found.shape == (120 - 2 * context, len(VISEMES))
    np.testing.assert_allclose(found, expected[context:-context], atol=2e-3)  # weights are kept in half


def test_batches_have_the_features_of_the_running_network(
    spoken: list[Sentence], monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = Batches(spoken, 4, 0)
    heard: list[torch.Tensor] = []
    compute = batches._log_mels
    monkeypatch.setattr(batches, "_log_mels", lambda x: (heard.append(x), compute(x))[1])
    mels, labels = batches.draw()
    assert mels.shape == (4, NUM_MELS, CROP_FRAMES)
    assert labels.shape == (4, CROP_FRAMES)
    for row in range(4):
        samples = heard[0][row].numpy()
        # A level equal to the normal rms leaves the samples as they are.
        expected = log_mels(lambda a, b, x=samples: x[a:b], 0, CROP_FRAMES, dataset.visemes.NORMAL_RMS)
        np.testing.assert_allclose(mels[row].T.numpy(), expected, atol=2e-3)


def test_the_same_seed_draws_the_same_batches(spoken: list[Sentence]) -> None:
    first, again, other = (Batches(spoken, 3, seed).draw() for seed in (5, 5, 6))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


def test_seven_in_a_hundred_crops_are_no_speech(
    spoken: list[Sentence], monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = Batches(spoken, 400, 1)
    monkeypatch.setattr(batches, "_room", lambda x: x)
    monkeypatch.setattr(batches, "_log_mels", lambda x: x)
    labels = batches.draw()[1]
    silent = float((labels == VISEMES.index("sil")).all(1).float().mean())
    assert 0.03 < silent < 0.12


def test_crops_keep_labels_with_the_sound(spoken: list[Sentence]) -> None:
    """A sentence whose only sound is its only vowel keeps both together at any playing speed."""
    labels = np.zeros(500, np.int64)
    labels[200:260] = VISEMES.index("aa")
    samples = np.where(np.repeat(labels, HOP) > 0, 0.1, 0.0).astype(np.float32)
    batches = Batches([Sentence("hibari", samples, labels)], 1, 2)
    for _ in range(20):
        sound, cut = batches._crop(samples, labels)
        loud = sound.reshape(CROP_FRAMES, HOP).mean(1) > 0.05
        assert np.sum(loud != (cut > 0)) <= 2


def test_training_learns(spoken: list[Sentence], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.fit.BATCH_SIZE", 6)
    losses = [loss for _, loss, _ in train(spoken, 25, seed=0)]
    assert len(losses) == 25
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:3])


def test_rare_visemes_weigh_more(spoken: list[Sentence]) -> None:
    weights = class_weights(spoken)
    assert weights.shape == (len(VISEMES),)
    assert weights[VISEMES.index("TH")] > weights[VISEMES.index("sil")]
    assert weights.min() >= 0.5
    assert weights.max() <= 2.5


def test_sentences_come_back_from_disk(tmp_path, spoken: list[Sentence]) -> None:
    original = spoken[0]
    pcm = (original.samples * 32767).astype(np.int16)
    np.savez_compressed(tmp_path / "espeak-en-us_0003.npz", samples=pcm, labels=original.labels)
    (found,) = load(tmp_path)
    assert found.voice == "espeak-en-us"
    np.testing.assert_array_equal(found.labels, original.labels)
    np.testing.assert_allclose(found.samples, original.samples, atol=1e-4)
    with pytest.raises(FileNotFoundError, match="generate"):
        load(tmp_path / "nothing")


def test_bilabials_are_those_long_enough_and_inside_the_sentence() -> None:
    labels = np.full(100, VISEMES.index("aa"))
    for start, stop in ((0, 8), (30, 36), (50, 50 + CLOSURE_FRAMES - 1), (94, 100)):
        labels[start:stop] = VISEMES.index("PP")
    assert list(bilabials(labels)) == [(30, 36)]


def test_alignment_finds_labels_that_are_late() -> None:
    known = [clip.sentence for clip in clips()[:6]]
    late = [Sentence(entry.voice, entry.samples, np.roll(entry.labels, 4)) for entry in known]
    there, moved = offsets(known), offsets(late)
    assert abs(there[0]) < 0.02
    assert moved[0] == pytest.approx(there[0] - 0.04, abs=0.006)
    assert moved[1] == pytest.approx(there[1] - 0.04, abs=0.006)


def test_the_report_names_every_voice_and_sound() -> None:
    lines: list[str] = []
    report(VisemeNetwork.load(), [clip.sentence for clip in clips()[4:8]], lines.append)
    text = "\n".join(lines)
    assert "| flite-awb | 2 |" in text
    assert "| kokoro-jm_kumo | 2 |" in text
    assert "nan" not in text
    assert "silence" in text


def test_text_is_aligned_with_sound_pauses_allowed() -> None:
    sil, aa, pp = (VISEMES.index(name) for name in ("sil", "aa", "PP"))
    truth = np.array([sil] * 5 + [pp] * 3 + [aa] * 6 + [sil] * 4 + [pp] * 2 + [aa] * 4)
    certain = np.log(np.eye(len(VISEMES))[truth] * 0.9 + 0.005)
    likelihood, places = align(certain, [pp, aa, pp, aa])
    assert places.tolist() == [0] * 5 + [1] * 3 + [3] * 6 + [4] * 4 + [5] * 2 + [7] * 4
    assert likelihood == pytest.approx(np.log(0.905))
    wrong, _ = align(certain, [aa, pp, aa, pp])
    assert wrong < likelihood - 0.5


def test_a_known_sentence_fits_its_own_phonemes_best() -> None:
    network, known = VisemeNetwork.load(), [clip.sentence for clip in clips()[6:10]]
    orders = [
        [label for label, _ in groupby(entry.labels.tolist()) if label != VISEMES.index("sil")]
        for entry in known
    ]
    for number, entry in enumerate(known):
        fits = [judge(network, entry, order)[0] for order in orders]
        assert fits.index(max(fits)) == number
