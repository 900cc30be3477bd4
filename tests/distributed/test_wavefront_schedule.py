"""The order of the items, without processes: who gets what, and when."""

from __future__ import annotations

import queue
from contextlib import nullcontext

import pytest
import torch

from avatar.distributed.p2p import Begin, Done, End, OpenBlockInputs, Prefill, Release, Work
from avatar.distributed.wavefront_schedule import WavefrontRun
from avatar.pipeline.denoiser import Block
from avatar.pipeline.flow_match_euler import Schedule
from avatar.planning.layout import Layout
from tests.distributed.streams import conditions, geometry_of

GEOMETRY = geometry_of({})


class Crew:
    """Notes every message with its stages; answers at once."""

    def __init__(self, layout: Layout) -> None:
        self.layout, self.log, self.work = layout, [], []
        self.answers: dict[int, queue.Queue] = {rank: queue.Queue() for rank in layout.workers}
        self.most_unanswered = 0

    def send(self, ranks, message) -> None:
        """Only the first rank of the stage that ends an item answers."""
        self.log.append((ranks, message))
        if isinstance(message, Begin):
            self.num_steps = message.schedule.num_steps
        if not isinstance(message, Work):
            return
        if not self.work or self.work[-1] != (message.block, message.step):
            self.work.append((message.block, message.step))
        if ranks == self.layout.ranks_of(self.layout.chain_of(message.step, self.num_steps)[-1]):
            done = Done(message.block, message.step, torch.full((1,), float(message.step + 1)))
            self.answers[ranks[0]].put(done)
            unanswered = sum(answers.qsize() for answers in self.answers.values())
            self.most_unanswered = max(self.most_unanswered, unanswered)

    def receive(self, rank: int) -> Done:
        return self.answers[rank].get(timeout=5)

    def settle(self) -> None:
        self.log.append(((), "settled"))

    def on_own_stream(self):
        return nullcontext()


def block(index: int, num_steps: int) -> Block:
    return Block(index, torch.zeros(1), torch.zeros(1), torch.zeros(1), (9,) * num_steps)


def conducted(layout: Layout, num_steps: int, orders) -> tuple[Crew, list]:
    """All orders given beforehand; what was ordered and what was finished."""
    crew = Crew(layout)
    schedule = Schedule(tuple(range(num_steps)), tuple(range(num_steps + 1)))
    run = WavefrontRun(crew, schedule, GEOMETRY, None)
    run.orders.put(conditions(GEOMETRY))
    num_blocks = 0
    for order in orders:
        run.orders.put(order)
        num_blocks += isinstance(order, Block)
    finished = []
    original = run.finished.put

    def put(item) -> None:
        original(item)
        finished.append(item)
        if len(finished) == num_blocks or isinstance(item, BaseException):
            run.quit.set()

    run.finished.put = put
    run.conduct()
    return crew, finished


LAYOUTS = [
    (Layout("local", 1, 1, True), 4),
    (Layout("ulysses", 1, 3), 3),
    (Layout("layers", 2), 4),
    (Layout("layers", 4), 4),
    (Layout("layers", 5), 4),
    (Layout("layers", 5), 2),
    (Layout("layers", 4), 1),
    (Layout("layers", 2, 2, True), 3),
    (Layout("timesteps", 4), 4),
    (Layout("timesteps", 3), 4),
    (Layout("timesteps", 2, 2), 3),
]


@pytest.mark.parametrize(("layout", "num_steps"), LAYOUTS)
def test_every_item_comes_once_after_those_that_it_needs(layout, num_steps):
    crew, finished = conducted(layout, num_steps, [block(index, num_steps) for index in range(25)])
    assert sorted(crew.work) == [(b, s) for b in range(25) for s in range(num_steps)]
    place = {item: position for position, item in enumerate(crew.work)}
    for b, s in crew.work:
        assert not s or place[b, s - 1] < place[b, s]
        assert not b or place[b - 1, s] < place[b, s]
    assert all(isinstance(latents, torch.Tensor) for latents in finished)
    assert isinstance(crew.log[-2][1], End)


@pytest.mark.parametrize(("layout", "num_steps"), [(lay, n) for lay, n in LAYOUTS if lay.kind == "layers"])
def test_a_block_comes_back_to_the_first_stage_no_sooner_than_it_can(layout, num_steps):
    """Once blocks stand as far apart as they will, as many items lie between as may be under way."""
    crew, _ = conducted(layout, num_steps, [block(index, num_steps) for index in range(40)])
    place = {item: position for position, item in enumerate(crew.work)}
    lag, spread = layout.lag_of(num_steps - 1, num_steps), layout.spread_from(num_steps)
    assert spread + lag < 40 - lag
    for b in range(spread + lag, 40 - lag):
        for s in range(1, num_steps):
            assert place[b, s] - place[b, s - 1] >= layout.most_items


def test_blocks_stand_further_apart_one_by_one():
    layout = Layout("layers", 4)
    assert (layout.most_items, layout.lag_of(3, 4), layout.spread_from(4)) == (6, 6, 12)
    lags = [layout.place_of(index, 3, 4) - index for index in range(0, 20, 2)]
    assert lags == [3, 3, 4, 4, 5, 5, 6, 6, 6, 6]
    assert Layout("layers", 2).spread_from(4) == 0  # a block comes back late enough as it is
    for other in (Layout("timesteps", 4), Layout("ulysses", 1, 4), Layout("layers", 1)):
        assert (other.most_items, other.spread_from(4)) == (other.num_stages + 1, 0)


def test_a_video_that_goes_on_begins_as_any_does():
    layout = Layout("layers", 4)
    crew, _ = conducted(layout, 4, [block(index, 4) for index in range(20)])
    later, _ = conducted(layout, 4, [block(index, 4) for index in range(100, 120)])
    assert later.work == [(index + 100, step) for index, step in crew.work]


def test_the_order_on_a_diagonal():
    crew, _ = conducted(Layout("layers", 3), 3, [block(index, 3) for index in range(5)])
    assert crew.work[:9] == [(0, 0), (1, 0), (0, 1), (2, 0), (1, 1), (0, 2), (3, 0), (2, 1), (1, 2)]


def test_one_stage_takes_one_block_after_the_other():
    crew, _ = conducted(Layout("ulysses", 1, 4), 4, [block(index, 4) for index in range(3)])
    assert crew.work == [(b, s) for b in range(3) for s in range(4)]


def test_latents_go_only_where_they_are_not_already():
    layout = Layout("timesteps", 2)
    crew, finished = conducted(layout, 4, [block(0, 4)])
    works = [message for _, message in crew.log if isinstance(message, Work)]
    assert [work.latents is None for work in works] == [False, True, False, True]
    assert float(works[2].latents) == 2.0  # as step 1 answered
    assert float(finished[0]) == 4.0


def test_only_the_ends_of_the_chain_get_latents():
    layout = Layout("layers", 3, 1, True)
    crew, _ = conducted(layout, 1, [block(0, 1)])
    assert [(ranks[0], m.latents is None) for ranks, m in crew.log if isinstance(m, Work)] == [
        (3, False),
        (2, True),
        (1, False),
    ]
    assert {ranks[0]: len(m.block.audio) for ranks, m in crew.log if isinstance(m, OpenBlockInputs)} == {
        1: 1,
        2: 0,
        3: 0,
    }
    assert {ranks[0]: m.text is None for ranks, m in crew.log if isinstance(m, Begin)} == {
        1: False,
        2: True,
        3: True,
    }


def test_two_anchors_live_until_the_old_ones_last_block():
    orders = [*(block(index, 3) for index in range(3)), torch.ones(1), *(block(index, 3) for index in (3, 4))]
    crew, _ = conducted(Layout("layers", 2), 3, orders)
    anchors = {m.block.index: m.anchor for _, m in crew.log if isinstance(m, OpenBlockInputs)}
    assert anchors == {0: 0, 1: 0, 2: 0, 3: 1, 4: 1}
    events = [message for ranks, message in crew.log if 0 in ranks]
    last_of_old = max(i for i, m in enumerate(events) if isinstance(m, Work) and m.block == 2)
    released = next(i for i, m in enumerate(events) if isinstance(m, Release))
    prefilled = max(i for i, m in enumerate(events) if isinstance(m, Prefill))
    first_of_new = next(i for i, m in enumerate(events) if isinstance(m, Work) and m.block == 3)
    assert prefilled < first_of_new < last_of_old < released
    assert events[released].anchor == 0


def test_the_old_anchor_goes_before_the_new_one_is_made():
    run = WavefrontRun(Crew(Layout("layers", 2)), Schedule((1.0,), (1.0, 0.0)), GEOMETRY, None)
    run._refresh(torch.ones(1))
    assert [type(message) for _, message in run._conductor.log] == [Release, Prefill, Prefill]


@pytest.mark.parametrize("progress", [1, 2, 5, 9, 14])
@pytest.mark.parametrize(("layout", "num_steps"), LAYOUTS)
def test_once_asked_to_quit_it_hands_out_nothing_more(layout, num_steps, progress):
    """What is under way then is waited for, and it is never more than may be; then comes End."""

    class Stopping(Crew):
        def send(self, ranks, message) -> None:
            super().send(ranks, message)
            if len(self.work) >= progress:
                run.quit.set()

    crew = Stopping(layout)
    run = WavefrontRun(crew, Schedule((1.0,) * num_steps, (0.0,) * (num_steps + 1)), GEOMETRY, None)
    run.orders.put(conditions(GEOMETRY))
    for index in range(30):
        run.orders.put(block(index, num_steps))
    run.conduct()
    assert len(crew.work) == progress
    assert all(answers.empty() for answers in crew.answers.values())
    assert isinstance(crew.log[-2][1], End)
    assert crew.most_unanswered <= layout.most_items


def test_what_an_answer_raises_reaches_the_rollout():
    class Lost(Crew):
        def receive(self, rank: int) -> Done:
            raise RuntimeError("connection closed")

    run = WavefrontRun(Lost(Layout("layers", 2)), Schedule((1.0,), (1.0, 0.0)), GEOMETRY, None)
    run.orders.put(conditions(GEOMETRY))
    run.orders.put(block(0, 1))
    run.conduct()
    with pytest.raises(RuntimeError, match="connection closed"):
        raise run.finished.get_nowait()


@pytest.mark.parametrize("lost", [False, True])
def test_it_has_begun_once_all_stages_have_the_first_item(lost):
    had_begun = []

    class Watched(Crew):
        def send(self, ranks, message) -> None:
            had_begun.append((type(message), run.begun.is_set()))
            if lost and isinstance(message, Prefill):
                raise RuntimeError("connection closed")
            super().send(ranks, message)
            if len(self.work) == 2:
                run.quit.set()

    run = WavefrontRun(Watched(Layout("layers", 2)), Schedule((1.0, 0.5), (1.0, 0.5, 0.0)), GEOMETRY, None)
    run.orders.put(conditions(GEOMETRY))
    run.orders.put(block(0, 2))
    run.conduct()
    assert run.begun.is_set()
    reported = [begun for kind, begun in had_begun if kind is Work]
    assert reported == ([] if lost else [False, False, True, True])
    assert not any(begun for kind, begun in had_begun if kind in (Begin, Prefill, OpenBlockInputs))
