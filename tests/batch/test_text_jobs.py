"""Texts in a list of jobs."""

from __future__ import annotations

from pathlib import Path

import pytest

from avatar.batch.jobs import read_jobs
from avatar.errors import BadInput
from tests.long.runs import inputs


def read(folder: Path, text: str):
    inputs(folder, 1.0)
    (folder / "jobs.toml").write_text(text, encoding="utf-8")
    return read_jobs(folder / "jobs.toml").entries


def test_a_job_may_have_a_text_instead_of_audio(tmp_path: Path):
    (tmp_path / "words.txt").write_text("From a file.")
    one, two = read(
        tmp_path,
        '[defaults]\nimage = "me.png"\nvoice = "heart"\nspeed = 1\n'
        '[[job]]\ntext = "Hello."\ncaptions = "burned"\n[[job]]\nname = "two"\ntext_file = "words.txt"\n',
    )
    assert (one.name, one.audio, two.name) == ("me-text", None, "two")
    assert one.script is not None
    assert two.script is not None
    assert (one.script.text, one.script.speaking.captions) == ("Hello.", "burned")
    assert (two.script.text, two.script.speaking.captions) == ("From a file.", "file")


def test_a_table_may_have_a_column_of_texts(tmp_path: Path):
    inputs(tmp_path, 1.0)
    (tmp_path / "jobs.csv").write_text("name,image,text,speed\na,me.png,Hello there.,1.25\n")
    (entry,) = read_jobs(tmp_path / "jobs.csv").entries
    assert entry.script is not None
    assert (entry.script.text, entry.script.speaking.speed) == ("Hello there.", 1.25)


@pytest.mark.parametrize(
    ("job", "words"),
    [
        ('text = "Hi."\naudio = "words.wav"', "job 1: audio and text are given"),
        ('audio = "words.wav"\nvoice = "heart"', "job 1: voice is for a text"),
        ('text = "你好"', "job 1: The voice heart does not read Han"),
        ('text = "Hi."\nspeed = 9.0', "job 1: speed is 9.0"),
        ('text = "Hi."\nvoise = "heart"', "Did you mean 'voice'?"),
        ('text_file = "none.txt"', "job 1: The text none.txt does not exist"),
    ],
)
def test_what_is_wrong_with_a_text_names_its_job(tmp_path: Path, job: str, words: str):
    with pytest.raises(BadInput) as refused:
        read(tmp_path, f'[[job]]\nimage = "me.png"\n{job}\n')
    assert words in str(refused.value)
