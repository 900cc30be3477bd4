"""What is served by plain URL, the scratch folder, and the command line."""

from __future__ import annotations

import multiprocessing
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

import app
from avatar.errors import BadInput
from avatar.runtime import scratch
from avatar.runtime.gallery import About, Gallery, GalleryEntry, video_name
from avatar.runtime.scratch import PREFIX, Scratch, is_written, writing_in
from avatar.ui.routes.video_routes import routes
from avatar.ui.state.examples import Examples

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def gallery(tmp_path: Path):
    opened = Gallery(tmp_path / "outputs")
    yield opened
    opened.close()


@pytest.fixture
def client(gallery: Gallery) -> TestClient:
    return TestClient(Starlette(routes=routes(SimpleNamespace(gallery=gallery, examples=Examples()))))


def add(gallery: Gallery):
    draft = gallery.draft()
    (draft / video_name(draft.name)).write_bytes(bytes(range(256)) * 10)
    return gallery.keep(draft, About("a", "b", "", "p", "", {}, 1, 1.0))


def address(gallery: Gallery, entry: GalleryEntry, name: str) -> str:
    return f"/outputs/{entry.id}/{name}?key={gallery.key(entry.id, name)}"


def test_one_files_key_opens_no_other(client: TestClient, gallery: Gallery):
    mine, other = add(gallery), add(gallery)
    mine.thumbnail.write_bytes(b"j")
    mine.report.write_text("{}")
    key = gallery.key(mine.id, mine.video.name)
    names = (mine.video.name, mine.thumbnail.name, mine.report.name)
    assert [client.get(f"/outputs/{mine.id}/{name}?key={key}").status_code for name in names] == [
        200,
        404,
        404,
    ]
    assert client.get(f"/outputs/{other.id}/{other.video.name}?key={key}").status_code == 404
    for wrong in ("", "?key=", f"?key={key[:-1]}", f"?key={key}0", "?key=%00", "?key=%ff", "?key=钥匙"):
        assert client.get(f"/outputs/{mine.id}/{mine.video.name}{wrong}").status_code == 404, wrong


def test_a_video_is_served_whole_and_in_part(client: TestClient, gallery: Gallery):
    entry = add(gallery)
    url = address(gallery, entry, entry.video.name)
    assert client.get(url).content == entry.video.read_bytes()
    part = client.get(url, headers={"Range": "bytes=10-19"})
    assert part.status_code == 206
    assert part.content == entry.video.read_bytes()[10:20]


def test_nothing_else_is_served(client: TestClient, gallery: Gallery, tmp_path: Path):
    entry = add(gallery)
    (tmp_path / "secret").write_text("no")
    about_key = gallery.key(entry.id, "about.json")
    for url in (
        f"/outputs/{entry.id}/about.json",
        f"/outputs/{entry.id}/about.json?key={about_key}",
        f"/outputs/{entry.id}/..%2F.lock",
        f"/outputs/..%2F..%2Fsecret/{entry.video.name}",
        "/outputs/../secret",
        "/outputs//secret",
        f"/outputs/{entry.id}/%2e%2e%2f%2e%2e%2fsecret",
        "/examples/999",
        "/examples/-1",
    ):
        assert client.get(url).status_code == 404, url


def test_examples_pictures(client: TestClient):
    assert client.get("/examples/0").headers["content-type"].startswith("image/")


def test_bundled_portraits_are_known_by_their_bytes(tmp_path: Path):
    examples = Examples()
    copy = tmp_path / "renamed.jpg"
    copy.write_bytes(examples.portraits[0].read_bytes())
    assert examples.bundled(copy) == examples.portraits[0]
    copy.write_bytes(b"other")
    assert examples.bundled(copy) is None
    assert {example.titles for example in examples.pairs}
    assert Examples(tmp_path).pairs == []


def test_the_scratch_folder_is_gone_afterwards(tmp_path: Path):
    with Scratch(tmp_path) as folder:
        (folder / "file").write_text("x")
        assert folder.parent == tmp_path
    assert not folder.exists()


def _hold(parent: Path, ready, done) -> None:
    with Scratch(parent):
        ready.set()
        done.wait(30)


def test_left_behind_folders_are_removed_living_ones_kept(tmp_path: Path):
    dead = tmp_path / f"{PREFIX}dead"
    dead.mkdir()
    (dead / ".lock").touch()
    (tmp_path / "other").mkdir()
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(tmp_path, ready, done))
    other.start()
    assert ready.wait(30)
    with Scratch(tmp_path) as ours:
        folders = {path.name for path in tmp_path.iterdir()}
        assert dead.name not in folders
        assert len(folders) == 3
        assert {ours.name, "other"} <= folders
    done.set()
    other.join(30)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_a_folder_that_somebody_else_removes_meanwhile_is_no_fault(tmp_path: Path, monkeypatch):
    (tmp_path / f"{PREFIX}dead").mkdir()
    monkeypatch.setattr(scratch, "_is_held", lambda lock: lock.read_text())  # it was there a moment ago
    with Scratch(tmp_path) as folder:
        assert folder.is_dir()


def test_a_link_named_like_a_scratch_folder_is_let_be(tmp_path: Path):
    kept = tmp_path / "elsewhere"
    kept.mkdir()
    (kept / ".lock").touch()
    (kept / "file").write_text("x")
    (tmp_path / f"{PREFIX}x").symlink_to(kept)
    (tmp_path / f"{PREFIX}y").symlink_to(tmp_path / "nowhere")
    with Scratch(tmp_path) as folder:
        assert folder.is_dir()
    assert (kept / "file").read_text() == "x"


def test_what_cannot_be_removed_keeps_nobody_from_starting(tmp_path: Path, monkeypatch):
    dead = tmp_path / f"{PREFIX}dead"
    dead.mkdir()
    (dead / ".lock").touch()
    remove = scratch.shutil.rmtree

    def refuse(path: Path) -> None:
        if path == dead:
            raise PermissionError(13, "Permission denied")
        remove(path)

    monkeypatch.setattr(scratch.shutil, "rmtree", refuse)
    with Scratch(tmp_path) as folder:
        assert folder.is_dir()


def test_a_folder_in_which_an_engine_still_writes_stays(tmp_path: Path):
    dead = tmp_path / f"{PREFIX}dead"
    (dead / "run").mkdir(parents=True)
    (dead / ".lock").touch()
    for folder in (dead, dead / "run"):
        with writing_in(folder), Scratch(tmp_path):
            assert dead.exists()
            assert is_written(folder)
    with Scratch(tmp_path):
        assert not dead.exists()


def test_no_temporary_folder_is_reported(tmp_path: Path):
    with pytest.raises(BadInput, match="No temporary folder can be made"), Scratch(tmp_path / "nowhere"):
        pass


def test_importing_the_app_loads_neither_torch_nor_gradio():
    code = "import app, sys; assert not {'torch', 'gradio', 'onnxruntime'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_page_loads_no_torch():
    code = "import avatar.ui.page, avatar.ui.page_events, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_help_names_every_argument():
    shown = subprocess.run(
        [sys.executable, "app.py", "--help"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    for name in [
        "--host",
        "--port",
        "--preset",
        "--outputs",
        "--weights",
        "--max-upload",
        "--max-duration",
        "--queue-size",
        "--root-path",
        "--disk-limit",
        "--keep-days",
        "--gallery",
    ]:
        assert name in shown.stdout


def test_the_environment_is_the_fallback(monkeypatch: pytest.MonkeyPatch):
    for name in (
        "SPACE_ID",
        "GRADIO_SERVER_NAME",
        "GRADIO_SERVER_PORT",
        "GRADIO_ROOT_PATH",
        "AVATAR_OUTPUTS",
    ):
        monkeypatch.delenv(name, raising=False)
    alone = app.parse_arguments([])
    assert (alone.host, alone.port, alone.gallery, alone.preset) == ("127.0.0.1", 7860, "shared", "auto")
    monkeypatch.setenv("SPACE_ID", "someone/space")
    monkeypatch.setenv("AVATAR_OUTPUTS", "/data/outputs")
    monkeypatch.setenv("GRADIO_SERVER_PORT", "8000")
    hosted = app.parse_arguments(["--port", "9000"])
    assert (hosted.host, hosted.port, hosted.gallery) == ("0.0.0.0", 9000, "private")
    assert hosted.outputs == Path("/data/outputs")


def test_a_taken_port_ends_in_one_line(tmp_path: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        command = [
            sys.executable,
            "app.py",
            "--port",
            str(taken.getsockname()[1]),
            "--outputs",
            str(tmp_path),
        ]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert "Choose another --port" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_port_0_is_any_free_port(tmp_path: Path):
    command = [sys.executable, "app.py", "--port", "0", "--outputs", str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as page:
        assert page.stderr is not None
        try:
            address = next(line for line in page.stderr if "the page is at" in line).split()[-1]
            assert httpx.get(address + "config").status_code == 200
        finally:
            page.terminate()
        assert page.wait(30) == 0
        assert "Traceback" not in page.stderr.read()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--port", "99999"], "'99999' must be a whole number from 0 to 65535"),
        (["--port", "-1"], "must be a whole number"),
        (["--port", "page"], "must be a whole number"),
        (["--queue-size", "-1"], "must be a whole number"),
        (["--max-upload", "nan"], "must be a number from 0 to 1000000000"),
        (["--keep-days", "-3"], "must be a number from 0 to 1000000000"),
        (["--upload-quota", "nan"], "must be a number from 0 to 1000000000"),
        (["--upload-quota", "-1"], "must be a number from 0 to 1000000000"),
        (["--max-upload", "1e308"], "must be a number from 0 to 1000000000"),
        (["--disk-limit", "1e305"], "must be a number from 0 to 1000000000"),
        (["--places", "-3"], "must be a whole number from 1"),
        (["--disk-limit", "inf"], "must be a number from 0 to 1000000000"),
        (["--host", "no.such.host.invalid"], "Cannot listen on no.such.host.invalid"),
        (["--host", "ö" * 80], "Cannot listen on"),
        (["--outputs", "/proc/x"], "cannot be used ("),
        (["--outputs", "/etc/hostname"], "cannot be used ("),
        (["--outputs", "/etc/hostname/x"], "cannot be used ("),
    ],
)
def test_arguments_that_cannot_be_used_are_refused(arguments: list[str], words: str):
    command = [sys.executable, "app.py", "--port", "0", *arguments]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert words in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_word_of_the_environment_is_judged_too(monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setenv("AVATAR_GALLERY", "everybody")
    with pytest.raises(SystemExit):
        app.parse_arguments([])
    assert "$AVATAR_GALLERY is 'everybody'" in capsys.readouterr().err


def test_a_wrong_preset_ends_in_one_line(tmp_path: Path):
    command = [sys.executable, "app.py", "--preset", "nonesuch", "--outputs", str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert "There is no preset 'nonesuch'" in ended.stderr
    assert "Traceback" not in ended.stderr
