"""The documents: links lead somewhere, named files are there, both READMEs give the same commands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from avatar.preset import load_presets

ROOT = Path(__file__).parent.parent
PAGES = [*ROOT.glob("README*.md"), *(ROOT / "docs").glob("*.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_documents_lead_to_files(page: Path):
    links = re.findall(r"\]\((?!https?:)([^)#\s]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_architecture_names_files_that_are_there():
    named = re.findall(
        r"`([a-z_0-9/]+\.py)`", (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    )
    assert len(named) > 20
    assert [name for name in named if not ((ROOT / name).exists() or (ROOT / "avatar" / name).exists())] == []


def test_both_readmes_give_the_same_commands():
    english, chinese = (
        re.findall(r"```bash\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), re.DOTALL)
        for name in ("README.md", "README.zh-CN.md")
    )
    bare = [[re.sub(r"\s+#.*", "", line) for line in block.splitlines()] for block in english]
    assert bare == [[re.sub(r"\s+#.*", "", line) for line in block.splitlines()] for block in chinese]


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
def test_the_readmes_table_is_of_the_shipped_presets(name: str):
    rows = re.findall(
        r"^\| `([^`]+)` \| (.*) \| (.*) \|$", (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE
    )
    presets = load_presets()
    assert [row[0] for row in rows] == [preset.name for preset in presets]
    for (_, made_for, gives), preset in zip(rows, presets, strict=True):
        assert gives == (preset.summary if name == "README.md" else preset.summary_zh)
        assert not preset.requires.vram_gib or f"{preset.requires.vram_gib:g} GiB" in made_for
        ram = re.findall(r"([\d.]+) GiB (?:RAM|内存)", made_for)
        assert ram == ([f"{preset.requires.host_ram_gib:g}"] if preset.requires.host_ram_gib else [])
