"""What was made and cannot be put in its place is kept beside the scratch folder, and its place is named."""

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
    """Within it, a NotPlaced becomes an error that names where the video lies from now on.

    output: where it should have gone. To be left before the scratch folder is. Raises: AvatarError.
    """
    try:
        yield
    except NotPlaced as error:
        raise kept_in_words(error, output) from error


def kept_in_words(error: NotPlaced, output: Path) -> AvatarError:
    """Keep what an error tells of, and say where: for terminals alone, as it names folders."""
    places = []
    for path in error.kept:
        name = output.name if len(error.kept) == 1 and not path.name.startswith("part_") else path.name
        try:
            places.append(str(keep(path, name)))
        except OSError as trouble:
            log.exception("%s cannot be kept", path.name)
            places.append(f"{path} ({trouble.strerror})")
    where = f"It lies whole in {' and '.join(places)}." if places else ""
    return AvatarError(error.message, f"{where} {error.remedy}".strip())
