"""Lists of jobs: TOML, CSV and folders say the same; whatever is wrong is reported by its place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from avatar.batch.jobs import BatchJobs, read_jobs
from avatar.errors import BadInput
from avatar.hardware.inventory import probe
from avatar.media.portrait import PORTRAIT_SUFFIXES
from avatar.media.speech_reader import SPEECH_SUFFIXES

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
    by_toml = read_jobs(write(files, TOML)).entries
    by_csv = read_jobs(write(files, CSV, "jobs.csv")).entries
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


def made(wanted: BatchJobs) -> list[tuple[str, str, str]]:
    """Of each entry: its name, portrait and speech."""
    return [(entry.name, entry.image.name, entry.audio.name) for entry in wanted.entries]


def left(wanted: BatchJobs) -> set[str]:
    return {one.path.name for one in wanted.left_out}


def test_each_with_each_is_made_when_asked_for(files):
    with pytest.raises(
        BadInput, match="--each_with_each, which makes 4 videos of 2 portraits and 2 speeches"
    ):
        read_jobs(files)
    names = [entry.name for entry in read_jobs(files, all_with_all=True).entries]
    assert names == ["a-bye", "a-hello", "b-bye", "b-hello"]
    with pytest.raises(BadInput, match="is for a folder"):
        read_jobs(write(files, TOML), all_with_all=True)


def test_a_folder_pairs_by_name_and_tells_what_is_left(files):
    (files / "a.wav").write_bytes(b"x")
    wanted = read_jobs(files)
    assert made(wanted) == [("a", "a.png", "a.wav")]
    assert left(wanted) == {"b.jpg", "hello.wav", "bye.flac"}  # notes.txt is neither


@pytest.fixture
def friends(tmp_path):
    """Five pairs as people name them, and what systems and programs leave beside them."""
    names = [
        "Anna.PNG",
        "anna.wav",
        "bob.jpeg",
        "BOB.MP3",
        "Zoë.webp",
        "Zoe\u0308.m4a",
        "d [1].png",
        "d [1].ogg",
    ]
    names += ["eve.avif", "eve.aiff", "._Anna.PNG", "._anna.wav", ".DS_Store", "Thumbs.db", "anna.json"]
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def test_five_pairs_are_five_or_the_rest_is_listed(friends):
    wanted = read_jobs(friends)
    pairs = {image: audio for _, image, audio in made(wanted)}
    expected = {"Anna.PNG": "anna.wav", "bob.jpeg": "BOB.MP3", "Zoë.webp": "Zoe\u0308.m4a"}
    assert pairs.items() >= (expected | {"d [1].png": "d [1].ogg"}).items()
    if ".aiff" in SPEECH_SUFFIXES:
        assert pairs["eve.avif"] == "eve.aiff"
        assert left(wanted) == set()
    else:
        assert left(wanted) == {"eve.avif", "eve.aiff"}


def test_names_that_fit_several_are_refused(tmp_path):
    for name in ("a.png", "A.png", "a.wav", "b.png", "b.wav"):
        (tmp_path / name).write_bytes(b"x")
    wanted = read_jobs(tmp_path)  # exact names first
    assert made(wanted) == [("a", "a.png", "a.wav"), ("b", "b.png", "b.wav")]
    assert left(wanted) == {"A.png"}
    (tmp_path / "a.jpg").write_bytes(b"x")
    with pytest.raises(BadInput, match=r"belong together: A\.png, a\.jpg, a\.png, a\.wav"):
        read_jobs(tmp_path)


def test_files_that_cannot_be_read_are_left_out(tmp_path):
    for name in ("a.png", "a.wav", "b.bmp", "b.tif", "c.gif", "d.mid", "e.txt"):
        (tmp_path / name).write_bytes(b"x")
    wanted = read_jobs(tmp_path)
    assert made(wanted) == [("a", "a.png", "a.wav")]
    readable = {f"b{suffix}" for suffix in (".bmp", ".tif") if suffix in PORTRAIT_SUFFIXES}
    assert left(wanted) == {"b.bmp", "b.tif", "c.gif", "d.mid"}
    for one in wanted.left_out:
        wanted_words = (
            "without a speech file of its name" if one.path.name in readable else "cannot be read as"
        )
        assert wanted_words in one.why
    toml = write(tmp_path, '[[job]]\nimage=["*.gif", "*.png"]\naudio="a.wav"')
    assert left(read_jobs(toml)) == {"c.gif"}
    with pytest.raises(BadInput, match=r"image names no file\. c\.gif cannot be read as portrait"):
        read_jobs(write(tmp_path, '[[job]]\nimage="*.gif"\naudio="a.wav"'))


@pytest.mark.parametrize("text", ["x [1].png", "clips [a]/*.png", "clips [a]/y.png", "*.png", "x [[]1].png"])
def test_brackets_may_be_part_of_a_name(tmp_path, text):
    (tmp_path / "clips [a]").mkdir()
    for name in ("x [1].png", "s.wav", "clips [a]/y.png"):
        (tmp_path / name).write_bytes(b"x")
    entries = read_jobs(write(tmp_path, f'[[job]]\nimage="{text}"\naudio="s.wav"')).entries
    assert [entry.image.name for entry in entries] == ["y.png" if "clips" in text else "x [1].png"]


def test_patterns_leave_out_hidden_files(tmp_path):
    for name in ("x.png", "._x.png", "s.wav"):
        (tmp_path / name).write_bytes(b"x")
    entries = read_jobs(write(tmp_path, '[[job]]\nimage="*.png"\naudio="s.wav"')).entries
    assert [entry.image.name for entry in entries] == ["x.png"]


@pytest.mark.parametrize("first", ["", "sep=;\n", "\ufeff"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_of_any_spreadsheet_is_read(files, delimiter, first):
    if first.startswith("sep="):
        first = f"sep={delimiter}\n"
    seconds = "2,5" if delimiter != "," else "2.5"
    rows = [["image", "audio", "max_duration", "name"], ["a.png", "hello.wav", seconds, "x"]]
    text = first + "\n".join(delimiter.join(row) for row in [*rows, ["", "", "", ""]]) + "\n"
    (entry,) = read_jobs(write(files, text, "jobs.csv")).entries
    assert (entry.name, entry.options["max_duration"]) == ("x", 2.5)


def test_csv_of_another_encoding_is_reported(files):
    (files / "jobs.csv").write_bytes("image;audio\nMüller.png;hello.wav\n".encode("cp1252"))
    with pytest.raises(BadInput, match='Save it as "CSV UTF-8"'):
        read_jobs(files / "jobs.csv")


def test_long_names_are_cut_and_distinguished(tmp_path):
    for name in ("人" * 60 + "一.png", "人" * 60 + "二.png", "声" * 70 + ".wav"):
        (tmp_path / name).write_bytes(b"x")
    entries = read_jobs(tmp_path, all_with_all=True).entries
    names = {entry.name for entry in entries}
    assert len(names) == 2
    assert all(len(name.encode()) <= 160 and name.startswith("人" * 20) for name in names)
    with pytest.raises(BadInput, match="too long for a file"):
        read_jobs(write(tmp_path, f'[[job]]\nname="{"n" * 197}"\nimage="*一.png"\naudio="*.wav"'))


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
        ("[[jobs]]\n", "not a job list"),
        ("job = 3", "not a job list"),
        ("[defaults]\nseed=1", "contains no jobs"),
        ("[[job", "cannot be read"),
    ],
)
def test_what_is_wrong_in_toml_is_reported(files, text, words):
    with pytest.raises(BadInput, match=words) as caught:
        read_jobs(write(files, text))
    assert str(files) not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("image,audio,seed\na.png,hello.wav,many\n", "line 2: seed is 'many'"),
        ("image,audio,independent\na.png,hello.wav,maybe\n", "independent is 'maybe'"),
        ("image,audio\na.png\n", "line 2: it has a different number of cells"),
        ("image,audio,colour\na.png,hello.wav,red\n", "unknown key 'colour'"),
        ("image,audio\n", "contains no jobs"),
    ],
)
def test_what_is_wrong_in_csv_is_reported(files, text, words):
    with pytest.raises(BadInput, match=words):
        read_jobs(write(files, text, "jobs.csv"))


def test_other_files_are_no_lists(files):
    for name in ("notes.txt", "gone.toml", "gone.csv"):
        with pytest.raises(BadInput, match=name):
            read_jobs(files / name)


def test_what_an_engine_cannot_honour_is_refused_by_name(files):
    (entry,) = read_jobs(
        write(files, '[[job]]\nimage="a.png"\naudio="hello.wav"\npreset="cpu-preview"\nsample_steps=3')
    ).entries
    with pytest.raises(BadInput, match="sample_steps"):
        entry.job(files, NO_GPU, resume=False)
