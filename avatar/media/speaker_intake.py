"""Several speakers' voices, written as WAVs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from math import log10
from pathlib import Path

from avatar.errors import BadInput
from avatar.events import Notice
from avatar.geometry import SOUND_HZ
from avatar.media.files import display_name
from avatar.media.limits import InputLimits
from avatar.media.readers import Reader
from avatar.media.speaker_choice import HOW_TO_NAME, STEREO, AskedSpeakers
from avatar.media.speaker_places import PlacedSpeakers
from avatar.media.speech_reader import Speech, SpeechReader
from avatar.media.turns import check_within
from avatar.media.voice_tracks import mix, split_channels, split_turns
from avatar.request import Speaker

SPEECH = "speech.wav"  # in a run's folder


@dataclass(frozen=True)
class WrittenVoices:
    """What is heard of all, as the request's speech, and the speakers with their voices' files."""

    speech: Speech
    speakers: tuple[Speaker, ...] = ()
    notices: tuple[Notice, ...] = field(default_factory=tuple)


def write_voices(
    placed: PlacedSpeakers | None,
    recording: Path | None,
    name: str,
    work: Path,
    *,
    reader: Reader,
    limits: InputLimits,
    undo: ExitStack,
) -> WrittenVoices:
    """Write each voice, and what is heard of all as SPEECH, into work; removed again by undo.

    placed: None for a single speaker. recording: that speaker's, or the one that is split; None where each
    has one. name: of what is heard. Raises: BadInput, OSError.
    """
    speech = work / SPEECH
    undo.callback(speech.unlink, missing_ok=True)
    if placed is None:
        assert recording is not None, "a single speaker has one"
        return WrittenVoices(reader.speech(recording, speech, name=name, limits=limits))
    targets = [None if not one.name else work / f"voice-{n}.wav" for n, one in enumerate(placed.speakers, 1)]
    for path in targets:
        if path is not None:
            undo.callback(path.unlink, missing_ok=True)
    speakers = tuple(replace(one, voice=target) for one, target in zip(placed.speakers, targets, strict=True))
    if not placed.asked.split:
        return _mixed(placed, speakers, speech, reader, limits)
    assert recording is not None, "asked_speakers has looked"
    heard = reader.speech(recording, speech, name=name, limits=limits)
    _split(placed.asked, targets, heard, speech, name, limits)
    return WrittenVoices(heard, speakers, (*placed.notices, *_unseen(placed, name)))


def _unseen(placed: PlacedSpeakers, name: str) -> list[Notice]:
    """That voices of the recording, whose name this is, belong to no face."""
    said = [one.name for one in placed.speakers]
    unseen = ", ".join(label for label in placed.asked.labels if label not in said)
    if not unseen:
        return []
    text = f"{unseen} in {name} will be heard, but no face says it."
    return [Notice("speakers_unseen", text, "warning", values={"who": unseen, "name": name})]


def _mixed(
    placed: PlacedSpeakers, speakers: Sequence[Speaker], target: Path, reader: Reader, limits: InputLimits
) -> WrittenVoices:
    notices = list(placed.notices)
    heard: list[Speech] = []
    for one, speaker in zip(placed.asked.speakers, speakers, strict=True):
        if one.audio is not None:
            assert speaker.voice is not None
            heard.append(reader.speech(one.audio, speaker.voice, name=one.name, limits=limits))
            notices += [notice for notice in heard[-1].notices if notice not in notices]
    gain = mix([one.voice for one in speakers if one.voice is not None], target)
    if gain < 1:
        change = f"{-20 * log10(gain):.1f}"
        text = f"Together the recordings are louder than full scale; all were made quieter by {change} dB."
        notices.append(Notice("mix_quieter", text, values={"change": change}))
    with SpeechReader(target) as mixed:
        speech = replace(
            max(heard, key=lambda one: one.num_samples), notices=(), num_channels=mixed.num_channels
        )
    return WrittenVoices(speech, tuple(speakers), tuple(notices))


def _split(
    asked: AskedSpeakers,
    targets: Sequence[Path | None],
    heard: Speech,
    recording: Path,
    name: str,
    limits: InputLimits,
) -> None:
    """Write the voices of one canonical recording. Raises: BadInput."""
    by_label = {one.label: target for one, target in zip(asked.speakers, targets, strict=True)}
    if asked.split == STEREO:
        if heard.channels > 2 or (heard.channels == 2 and heard.num_channels == 1):
            what = "too long" if heard.channels == 2 else f"a recording of {heard.channels} channels"
            raise BadInput(
                f"{name} is {what}: it cannot be split in left and right.",
                f"Give each face a recording of its own. {HOW_TO_NAME}",
            )
        sides = [by_label.get(side) for side in asked.labels]
        split_channels(recording, sides, name, limits.silence_dbfs)
        return
    check_within(asked.turns, heard.num_samples / SOUND_HZ, display_name(asked.split), name)
    for label, target in by_label.items():
        if target is not None:
            split_turns(recording, asked.turns, label, target)
