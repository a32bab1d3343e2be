"""Which steps are made once, in which order, and what that saves."""

from service.compare.forest import Ready, forest, in_order, swaps
from service.engine.paths import Way

EMPTY, INK, OIL = ((), ()), (("ink",), ("ink",)), (("oil",), ("oil",))


def a_way(noise: str, *steps: str, stacks=None) -> Way:
    """A way whose steps are told by letters; without LoRAs, unless `stacks` says one for each step."""
    return Way((noise, *steps), len(steps), 2, tuple(stacks or [EMPTY] * len(steps)))


def hand_overs(steps: int, *shares: float) -> list[Way]:
    """The ways of a sweep over the hand-over."""
    return [
        a_way("n", *("b" * round(share * steps)), *(f"r{share}" for _ in range(steps - round(share * steps))))
        for share in shares
    ]


def evaluations(ways: list[Way]) -> tuple[int, int]:
    """Planned and naive."""
    planned = sum(segment.evaluations for batch in in_order(forest(ways)) for segment in batch)
    return planned, sum(way.steps * way.rows for way in ways)


def test_equal_ways_are_one_picture():
    (only,) = forest([a_way("n", "a", "b"), a_way("n", "a", "b")])
    assert (only.start, only.end, only.finished, only.branches) == (0, 2, (0, 1), [])


def test_ways_of_different_noise_have_nothing_in_common():
    roots = forest([a_way("n", "a", "b"), a_way("m", "a", "b")])
    assert [root.cells for root in roots] == [(0,), (1,)]


def test_ways_part_after_what_they_have_in_common():
    (root,) = forest([a_way("n", "a", "b", "c"), a_way("n", "a", "x", "y"), a_way("n", "a", "b", "d")])
    assert (root.start, root.end, root.finished) == (0, 1, ())
    assert [(one.start, one.end, one.cells) for one in root.branches] == [(1, 2, (0, 2)), (1, 3, (1,))]
    assert [(one.start, one.end, one.finished) for one in root.branches[0].branches] == [
        (2, 3, (0,)),
        (2, 3, (2,)),
    ]


def test_a_way_may_end_where_another_goes_on():
    (root,) = forest([a_way("n", "a"), a_way("n", "a", "b")])
    assert (root.finished, [one.finished for one in root.branches]) == ((0,), [(1,)])


def test_a_sweep_of_five_hand_overs_costs_less_than_half():
    planned, naive = evaluations(hand_overs(50, 0.6, 0.7, 0.8, 0.9, 1.0))
    assert planned / naive <= 0.45


def test_only_the_cells_that_are_wanted_are_drawn():
    ways = hand_overs(10, 0.6, 0.8, 1.0)
    roots = forest(ways, [1])
    assert [(root.start, root.end, root.finished) for root in roots] == [(0, 10, (1,))]


def test_cells_of_one_stack_are_drawn_together_whatever_their_order():
    stacks = [EMPTY, INK, OIL, INK, EMPTY, OIL]
    ways = [a_way(f"n{i}", "a", stacks=[stack]) for i, stack in enumerate(stacks)]
    batches = [[segment.cells[0] for segment in batch] for batch in in_order(forest(ways))]
    assert batches == [[0, 4], [1, 3], [2, 5]]


def test_as_many_swaps_as_stacks():
    def count(*stacks) -> int:
        ways = [a_way(f"n{i}", "a", stacks=[stack]) for i, stack in enumerate(stacks)]
        return swaps(forest(ways), judged=False)

    assert count(EMPTY, EMPTY) == 0
    assert count(INK, EMPTY, INK, OIL, EMPTY, OIL) <= 3
    assert count(INK, OIL, INK, OIL) == 2


def test_a_judge_without_loras_costs_a_swap_back_after_each_stack():
    ways = [a_way(f"n{i}", "a", stacks=[stack]) for i, stack in enumerate([EMPTY, INK, INK, OIL])]
    assert swaps(forest(ways), judged=False) == 2
    assert swaps(forest(ways), judged=True) == 4


def test_what_comes_after_a_segment_waits_for_it():
    ready = Ready(forest(hand_overs(10, 0.6, 0.8)))
    ((root, start),) = ready.batch()
    assert start is None
    assert not ready
    ready.follow(root, "snapshot")
    assert sorted(segment.cells for segment, _ in ready.batch()) == [(0,), (1,)]
