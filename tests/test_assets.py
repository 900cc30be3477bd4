"""Everything shipped in assets/ opens, has a licence entry, and is fit for what the page uses it for."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from PIL import Image

from avatar.preview.points import load_sidecar

ASSETS = Path(__file__).parents[1] / "assets"
PICTURES = sorted(p for p in (ASSETS / "portraits").iterdir() if p.suffix in (".png", ".jpg"))
SPEECH = sorted((ASSETS / "speech").glob("*.flac"))


def entries(folder: str) -> dict[str, str]:
    """The licence (last column) of every file named in the folder's table."""
    licences = {}
    for line in (ASSETS / folder / "LICENSES.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and re.search(r"\.\w+", cells[0]):
            licences |= dict.fromkeys(re.split(r",\s*", cells[0]), cells[-1])
    return licences


@pytest.mark.parametrize("folder", ["portraits", "speech"])
def test_every_file_has_a_licence_and_every_licence_a_file(folder: str) -> None:
    licences = entries(folder)
    files = {p.name for p in (ASSETS / folder).iterdir() if p.name != "LICENSES.md"}
    assert set(licences) == files
    known = ("Public domain", "Apache-2.0", "CC BY 3.0", "CC BY-SA 3.0")
    assert all(licence.startswith(known) for licence in licences.values())


def test_attribution_names_whoever_asks_for_it() -> None:
    text = (ASSETS / "speech" / "LICENSES.md").read_text(encoding="utf-8")
    for words in ("Allison Smith", "June Wallack", "Carlo Flora", "licenses/by-sa/3.0", "licenses/by/3.0"):
        assert words in text
    assert "were changed" in text


@pytest.mark.parametrize("path", PICTURES, ids=lambda p: p.name)
def test_portrait_opens(path: Path) -> None:
    with Image.open(path) as image:
        image.load()
        assert image.mode == "RGB"
        assert 512 <= min(image.size) <= max(image.size) <= 1024
    load_sidecar(path)


@pytest.mark.parametrize("path", SPEECH, ids=lambda p: p.name)
def test_speech_opens(path: Path) -> None:
    samples, rate = sf.read(path)
    assert samples.ndim == 1
    assert 16_000 <= rate <= 48_000
    assert 8 <= len(samples) / rate <= 20
    assert 0.2 < np.abs(samples).max() < 0.98
    tenths = samples[: len(samples) // (rate // 10) * (rate // 10)].reshape(-1, rate // 10)
    assert (np.sqrt((tenths**2).mean(axis=1)) > 0.01).mean() > 0.6  # speaks most of the time
    assert np.abs(samples[: rate // 20]).max() < 0.01  # begins in silence


def test_there_is_enough_to_choose_from() -> None:
    assert len(PICTURES) >= 6
    assert len(SPEECH) >= 4
    assert {p.stem.rsplit("-", 1)[1] for p in SPEECH} >= {"en", "fr", "it", "zh"}
    assert sum(p.stat().st_size for p in (ASSETS / "speech").iterdir()) < 5_000_000
    assert sum(p.stat().st_size for p in (ASSETS / "portraits").iterdir()) < 5_000_000
