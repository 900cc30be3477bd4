"""What a visitor of the page waits for, in a real Chromium on the server's own machine.

    python -m benchmarks.page --rounds 8 --output page.json

A text of five seconds until its video plays; Go live until the portrait is seen; a closed tab until the
engine is the next visitor's.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np
from playwright.sync_api import Browser, Page, sync_playwright

from avatar.geometry import FPS
from tests.browser.visiting import CHROMIUM, CHROMIUM_ARGUMENTS, PATIENCE_MS, Contexts, Visitor, open_page
from tests.fixtures.server import ROOT, Server, start_server

log = logging.getLogger("page")

PORTRAIT = ROOT / "assets" / "portraits" / "mara.png"
TEXT = "Hello there, this is a text of about five seconds. The video begins to play quite soon."
# When something is first true after a press, by the page's own clock.
STOPWATCH = """([selector, shown]) => new Promise((done) => {
    const begin = performance.now(), until = new Function(`return ${shown}`);
    document.querySelector(selector).click();
    const look = () => until() ? done((performance.now() - begin) / 1000) : setTimeout(look, 5);
    look();
})"""
PLAYS = "document.querySelector('#live video')?.currentTime > 0"
IS_SEEN = "document.querySelector('#live-video')?.getVideoPlaybackQuality().totalVideoFrames > 0"


@contextmanager
def visited(browser: Browser, url: str) -> Iterator[Visitor]:
    """The page with a portrait chosen, for a visitor whose browser has nothing of it in its cache."""
    with open_page(Contexts(browser), url) as visitor:
        visitor.page.set_input_files("#portrait input[type=file]", PORTRAIT)
        visitor.page.wait_for_selector("#portrait img")
        yield visitor


def seconds_until(page: Page, selector: str, shown: str) -> float:
    """From a press of the button until what is to be shown is."""
    return float(page.evaluate(STOPWATCH, [selector, shown]))


def typed_round(server: Server, browser: Browser) -> dict[str, float]:
    """A typed text: until the first frame plays, and the finished file's length."""
    before = server.videos()
    with visited(browser, server.url) as visitor:
        page = visitor.page
        page.get_by_role("tab", name="Type").click()
        page.fill("#text textarea", TEXT)
        page.wait_for_selector("#generate:enabled")
        first_s = seconds_until(page, "#generate", PLAYS)
        visitor.wait_state("done")
    [video] = [path for path in server.videos() if path not in before]
    with av.open(str(video)) as movie:
        num_frames = len(list(movie.decode(video=0)))
    with av.open(str(video)) as movie:
        sound_s = sum(frame.samples / frame.sample_rate for frame in movie.decode(audio=0))
    return {"first_frame_s": first_s, "video_s": num_frames / FPS, "sound_s": sound_s}


def live_round(server: Server, browser: Browser) -> dict[str, float]:
    """Go live until the portrait is seen; then the tab is closed, and the next visitor's session begins."""
    url = f"{server.url}/?live"
    with visited(browser, url) as first, visited(browser, url) as second:
        for visitor in (first, second):
            visitor.page.click('[data-mode="type"]')
        seen_s = seconds_until(first.page, ".live-go", IS_SEEN)
        second.page.click(".live-go")
        place = "document.querySelector('.live-state').textContent.includes('number 1')"
        second.page.wait_for_function(place, timeout=PATIENCE_MS)
        closed_at = time.monotonic()
        first.page.close(run_before_unload=True)
        second.page.wait_for_function(f"!({place})", timeout=PATIENCE_MS, polling=20)
        free_s = time.monotonic() - closed_at
        second.page.wait_for_function(IS_SEEN, timeout=PATIENCE_MS)
        second.page.click(".live-go")
        second.page.wait_for_function("!window.liveSession.token")
    return {"go_live_s": seen_s, "engine_free_s": free_s}


def measured(one: Callable[[], dict[str, float]], count: int) -> dict[str, dict[str, float]]:
    """The median and the largest of each figure; the first round, in which caches fill, is left out."""
    rounds = [one() for _ in range(count + 1)][1:]
    return {
        name: {
            "median": round(float(np.median([one[name] for one in rounds])), 3),
            "largest": round(max(one[name] for one in rounds), 3),
        }
        for name in rounds[0]
    }


def main() -> None:
    """Measure, and write the results as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--output", type=Path, help="a JSON file")
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    log.setLevel(logging.INFO)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        server = start_server(Path(folder), "--preset", "cpu-preview")
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGUMENTS)
        try:
            time.sleep(5)  # lets the engines' subprocesses, started with the page, get ready
            found: dict[str, Any] = {
                "measured": "seconds, by Chromium's clock; the tab's by that of its driver",
                "cores": os.cpu_count(),
                "rounds": args.rounds,
                "typed": measured(lambda: typed_round(server, browser), args.rounds),
                "live": measured(lambda: live_round(server, browser), args.rounds),
            }
        finally:
            browser.close()
            server.stop()
    log.info("%s", json.dumps(found, indent=1))
    if args.output is not None:
        args.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
