"""Processes killed at random moments of a run on the page: the next run works, what was shown is kept."""

from __future__ import annotations

import json
import logging
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from gradio_client import Client, handle_file
from visiting import (
    ENGINE,
    PATIENCE_MS,
    PORTRAIT,
    Server,
    Visitor,
    processes,
    start_server,
    wait_until,
)

log = logging.getLogger(__name__)

NUM_KILLS = int(os.environ.get("AVATAR_TEST_KILLS", "2"))
LONGEST_S = 3.0  # from the press to the kill
RANK = "avatar.distributed.rank_process"
FRAME_S = 0.04
PLAYER_S = 0.1  # how far a player's clock may be ahead of the picture

Visit = Callable[..., Visitor]


def kill_one(server: Server, module: str) -> None:
    wait_until(lambda: processes(server, module), f"{module} runs")
    processes(server, module)[0].kill()


def shown_s(visitor: Visitor) -> float:
    """How many seconds of the current run have been played."""
    return float(visitor.page.evaluate("document.querySelector('#live video')?.currentTime ?? 0"))


def kept_s(server: Server, before: list[Path]) -> float:
    """The longest of the new videos."""
    new = [path for path in server.videos() if path not in before]
    return max(
        (json.loads((path.parent / "about.json").read_text())["duration_s"] for path in new), default=0
    )


def press_and_wait(visitor: Visitor, chance: random.Random) -> tuple[float, bool]:
    """Begin a run and wait a while; how much of it was shown, and whether Stop was pressed."""
    visitor.generate()
    visitor.wait_state("running", "waiting")
    if chance.random() < 0.7:  # otherwise possibly before anything is shown
        playing = "document.querySelector('#live video')?.currentTime > 0"
        over = "['failed', 'done'].includes(document.querySelector('#status .status').dataset.state)"
        visitor.page.wait_for_function(f"{playing} || {over}", timeout=3 * PATIENCE_MS)
    time.sleep(chance.uniform(0.0, LONGEST_S))
    shown, stops = shown_s(visitor), chance.random() < 0.4
    if stops and visitor.page.is_enabled("#stop"):
        visitor.page.click("#stop")
        time.sleep(chance.uniform(0.0, 0.05))
    return shown, stops


def make_whole(server: Server, speech: Path, preset: str) -> None:
    """Make another visitor's run from beginning to end."""
    client = Client(server.url, verbose=False)
    client.predict(handle_file(PORTRAIT), handle_file(speech), preset, api_name="/generate")


@pytest.mark.slow
@pytest.mark.parametrize("module", [ENGINE, RANK])
def test_a_process_killed_beneath_the_page(
    tmp_path: Path, visit: Visit, long_speech: Path, short_speech: Path, module: str, small_preset: str
):
    preset = small_preset if module == ENGINE else "self-test"
    server, chance = start_server(tmp_path, "--preset", preset), random.Random(7)
    try:
        visitor = visit(server.url)
        visitor.choose(speech=long_speech)
        for number in range(NUM_KILLS):
            before = server.videos()
            shown, stops = press_and_wait(visitor, chance)
            kill_one(server, module)
            if not stops and (module == RANK or chance.random() < 0.4):  # without ranks, a run goes on
                time.sleep(chance.uniform(0.0, 0.05 if module == ENGINE else LONGEST_S))
                if visitor.page.is_enabled("#stop"):
                    visitor.page.click("#stop", force=True)
            visitor.wait_state("failed", "stopped", "done")
            log.info("kill %d: %.2f s were shown, %.2f s kept", number, shown, kept_s(server, before))
            assert kept_s(server, before) >= shown - PLAYER_S
            make_whole(server, short_speech, "auto" if module == ENGINE else preset)
        assert server.process.poll() is None
        wait_until(lambda: not server.leftovers(), "temporary files are gone")
    finally:
        server.stop()


@pytest.mark.slow
def test_the_page_killed(
    tmp_path: Path, visit: Visit, long_speech: Path, short_speech: Path, small_preset: str
):
    server, chance = start_server(tmp_path, "--preset", small_preset), random.Random(8)
    try:
        for number in range((NUM_KILLS + 1) // 2):
            before, visitor = server.videos(), visit(server.url)
            visitor.choose(speech=long_speech)
            shown, _ = press_and_wait(visitor, chance)
            children = processes(server)
            server.process.kill()
            server.process.wait()
            visitor.page.close()
            server = start_server(tmp_path, "--preset", small_preset)
            _, left = psutil.wait_procs(children, timeout=40)
            assert not left, "the processes of a page that is gone are gone, too"
            visit(server.url).page.close()  # opening a page makes the gallery read its folder again
            wait_until(
                lambda server=server, before=before, shown=shown: kept_s(server, before) >= shown - PLAYER_S,
                "what was shown is kept",
            )
            log.info("kill %d: %.2f s were shown, %.2f s kept", number, shown, kept_s(server, before))
            make_whole(server, short_speech, "cpu-preview")
            assert not list(server.outputs.glob(".draft-*"))
    finally:
        server.stop()
