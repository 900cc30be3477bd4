"""The batch on a real local Ray cluster of several worker processes, some of which are killed."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import ray

from avatar.batch import ray_engine
from avatar.batch.ray_engine import RayEngine
from avatar.cli import main
from avatar.errors import AvatarError, Cancelled, WorkerLost
from avatar.events import Finished, PartDone, Progress
from avatar.preset import load_preset
from tests.fixtures.sources import Coloured
from tests.long.runs import Here, inputs, job, packets

PREVIEW = load_preset("cpu-preview")


class Deadly(Coloured):
    """Kills the worker that it runs for, so many times; a file in the folder stands for each."""

    def __init__(self, folder: str, times: int) -> None:
        super().__init__()
        self.marks = [Path(folder) / f"killed-{time}" for time in range(times)]

    def frames(self, request, cancelled):
        for number, frames in enumerate(super().frames(request, cancelled)):
            if number == 15 and request.first_frame in (0, 25):
                mark = next((mark for mark in self.marks if not mark.exists()), None)
                if mark is not None:
                    mark.touch()
                    os.kill(os.getppid(), signal.SIGKILL)
                    time.sleep(60)  # until this process goes the same way
            yield frames


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory):
    """Two workers; they find the tests' own sources as this process does; what killed ones leave goes too."""
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])
    environment = {"env_vars": {"TMPDIR": str(tmp_path_factory.mktemp("ray"))}}
    quiet = {"log_to_driver": False, "include_dashboard": False, "logging_level": "ERROR"}
    ray.init(num_cpus=2, runtime_env=environment, **quiet)
    yield
    ray.shutdown()


def make(job, work: Path, engines: list) -> list:
    work.mkdir()
    with job.opened(work) as opened:
        return list(opened.engine(engines).stream(opened.request))


@pytest.mark.slow
def test_a_clusters_parts_are_those_made_here_despite_kills(tmp_path, cluster):
    here = job(tmp_path, 4.0, "here.mp4")
    make(here, tmp_path / "w1", [Here(Coloured())])
    there = job(tmp_path, 4.0, "there.mp4")
    source = ("tests.batch.test_ray:Deadly", {"folder": str(tmp_path), "times": 2})
    events = make(there, tmp_path / "w2", [RayEngine(PREVIEW, source=source) for _ in range(2)])
    assert sorted(path.name for path in tmp_path.glob("killed-*")) == ["killed-0", "killed-1"]
    assert sorted(event.index for event in events if isinstance(event, PartDone)) == [0, 1, 2, 3]
    assert isinstance(events[-1], Finished)
    assert packets(there.output) == packets(here.output)


@pytest.mark.slow
def test_a_worker_lost_too_often_is_reported_and_the_rest_resumed(tmp_path, cluster, monkeypatch):
    monkeypatch.setattr(ray_engine, "MAX_RETRIES", 1)
    one = job(tmp_path, 4.0, resume=True)
    source = ("tests.batch.test_ray:Deadly", {"folder": str(tmp_path), "times": 2})
    with pytest.raises(WorkerLost, match="2 times"):
        make(one, tmp_path / "w1", [RayEngine(PREVIEW, source=source)])
    make(one, tmp_path / "w2", [RayEngine(PREVIEW, source=source)])
    whole = job(tmp_path, 4.0, "whole.mp4")
    make(whole, tmp_path / "w3", [Here(Coloured())])
    assert packets(one.output) == packets(whole.output)


def test_errors_come_back_in_their_own_words(tmp_path, cluster):
    engine = RayEngine(PREVIEW, source=("tests.fixtures.sources:Coloured", {"fault": "error", "at": 5}))
    with pytest.raises(AvatarError, match="The lamp went out"):
        make(job(tmp_path), tmp_path / "w", [engine])


def test_cancel_ends_the_task(tmp_path, cluster):
    engine = RayEngine(PREVIEW, source=("tests.fixtures.sources:Coloured", {"frame_s": 0.5}))
    (tmp_path / "w").mkdir()
    with job(tmp_path, checkpoint_every=None).opened(tmp_path / "w") as opened:
        stream = engine.stream(opened.request)
        assert isinstance(next(stream), Progress)
        engine.cancel()
        with pytest.raises(Cancelled):
            list(stream)


@pytest.mark.slow
def test_the_batch_runs_unchanged(tmp_path, cluster, monkeypatch, capsys):
    inputs(tmp_path, 2.0)
    (tmp_path / "jobs.toml").write_text(
        '[defaults]\npreset = "cpu-preview"\nimage = "me.png"\naudio = "words.wav"\nhead_only = true\n'
        'size = "64*64"\n[[job]]\nname = "long"\ncheckpoint_every = 1\n[[job]]\nname = "short"\n'
    )
    monkeypatch.chdir(tmp_path)
    assert main(["batch", "jobs.toml", "--output", "there", "--executor", "ray"]) == 0
    assert main(["batch", "jobs.toml", "--output", "here"]) == 0
    for name in ("long", "short"):
        assert packets(Path(f"there/{name}.mp4")) == packets(Path(f"here/{name}.mp4"))
