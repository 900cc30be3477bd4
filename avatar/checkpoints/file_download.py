"""Download and verify large files of a hub repository or an address, resuming after the program was killed.

huggingface_hub itself restarts a file when its process was killed, and checks only the size.
"""

from __future__ import annotations

import hashlib
import logging
import os
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from huggingface_hub import get_hf_file_metadata, hf_hub_url
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers, tqdm

from avatar.errors import WeightsMissing

logger = logging.getLogger(__name__)

AT_ONCE = 4
PARTIAL = ".part"
MOST_TRIES = 2  # per file, if it arrives with the wrong sha256


@dataclass(frozen=True)
class LargeFile:
    """A file that is known by its sha256. place: its final path, once complete and verified.

    url: its address, outside the hub; "" for the hub's.
    """

    repo: str
    revision: str
    name: str
    num_bytes: int
    sha256: str
    place: Path
    url: str = ""

    @property
    def partial(self) -> Path:
        """The file that holds what has been downloaded so far."""
        return self.place.with_name(f"{self.sha256}{PARTIAL}")

    @property
    def here_bytes(self) -> int:
        """How much of it has been downloaded."""
        try:
            return min(self.partial.stat().st_size, self.num_bytes)
        except OSError:
            return 0


@dataclass
class ByteCounter:
    """Sums up bytes from several threads. on_progress: called with the bytes done and the total."""

    total: int
    on_progress: Callable[[int, int], None]
    done: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, num_bytes: int) -> None:
        """Count bytes that have arrived; negative when a file is restarted."""
        with self._lock:
            self.done += num_bytes
            self.on_progress(max(0, min(self.done, self.total)), self.total)


def fetch_files(
    files: Sequence[LargeFile],
    bar: type[tqdm] | None,
    counter: ByteCounter | None,
    notify: Callable[[str], None],
) -> None:
    """Download what is missing of the files, several at once; each is moved to its place once complete.

    A signal or an error ends all of them at once, and keeps what they have fetched.

    bar: the class of each file's progress bar. counter: counts down the bytes of a discarded file. notify:
    told of one that is fetched again.
    Raises: WeightsMissing for a file that arrives corrupt twice; and whatever huggingface_hub raises.
    """
    stopped = threading.Event()
    bar = _ending(bar or tqdm, stopped)
    waiting: queue.SimpleQueue[tuple[LargeFile, Future[None]]] = queue.SimpleQueue()
    fetched: list[Future[None]] = [Future() for _ in files]
    for file, done in zip(files, fetched, strict=True):
        waiting.put((file, done))

    def work() -> None:
        while not stopped.is_set():
            try:
                file, done = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                _fetch(file, bar, counter, notify)
            except BaseException as error:
                done.set_exception(error)
            else:
                done.set_result(None)

    for number in range(min(AT_ONCE, len(files))):
        # Daemons, for the interpreter waits for other threads before it ends, and a file takes minutes.
        threading.Thread(target=work, name=f"download {number}", daemon=True).start()
    try:
        for done in wait(fetched, return_when=FIRST_EXCEPTION).done:
            done.result()
    finally:
        stopped.set()


class _Stopped(Exception):
    """Ends a thread whose file is not wanted any more."""


def _ending(bar: type[tqdm], stopped: threading.Event) -> type[tqdm]:
    """The progress bar, which raises at the next piece of the file once stopped is set."""

    class Ending(bar):  # type: ignore[valid-type, misc]
        def update(self, n: float | None = 1) -> bool | None:
            if stopped.is_set():
                raise _Stopped
            shown: bool | None = super().update(n)
            return shown

    return Ending


def _fetch(
    file: LargeFile, bar: type[tqdm] | None, counter: ByteCounter | None, notify: Callable[[str], None]
) -> None:
    file.partial.parent.mkdir(parents=True, exist_ok=True)
    for tries_left in reversed(range(MOST_TRIES)):
        _fetch_bytes(file, bar)
        if sha256_of(file.partial) == file.sha256:
            file.partial.replace(file.place)
            return
        if tries_left:
            notify(f"{file.name} arrived corrupt and is fetched again.")
        file.partial.unlink()
        if counter is not None:
            counter.add(-file.num_bytes)
    raise WeightsMissing(
        f"{file.name} of {file.repo} arrived corrupt twice: its sha256 is not the one published.",
        "Something in the network alters it: try another network, proxy or HF_ENDPOINT.",
    )


def _fetch_bytes(file: LargeFile, bar: type[tqdm] | None) -> None:
    """Append what is missing; a broken connection is resumed where it broke."""
    location, headers = _address(file)
    with file.partial.open("ab") as out:
        if out.tell() > file.num_bytes:
            out.truncate(0)
        http_get(
            location,
            out,
            resume_size=out.tell(),
            headers=headers,
            expected_size=file.num_bytes,
            displayed_filename=file.name,
            tqdm_class=bar,
        )
        out.flush()
        os.fsync(out.fileno())


def _address(file: LargeFile) -> tuple[str, dict[str, str]]:
    """Where a file is fetched from, and the headers; the user's token is sent only to the hub."""
    if file.url:
        return file.url, {"Accept-Encoding": "identity"}  # its own bytes, which are counted
    location = get_hf_file_metadata(hf_hub_url(file.repo, file.name, revision=file.revision)).location
    is_hub = urlsplit(location).netloc == urlsplit(hf_hub_url(file.repo, file.name)).netloc
    return location, build_hf_headers() if is_hub else {}


def sha256_of(path: Path) -> str:
    """A file's SHA-256, in constant memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
