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
        (("--text", "hi", "--speaker", "face=1,audio=b.wav"), "and one text for all"),
        (("--audio", "talk.wav", "--split", "stereo", "--face", "1"), "Several speakers and face exclude"),
    ],
)
def test_mistakes_are_named_before_anything_loads(flags, words, two, machine, engine, capsys):
    opened = engine()
    Path("turns.txt").write_text("hello\n")
    assert main([*two, *flags]) == 2
    assert words in capsys.readouterr().err.replace("\n", " ")
    assert (opened, Path("o.mp4").exists()) == ([], False)


TEXTS = (
    *("--speaker", "face=2,text=Good morning, Ben. How are you?"),
    *("--speaker", "face=1,text=Very well. Thank you.,speed=1.5"),
)
TALK = "Anna: Good morning, Ben.\nBen: Hello.\nAnna: It is late, at 10:30."


def turns_heard(video: str, *stretches: tuple[float, float]) -> list[bool]:
    """Whether there is sound in stretches of a video, in seconds."""
    sound = np.abs(heard(video)[:, 0].astype(int))
    return [bool(sound[round(a * 48_000) : round(b * 48_000)].max() > 500) for a, b in stretches]


def test_texts_are_spoken_one_after_another(two, machine, engine, capsys):
    engine()
    assert main([*two, *TEXTS, "--captions", "file"]) == 0
    told = " ".join(capsys.readouterr().err.split())
    assert "2: “Good morning, Ben. How are you?”; 1: “Very well. Thank you.”" in told
    assert "2 speakers have the same voice, heart: no other one is here" in told
    report = read_report(Path("o.report.json"))
    assert [(one.name, one.face[0] > 0.5) for one in report.speakers] == [
        ("“Good morning, Ben. How are you?”", True),
        ("“Very well. Thank you.”", False),
    ]
    said = Path("o.srt").read_text(encoding="utf-8")
    assert said.index("How are you?") < said.index("Very well.") < said.index("Thank you.")
    assert 3.0 < report.duration_s < 8.0
    assert turns_heard("o.mp4", (0.1, 1.0), (report.duration_s - 1.2, report.duration_s - 0.4)) == [True] * 2


def test_a_text_with_names_is_split_among_faces(two, machine, engine, capsys):
    engine()
    Path("talk.txt").write_text(TALK, encoding="utf-8")
    labels = ("--speaker", "face=2,label=Anna,speed=1.2", "--speaker", "face=1,label=Ben")
    assert main([*two, "--text_file", "talk.txt", "--split", "names", *labels]) == 0
    report = read_report(Path("o.report.json"))
    assert report.speech == "“Good morning, Ben. Hello. It is…”"
    assert [(one.name, one.face[0] > 0.5) for one in report.speakers] == [("Anna", True), ("Ben", False)]
    assert "It is late, at 10:30." in Path("o.srt").read_text(encoding="utf-8")
    assert "Anna" not in Path("o.srt").read_text(encoding="utf-8")


def test_a_text_and_a_recording_go_together(two, machine, engine, capsys):
    engine()
    both = ("--speaker", "face=1,audio=a.wav", "--speaker", "face=2,text=Good morning.,voice=heart")
    assert main([*two, *both]) == 0
    assert [one.name for one in read_report(Path("o.report.json")).speakers] == ["a.wav", "“Good morning.”"]
    assert [path.name[:7] for path in Path().glob("o.*")] != []


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((*TEXTS, "--text", "Hi."), "There are several speakers, and one text for all"),
        (("--text", "Hi.", "--split", "names"), "The text, line 1: it is not said who speaks"),
        (("--text", TALK, "--split", "names", "--audio", "a.wav"), "split names is for a text"),
        (("--split", "names"), "There is no text to split"),
        (("--text", f"{TALK}\nCleo: Hi.", "--split", "names"), "The text has 3 voices (Anna, Ben, Cleo)"),
        (("--speaker", "face=1,text=Hi.,voice=hart"), "There is no voice 'hart'. Did you mean 'heart'"),
        (("--speaker", "face=1,text=你好。"), "Speaker 1: The voice heart does not read Han"),
        (("--speaker", "face=1,text=Hi.", "--speaker", "face=5,text=Ho."), "There is no face 5 in p.png"),
        (("--speaker", "face=1,text=Hi.", "--framing", "head"), "Several speakers and framing exclude"),
        (("--speaker", "face=1,audio=a.wav", "--voice", "heart"), "voice is for a text"),
        (("--speaker", "face=1,audio=a.wav,voice=heart"), "face 1 has a voice, but no text"),
    ],
)
def test_texts_that_cannot_be_spoken_are_refused_unspoken(
    flags, words, two, machine, engine, capsys, monkeypatch
):
    def never(self, target):
        raise AssertionError("it is refused before anything is spoken")

    monkeypatch.setattr("avatar.speech.dialogue.Dialogue.write", never)
    opened = engine()
    assert main([*two, *flags]) == 2
    assert words in capsys.readouterr().err.replace("\n", " ")
    assert (opened, Path("o.mp4").exists()) == ([], False)


def test_a_dialogue_is_resumed_with_the_same_texts_alone(two, machine, engine, capsys):
    engine()
    assert main([*two, *TEXTS]) == 0
    before = Path("o.mp4").stat().st_mtime_ns
    assert main([*two, *TEXTS, "--resume"]) == 0
    assert Path("o.mp4").stat().st_mtime_ns == before
    assert main([*two, *TEXTS, "--speed", "1.1", "--resume"]) == 2
    assert "the speakers, their faces or their recordings are others" in capsys.readouterr().err


def test_a_painted_mask_chooses_its_face(two, machine, engine, capsys):
    engine()
    mask = Image.new("L", (512, 256))
    mask.paste(255, (256, 0, 512, 256))
    mask.save("right.png")
    painted = ("--speaker", "mask=right.png,audio=a.wav", "--speaker", "face=1,audio=b.wav")
    assert main([*two, *painted]) == 0
    told = " ".join(capsys.readouterr().err.split())
    assert "2: a.wav; 1: b.wav." in told
    assert "On the preview a mask only says which face speaks" in told
    report = read_report(Path("o.report.json"))
    assert [(one.mask, one.painted) for one in report.speakers] == [(None, False)] * 2
    assert main([*two[:3], *FAST[:2], "--output", "right.png", *painted]) == 2
    assert main([*two[:3], "--preset", "self-test", "--output", "s.mp4", *painted]) == 0
    report = read_report(Path("s.report.json"))
    assert [(one.mask, one.painted) for one in report.speakers] == [(None, True), (None, False)]


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
    jobs.write_text(
        '[[job]]\nimage = "a.png"\ncaptions = "off"\n'
        'speakers = [{face = 1, text = "Good morning.", voice = "heart"}, '
        '{face = 2, text = "Hi.", speed = 1.1}]\n'
        '[[job]]\nimage = "a.png"\nname = "talk"\ntext = "Anna: Hi.\\nBen: Ho."\nsplit = "names"\n'
        'speakers = [{face = 2, label = "Anna"}, {face = 1, label = "Ben"}]\n'
    )
    typed, talk = read_jobs(jobs).entries
    assert (typed.name, typed.audio, typed.script) == ("a-text", None, None)
    assert [(one.text, one.voice, one.speed) for one in typed.speakers.speakers] == [
        ("Good morning.", "heart", None),
        ("Hi.", "", 1.1),
    ]
    assert typed.speakers.speaking.captions == "off"
    assert [(line.speaker, line.text) for line in talk.speakers.dialogue] == [("Anna", "Hi."), ("Ben", "Ho.")]
    assert (talk.name, talk.audio, talk.script) == ("talk", None, None)
    listed = tmp_path / "jobs.csv"
    listed.write_text('image,speakers\na.png,"face=1,audio=s.wav; face=2,audio=x.wav"\n')
    assert read_jobs(listed).entries[0].speakers.files == own.speakers.files


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ('speakers = [{face = 1, sound = "s.wav"}]', "jobs.toml, job 1: speaker: unknown key 'sound'"),
        ('speakers = "face=1"', "jobs.toml, job 1: speakers is 'face=1'"),
        ('audio = "s.wav"\nsplit = "nothing.txt"', "jobs.toml, job 1: The list of turns nothing.txt"),
        ('text = "Hi"\nspeakers = [{face = 1, audio = "s.wav"}]', "job 1: There are several speakers, and"),
        ('speakers = [{face = 1, text = "你好。"}]', "job 1: Speaker 1: The voice heart does not read Han"),
        ('speakers = [{face = 1, text = "Hi.", voice = 3}]', "job 1: speaker: voice is 3"),
        ('text = "Hi."\nsplit = "names"', "job 1: The text, line 1: it is not said who speaks"),
        ('audio = "s.wav"\nsplit = "names"', "job 1: split names is for a text"),
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
