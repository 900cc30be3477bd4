"""Systems other than Linux, as far as can be seen from here: by the calls that would be made there."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from avatar.distributed import rank_process
from avatar.hardware import host
from avatar.locks import take
from avatar.media import atomic, ffmpeg
from avatar.runtime import child_process as child
from avatar.runtime import scratch
from avatar.runtime.child_process import Child, gpu_environment, options_to_pass

ROOT = Path(__file__).parents[1]
POSIX_ONLY = ("fcntl", "grp", "pwd", "resource", "termios")
WITHOUT = """
import os, sys
import av, cv2, filelock, huggingface_hub, numpy, onnxruntime, PIL, psutil, soundfile  # with guards
for name in {absent!r}:
    sys.modules[name] = None  # importing it fails
import app, avatar.cli, avatar.runtime.engine_process, avatar.runtime.gallery, avatar.runtime.scratch
import avatar.long.stream, avatar.batch.run
import avatar.ui.state.app_state, avatar.preview.source, avatar.runtime.doctor
print("imported")
"""


def test_the_preview_imports_nothing_of_unix_alone():
    script = WITHOUT.format(absent=POSIX_ONLY)
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.stdout == "imported\n", done.stderr


def test_a_lock_is_held_by_one_and_freed_by_release_or_death(tmp_path):
    lock = take(tmp_path / "lock")
    assert lock is not None
    assert take(tmp_path / "lock") is None
    code = (
        "import sys; from avatar.locks import take; from pathlib import Path; print(take(Path(sys.argv[1])))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "lock")]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout == "None\n"
    lock.release()
    assert "FileLock" in subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
    again = take(tmp_path / "lock")  # whoever held it has ended
    assert again is not None
    again.release()


def test_windows_gets_the_socket_by_its_handle(monkeypatch):
    monkeypatch.setattr(child.sys, "platform", "win32")
    made = []
    startup = lambda **options: made.append(options) or "startup"  # noqa: E731
    monkeypatch.setattr(child.subprocess, "STARTUPINFO", startup, raising=False)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert options_to_pass(theirs) == {"startupinfo": "startup"}
        assert made == [{"lpAttributeList": {"handle_list": [theirs.fileno()]}}]
        assert theirs.get_inheritable()


@pytest.mark.parametrize("before", [None, "FASTEST_FIRST"])
def test_every_child_counts_gpus_by_their_place_on_the_bus(monkeypatch, before):
    seen = {}

    def popen(command, **options):
        seen.update(options["env"])
        raise OSError("not today")

    if before:
        monkeypatch.setenv("CUDA_DEVICE_ORDER", before)
    monkeypatch.setattr(child.subprocess, "Popen", popen)
    with pytest.raises(OSError, match="not today"):
        Child("avatar.runtime.worker_loop", env={"CUDA_VISIBLE_DEVICES": "GPU-1"})
    assert seen["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert seen["TRITON_CACHE_DIR"] == gpu_environment()["TRITON_CACHE_DIR"]
    assert seen["CUDA_VISIBLE_DEVICES"] == "GPU-1"


@pytest.mark.parametrize(
    ("given", "folder"),
    [
        ({}, "/home/me/.triton/cache"),
        ({"TRITON_HOME": "/big"}, "/big/.triton/cache"),
        ({"TRITON_HOME": "/big", "TRITON_CACHE_DIR": "/fast"}, "/fast"),
    ],
)
def test_every_process_keeps_kernels_where_triton_would(monkeypatch, given, folder):
    for name in ("TRITON_HOME", "TRITON_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/me", **given}.items():
        monkeypatch.setenv(name, value)
    assert gpu_environment()["TRITON_CACHE_DIR"] == folder


@pytest.mark.parametrize(
    ("system", "asked"), [("linux", [(1, signal.SIGKILL)]), ("darwin", []), ("win32", [])]
)
def test_only_linux_is_asked_to_end_a_child_with_its_parent(monkeypatch, system, asked):
    calls = []
    library = SimpleNamespace(prctl=lambda *arguments: calls.append(arguments))
    monkeypatch.setattr(rank_process.ctypes, "CDLL", lambda name: library)
    monkeypatch.setattr(rank_process.sys, "platform", system)
    rank_process.die_with(os.getppid())
    assert calls == asked


def test_cores_are_counted_where_affinity_cannot_be_asked(monkeypatch, tmp_path):
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert host.num_cores(tmp_path, tmp_path / "none") == 6


def test_windows_opens_no_folder_to_sync_it(monkeypatch, tmp_path):
    monkeypatch.setattr(atomic, "os", SimpleNamespace(name="nt"))
    atomic.sync(tmp_path)


def test_a_scratch_folder_needs_no_user_number(monkeypatch, tmp_path):
    left = tmp_path / f"{scratch.PREFIX}left"
    left.mkdir()
    (left / ".lock").touch()
    monkeypatch.delattr(os, "getuid")
    with scratch.Scratch(tmp_path) as folder:
        assert folder.is_dir()
        assert not left.exists()
        with scratch.Scratch(tmp_path) as other:
            assert folder.is_dir(), "a living process holds it"
            assert other != folder
    assert not list(tmp_path.iterdir())


def test_windows_copies_the_static_programs(monkeypatch, tmp_path):
    package, path = tmp_path / "package", []
    package.mkdir()
    for name in ("ffmpeg", "ffprobe"):
        (package / f"{name}-win-x64.exe").write_text(name)
        (package / f"{name}-win-x64.exe").chmod(0o755)
    monkeypatch.setattr(ffmpeg.platform, "system", lambda: "Windows")
    monkeypatch.setattr(ffmpeg.platform, "machine", lambda: "AMD64")
    monkeypatch.setattr(ffmpeg.shutil, "which", lambda _: None)
    monkeypatch.setattr(ffmpeg, "find_spec", lambda _: SimpleNamespace(origin=str(package / "__init__.py")))
    monkeypatch.setattr(ffmpeg.atexit, "register", lambda _, folder, **__: path.append(Path(folder)))
    monkeypatch.setenv("PATH", "before")
    ffmpeg.put_on_path()
    assert os.environ["PATH"] == f"{path[0]}{os.pathsep}before"
    assert {entry.name: entry.read_text() for entry in path[0].iterdir()} == {
        "ffmpeg.exe": "ffmpeg",
        "ffprobe.exe": "ffprobe",
    }
    assert not any(entry.is_symlink() for entry in path[0].iterdir())
