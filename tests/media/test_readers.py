"""Portraits and speech read in other processes: the same as here, and each upload once."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from media_samples import save, tone, write_wav

import avatar.runtime.bounded_reader as reading
from avatar.errors import BadInput
from avatar.media.limits import InputLimits
from avatar.media.portrait import open_portrait
from avatar.media.speech_reader import write_speech
from avatar.runtime.bounded_reader import ReaderCache
from tests.fixtures.scans import many_scans

DATA = Path(__file__).parents[1] / "data" / "security"


@pytest.fixture
def reader_cache(tmp_path: Path) -> Iterator[ReaderCache]:
    made = ReaderCache(tmp_path / "read", InputLimits().hosted())
    yield made
    made.close()


def test_a_portrait_is_as_if_it_were_read_here(reader_cache: ReaderCache, tmp_path: Path):
    path = save(
        tmp_path / "me.png", np.dstack([np.full((90, 80, 3), 7, np.uint8), np.eye(90, 80) * 255]).astype("u1")
    )
    there, here = reader_cache.by("").portrait(path), open_portrait(path)
    assert np.array_equal(there.pixels, here.pixels)
    assert there.notices == here.notices != ()


def test_speech_is_as_if_it_were_read_here(reader_cache: ReaderCache, tmp_path: Path):
    path = write_wav(tmp_path / "me.wav", tone(), 16_000)
    there = reader_cache.by("").speech(path, tmp_path / "there.wav")
    here = write_speech(path, tmp_path / "here.wav")
    assert there == here
    assert (tmp_path / "there.wav").read_bytes() == (tmp_path / "here.wav").read_bytes()


def test_an_upload_is_read_once(reader_cache: ReaderCache, tmp_path: Path, monkeypatch):
    begun = []
    submit = reader_cache.bounded.submit
    monkeypatch.setattr(reader_cache.bounded, "submit", lambda *a, **k: begun.append(a) or submit(*a, **k))
    path = save(tmp_path / "me.png")
    again = Path(shutil.copy(path, tmp_path / "elsewhere.png")).rename(tmp_path / "read" / "me.png")
    for _ in reader_cache.by("a").ahead(path, None, 0.1):
        pass
    reader_cache.by("a").portrait(path)
    reader_cache.by("b").portrait(again)
    assert len(begun) == 1


def test_a_refusal_is_kept_too(reader_cache: ReaderCache, tmp_path: Path, monkeypatch):
    (tmp_path / "bad.png").write_bytes(b"nothing")
    with pytest.raises(BadInput, match="not a picture"):
        reader_cache.by("").portrait(tmp_path / "bad.png")
    monkeypatch.setattr(reader_cache.bounded, "submit", None)
    with pytest.raises(BadInput, match="not a picture"):
        reader_cache.by("").portrait(tmp_path / "bad.png")


def test_a_hosted_page_refuses_a_wide_picture_by_its_header(reader_cache: ReaderCache):
    with pytest.raises(BadInput, match="8000×8000"):
        reader_cache.by("").portrait(DATA / "wide.avif")


def test_a_picture_beyond_the_memory_is_refused(tmp_path: Path):
    """1064 bytes, which take 720 MiB: more than this process may have."""
    reader_cache = ReaderCache(tmp_path / "read", replace(InputLimits(), max_decode_bytes=300 * 2**20))
    with pytest.raises(BadInput, match=r"wide\.avif"):
        reader_cache.by("").portrait(DATA / "wide.avif")
    assert reader_cache.by("").portrait(save(tmp_path / "me.png")).pixels.any()
    reader_cache.close()


def test_a_jpeg_of_many_scans_is_refused_in_time(tmp_path: Path):
    reader_cache = ReaderCache(tmp_path / "read", replace(InputLimits(), portrait_cpu_s=1.0))
    with pytest.raises(BadInput, match="takes too long"):
        reader_cache.by("").portrait(many_scans(tmp_path / "scans.jpg", 3000, 1500))
    reader_cache.close()


def test_sound_of_far_too_many_samples_is_refused(tmp_path: Path):
    """22 kB: a minute of eight channels at 655 kHz."""
    reader_cache = ReaderCache(tmp_path / "read", replace(InputLimits(), speech_cpu_s=0.5))
    with pytest.raises(BadInput, match="sample rate of 655350 Hz"):
        reader_cache.by("").speech(DATA / "many_samples.flac", tmp_path / "x.wav")
    assert not (tmp_path / "x.wav").exists()
    assert reader_cache.by("").speech(write_wav(tmp_path / "me.wav", tone(), 16_000), tmp_path / "x.wav")
    assert sorted(path.suffix for path in (tmp_path / "read").iterdir()) == [".wav"]
    reader_cache.close()


def test_who_goes_away_gives_the_place_up(tmp_path: Path):
    reader_cache = ReaderCache(tmp_path / "read", replace(InputLimits(), portrait_cpu_s=100.0), places=1)
    slow = reader_cache.by("a").ahead(many_scans(tmp_path / "scans.jpg", 3000, 1500), None, 0.01)
    next(slow)
    slow.close()
    assert reader_cache.by("b").portrait(save(tmp_path / "me.png")).pixels.any()
    reader_cache.tidy()
    assert len(list((tmp_path / "read").iterdir())) == 1
    reader_cache.close()


def test_who_goes_away_takes_it_from_nobody_else(reader_cache: ReaderCache, tmp_path: Path):
    path = save(tmp_path / "me.png")
    first, second = reader_cache.by("a").ahead(path, None, 0), reader_cache.by("b").ahead(path, None, 0)
    next(first, None)
    next(second, None)
    first.close()
    assert reader_cache.by("b").portrait(path).pixels.any()


def test_what_was_read_is_bounded(reader_cache: ReaderCache, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(reading, "KEPT_BYTES", 150_000)  # a picture has 57,600
    for number in range(4):
        reader_cache.by("").portrait(
            save(tmp_path / f"{number}.png", np.full((120, 160, 3), number, np.uint8))
        )
    assert len(list((tmp_path / "read").iterdir())) == 2
    monkeypatch.setattr(reading, "KEPT_S", 0.0)
    reader_cache.tidy()
    assert list((tmp_path / "read").iterdir()) == []
