"""What was made of the last few pictures, so that it is not made again."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

import numpy as np

from avatar.preview.face_detection import Faces, find_faces

MOST_FACES = 16  # pictures

Value = TypeVar("Value")


class Recent(Generic[Value]):
    """The most recent results by key; thread-safe. Whoever asks for one that is being made waits for it."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._results: OrderedDict[Hashable, Future[Value]] = OrderedDict()  # least recently used first
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """The result of a key, made if there is none. Raises: what make raises, which is not kept."""
        with self._lock:
            result = self._results.get(key)
            is_ours = result is None
            if result is None:
                result = self._results[key] = Future()
            self._results.move_to_end(key)
            while len(self._results) > self._most:
                self._results.popitem(last=False)
        if is_ours:
            try:
                result.set_result(make())
            except BaseException as error:
                result.set_exception(error)
                with self._lock:
                    if self._results.get(key) is result:
                        del self._results[key]
        return result.result()


def picture_key(image: np.ndarray) -> tuple[Any, ...]:
    """What tells pictures apart: uint8 (H, W, 3)."""
    return image.shape, hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()


_FACES: Recent[Faces] = Recent(MOST_FACES)


def known_faces(image: np.ndarray) -> Faces:
    """See find_faces; of a picture that was seen lately, what was found then."""
    return _FACES.get(picture_key(image), lambda: find_faces(image))
