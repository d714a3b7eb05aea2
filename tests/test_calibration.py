"""A calibration recovers what passes and drafts cost, whatever the clock does."""

import random

import pytest

from fakes import FakeDrafter, FakeTarget
from paceline.calibration import MAX_SWEEPS, MIN_SWEEPS, ROWS, calibrate
from paceline.speculative.costs import CostModel

TEXT = [16 + value % 7 for value in range(40)]


class Clock:
    """Moves by what passes and draft steps take, and by what `jumps` says of each reading."""

    def __init__(self, target, drafter=None, jumps=lambda reading: 0.0):
        self.now = 100.0
        self.readings = 0
        self.jumps = jumps
        forward = target.forward

        def timed_forward(rows):
            self.now += sum(1.0 + 0.1 * len(share.token_ids) for share in rows)
            return forward(rows)

        target.forward = timed_forward
        if drafter is not None:
            draft = drafter.draft

            def timed_draft(requests):
                self.now += sum(0.25 + 0.5 * r.max_draft_tokens for r in requests)
                return draft(requests)

            drafter.draft = timed_draft

    def __call__(self):
        self.readings += 1
        self.now += self.jumps(self.readings)
        return self.now


def measured(*, jumps=lambda reading: 0.0, drafts=True, target=None, quick=False, **settings):
    target = target or FakeTarget()
    drafter = FakeDrafter(target, **settings) if drafts else None
    clock = Clock(target, drafter, jumps)
    return calibrate(target, drafter, TEXT, budget_s=1e9 if quick else 1.0, clock=clock)


def test_costs_are_recovered():
    found = measured()
    assert found.passes == pytest.approx({rows: 1.0 + 0.1 * rows for rows in ROWS})
    assert found.draft == pytest.approx((0.25, 0.5))
    assert found.sweeps == MIN_SWEEPS  # each takes longer than the budget
    assert found.seconds > 0
    CostModel(found.passes, found.draft)


def test_a_drafter_of_one_token_has_no_fixed_part():
    assert measured(max_draft_tokens=1).draft == pytest.approx((0.0, 0.75))


def test_without_a_drafter_there_are_passes_only():
    assert measured(drafts=False).draft is None


def test_a_short_context_leaves_room_for_few_rows():
    assert sorted(measured(target=FakeTarget(context_length=37)).passes) == [1, 2, 3, 5]


def test_a_quick_machine_is_measured_more_often():
    target = FakeTarget()
    found = calibrate(target, None, TEXT, budget_s=1e9)
    assert found.sweeps == MAX_SWEEPS
    assert sorted(found.passes) == list(ROWS)
    assert all(seconds > 0 for seconds in found.passes.values())


def test_what_else_runs_on_the_machine_is_left_out():
    """Half of all readings come late."""
    late = random.Random(3)
    found = measured(jumps=lambda reading: late.choice([0.0, 3.0]), quick=True)
    assert found.passes == pytest.approx({rows: 1.0 + 0.1 * rows for rows in ROWS})


def test_rows_cost_no_more_than_as_many_passes():
    target = FakeTarget()
    clock = Clock(target)
    forward = target.forward

    def slow_for_several(rows):
        clock.now += 50.0 * (len(rows[0].token_ids) > 1)
        return forward(rows)

    target.forward = slow_for_several
    found = calibrate(target, None, TEXT, budget_s=1.0, clock=clock)
    assert found.passes == pytest.approx({rows: 1.1 * rows for rows in ROWS})


@pytest.mark.parametrize("size", [-1e6, 1e6])
def test_one_jump_of_the_clock_changes_nothing(size):
    found = measured(jumps=lambda reading: size if reading == 9 else 0.0)
    assert found.passes == pytest.approx({rows: 1.0 + 0.1 * rows for rows in ROWS})
    assert found.seconds >= 0


def test_a_clock_that_runs_backwards_measures_nothing():
    assert measured(jumps=lambda reading: -1e3) is None


def test_a_clock_that_stands_still_measures_nothing():
    """And nothing waits for it to move."""
    assert calibrate(FakeTarget(), None, TEXT, budget_s=0.0, clock=lambda: 7.0) is None


def test_the_scratch_leaves_nothing_behind():
    """Every pass stands where the last one did: as many rows, at the same place."""
    target = FakeTarget()
    calibrate(target, None, TEXT, budget_s=0.0, clock=Clock(target))
    (prompt,), (warm_up,), *passes = target.passes
    assert (prompt, warm_up) == (32, max(ROWS))
    assert [rows for (rows,) in passes] == [1, 1, 2, 2, 3, 5, 8, 16] * MIN_SWEEPS


def test_the_first_of_another_shape_is_left_out():
    """As on a processor whose caches hold what ran last."""
    target = FakeTarget()
    drafter = FakeDrafter(target)
    clock, last = Clock(target, drafter), [0]
    draft = drafter.draft

    def cold_at_first(requests):
        clock.now += 5.0 * (last[-1] == 1)
        return draft(requests)

    forward = target.forward

    def remember(rows):
        last.append(len(rows[0].token_ids))
        clock.now += 5.0 * (last[-2] != 1 and last[-1] == 1)
        return forward(rows)

    target.forward, drafter.draft = remember, cold_at_first
    found = calibrate(target, drafter, TEXT, clock=clock)
    assert found.passes == pytest.approx({rows: 1.0 + 0.1 * rows for rows in ROWS})
    assert found.draft == pytest.approx((0.25, 0.5))
