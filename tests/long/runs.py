"""Long videos for the tests: engines in this process, and runs in processes that may be killed."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import soundfile
from PIL import Image

from avatar.events import Event
from avatar.long.job import Job
from avatar.media.sample_inputs import babble
from avatar.preset import Preset, load_preset
from avatar.request import Request
from avatar.runtime.engine import FrameSource
from avatar.runtime.stream import stream_frames


class Here:
    """An Engine without a process of its own."""

    def __init__(self, source: FrameSource) -> None:
        self.source = source
        self.asked: list[Request] = []
        self._cancelled = threading.Event()

    def stream(self, request: Request) -> Iterator[Event]:
        self.asked.append(request)
        self._cancelled.clear()
        yield from stream_frames(self.source, request, self._cancelled.is_set)

    def cancel(self) -> None:
        self._cancelled.set()

    def close(self) -> None:
        self.source.close()


def inputs(folder: Path, seconds: float, width: int = 96, height: int = 64) -> tuple[Path, Path]:
    """A portrait of smooth colours and babble of some seconds."""
    portrait, speech = folder / "me.png", folder / "words.wav"
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    Image.fromarray(np.stack([x, y, 255 - x], -1).astype(np.uint8)).save(portrait)
    soundfile.write(speech, babble(round(seconds * 16_000)), 16_000)
    return portrait, speech


def job(folder: Path, seconds: float = 6.0, output: str = "film.mp4", **more: object) -> Job:
    """Something to make in a folder, with the preview's preset unless another is given."""
    portrait, speech = inputs(folder, seconds)
    settings = {"preset": load_preset("cpu-preview"), "checkpoint_every": 1, **more}
    return Job(image=portrait, audio=speech, output=folder / output, **settings)  # type: ignore[arg-type]


def make(job: Job, work: Path, source: FrameSource) -> list[Event]:
    """Run a job to its end in this process."""
    work.mkdir(exist_ok=True)
    with job.opened(work) as opened:
        if opened.finished is not None:
            return []
        return list(opened.engine([Here(source)]).stream(opened.request))


def pictures(path: Path) -> np.ndarray:
    """All frames, uint8 (T, H, W, 3)."""
    with av.open(str(path)) as video:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)])


def packets(path: Path) -> list[tuple[int, int | None, bytes]]:
    """Every packet: stream, time, data."""
    with av.open(str(path)) as video:
        found = [
            (p.stream.index, p.pts, bytes(p)) for p in video.demux(video=0, audio=0) if p.dts is not None
        ]
    return sorted(found, key=lambda packet: packet[:2])


def run_diffusion(job: Job, work: Path, weights: Path) -> None:
    """A process of its own: the tiny model, on one thread."""
    import torch

    from avatar.pipeline.pipeline import DiffusionPipeline

    torch.set_num_threads(1)
    make(job, work, DiffusionPipeline(job.preset, weights))


def run_coloured(job: Job, work: Path, frame_s: float) -> None:
    """A process of its own: plain colours."""
    from tests.fixtures.sources import Coloured

    make(job, work, Coloured(frame_s=frame_s))


def killed_after(seconds: float, target: object, *arguments: object) -> bool:
    """Start a run in a process, kill it with SIGKILL so many seconds later; whether it had ended before."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.long.runs", "avatar.pipeline.pipeline"])
    process = context.Process(target=target, args=arguments)  # type: ignore[arg-type]
    process.start()
    process.join(seconds)
    ended = process.exitcode is not None
    process.kill()
    process.join()
    assert not ended or process.exitcode == 0
    return ended


SELF_TEST: Preset = load_preset("self-test")
