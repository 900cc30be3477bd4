"""What went wrong between the hub and the disk: each with its own words, its own exit code and a remedy."""

from __future__ import annotations

import errno
import os

import httpx
import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from avatar.checkpoints import hub_errors
from avatar.checkpoints.hub_errors import explaining
from avatar.errors import AvatarError, BadInput, DoesNotFit, WeightsMissing

REPO = "somebody/model"


def answered(kind: type[Exception], status: int) -> Exception:
    request = httpx.Request("GET", "http://127.0.0.1/api/models")
    return kind("as the library words it", response=httpx.Response(status, request=request))


def offline(cause: Exception) -> Exception:
    error = LocalEntryNotFoundError("as the library words it")
    error.__cause__ = cause
    return error


def on_disk(number: int) -> OSError:
    return OSError(number, os.strerror(number))


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (answered(RevisionNotFoundError, 404), BadInput, "somebody/model has no revision 'v9'"),
        (answered(GatedRepoError, 403), WeightsMissing, "terms to be accepted"),
        (answered(RepositoryNotFoundError, 401), WeightsMissing, "requires a login"),
        (answered(RepositoryNotFoundError, 404), WeightsMissing, "is not on the hub, or you have no access"),
        (offline(answered(RepositoryNotFoundError, 404)), WeightsMissing, "is not on the hub"),
        (offline(httpx.ConnectError("refused")), WeightsMissing, "hub cannot be reached"),
        (on_disk(errno.ENOSPC), DoesNotFit, "disk became full"),
        (on_disk(errno.EROFS), WeightsMissing, "cannot be written to the disk: Read-only"),
        (httpx.RemoteProtocolError("closed"), WeightsMissing, "connection broke while somebody/model"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_each_error_has_words_of_its_own(error, kind, words, monkeypatch):
    monkeypatch.setattr(hub_errors, "get_token", lambda: None)
    with pytest.raises(AvatarError) as raised, explaining(REPO, "v9"):
        raise error
    assert type(raised.value) is kind
    assert words in raised.value.message
    assert raised.value.remedy
    assert "as the library words it" not in str(raised.value)


def test_a_token_that_is_refused_is_not_asked_for_again(monkeypatch):
    monkeypatch.setattr(hub_errors, "get_token", lambda: "hf_wrong")
    with pytest.raises(WeightsMissing, match="does not accept your token"), explaining(REPO, None):
        raise answered(RepositoryNotFoundError, 401)


def test_an_error_of_ours_passes_as_it_is():
    ours = WeightsMissing("Mine.", "Do this.")
    with pytest.raises(WeightsMissing) as raised, explaining(REPO, None):
        raise ours
    assert raised.value is ours
