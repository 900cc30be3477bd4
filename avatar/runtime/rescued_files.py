"""Keep a finished video that cannot be moved to its destination, and report where it is instead."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from avatar.errors import AvatarError, NotPlaced
from avatar.runtime.scratch import keep

log = logging.getLogger(__name__)


@contextmanager
def kept_outside(output: Path) -> Iterator[None]:
    """Turn a NotPlaced raised inside into an error that names where the video was kept.

    output: the intended destination. Exit this before the scratch folder is removed. Raises: AvatarError.
    """
    try:
        yield
    except NotPlaced as error:
        raise kept_in_words(error, output) from error


def kept_in_words(error: NotPlaced, output: Path) -> AvatarError:
    """Keep the files of an error, and say where; only for terminals, since the text names folders."""
    places = []
    for path in error.kept:
        name = output.name if len(error.kept) == 1 and not path.name.startswith("part_") else path.name
        try:
            places.append(str(keep(path, name)))
        except OSError as trouble:
            log.exception("%s cannot be kept", path.name)
            places.append(f"{path} ({trouble.strerror})")
    where = f"The complete video is in {' and '.join(places)}." if places else ""
    return AvatarError(error.message, f"{where} {error.remedy}".strip())
