"""Lists of jobs: TOML, CSV and folders say the same; whatever is wrong is told by its place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from avatar.batch.jobs import read_jobs
from avatar.errors import BadInput
from avatar.memory.inventory import probe

NO_GPU = replace(probe(), gpus=(), no_gpu_reason="No NVIDIA driver.")


@pytest.fixture
def files(tmp_path):
    for name in ("a.png", "b.jpg", "hello.wav", "bye.flac", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def write(folder: Path, text: str, name: str = "jobs.toml") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


TOML = """
[defaults]
preset = "cpu-preview"
seed = 3
[[job]]
name = "first"
image = "a.png"
audio = "hello.wav"
size = "128*128"
checkpoint_every = 60
head_only = true
[[job]]
image = "*.[pj]*g"
audio = ["hello.wav", "bye.flac"]
seed = 4
"""
CSV = """name,image,audio,preset,seed,size,checkpoint_every,head_only
first,a.png,hello.wav,cpu-preview,3,128*128,60,yes
,*.[pj]*g,hello.wav,cpu-preview,4,,,
,*.[pj]*g,bye.flac,cpu-preview,4,,,
"""


def test_toml_and_csv_say_the_same(files):
    by_toml = read_jobs(write(files, TOML))
    by_csv = read_jobs(write(files, CSV, "jobs.csv"))
    assert [entry.name for entry in by_toml] == ["first", "a-hello", "a-bye", "b-hello", "b-bye"]
    assert sorted(by_toml, key=lambda entry: entry.name) == sorted(by_csv, key=lambda entry: entry.name)
    job = by_toml[0].job(files / "out", NO_GPU, resume=True)
    assert (job.image, job.audio, job.output) == (
        files / "a.png",
        files / "hello.wav",
        files / "out/first.mp4",
    )
    assert (job.preset.name, job.preset.generation.seed, job.preset.generation.size) == (
        "cpu-preview",
        3,
        "128*128",
    )
    assert (job.checkpoint_every, job.head_only, job.resume, job.independent) == (60, True, True, False)
    assert by_toml[1].job(files, NO_GPU, resume=False).preset.generation.seed == 4


def test_a_folder_pairs_each_with_each_or_by_name(files):
    assert [entry.name for entry in read_jobs(files)] == ["a-bye", "a-hello", "b-bye", "b-hello"]
    (files / "a.wav").write_bytes(b"x")
    assert [(e.name, e.image.name, e.audio.name) for e in read_jobs(files)] == [("a", "a.png", "a.wav")]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            '[[job]]\nimage="a.png"\naudio="hello.wav"\nsead=3',
            "job 1: unknown key 'sead'. Did you mean 'seed'",
        ),
        ('[[job]]\nimage="a.png"\naudio="hello.wav"\nseed="3"', "seed is '3'"),
        ('[[job]]\nimage="a.png"\naudio="hello.wav"\nhead_only=1', "head_only is 1"),
        ('[[job]]\nimage=3\naudio="hello.wav"', "image is 3"),
        ('[[job]]\nimage="a.png"', "audio names no file"),
        ('[[job]]\nimage="*.gif"\naudio="hello.wav"', "image names no file"),
        ('[[job]]\nname="../x"\nimage="a.png"\naudio="hello.wav"', "cannot name a file"),
        ('[[job]]\nimage="a.png"\naudio="hello.wav"\n' * 2, "both make a-hello.mp4"),
        ("[[jobs]]\n", "no list of jobs"),
        ("job = 3", "no list of jobs"),
        ("[defaults]\nseed=1", "asks for no video"),
        ("[[job", "cannot be read"),
    ],
)
def test_what_is_wrong_in_toml_is_told(files, text, words):
    with pytest.raises(BadInput, match=words) as caught:
        read_jobs(write(files, text))
    assert str(files) not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("image,audio,seed\na.png,hello.wav,many\n", "line 2: seed is 'many'"),
        ("image,audio,independent\na.png,hello.wav,maybe\n", "independent is 'maybe'"),
        ("image,audio\na.png\n", "line 2: it has not as many cells"),
        ("image,audio,colour\na.png,hello.wav,red\n", "unknown key 'colour'"),
        ("image,audio\n", "asks for no video"),
    ],
)
def test_what_is_wrong_in_csv_is_told(files, text, words):
    with pytest.raises(BadInput, match=words):
        read_jobs(write(files, text, "jobs.csv"))


def test_other_files_are_no_lists(files):
    for name in ("notes.txt", "gone.toml", "gone.csv"):
        with pytest.raises(BadInput, match=name):
            read_jobs(files / name)


def test_what_an_engine_cannot_honour_is_refused_by_name(files):
    (entry,) = read_jobs(
        write(files, '[[job]]\nimage="a.png"\naudio="hello.wav"\npreset="cpu-preview"\nsample_steps=3')
    )
    with pytest.raises(BadInput, match="sample_steps"):
        entry.job(files, NO_GPU, resume=False)
