"""Prompts are counted exactly by the checkpoint's own tokenizer, without torch and before anything loads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from avatar.checkpoints.prompt_tokens import MAX_TOKENS, token_ids
from avatar.errors import BadInput, WeightsMissing
from tests.fixtures.tokenizer import write_tokenizer


@pytest.mark.parametrize("truncated", [False, True])
@pytest.mark.parametrize("prompt", ["", "a person", "a  person &amp; speaks\n", "words " * 40])
def test_tokens_are_those_of_transformers(tmp_path: Path, prompt: str, truncated: bool) -> None:
    folder = write_tokenizer(tmp_path, truncated=truncated)
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    expected = theirs(prompt.replace("&amp;", "&").strip()).input_ids
    assert token_ids(prompt, folder) == expected


def test_one_token_too_many_is_refused_with_the_count(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path)
    assert len(token_ids("a " * (MAX_TOKENS - 1), folder)) == MAX_TOKENS
    with pytest.raises(BadInput, match="513 tokens long; the model reads at most 512"):
        token_ids("a " * MAX_TOKENS, folder)


def test_a_tokenizer_that_is_absent_or_corrupt_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsMissing, match=r"umt5/tokenizer\.json is missing"):
        token_ids("a", tmp_path / "umt5")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(WeightsMissing, match=r"tokenizer\.json is corrupt"):
        token_ids("a", tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\xfe")
    with pytest.raises(WeightsMissing, match=r"tokenizer\.json is corrupt"):
        token_ids("a", tmp_path)


def test_a_replaced_tokenizer_is_read_anew(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(WeightsMissing):
        token_ids("a", tmp_path)
    assert token_ids("a", write_tokenizer(tmp_path)) == [2, 0]


def test_counting_loads_neither_torch_nor_transformers(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path)
    code = (
        "import sys; from pathlib import Path; from avatar.checkpoints.prompt_tokens import token_ids;"
        "token_ids('a person', Path(sys.argv[1]));"
        "assert not {'torch', 'transformers'} & set(sys.modules), 'loaded'"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code, folder], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
