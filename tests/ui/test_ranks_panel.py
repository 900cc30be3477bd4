"""The ranks on the page: one row per rank, the busiest marked, in both languages; none for a single rank."""

from __future__ import annotations

import pytest

from avatar.commands.generate import _pace
from avatar.events import Phase, Progress, RankLoad
from avatar.ui.generate.ranks_html import render_ranks, role_words
from avatar.ui.generate.status_html import Status, render_status

RANKS = (
    RankLoad(0, "layers 0–13, decode", "GPU 0", 71.5),
    RankLoad(1, "layers 14–39", "GPU 1", 96.0),
    RankLoad(2, "", "", None),
)
RUNNING = Progress(Phase.GENERATING, ranks=RANKS)


def test_every_rank_has_a_row_and_the_busiest_is_marked():
    page = render_ranks(RUNNING, "en")
    assert page.count("<li") == 3
    assert page.count("data-busiest") == 1
    assert page.index("GPU 0 · layers 0–13, decode") < page.index("data-busiest") < page.index("GPU 1")
    assert "the others are waiting for it · </span>96 %" in page
    assert "Rank 2" in page


def test_none_is_waited_for_while_all_are_idle():
    idle = tuple(RankLoad(rank, "", f"GPU {rank}", 0.2) for rank in range(2))
    assert "data-busiest" not in render_ranks(Progress(Phase.GENERATING, ranks=idle), "en")


def test_in_chinese_too():
    page = render_ranks(RUNNING, "zh")
    assert "GPU 0 · 层 0–13，解码" in page
    assert "瓶颈 · </span>96 %" in page
    assert "进程 2" in page


@pytest.mark.parametrize(
    ("role", "words"),
    [("step 2", "步 2"), ("heads 0–13, decode", "头 0–13，解码"), ("all layers", "全部层"), ("", "")],
)
def test_roles_are_translated(role, words):
    assert role_words(role, "zh") == words
    assert role_words(role, "en") == role


def test_one_rank_and_a_run_that_is_over_show_none():
    assert render_ranks(Progress(Phase.GENERATING, ranks=RANKS[:1]), "en") == ""
    assert "GPU 1" in render_status(Status("running", RUNNING), "en")
    assert "GPU 1" not in render_status(Status("done", RUNNING), "en")


def test_the_command_line_names_the_busiest():
    assert "busiest: GPU 1 layers 14–39 96 %" in _pace(RUNNING)
    assert "busiest" not in _pace(Progress(Phase.GENERATING, ranks=RANKS[:1]))
