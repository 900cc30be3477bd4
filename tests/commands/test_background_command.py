"""`generate --background`: each kind on the preview engine; what cannot be made is refused at once."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from PIL import Image

from avatar.batch.jobs import read_jobs
from avatar.cli import main
from avatar.errors import BadInput
from avatar.runtime.report import read_report
from avatar.settings import Picture
from tests.commands.surroundings import NO_GPU

PORTRAITS = Path(__file__).parents[2] / "assets" / "portraits"
FAST = ("--preset", "cpu-preview", "--size", "256*256")


@pytest.fixture
def asked(tmp_path, monkeypatch, machine) -> list[str]:
    """A portrait, a picture and half a second of sound in the current folder."""
    monkeypatch.chdir(tmp_path)
    machine(NO_GPU)
    with Image.open(PORTRAITS / "astronaut.jpg") as opened:
        opened.save("p.png")
    Image.new("RGB", (300, 200), (10, 20, 200)).save("sea.png")
    soundfile.write("s.wav", np.sin(np.arange(24_000) * 0.05).astype(np.float32) * 0.3, 48_000)
    return ["generate", "--image", "p.png", "--audio", "s.wav", *FAST]


def corner(video: str) -> np.ndarray:
    """The mean colour at the upper left, where there is no person."""
    with av.open(video) as container:
        return next(container.decode(video=0)).to_ndarray(format="rgb24")[:40, :40].mean((0, 1))


@pytest.mark.parametrize(
    ("background", "colour"),
    [("green", (0, 177, 64)), ("#204060", (32, 64, 96)), ("sea.png", (10, 20, 200)), ("blur", None)],
)
def test_another_background_is_in_the_video(background, colour, asked):
    assert main([*asked, "--background", background, "--output", "o.mp4"]) == 0
    assert main([*asked, "--output", "kept.mp4"]) == 0
    kept = corner("kept.mp4")
    if colour is None:
        assert np.abs(corner("o.mp4") - kept).max() < 12
    else:
        assert np.abs(corner("o.mp4") - colour).max() < 6
        assert np.abs(kept - colour).max() > 30
    assert read_report(Path("o.report.json")).num_frames == 13


@pytest.mark.parametrize(("output", "codec"), [("o.webm", "libvpx-vp9"), ("o.mov", "prores")])
def test_a_transparent_video_is_made_by_its_suffix(output, codec, asked):
    assert main([*asked, "--background", "transparent", "--output", output]) == 0
    with av.open(output) as container:
        decoder = av.CodecContext.create("libvpx-vp9", "r") if codec == "libvpx-vp9" else None
        packets = list(container.demux(video=0))
        frames = [one for packet in packets for one in (decoder or packet.stream).decode(packet)]
    assert len(frames) == 13
    alpha = frames[6].to_ndarray(format="rgba")[..., 3]
    assert alpha[:40, :40].max() < 4
    assert alpha[60, 110] > 250, "the face"
    made = {path.name for path in Path().iterdir()}
    assert made == {"p.png", "sea.png", "s.wav", output, "o.report.json", "o.thumb.jpg"}
    assert main([*asked, "--background", "transparent", "--output", output, "--resume"]) == 0
    assert main([*asked, "--background", "transparent", "--output", output]) == 0, "ours is replaced"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--background", "#12", "--output", "o.mp4"], "background is '#12': no colour, and no picture"),
        (["--background", "no.png", "--output", "o.mp4"], "background is 'no.png': no colour"),
        (["--background", "s.wav", "--output", "o.mp4"], "s.wav"),
        (["--background", "transparent", "--output", "o.mp4"], "o.mp4 cannot be transparent"),
        (["--output", "o.webm"], ".webm and .mov are for --background transparent"),
        (
            ["--background", "transparent", "--output", "o.webm", "--checkpoint_every", "2"],
            "A transparent video cannot be made in parts",
        ),
        (
            ["--image", str(PORTRAITS / "cactus.png"), "--background", "blur", "--output", "o.mp4"],
            "No person can be told from the background in cactus.png",
        ),
    ],
)
def test_what_cannot_be_made_is_refused_at_once(given, words, asked, engine, capsys):
    opened = engine()
    assert main([*asked, *given]) == 2
    assert words in capsys.readouterr().err.replace("\n", " ")
    assert opened == []
    assert sorted(path.name for path in Path().iterdir()) == ["p.png", "s.wav", "sea.png"]


def test_a_video_is_resumed_with_the_same_background_alone(asked, engine, capsys):
    engine()
    assert main([*asked, "--background", "sea.png", "--output", "o.mp4"]) == 0
    assert main([*asked, "--background", "sea.png", "--output", "o.mp4", "--resume"]) == 0
    capsys.readouterr()
    assert main([*asked, "--background", "green", "--output", "o.mp4", "--resume"]) == 2
    assert "the background is another" in capsys.readouterr().err
    Image.new("RGB", (300, 200), (200, 20, 10)).save("sea.png")
    assert main([*asked, "--background", "sea.png", "--output", "o.mp4", "--resume"]) == 2


def test_a_video_in_parts_has_the_background_in_all(asked, capsys):
    soundfile.write("s.wav", np.sin(np.arange(108_000) * 0.05).astype(np.float32) * 0.3, 48_000)
    assert main([*asked, "--background", "green", "--output", "o.mp4", "--checkpoint_every", "1"]) == 0
    with av.open("o.mp4") as container:
        frames = [one.to_ndarray(format="rgb24")[:40, :40] for one in container.decode(video=0)]
    assert len(frames) == 57
    assert max(np.abs(one.mean((0, 1)) - (0, 177, 64)).max() for one in frames) < 6


def test_in_a_list_of_jobs_a_picture_is_beside_the_list(asked, tmp_path):
    path = tmp_path / "more" / "jobs.toml"
    path.parent.mkdir()
    job = '[[job]]\nimage = "../p.png"\naudio = "../s.wav"\nbackground = '
    for value, wanted in (("../sea.png", str(path.parent / "../sea.png")), ("green", "green")):
        path.write_text(f'{job}"{value}"\n')
        assert read_jobs(path).entries[0].picture == Picture(background=wanted)
    path.write_text(f'{job}"sea.png"\n')
    with pytest.raises(BadInput, match=r"job 1.*background is 'sea.png': no colour"):
        read_jobs(path)
