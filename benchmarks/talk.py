"""A conversation as its user sees and hears it: the delay of the mirror, of answers, and of cutting in.

    python -m benchmarks.talk --rounds 8 --hear-model FOLDER --output talk.json

A local server with the real voice detection, recogniser, voice and preview engine, and a chat that answers at
once. A client speaks into it as a microphone would, over both transports in turn; server and client share the
machine's cores. The mouth is measured afterwards, in the pictures that came.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from avatar.geometry import FPS
from avatar.measures.face_track import follow
from benchmarks.talk_client import Client, Spoken, session
from tests.fixtures.server import Server, start_server
from tests.fixtures.speech_services import SpeechServices

log = logging.getLogger("talk")

QUESTION, INTERRUPTION = "Hello, how are you today?", "Wait, please stop, I have another question."
ANSWER = "I am fine, thank you for asking. What would you like to talk about?"
LONG = "This sentence goes on and on, so that there is something to interrupt. " * 6
OPEN_GAP = 0.012  # between the lips, in face heights, beyond the gap of the closed mouth
STILL_S = 0.3  # a mouth that stays closed for this long has closed
TRANSPORTS = ("websocket", "webrtc")


@dataclass
class Round:
    """What one round measured, in seconds, and its pictures, in which the mouth is looked for later.

    quiet_until: the mouth is closed before. since: from when on the mouth matters, and its figure counts.
    """

    figures: dict[str, float]
    pictures: list[tuple[float, np.ndarray]]
    quiet_until: float
    since: float


async def answer_round(client: Client, question: Spoken) -> Round:
    """The delay of one answer from the end of the user's sentence, and its parts."""
    await client.quiet()
    client.pictures, client.wants_pictures = [], True
    asked_at = time.monotonic()
    _, ends = client.microphone.say(question)
    ended = await ends
    detected, _ = await client.event("hearing", ended, on=False)
    _, answering = await client.event("answering", asked_at)
    _, said = await client.event("said", asked_at, who="avatar")
    sound = await client.sound(detected)
    await asyncio.sleep(0.8)
    client.wants_pictures = False
    parts = {
        "vad_s": detected - ended,
        "recognition_s": answering["recognition_s"],
        "chat_s": answering["chat_s"],
        "voice_s": said["voice_s"],
        "engine_s": client.engine_ms / 1e3,
    }
    total = sound - ended
    parts["transport_and_queues_s"] = total - sum(parts.values())
    return Round({"first_sound_s": total, **parts}, client.pictures, detected, ended)


async def mirror_round(client: Client, words: Spoken) -> Round:
    """The delay of one sentence in the mirror, from its first audible sample."""
    await client.quiet()
    client.pictures, client.wants_pictures = [], True
    await asyncio.sleep(0.5)
    begins, ends = client.microphone.say(words)
    began = await begins
    sound = await client.sound(began)
    await ends
    client.wants_pictures = False
    return Round({"sound_s": sound - began}, client.pictures, began, began)


async def barge_in_round(client: Client, interruption: Spoken) -> Round:
    """How long the portrait goes on after the user begins to speak over it."""
    await client.quiet()
    asked_at = time.monotonic()
    client.pictures, client.wants_pictures = [], True
    await asyncio.sleep(0.5)
    still_until = time.monotonic()
    await client.send(type="say", text=LONG)
    began = await client.sound(asked_at)
    await asyncio.sleep(2 - (time.monotonic() - began))
    begins, ends = client.microphone.say(interruption)
    cut_at = await begins
    detected, _ = await client.event("interrupted", asked_at)
    await ends
    client.wants_pictures = False
    last = max((at for at in client.loud if at < detected + 1.2), default=cut_at)
    figures = {"detected_s": detected - cut_at, "silence_s": max(0.0, last - cut_at)}
    return Round(figures, client.pictures, still_until, cut_at)


def moving_mouth_s(one: Round) -> float:
    """When the mouth opens for the answer; NaN if it is not seen to."""
    return next(
        (at - one.since for at, is_open in mouth(one) if is_open and at > one.quiet_until), float("nan")
    )


def closed_mouth_s(one: Round) -> float:
    """When the mouth has closed after an interruption, and stays closed; NaN if it is not seen to."""
    shown = [(at, is_open) for at, is_open in mouth(one) if at > one.since]
    for number, (at, is_open) in enumerate(shown):
        if not is_open and not any(later for when, later in shown[number:] if when < at + STILL_S):
            return at - one.since
    return float("nan")


def mouth(one: Round) -> list[tuple[float, bool]]:
    """When each picture came, and whether its mouth is open: more than it ever was while it was quiet.

    Empty where no face was seen by then.
    """
    gaps = follow(one.pictures).signals["gap"]
    times = np.array([at for at, _ in one.pictures])
    before = gaps[times <= one.quiet_until]
    if not np.isfinite(before).any():
        return []
    closed = float(np.nanmax(before))
    return [(float(at), bool(gap > closed + OPEN_GAP)) for at, gap in zip(times, gaps)]


def summed_up(rounds: Sequence[dict[str, float]]) -> dict[str, dict[str, float]]:
    """The median, the 95th percentile and the largest of each figure."""
    names = rounds[0] if rounds else {}
    return {
        name: {
            "median": round(float(np.median(known)), 3),
            "p95": round(float(np.percentile(known, 95)), 3),
            "largest": round(max(known), 3),
            "count": len(known),
        }
        for name in names
        if (known := [one[name] for one in rounds if np.isfinite(one[name])])
    }


async def rounds(one: Callable[[], Awaitable[Round]], count: int) -> tuple[list[Round], int]:
    """So many rounds, and how many of them were lost because a machine that is too busy left sound out."""
    done: list[Round] = []
    for _ in range(count):
        try:
            done.append(await one())
        except TimeoutError as error:
            log.warning("a round is lost: %s", error)
    return done, count - len(done)


async def measured(server: Server, transport: str, num_rounds: int) -> dict[str, Any]:
    """All figures over one transport."""
    question, interruption = Spoken.of(QUESTION), Spoken.of(INTERRUPTION)
    async with session(server, transport) as client:
        await answer_round(client, question)  # not counted: models load, caches fill
        answers, lost = await rounds(partial(answer_round, client, question), num_rounds)
        cuts, lost_cuts = await rounds(partial(barge_in_round, client, interruption), num_rounds)
        heard = [event["text"] for _, event in client.events if event.get("who") == "you"]
        await client.send(type="mode", mode="mirror")
        mirrored, lost_mirrored = await rounds(partial(mirror_round, client, question), num_rounds)
    for one in mirrored:
        one.figures["mouth_opens_s"] = moving_mouth_s(one)
    for one in answers:
        one.figures["moving_mouth_s"] = moving_mouth_s(one)
    for one in cuts:
        one.figures["closed_mouth_s"] = closed_mouth_s(one)
    found = {
        "answer": summed_up([one.figures for one in answers]),
        "barge_in": summed_up([one.figures for one in cuts]),
        "mirror": summed_up([one.figures for one in mirrored]),
        "heard": sorted(set(heard)),
        "lost_rounds": lost + lost_cuts + lost_mirrored,
    }
    log.info("%s\n%s", transport, json.dumps(found, indent=1))
    return found


def main() -> None:
    """Measure both transports, and write the results as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=8, help="answers and interruptions over each transport")
    parser.add_argument("--hear-model", default="tiny.en", help="faster-whisper's model, or its folder")
    parser.add_argument("--output", type=Path, help="a JSON file")
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    log.setLevel(logging.INFO)
    chat = SpeechServices(*(f"{word} " for word in ANSWER.split()))
    load = [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory() as folder:
        options = ("--chat-url", chat.url, "--hear-model", args.hear_model)
        server = start_server(Path(folder), "--preset", "cpu-preview", *options)
        try:
            time.sleep(5)  # lets the engine's subprocess, started with the page, get ready
            found = {one: asyncio.run(measured(server, one, args.rounds)) for one in TRANSPORTS}
        finally:
            server.stop()
            chat.close()
    load.append(os.getloadavg()[0])
    result = {
        "measured": "seconds; answer: from the user's last audible sample; barge_in, mirror: from the first",
        "rounds": args.rounds,
        "cores": os.cpu_count(),
        "load_before_and_after": [round(one, 1) for one in load],
        "fps": FPS,
        **found,
    }
    if args.output is not None:
        args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
