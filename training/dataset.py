"""Training batches: crops of the generated speech, augmented with other voices, rooms and microphones."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from avatar.geometry import SPEECH_HZ
from avatar.preview import visemes
from avatar.preview.visemes import HOP
from training.sentences import Sentence

# Share of each synthesiser in a batch: the natural voices have most, being closest to people's.
VOICE_SHARE = {"hibari": 0.28, "kokoro": 0.27, "espeak": 0.20, "flite-slt": 0.10, "flite-rms": 0.10,
               "flite-kal16": 0.05}  # fmt: skip
NEGATIVE_SHARE = 0.07  # noise, tones and clicks, labelled as silence
CROP_FRAMES = 240
CROP_RMS = 0.06  # of a whole crop with its pauses; about `visemes.NORMAL_RMS` during speech
FFT_SAMPLES = 49152  # fits a crop and 8000 samples of reverberation, and has small prime factors
REVERB_SAMPLES = 8000


class Batches:
    """Draws augmented batches, without limit. The same seed gives the same batches."""

    def __init__(self, sentences: list[Sentence], size: int, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._torch_rng = torch.Generator().manual_seed(seed)
        self._size = size
        self._labels = [sentence.labels for sentence in sentences]
        self._samples = [
            sentence.samples * np.float32(visemes.NORMAL_RMS / sentence.level) for sentence in sentences
        ]
        groups = [
            next(name for name in VOICE_SHARE if sentence.voice.startswith(name)) for sentence in sentences
        ]
        frames = np.array([len(sentence.labels) for sentence in sentences], np.float64)
        totals = {
            name: sum(frames[i] for i, group in enumerate(groups) if group == name) for name in set(groups)
        }
        weights = np.array([VOICE_SHARE[group] / totals[group] for group in groups]) * frames
        self._weights = weights / weights.sum()
        self._filters = torch.from_numpy(visemes.mel_filters())
        self._window = torch.from_numpy(np.hanning(visemes.WINDOW).astype(np.float32))

    def draw(self) -> tuple[Tensor, Tensor]:
        """Return log-mels (B, NUM_MELS, CROP_FRAMES) float32 and labels (B, CROP_FRAMES) int64."""
        chosen = self._rng.choice(len(self._samples), self._size, p=self._weights)
        crops = [self._crop(self._samples[i], self._labels[i]) for i in chosen]
        samples = np.stack([crop for crop, _ in crops])
        labels = np.stack([label for _, label in crops])
        for row in np.flatnonzero(self._rng.random(self._size) < NEGATIVE_SHARE):
            samples[row], labels[row] = self._negative(), visemes.VISEMES.index("sil")
        x = self._room(torch.from_numpy(samples))
        x = self._normalise(x) + self._noise()
        return self._log_mels(x * torch.exp(0.25 * self._normal(self._size, 1))), torch.from_numpy(labels)

    def _crop(self, samples: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Cut a random crop, mostly resampled faster or slower: pitch, formants and pace change together."""
        rate = np.exp(self._rng.uniform(np.log(0.8), np.log(1.3))) if self._rng.random() < 0.8 else 1.0
        length = int(CROP_FRAMES * HOP * rate) + 2
        samples = np.pad(samples, (0, max(0, length - len(samples))))
        start = int(self._rng.integers(0, len(samples) - length + 1))
        positions = np.arange(CROP_FRAMES * HOP) * rate
        crop = np.interp(positions, np.arange(length), samples[start : start + length]).astype(np.float32)
        frames = ((start + (np.arange(CROP_FRAMES) + 0.5) * HOP * rate) / HOP).astype(int)
        silence = visemes.VISEMES.index("sil")
        return crop, np.where(frames < len(labels), labels[np.minimum(frames, len(labels) - 1)], silence)

    def _negative(self) -> np.ndarray:
        """Make a crop without speech: noise, rumble, hum, plucked tones or clicks, rms `CROP_RMS`."""
        rng, count = self._rng, CROP_FRAMES * HOP
        t = np.arange(count) / SPEECH_HZ
        match rng.integers(4):
            case 0:
                x = rng.normal(0, 1, count)
            case 1:
                x = np.cumsum(rng.normal(0, 1, count))
                x -= np.convolve(x, np.ones(400) / 400, "same")
            case 2:
                x = np.zeros(count)
                for hz in np.exp(rng.uniform(np.log(45), np.log(2000), rng.integers(1, 6))):
                    decay = np.exp(-(t % rng.uniform(0.3, 2)) * rng.uniform(0, 4))
                    wave = np.sin(2 * np.pi * hz * t + rng.uniform(0, 2 * np.pi))
                    x += rng.uniform(0.2, 1) * decay * wave
            case _:
                x = rng.normal(0, 1, count) * np.exp(-(t % rng.uniform(0.2, 0.8)) * rng.uniform(5, 40))
        return (x / (x.std() + 1e-6) * CROP_RMS).astype(np.float32)

    def _room(self, x: Tensor) -> Tensor:
        """Filter each crop by a random microphone (tilt, band limits) and half of them by a room's echo."""
        rng, size, bins = self._rng, self._size, FFT_SAMPLES // 2 + 1
        hz = torch.linspace(0, SPEECH_HZ / 2, bins)
        points = torch.from_numpy(0.6 * rng.normal(0, 4, (size, 1, 7)).cumsum(-1)).float()
        decibels = F.interpolate(
            points - points.mean(-1, keepdim=True), bins, mode="linear", align_corners=True
        )[:, 0]
        for row in np.flatnonzero(rng.random(size) < 0.25):
            decibels[row] -= 60 * torch.sigmoid((hz - rng.uniform(3200, 6000)) / 150)
        for row in np.flatnonzero(rng.random(size) < 0.2):
            decibels[row] -= 40 * torch.sigmoid((rng.uniform(120, 350) - hz) / 40)
        spectrum = torch.fft.rfft(x, FFT_SAMPLES) * 10 ** (decibels / 20)
        rooms = torch.from_numpy(np.flatnonzero(rng.random(size) < 0.5))
        if len(rooms):
            spectrum[rooms] *= torch.fft.rfft(self._echoes(len(rooms)), FFT_SAMPLES)
        return torch.fft.irfft(spectrum, FFT_SAMPLES)[:, : x.shape[1]]

    def _echoes(self, count: int) -> Tensor:
        """Make impulse responses of rooms that reverberate for 0.1 to 0.6 s, (count, REVERB_SAMPLES)."""
        t = torch.arange(REVERB_SAMPLES) / SPEECH_HZ
        decay_s = torch.from_numpy(self._rng.uniform(0.1, 0.6, (count, 1))).float()
        gain = torch.from_numpy(self._rng.uniform(0.01, 0.09, (count, 1))).float()
        response = self._normal(count, REVERB_SAMPLES) * torch.exp(-6.9 * t / decay_s) * gain
        response[:, t <= 0.002] = 0
        response[:, 0] = 1
        return response

    def _noise(self) -> Tensor:
        """Make background noise per crop, white or (mostly) falling with frequency, 60 to 12 dB below it."""
        x = self._normal(self._size, CROP_FRAMES * HOP)
        if self._rng.random() < 0.6:
            spectrum = torch.fft.rfft(x)
            x = torch.fft.irfft(spectrum / torch.sqrt(torch.linspace(1, 400, spectrum.shape[1])), x.shape[1])
        decibels = self._rng.choice([-60, -40, -30, -20, -12], self._size, p=[0.3, 0.2, 0.2, 0.2, 0.1])
        gain = 10 ** ((decibels + self._rng.uniform(-3, 3, self._size)) / 20)
        return self._normalise(x) * torch.from_numpy(gain).float()[:, None]

    @staticmethod
    def _normalise(x: Tensor) -> Tensor:
        return x / (x.square().mean(1, keepdim=True).sqrt() + 1e-4) * CROP_RMS

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self._torch_rng)

    def _log_mels(self, x: Tensor) -> Tensor:
        """Compute `visemes.log_mels` of a batch, padded with silence, (B, NUM_MELS, CROP_FRAMES)."""
        before = visemes.WINDOW // 2 - HOP // 2
        windows = (
            F.pad(x, (before, visemes.WINDOW)).unfold(1, visemes.WINDOW, HOP)[:, :CROP_FRAMES] * self._window
        )
        power = torch.fft.rfft(windows, visemes.FFT_SIZE).abs().square() @ self._filters
        return (torch.log(power + visemes.POWER_FLOOR) * visemes.LOG_SCALE).transpose(1, 2)
