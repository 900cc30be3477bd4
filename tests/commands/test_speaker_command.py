"""`generate --speaker`, --split, and batches: faces get their voices, and the report names them."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from avatar.batch.jobs import read_jobs
from avatar.cli import main
from avatar.errors import BadInput
from avatar.media.speech_reader import SpeechReader, write_speech
from avatar.runtime.report import read_report
from tests.commands.surroundings import H200, NO_GPU

sys.path.insert(0, str(Path(__file__).parents[1] / "preview"))
from pictures import portrait

FAST = ("--preset", "cpu-preview", "--size", "512*256", "--output", "o.mp4")


@pytest.fixture
def two(inputs: list[str]) -> list[str]:
    """Two people in one portrait, a.wav and b.wav for them, and talk.wav with both."""
    faces = [Image.fromarray(portrait(name)).resize((256, 256)) for name in ("astronaut", "mara")]
    Image.fromarray(np.concatenate([np.asarray(face) for face in faces], axis=1)).save("p.png")
    voices = [np.sin(np.arange(48_000) * step).astype(np.float32) * 0.3 for step in (0.03, 0.04)]
    for name, samples in zip("ab", voices):
        soundfile.write(f"{name}.wav", samples, 48_000)
    soundfile.write("talk.wav", np.stack(voices, axis=1), 48_000)
    return ["generate", "--image", "p.png", *FAST]


def heard(video: str) -> np.ndarray:
    """The sound of a video, int16 (n, channels)."""
    write_speech(Path(video), Path("heard.wav"))
    with SpeechReader(Path("heard.wav")) as reader:
        return reader.samples(0, reader.num_samples)


def test_two_recordings_make_one_video(two, machine, engine, capsys):
    engine()
    assert main([*two, "--speaker", "face=2,audio=a.wav", "--speaker", "face=1,audio=b.wav"]) == 0
    said = capsys.readouterr().err.replace("\n", " ")
    assert "Faces that speak in p.png, counted from the left: 2: a.wav; 1: b.wav." in said
    report = read_report(Path("o.report.json"))
    assert report.speech == "a.wav + b.wav"
    assert [(one.name, one.speaks, one.face[0] > 0.5) for one in report.speakers] == [
        ("a.wav", True, True),
        ("b.wav", True, False),
    ]
    sound = heard("o.mp4").astype(float) / 32768
    assert len(sound) == pytest.approx(48_000, abs=2000)
    spectrum = np.abs(np.fft.rfft(sound[:48_000, 0]))
    both = [spectrum[hz - 2 : hz + 3].max() for hz in (229, 306)]
    assert min(both) > 0.7 * max(both) == 0.7 * spectrum.max()


def test_a_video_is_named_after_portrait_and_recordings(two, machine, engine, capsys):
    engine()
    unnamed = [*two[:-2], "--speaker", "face=2,audio=a.wav", "--speaker", "face=1,audio=b.wav"]
    assert main(unnamed) == 0
    assert [path.name[:6] for path in Path("outputs").glob("*.mp4")] == ["p-a-b-"]


def test_one_recording_is_split(two, machine, engine, capsys):
    engine()
    assert main([*two, "--audio", "talk.wav", "--split", "stereo"]) == 0
    report = read_report(Path("o.report.json"))
    assert (report.speech, [one.name for one in report.speakers]) == ("talk.wav", ["left", "right"])
    Path("turns.txt").write_text("0 0.5 Ben\n0.5 1 Anna\n")
    flags = ("--split", "turns.txt", "--speaker", "face=1,label=Anna", "--speaker", "face=2,label=Ben")
    assert main([*two, "--audio", "talk.wav", *flags]) == 0
    assert [one.name for one in read_report(Path("o.report.json")).speakers] == ["Anna", "Ben"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--speaker", "face=1,audio=a.wav", "--speaker", "face=1,audio=b.wav"), "have the same face"),
        (("--speaker", "face=3,audio=a.wav"), "There is no face 3 in p.png"),
        (("--speaker", "face=1,audio=a.wav") * 5, "5 speakers were given, but 4 at most"),
        (("--speaker", "face=1,sound=a.wav"), "unknown key 'sound'"),
        (("--audio", "a.wav", "--split", "stereo"), "a.wav is mono"),
        (("--audio", "a.wav", "--split", "turns.txt"), "turns.txt, line 1: 'hello' is not start, end"),
        (("--split", "stereo"), "There is no recording to split"),
        (("--audio", "a.wav", "--speaker", "face=1,audio=b.wav"), "and a recording for all"),
        (("--text", "hi", "--speaker", "face=1,audio=b.wav"), "Both speech and a text are given"),
        (("--audio", "talk.wav", "--split", "stereo", "--face", "1"), "Several speakers and face exclude"),
    ],
)
def test_mistakes_are_named_before_anything_loads(flags, words, two, machine, engine, capsys):
    opened = engine()
    Path("turns.txt").write_text("hello\n")
    assert main([*two, *flags]) == 2
    assert words in capsys.readouterr().err.replace("\n", " ")
    assert (opened, Path("o.mp4").exists()) == ([], False)


def test_rows_that_do_not_fit_are_refused_by_the_plan(two, machine, engine, capsys):
    """Two GPUs alike, but for the memory that two more voices take."""
    from avatar.planning.planner import plan
    from avatar.preset import load_preset

    preset = load_preset("80gb")
    needed = plan(preset, H200, num_speakers=3).gpus[0].peak_bytes
    assert plan(preset, H200).gpus[0].peak_bytes < needed
    card = H200.gpus[0]
    usable = needed - 2**20
    machine(replace(H200, gpus=(replace(card, used_bytes=card.total_bytes - usable, free_bytes=usable),)))
    opened = engine()
    speakers = ("--speaker", "face=1,audio=a.wav", "--speaker", "face=2")
    ask = [*two[:3], "--preset", "80gb", "--output", "o.mp4", *speakers]
    assert main([*ask, "--speaker", "face=0.9,0.9"]) == 4
    assert "does not fit" in capsys.readouterr().err
    assert opened == []
    machine(NO_GPU)


def test_a_video_is_resumed_with_the_same_speakers_alone(two, machine, engine, capsys):
    engine()
    ask = [*two, "--speaker", "face=2,audio=a.wav", "--speaker"]
    assert main([*ask, "face=1,audio=b.wav"]) == 0
    assert main([*ask, "face=1,audio=b.wav", "--resume"]) == 0
    assert main([*ask, "face=1,audio=a.wav", "--resume"]) == 2
    assert "the speakers, their faces or their recordings are others" in capsys.readouterr().err


def test_lists_of_jobs_name_speakers(tmp_path):
    for name in ("a.png", "s.wav", "x.wav"):
        (tmp_path / name).write_bytes(b"x")
    jobs = tmp_path / "jobs.toml"
    jobs.write_text(
        '[[job]]\nimage = "a.png"\n'
        'speakers = [{face = 1, audio = "s.wav"}, {face = [0.5, 0.25], audio = "x.wav"}, "face=3"]\n'
        '[[job]]\nimage = "a.png"\naudio = "s.wav"\nsplit = "stereo"\nspeakers = [{face = 2}, {face = 1}]\n'
    )
    own, split = read_jobs(jobs).entries
    assert (own.name, own.audio) == ("a-s-x", None)
    assert own.speakers.files == (tmp_path / "s.wav", tmp_path / "x.wav")
    assert [one.face for one in own.speakers.speakers] == ["1", "0.500000,0.250000", "3"]
    assert [(one.face, one.label) for one in split.speakers.speakers] == [("2", "left"), ("1", "right")]
    assert own.job(tmp_path, NO_GPU, False).speakers == own.speakers
    listed = tmp_path / "jobs.csv"
    listed.write_text('image,speakers\na.png,"face=1,audio=s.wav; face=2,audio=x.wav"\n')
    assert read_jobs(listed).entries[0].speakers.files == own.speakers.files


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ('speakers = [{face = 1, sound = "s.wav"}]', "jobs.toml, job 1: speaker: unknown key 'sound'"),
        ('speakers = "face=1"', "jobs.toml, job 1: speakers is 'face=1'"),
        ('audio = "s.wav"\nsplit = "nothing.txt"', "jobs.toml, job 1: The list of turns nothing.txt"),
        ('text = "Hi"\nspeakers = [{face = 1, audio = "s.wav"}]', "job 1: speakers and text are given"),
        ('audio = "s.wav"\nsplit = "t.txt"', "job 1: t.txt, line 2: 'oh' is not start, end and speaker"),
    ],
)
def test_mistakes_in_lists_name_the_job(row, words, tmp_path):
    for name in ("a.png", "s.wav"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "t.txt").write_text("0 1 Anna\noh\n")
    jobs = tmp_path / "jobs.toml"
    jobs.write_text(f'[[job]]\nimage = "a.png"\n{row}\n')
    with pytest.raises(BadInput, match=words):
        read_jobs(jobs)
