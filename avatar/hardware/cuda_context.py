"""Open a GPU's CUDA context in a thread of its own, while Python imports PyTorch."""

from __future__ import annotations

import ctypes
import logging
import threading

log = logging.getLogger(__name__)

DRIVER_LIBRARY = "libcuda.so.1"


def open_ahead(index: int) -> threading.Thread:
    """Start opening the context that PyTorch will use on the GPU with CUDA's index; returns the thread.

    The driver takes a second or more for it, during which other threads run. Nothing depends on it: PyTorch
    opens the context itself where that failed, and reports why it cannot.
    Source: CUDA driver API, cuDevicePrimaryCtxRetain; the runtime that PyTorch uses shares that context.
    """
    thread = threading.Thread(target=_open, args=(index,), name="cuda-context", daemon=True)
    thread.start()
    return thread


def _open(index: int) -> None:
    try:
        driver = ctypes.CDLL(DRIVER_LIBRARY)
    except OSError as error:
        log.info("CUDA's context is not opened ahead: %s", error)
        return
    device, context = ctypes.c_int(), ctypes.c_void_p()
    if _failed(driver, "cuInit", ctypes.c_uint(0)):
        return
    if _failed(driver, "cuDeviceGet", ctypes.byref(device), ctypes.c_int(index)):
        return
    # Never released: it is this process's, to its end.
    if not _failed(driver, "cuDevicePrimaryCtxRetain", ctypes.byref(context), device):
        log.info("CUDA's context is open")


def _failed(driver: ctypes.CDLL, name: str, *arguments: object) -> bool:
    """Call a function of the driver; whether it returned an error, which is logged."""
    if code := getattr(driver, name)(*arguments):
        log.info("CUDA's context is not opened ahead: %s returned %d", name, code)
    return bool(code)
