"""A folder of weights that is named once, to any command, is found from then on; an incomplete one is not."""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path

import pytest

import app
from avatar.checkpoints.locations import (
    DEFAULT_FOLDER,
    ENVIRONMENT,
    OFFICIAL,
    find_checkpoint,
    locate,
    remembered,
)
from avatar.cli import build_parser, main
from tests.checkpoints.test_places import Table, transformer, write_lora, write_official
from tests.fixtures.tokenizer import write_tokenizer

__all__ = ["transformer"]  # the fixture

ASSETS = Path(__file__).parents[2] / "assets"
PORTRAIT, SPEECH = ASSETS / "portraits" / "mara.png", ASSETS / "speech" / "hello-en.flac"
MEDIA = ["--image", str(PORTRAIT), "--audio", str(SPEECH)]
# Without a GPU each ends soon: the folder counts all the same.
COMMANDS = {
    "generate": ["--preset", "80gb", *MEDIA, "--output", "out.mp4"],
    "batch": ["jobs.toml", "--output", "out"],
    "compare": ["--preset", "80gb", *MEDIA, "--vary", "infer_frames=48,32", "--output", "out"],
    "bench": ["--preset", "80gb"],
    "worker": ["--preset", "cpu-preview"],
    "doctor": ["--preset", "80gb"],
    "presets": [],
    "plan": ["--preset", "80gb"],
}
BESIDES = {"download", "live"}  # it fetches into the folder; it passes it on to the page


@pytest.fixture(scope="module")
def whole(transformer: Table, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A full-sized checkpoint that takes no room. Read only."""
    folder = tmp_path_factory.mktemp("weights")
    (folder / "Wan2.2-S2V-14B").mkdir()
    write_official(folder / "Wan2.2-S2V-14B", transformer)
    write_tokenizer(folder / "Wan2.2-S2V-14B" / OFFICIAL.tokenizer)
    write_lora(folder / "LiveAvatar", transformer)
    return folder


@pytest.fixture(autouse=True)
def _in_a_folder(no_weights_elsewhere: None) -> None:
    Path("jobs.toml").write_text(f'[[job]]\nimage = "{PORTRAIT}"\naudio = "{SPEECH}"\npreset = "80gb"\n')


def commands_with_a_folder() -> set[str]:
    actions = build_parser()._actions
    (parsers,) = (action.choices for action in actions if isinstance(action, argparse._SubParsersAction))
    return {name for name, parser in parsers.items() if "--ckpt_dir" in parser._option_string_actions}


def test_every_command_that_takes_a_folder_is_tested() -> None:
    assert commands_with_a_folder() == COMMANDS.keys() | BESIDES


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_that_is_named_once_is_remembered(command: str, whole: Path) -> None:
    main([command, *COMMANDS[command], "--ckpt_dir", str(whole)])
    assert remembered() == whole
    assert find_checkpoint().complete


def test_an_imagined_machine_has_the_weights_of_the_folder(whole: Path) -> None:
    imagined = ["plan", "--preset", "80gb", "--gpus", "1", "--vram", "80", "--ckpt_dir"]
    assert main([*imagined, "nowhere"]) == 4
    assert remembered() is None
    assert main([*imagined, str(whole)]) == 0
    assert remembered() == whole


def test_the_pages_folder_is_remembered(whole: Path, tmp_path: Path) -> None:
    args = app.parse_arguments(["--weights", str(whole), "--outputs", str(tmp_path / "outputs")])
    (tmp_path / "scratch").mkdir()
    state = app._open_app_state(args, tmp_path / "scratch")
    try:
        state.machine.verdicts()
        assert remembered() == whole
    finally:
        state.close()


@pytest.mark.parametrize("complete", [True, False])
def test_a_downloads_folder_is_remembered_if_whole(
    complete: bool, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be left incomplete: a revision of other files, or files that somebody deletes meanwhile."""

    def fetch(
        repos: object, revision: object, target: Path, progress: object, *, notify: object, tiny_decoder: bool
    ) -> list[Path]:
        assert not tiny_decoder
        absent = shutil.ignore_patterns() if complete else shutil.ignore_patterns("*.pth")
        shutil.copytree(whole, target, ignore=absent, copy_function=os.link)
        return [target, target]

    monkeypatch.setattr("avatar.checkpoints.download.download", fetch)
    main(["download", "--ckpt_dir", str(tmp_path / "fetched")])
    assert remembered() == (tmp_path / "fetched" if complete else None)


def test_an_incomplete_folder_is_not_remembered(whole: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(whole, broken, ignore=shutil.ignore_patterns("*.pth"), copy_function=os.link)
    assert not locate(broken).complete
    assert remembered() is None


def test_a_folder_without_any_part_is_not_remembered(whole: Path, tmp_path: Path) -> None:
    """Although the model is complete: all of it lies elsewhere."""
    Path(DEFAULT_FOLDER).symlink_to(whole)
    (tmp_path / "empty").mkdir()
    assert locate(tmp_path / "empty").complete
    assert remembered() is None


def test_a_toys_folder_is_not_remembered(tiny_checkpoint: Path) -> None:
    """A run of the self-test would otherwise make it everybody's model."""
    assert locate(tiny_checkpoint).complete
    assert remembered() is None


def test_the_environments_folder_is_not_remembered(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, str(whole))
    assert locate(whole).complete
    assert remembered() is None


def test_one_part_of_the_model_is_reason_enough(whole: Path, tmp_path: Path) -> None:
    """The LoRA is here, the rest in the hub's cache, as a user may have them."""
    mine = tmp_path / "mine"
    shutil.copytree(whole / "LiveAvatar", mine / "LiveAvatar", copy_function=os.link)
    Path(DEFAULT_FOLDER).mkdir()
    Path(DEFAULT_FOLDER, "Wan2.2-S2V-14B").symlink_to(whole / "Wan2.2-S2V-14B")
    assert locate(mine).complete
    assert remembered() == mine
