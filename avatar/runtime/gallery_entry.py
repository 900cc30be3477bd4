"""One video of the gallery on disk: its files, what is known of it, and whose it is."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import math
import re
import shutil
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from avatar.errors import BadInput
from avatar.media import atomic
from avatar.media.files import joined_name
from avatar.media.side_files import captions_paths, written_report, written_thumbnail
from avatar.request import beside
from avatar.runtime.report import RunReport, read_report

log = logging.getLogger(__name__)

ABOUT, HALF = "about.json", "half"
PORTRAIT = "portrait.png"  # in HALF: what a run that is resumed begins from
_AGED = ".aged"  # in an entry: when it was first seen to be nearly too old
_GRACE_S = 86_400.0  # an entry goes by age only if it was nearly too old so long ago already
_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,5}$")
_NOT_IN_NAMES = re.compile(r'[\\/:*?"<>|“”\x00-\x1f\x7f]+')  # of some system
DRAFT = ".draft-"  # begins the name of a folder that is no entry yet


def owner_hash(token: str) -> str:
    """What the gallery keeps of the secret by which a browser owns its videos; "" for nobody's."""
    return hashlib.sha256(token.encode()).hexdigest() if token else ""


def stem_of(name: str) -> str:
    """A file's name without its suffix; a spoken text, which has none, as it is."""
    return _SUFFIX.sub("", name)


def video_name(folder: str) -> str:
    """The video's file name, by its draft's or entry's folder name: what a download is called."""
    return f"avatar-{folder.removeprefix(DRAFT)[:15]}.mp4"


@dataclass(frozen=True)
class About:
    """What is known of a video. created: seconds since 1970. label: "preview", or "" for the full model's.

    settings: what "use these settings" fills in. owner_hash: of who may see it in a private gallery, "" for
    nobody.
    """

    portrait: str
    speech: str
    prompt: str
    preset: str
    label: str
    settings: dict[str, Any]
    num_frames: int
    duration_s: float
    stopped: bool = False
    error: str | None = None
    owner_hash: str = ""
    created: float = field(default_factory=time.time)

    @classmethod
    def read(cls, folder: Path) -> About:
        """What lies in a draft or an entry. Raises: OSError, TypeError, ValueError."""
        data = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        if isinstance(data, dict) and "owner" in data:  # earlier versions kept the secret itself
            data["owner_hash"] = owner_hash(str(data.pop("owner")))
        about = cls(**data)
        if not isinstance(about.settings, dict) or not isinstance(about.created, int | float):
            raise TypeError("a value is of another type")
        return about

    def write(self, folder: Path) -> None:
        """For read. Raises: OSError."""
        atomic.write(folder / ABOUT, json.dumps(asdict(self), ensure_ascii=False).encode())


@dataclass(frozen=True)
class GalleryEntry:
    """One video of the gallery. size_bytes: all of its files together."""

    id: str
    folder: Path
    about: About
    size_bytes: int

    @property
    def is_unfinished(self) -> bool:
        """Whether it can be gone on with; there may be no video then."""
        return (self.folder / HALF).is_dir()

    @property
    def video(self) -> Path:
        return self.folder / video_name(self.id)

    @property
    def download_name(self) -> str:
        """What the video is called where somebody takes it along: after portrait and speech."""
        names = (stem_of(name) for name in (self.about.portrait, self.about.speech))
        stem = joined_name(*(_NOT_IN_NAMES.sub("", name).strip(" .") for name in names))
        return f"{stem}{self.taken.suffix}" if stem else self.taken.name

    @property
    def taken(self) -> Path:
        """The file that is downloaded: the video, or its transparent version."""
        transparent = beside(self.video)
        return transparent if transparent.is_file() else self.video

    @property
    def thumbnail(self) -> Path:
        return written_thumbnail(self.video)

    @property
    def captions(self) -> Path | None:
        """The captions as .vtt, beside which .srt lies; None without any."""
        path = captions_paths(self.video)[1]
        return path if path.is_file() else None

    @property
    def report(self) -> Path:
        return written_report(self.video)

    def run_report(self) -> RunReport | None:
        """The run report; None where there is none, or it cannot be read."""
        if not self.report.is_file():
            return None
        try:
            return read_report(self.report)
        except BadInput as error:
            log.warning("gallery: %s", error.message)
            return None

    def belongs_to(self, owner: str | None) -> bool:
        """Whether an owner, as owner_hash has it, may see and change it; None may everything, "" nothing."""
        return owner is None or (owner != "" and hmac.compare_digest(self.about.owner_hash, owner))


def read_entry(folder: Path) -> GalleryEntry | None:
    """The entry in a folder; None when it is gone, or cannot be read."""
    try:
        return GalleryEntry(folder.name, folder, About.read(folder), size_bytes(folder))
    except FileNotFoundError:  # deleted meanwhile
        return None
    except (ValueError, TypeError, OSError, RecursionError) as error:
        log.warning("gallery: %s is left out, its %s cannot be read: %r", folder.name, ABOUT, error)
        return None


def as_reported(draft: Path) -> About:
    """What describe noted of a draft, and what its report says of the video."""
    about = About.read(draft)
    path = written_report(draft / video_name(draft.name))
    if not path.is_file():
        return about
    report = read_report(path)
    return replace(
        about,
        label=report.engine,
        num_frames=report.num_frames,
        duration_s=report.duration_s,
        stopped=report.stopped,
        error=report.error,
    )


def renew(folder: Path) -> None:
    """Of an entry that an earlier version wrote: its owner's secret goes, and who may read it changes."""
    try:
        about = About.read(folder)
        if about.owner_hash and about.owner_hash not in (folder / ABOUT).read_text(encoding="utf-8"):
            about.write(folder)
        close_to_others(folder)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        log.warning("gallery: %s stays as it is: %r", folder.name, error)


def is_too_old(entry: GalleryEntry, max_age_s: float) -> bool:
    """Whether its time has come: by the clock now, and by what the clock said a day ago or earlier.

    So a clock that jumps ahead deletes nothing, as long as it is put right within a day.
    """
    now, mark = time.time(), entry.folder / _AGED
    age, grace = now - entry.about.created, min(_GRACE_S, max_age_s / 2)
    if age < max_age_s - grace:
        mark.unlink(missing_ok=True)
        return False
    try:
        seen = float(mark.read_text())
    except (FileNotFoundError, ValueError):
        seen = math.inf
    if seen > now:
        mark.write_text(str(now))
        return False
    return age > max_age_s and now - seen >= grace


def size_bytes(folder: Path) -> int:
    """Of all files together. Raises: FileNotFoundError when one goes meanwhile."""
    return sum(path.lstat().st_size for path in folder.rglob("*"))


def close_to_others(folder: Path) -> None:
    """A folder and all in it are for the user alone who runs this. Raises: OSError."""
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o700 if path.is_dir() else 0o600)


def remove(folder: Path) -> None:
    """Remove a folder that another process may be removing, too."""
    while folder.exists():
        try:
            shutil.rmtree(folder)
        except FileNotFoundError:
            continue
