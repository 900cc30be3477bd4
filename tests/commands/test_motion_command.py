"""`--motion` on the preview: videos, batches and reports; words that are none of it are refused."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from PIL import Image

from avatar.batch.jobs import read_jobs
from avatar.cli import main
from avatar.commands import live
from avatar.compare.cells import read_vary
from avatar.errors import BadInput
from avatar.runtime.report import read_report
from tests.commands.surroundings import NO_GPU

ASSETS = Path(__file__).parents[2] / "assets"
FAST = ("--preset", "cpu-preview", "--size", "256*256")


@pytest.fixture
def asked(tmp_path, monkeypatch, machine) -> list[str]:
    monkeypatch.chdir(tmp_path)
    machine(NO_GPU)
    with Image.open(ASSETS / "portraits" / "mara.png") as opened:
        opened.save("p.png")
    sound, rate = soundfile.read(ASSETS / "speech" / "hello-en.flac", stop=5 * 48_000)
    soundfile.write("s.wav", sound[: 5 * rate], rate)
    return ["generate", "--image", "p.png", "--audio", "s.wav", *FAST]


def frames(video: str) -> np.ndarray:
    with av.open(video) as container:
        return np.stack([one.to_ndarray(format="gray") for one in container.decode(video=0)]).astype(float)


def test_a_still_head_moves_less_in_the_video(asked):
    found = {}
    for motion in ("still", "normal", "lively"):
        assert main([*asked, "--motion", motion, "--output", f"{motion}.mp4"]) == 0
        assert read_report(Path(f"{motion}.report.json")).preset["generation"]["motion"] == motion
        hair = frames(f"{motion}.mp4")[:, 5:45, 90:170]  # well above the eyes
        found[motion] = (np.abs(hair - hair[0]) > 12).mean()
    assert found["still"] * 10 < found["normal"] < found["lively"], found


def test_normal_is_what_a_video_without_it_is(asked):
    assert main([*asked, "--output", "plain.mp4"]) == 0
    assert main([*asked, "--motion", "normal", "--output", "normal.mp4"]) == 0
    assert np.array_equal(frames("plain.mp4"), frames("normal.mp4"))


def test_another_word_is_refused_before_anything_loads(asked, capsys):
    assert main([*asked, "--motion", "wild", "--output", "o.mp4"]) == 2
    assert "still, calm, normal, lively" in capsys.readouterr().err
    assert not Path("o.mp4").exists()


def test_a_batch_and_a_comparison_take_it(asked, tmp_path):
    jobs = tmp_path / "jobs.toml"
    text = '[[job]]\nimage = "p.png"\naudio = "s.wav"\npreset = "cpu-preview"\nmotion = "{}"\n'
    jobs.write_text(text.format("calm"))
    [entry] = read_jobs(jobs).entries
    assert entry.job(tmp_path, NO_GPU, False).preset.generation.motion == "calm"
    jobs.write_text(text.format("wild"))
    [entry] = read_jobs(jobs).entries
    with pytest.raises(BadInput, match="still, calm, normal, lively"):
        entry.job(tmp_path, NO_GPU, False)
    assert [cell.settings["motion"] for cell in read_vary(["motion=still,lively"])] == ["still", "lively"]


def test_a_live_page_is_told_how_much_it_moves(asked, monkeypatch, capsys):
    begun = []

    def stop(command, **_):
        begun.extend(command)
        raise KeyboardInterrupt

    monkeypatch.setattr(live.subprocess, "Popen", stop)
    main(["live", "--image", "p.png", "--motion", "calm"])
    assert begun[begun.index("--live-motion") + 1] == "calm"
    begun.clear()
    assert main(["live", "--image", "p.png", "--motion", "wild"]) == 2
    assert "still, calm, normal, lively" in capsys.readouterr().err
    assert begun == []
