"""Who speaks: as flags, tables and lists of turns give it; whatever cannot be meant is refused in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from avatar.errors import BadInput
from avatar.media.speaker_choice import AskedSpeaker, AskedSpeakers, asked_speakers
from avatar.media.speaker_words import speaker_of, speaker_of_flag
from avatar.media.turns import Turn, check_within, parse_turns, read_turns
from avatar.settings import Speaking


@pytest.mark.parametrize(
    ("flag", "speaker"),
    [
        ("face=2,audio=anna.wav", AskedSpeaker("2", Path("anna.wav"))),
        ("face=0.3,0.4,audio=a, b.wav", AskedSpeaker("0.3,0.4", Path("a, b.wav"))),
        ("face=1, label=left", AskedSpeaker("1", label="left")),
        ("face=1", AskedSpeaker("1")),
        (
            "mask=0,0,0.5,1,face=1,audio=a.wav",
            AskedSpeaker("1", Path("a.wav"), mask=(0.0, 0.0, 0.5, 1.0)),
        ),
        ("mask=anna.png,audio=a.wav", AskedSpeaker("", Path("a.wav"), painted=Path("anna.png"))),
        ("face=2,mask=b, c.png", AskedSpeaker("2", painted=Path("b, c.png"))),
        (
            "face=1,text=Well, then: x=2, y = 3. See?,voice=emma,speed=1.2",
            AskedSpeaker("1", text="Well, then: x=2, y = 3. See?", voice="emma", speed=1.2),
        ),
    ],
)
def test_a_flag_names_face_and_voice(flag: str, speaker: AskedSpeaker) -> None:
    assert speaker_of_flag(flag) == speaker


def test_a_table_names_face_and_voice(tmp_path: Path) -> None:
    given = {"face": [0.25, 0.5], "audio": "a.wav", "mask": [0, 0, 1, 0.5]}
    asked = AskedSpeaker("0.250000,0.500000", tmp_path / "a.wav", mask=(0.0, 0.0, 1.0, 0.5))
    assert speaker_of(given, tmp_path) == asked
    painted = speaker_of({"mask": "m.png", "audio": "a.wav"}, tmp_path)
    assert painted == AskedSpeaker("", tmp_path / "a.wav", painted=tmp_path / "m.png")
    assert asked_speakers([painted], None, recording=False).files == (tmp_path / "a.wav", tmp_path / "m.png")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"face": 1, "sound": "a.wav"}, "speaker: unknown key 'sound'"),
        ({"face": 1, "adio": "a.wav"}, "unknown key 'adio'. Did you mean 'audio'"),
        ({"audio": "a.wav"}, "A speaker has no face"),
        ({"face": "left"}, "speaker: face is 'left'"),
        ({"face": 0}, "speaker: face is '0'"),
        ({"face": 1, "audio": 5}, "speaker: audio is 5"),
        ({"face": 1, "audio": ""}, "speaker: audio is ''"),
        ({"face": 1, "audio": "a.wav", "label": "left"}, r"has a recording \(audio\) and a label \(label\)"),
        ({"face": 1, "audio": "a.wav", "text": "Hi."}, r"has a recording \(audio\) and a text \(text\)"),
        ({"face": 1, "text": ["Hi."]}, r"speaker: text is \['Hi.'\]"),
        ({"face": 1, "text": "Hi.", "speed": "fast"}, "speaker: speed is 'fast'"),
        ({"face": 1, "text": "Hi.", "speed": 9}, "speaker: speed is 9"),
        ({"face": 1, "text": "Hi.", "voice": ""}, "speaker: voice is ''"),
        ({"mask": "a.png", "audio": "a.wav", "label": "b"}, "The speaker of a mask has a recording"),
        ({"face": 1, "mask": "0,0,1"}, "speaker: mask is '0,0,1'"),
        ({"face": 1, "mask": ""}, "speaker: mask is ''"),
        ({"face": 1, "mask": [0, 0, 2, 1]}, "speaker: mask is"),
        ({"face": 1, "mask": [0.5, 0, 0.5, 1]}, "speaker: mask is"),
        ({"face": 1, "mask": 7}, "speaker: mask is 7"),
        ({"face": 1, "mask": ["nan", 0, 1, 1]}, "speaker: mask is"),
    ],
)
def test_what_names_no_speaker_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        speaker_of(given)


@pytest.mark.parametrize("flag", ["anna.wav", "face=1,face=2", ""])
def test_a_flag_that_is_not_understood_is_refused(flag: str) -> None:
    with pytest.raises(BadInput, match=r"is not understood|has two of face"):
        speaker_of_flag(flag)


OWN = [AskedSpeaker("1", Path("a.wav")), AskedSpeaker("2", Path("b.wav"))]
FACES = [AskedSpeaker("2"), AskedSpeaker("1")]


@pytest.mark.parametrize(
    ("speakers", "split", "recording", "words"),
    [
        ([*OWN, *OWN, *OWN], None, False, "6 speakers were given, but 4 at most"),
        (OWN, None, True, "and a recording for all"),
        (FACES, None, False, "No speaker has a recording"),
        (FACES, None, True, "It is not said whose voices the recording holds"),
        ([AskedSpeaker("1", label="left")], None, True, "label 'left' is for one recording or text"),
        ([AskedSpeaker("1", Path("a.wav"), voice="heart")], None, False, "face 1 has a voice, but no text"),
        ([AskedSpeaker("1", text="Hi.")], None, True, "texts of their own, and a recording for all"),
        ([AskedSpeaker("1", text="Hi.")], "stereo", True, "a speaker has something of its own"),
        ([AskedSpeaker("1", voice="heart")], "stereo", True, "voice and speed are for a text"),
        ([], "names", True, "split names is for a text, not for a recording"),
        ([], "names", False, "There is no text to split"),
        (FACES, "stereo", False, "There is no recording to split"),
        (OWN, "stereo", True, "all voices come from one recording, but a speaker has"),
        ([AskedSpeaker("1", label="lft")], "stereo", True, "no voice 'lft'. Did you mean 'left'"),
        ([AskedSpeaker(face, label="left") for face in "12"], "stereo", True, "same voice, left"),
        ([], "none.txt", True, "list of turns none.txt does not exist"),
    ],
)
def test_speakers_that_do_not_go_together_are_refused(
    speakers: list[AskedSpeaker], split: str | None, recording: bool, words: str
) -> None:
    with pytest.raises(BadInput, match=f"^here: .*{words}"):
        asked_speakers(speakers, split, recording=recording, where="here: ")


def test_voices_go_to_faces_in_order(tmp_path: Path) -> None:
    assert asked_speakers([], None, recording=True) is None
    asked = asked_speakers([*FACES, AskedSpeaker("3")], "stereo", recording=True)
    assert [(one.face, one.label) for one in asked.speakers] == [("2", "left"), ("1", "right"), ("3", "")]
    assert asked_speakers(OWN, None, recording=False) == AskedSpeakers(tuple(OWN))
    turns = tmp_path / "turns.txt"
    turns.write_text("0 1 Ben\n1 2 Anna\n2 3 Ben\n")
    asked = asked_speakers([], str(turns), recording=True)
    assert (asked.labels, asked.num_speakers) == (("Ben", "Anna"), 2)


TALK = "Anna: Good morning.\nBen: Hello, Anna.\nAnna: At 10:30, then."


def test_the_names_in_a_text_go_to_faces_in_order() -> None:
    asked = asked_speakers([], "names", recording=False, text=TALK)
    assert (asked.labels, asked.num_speakers, asked.files) == (("Anna", "Ben"), 2, ())
    asked = asked_speakers([*FACES, AskedSpeaker("3")], "names", recording=False, text=TALK)
    assert [(one.face, one.label) for one in asked.speakers] == [("2", "Anna"), ("1", "Ben"), ("3", "")]
    assert asked.called("Ben") == AskedSpeaker("1", label="Ben")
    for speakers, text, words in (
        ([AskedSpeaker("1", label="An")], TALK, "no voice 'An'. Did you mean 'Anna'"),
        ([AskedSpeaker("1", text="Hi.")], TALK, "all voices come from one text, but"),
        ([], "".join(f"S{n}: Hi.\n" for n in range(5)), "The text names 5 speakers: S0, S1, S2, S3, S4."),
        ([], "Hello.", "The text, line 1: it is not said who speaks"),
    ):
        with pytest.raises(BadInput, match=words):
            asked_speakers(speakers, "names", recording=False, text=text)
    with pytest.raises(BadInput, match="There are several speakers, and one text for all"):
        asked_speakers(OWN, None, recording=False, text=TALK)


def test_a_digest_tells_texts_and_voices_apart() -> None:
    texts = [AskedSpeaker("1", text="Hi."), AskedSpeaker("2", text="Ho.")]
    asked = asked_speakers(texts, None, recording=False)
    others = (
        asked_speakers([texts[0], AskedSpeaker("2", text="Hm.")], None, recording=False),
        asked_speakers([texts[0], AskedSpeaker("2", text="Ho.", voice="emma")], None, recording=False),
        asked_speakers(texts, None, recording=False, speaking=Speaking(speed=1.1)),
        asked_speakers(texts[::-1], None, recording=False),
    )
    assert len({one.digest for one in (asked, *others)}) == 5
    assert asked.digest == asked_speakers(texts, None, recording=False).digest
    assert (asked.name, asked.stem, asked_speakers(OWN, None, recording=False).digest) == (
        "“Hi.” + “Ho.”",
        "text",
        "",
    )


def test_turns_are_read_as_they_are_written() -> None:
    rttm = "SPEAKER talk 1 0.5 2.0 <NA> <NA> spk_1 <NA> <NA>\n"
    for text in (
        "# a comment\nstart end speaker\n0.5 2.5 spk_1\n",
        "0.5\t2.5\tspk_1",
        "start,end,speaker\n0.5, 2.5, spk_1",
        "0:00.5;0:02.5;spk_1\n\n",
        rttm,
    ):
        (turn,) = parse_turns(text, "turns.txt")
        assert (turn.start_s, turn.end_s, turn.speaker) == (0.5, 2.5, "spk_1")
    (turn,) = parse_turns("1:00 1:00:01.5 Anna Maria", "turns.txt")
    assert turn == Turn(60.0, 3601.5, "Anna Maria", 1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0 1 Anna\n\n1 2\n", "turns.txt, line 3: '1 2' is not start, end and speaker"),
        ("0 1 Anna\none two Ben", "turns.txt, line 2: 'one two Ben'"),
        ("-1 2 Anna", "line 1: '-1 2 Anna'"),
        ("0 inf Anna", "line 1"),
        ("0 1 Anna\n3 2 Ben", "turns.txt, line 2: the turn ends before it begins"),
        ("1:2:3:4 9 Anna", "line 1"),
        (f"0 1 {'a' * 80}", "line 1: .* is no name of a speaker"),
        ("# nothing\n", "turns.txt holds no turns"),
    ],
)
def test_bad_lines_are_named_by_number(text: str, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        parse_turns(text, "turns.txt")


def test_turns_of_another_recording_are_refused() -> None:
    turns = parse_turns("0 1 Anna\n1 90 Ben\n95 99 Anna", "turns.txt")
    check_within(turns, 100.0, "turns.txt", "talk.wav")
    with pytest.raises(BadInput, match=r"turns.txt, line 3: it begins at 95 s, but talk.wav lasts 12.5 s"):
        check_within(turns, 12.5, "turns.txt", "talk.wav")


def test_a_list_of_turns_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "turns.rttm"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInput, match=r"turns.rttm cannot be read as text"):
        read_turns(path)


def test_too_many_voices_in_one_recording_are_named(tmp_path: Path) -> None:
    path = tmp_path / "turns.txt"
    path.write_text("".join(f"{n} {n + 1} s{n}\n" for n in range(5)))
    with pytest.raises(BadInput, match=r"turns.txt names 5 speakers: s0, s1, s2, s3, s4. 4 at most"):
        asked_speakers([], str(path), recording=True)
