"""The documents: links lead somewhere, named files are there, both READMEs give the same commands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

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
