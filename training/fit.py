"""Train the viseme network on generated speech and save its weights for numpy.

    python -m training.fit DATA WEIGHTS.npz [--steps 2000] [--threads 2]

During training, it reports the share of frames with the correct viseme per held-out voice.
"""

import argparse
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avatar.preview.visemes import NUM_MELS, VISEMES, VisemeNetwork
from training.dataset import Batches
from training.sentences import Sentence, load

logger = logging.getLogger(__name__)

CHANNELS = 96
BATCH_SIZE = 48
PEAK_LEARNING_RATE = 3e-3
LABEL_SMOOTHING = 0.05
NORM_EPSILON = 1e-5


class TrainingNetwork(nn.Module):
    """`VisemeNetwork` with padding, batch normalisation and dropout for training."""

    def __init__(self) -> None:
        super().__init__()
        taps, width = VisemeNetwork.BLOCK_TAPS, VisemeNetwork.INPUT_TAPS
        self.input = nn.Conv1d(NUM_MELS, CHANNELS, width, padding=width // 2)
        self.blocks = nn.ModuleList(
            nn.Conv1d(CHANNELS, CHANNELS, taps, padding=taps // 2 * dilation, dilation=dilation)
            for dilation in VisemeNetwork.DILATIONS
        )
        self.norms = nn.ModuleList(nn.BatchNorm1d(CHANNELS, NORM_EPSILON) for _ in VisemeNetwork.DILATIONS)
        self.dropout = nn.Dropout(0.1)
        self.output = nn.Conv1d(CHANNELS, len(VISEMES), 1)

    def forward(self, mels: Tensor) -> Tensor:
        """Map log-mels (B, NUM_MELS, T) to logits (B, visemes, T)."""
        hidden = F.relu(self.input(mels))
        for block, norm in zip(self.blocks, self.norms, strict=True):
            hidden = hidden + self.dropout(F.relu(norm(block(hidden))))
        return self.output(hidden)

    def export(self) -> dict[str, np.ndarray]:
        """Return the weights by the names of `VisemeNetwork`, batch normalisation folded in, float16."""
        state = {name: value.double() for name, value in self.state_dict().items()}
        weights = {"input": state["input.weight"].permute(2, 1, 0), "input.bias": state["input.bias"]}
        for index in range(len(self.norms)):
            block, name = f"blocks.{index}", f"norms.{index}"
            gain = state[f"{name}.weight"] / torch.sqrt(state[f"{name}.running_var"] + NORM_EPSILON)
            weights[f"block{index}"] = (state[f"{block}.weight"] * gain[:, None, None]).permute(2, 1, 0)
            offset = (state[f"{block}.bias"] - state[f"{name}.running_mean"]) * gain
            weights[f"block{index}.bias"] = offset + state[f"{name}.bias"]
        weights["output"], weights["output.bias"] = state["output.weight"][:, :, 0].T, state["output.bias"]
        return {name: value.numpy().astype(np.float16) for name, value in weights.items()}


def class_weights(sentences: list[Sentence]) -> Tensor:
    """Return class weights, higher for rare visemes, from 0.5 to 2.5."""
    counts = np.bincount(np.concatenate([sentence.labels for sentence in sentences]), minlength=len(VISEMES))
    weights = (counts.sum() / np.maximum(counts, 1) / len(VISEMES)) ** 0.4
    return torch.from_numpy(weights).float().clamp(0.5, 2.5)


def accuracies(network: VisemeNetwork, sentences: list[Sentence]) -> dict[str, float]:
    """Return the share of frames whose most likely viseme is correct, by voice."""
    right: dict[str, list[float]] = {}
    for sentence in sentences:
        found = network.probabilities(sentence.listen, 0, len(sentence.labels), sentence.level).argmax(1)
        right.setdefault(sentence.voice, []).append(float((found == sentence.labels).mean()))
    return {voice: float(np.mean(shares)) for voice, shares in right.items()}


def train(training: list[Sentence], steps: int, seed: int) -> Iterator[tuple[int, float, TrainingNetwork]]:
    """Train for `steps` batches; yield the step, its loss and the network after every step."""
    torch.manual_seed(seed)
    network, weights = TrainingNetwork(), class_weights(training)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LEARNING_RATE, steps)
    batches = Batches(training, BATCH_SIZE, seed)
    for step in range(1, steps + 1):
        mels, labels = batches.draw()
        network.train()
        loss = F.cross_entropy(network(mels), labels, weight=weights, label_smoothing=LABEL_SMOOTHING)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        yield step, loss.item(), network


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder that training.generate filled")
    parser.add_argument("weights", type=Path, help=".npz to write")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--report-every", type=int, default=250, help="steps between reports and saved weights"
    )
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(arguments.threads)
    training, held_out = load(arguments.data / "train"), load(arguments.data / "held_out")
    minutes = sum(len(sentence.labels) for sentence in training) / 6000
    logger.info("%d sentences, %.0f minutes to train on", len(training), minutes)
    started = time.monotonic()
    for step, loss, network in train(training, arguments.steps, arguments.seed):
        if step % arguments.report_every == 0 or step == arguments.steps:
            weights = network.eval().export()
            np.savez_compressed(arguments.weights, allow_pickle=False, **weights)
            shares = accuracies(VisemeNetwork(weights), held_out[::4])
            report = ", ".join(f"{voice} {share:.3f}" for voice, share in shares.items())
            logger.info(
                "step %d, %.0f s, loss %.3f, right: %s", step, time.monotonic() - started, loss, report
            )


if __name__ == "__main__":
    main()
