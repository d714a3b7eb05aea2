"""Costs are learned from noisy clocks, kept, and refused where they are damaged."""

import copy
import json
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.errors import ConfigError
from paceline.speculative.controller import RoundCost
from paceline.speculative.costs import (
    COLD,
    ESTABLISHED,
    LASTING_S,
    MAX_SECONDS,
    NUM_RECENT,
    TRUSTED_PASSES,
    Cell,
    CostModel,
    Line,
    along,
    between,
    is_usable,
)

PASSES = {1: 0.050, 2: 0.051, 4: 0.053, 8: 0.065, 16: 0.105}
DRAFT = (0.0005, 0.00075)
ROUND = RoundCost(
    num_sequences=1,
    num_rows=1,
    context_length=100,
    num_drafts=0,
    num_draft_steps=0,
    num_tokens=1,
    draft_s=0.0,
    verify_s=0.050,
    overhead_s=0.0006,
)


def drafting(length, *, verify_s, draft_s=None, **fields):
    steps_s = DRAFT[0] + DRAFT[1] * length if draft_s is None else draft_s
    return ROUND._replace(
        num_rows=1 + length,
        num_drafts=1,
        num_draft_steps=length,
        verify_s=verify_s,
        draft_s=steps_s,
        **fields,
    )


def calibrated():
    return CostModel(PASSES, DRAFT, 0.0005)


def observe(model, cost, times=1):
    for _ in range(times):
        model.observe(cost._replace())  # a round is an object: the same one is one round


# --- Curves -------------------------------------------------------------------------------------


def test_a_calibration_is_what_is_known_at_first():
    curve = calibrated().curve(100)
    assert curve.passes[:4] == pytest.approx((0.050, 0.051, 0.052, 0.053))
    assert curve.passes[15] == pytest.approx(0.105)
    assert (curve.draft_fixed, curve.draft_step, curve.overhead) == (*DRAFT, 0.0005)
    assert curve.plain == pytest.approx(0.0505)
    assert len(curve.passes) == 16
    assert calibrated().curve(100, 3, 45).passes[0] == pytest.approx(0.052)  # three rows
    assert len(calibrated().curve(100, 3, 45).passes) == 46


@pytest.mark.parametrize(
    ("at", "expected"), [(0, 3.0), (1, 3.0), (2, 4.0), (3, 5.0), (5, 7.0), (9, 7.0)]
)
def test_between_points_a_line_outside_the_nearest(at, expected):
    assert between([(1, 3.0), (3, 5.0), (5, 7.0)], at) == expected


@pytest.mark.parametrize(("rows", "expected"), [(1, 1.0), (8, 2.0), (15, 3.0), (22, 4.0)])
def test_beyond_the_points_the_slope_of_all_of_them(rows, expected):
    assert along([(1, 1.0), (2, 1.0), (15, 3.0)], rows) == pytest.approx(expected, abs=0.2)
    assert along([(4, 2.0)], rows) == 2.0


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 15), st.floats(1e-4, 1.0), st.integers(1, 9)), max_size=40),
    st.integers(0, 20),
)
def test_more_rows_never_take_less(samples, bits):
    model = calibrated()
    for length, verify_s, times in samples:
        observe(model, drafting(length, verify_s=verify_s), times)
    for context_length in (100, 1 << bits):
        passes = model.curve(context_length).passes
        assert list(passes) == sorted(passes)
        assert all(math.isfinite(seconds) and seconds > 0 for seconds in passes)


# --- Learning -----------------------------------------------------------------------------------


def test_the_true_curve_is_found_in_spite_of_noise_and_hiccups():
    """Calibrated for a machine of another shape; every tenth time is fivefold."""
    generator = random.Random(5)
    true = {n: 0.04 * (1 + 0.2 * n) for n in range(8)}
    model = calibrated()
    for _ in range(600):
        length = generator.randrange(8)
        factor = generator.lognormvariate(0, 0.03) * (5 if generator.random() < 0.1 else 1)
        observe(model, drafting(length, verify_s=true[length] * factor))
    found = model.curve(100).passes
    assert [found[n] / true[n] for n in range(8)] == pytest.approx([1.0] * 8, abs=0.04)


def test_a_round_feeds_the_cell_of_its_own_shape_only():
    model = calibrated()
    observe(model, drafting(3, verify_s=0.080), 20)  # four rows, known as 0.053
    observe(model, drafting(0, verify_s=0.050), 20)
    passes = model.curve(100).passes
    assert passes[3] == pytest.approx(0.080, rel=0.02)
    assert passes[0] == pytest.approx(0.050, rel=0.02)


def test_what_was_not_measured_is_the_nearest_scaled():
    model = calibrated()
    observe(model, drafting(3, verify_s=2 * 0.053), 30)  # twice as slow as it was
    passes = model.curve(100).passes
    assert passes[7] / calibrated().curve(100).passes[7] == pytest.approx(2.0, rel=0.02)
    long = model.curve(40_000).passes  # a context that nobody has seen
    assert long == pytest.approx(passes)
    observe(model, drafting(3, verify_s=0.159, context_length=40_000), 30)
    assert model.curve(40_000).passes[7] == pytest.approx(1.5 * passes[7], rel=0.02)
    assert model.curve(100).passes == passes


def test_contexts_below_512_are_one():
    model = calibrated()
    observe(model, drafting(0, verify_s=0.070, context_length=3), 30)
    assert model.curve(511).passes[0] == pytest.approx(0.070, rel=0.02)


@pytest.mark.parametrize(
    "spoilt", [0.0, -1.0, math.nan, math.inf, -math.inf, MAX_SECONDS * 2, 1e300]
)
def test_a_clock_that_jumps_teaches_nothing(spoilt):
    assert not is_usable(spoilt)
    model = calibrated()
    before = model.curve(100)
    observe(model, drafting(4, verify_s=spoilt, draft_s=spoilt, overhead_s=spoilt), 50)
    after = model.curve(100)
    assert after.passes == before.passes
    assert (after.draft_fixed, after.draft_step) == (before.draft_fixed, before.draft_step)
    assert after.overhead == before.overhead


@pytest.mark.parametrize("factor", [0.01, 100.0])
def test_two_outliers_move_nothing_that_is_settled(factor):
    model = calibrated()
    observe(model, drafting(4, verify_s=0.056), 20)
    before = model.curve(100)
    observe(model, drafting(4, verify_s=0.056 * factor, draft_s=0.0035 * factor), 2)
    after = model.curve(100)
    assert after.passes[4] == pytest.approx(before.passes[4], rel=0.05)
    assert after.draft_step == pytest.approx(before.draft_step, rel=0.1)


def test_a_cell_follows_a_machine_that_has_slowed_down():
    cell = Cell(0.05)
    for _ in range(40):
        cell.observe(0.075)
    assert cell.seconds == pytest.approx(0.075, rel=0.01)
    assert len(cell.recent) == NUM_RECENT


@pytest.mark.parametrize("hiccup", [0.001, 0.15, 30.0])
def test_a_new_cell_believes_four_slow_samples_not_three(hiccup):
    cell = Cell(0.05)
    for _ in range(3):
        cell.observe(hiccup)
    assert cell.seconds == 0.05 or hiccup < 0.05  # what is too fast cannot be noise
    cell.observe(hiccup)
    assert cell.seconds == pytest.approx(hiccup)


def test_three_slow_samples_in_five_leave_a_cell_alone():
    """Plain decoding is seldom run: what else ran then must not make it look slow."""
    cell = Cell(0.05)
    for factor in 20 * (1.0, 2.0, 1.0, 3.0, 1.5):
        cell.observe(0.05 * factor)
        assert cell.seconds < 1.02 * 0.05


def test_of_cells_that_contradict_each_other_the_faster_is_right():
    model = calibrated()
    observe(model, drafting(0, verify_s=0.150), 20)
    observe(model, drafting(2, verify_s=0.052), 20)
    passes = model.curve(100).passes
    assert passes[0] <= passes[2] == pytest.approx(0.052, rel=0.02)


def test_the_parts_of_a_draft_are_told_apart():
    generator = random.Random(3)
    line = Line(0.0005, 0.0005)
    for _ in range(300):
        n = generator.randint(1, 8)
        line.observe(1, n, (0.002 + 0.001 * n) * generator.lognormvariate(0, 0.02))
    assert (line.fixed, line.slope) == pytest.approx((0.002, 0.001), rel=0.1)


def test_a_drafter_ten_times_as_slow_is_known_after_three_drafts():
    line = Line(*DRAFT)
    for _ in range(50):
        line.observe(1, 4, line.seconds(1, 4))
    slow = 10 * line.seconds(1, 4)
    for _ in range(3):
        line.observe(1, 4, slow)
    assert line.seconds(1, 4) == pytest.approx(slow, rel=0.1)
    assert line.fixed / line.slope == pytest.approx(DRAFT[0] / DRAFT[1], rel=0.05)


def test_overhead_of_tokens_is_not_overhead_of_rounds():
    """What each token costs falls to plain decoding too, and must not speak for long drafts."""
    model = calibrated()
    generator = random.Random(1)
    for _ in range(800):
        length = generator.randrange(8)
        cost = drafting(length, verify_s=0.05 + 0.002 * length, num_tokens=1 + length)
        observe(model, cost._replace(overhead_s=0.003 + 0.0004 * (1 + length)))
    assert model.curve(100).overhead == pytest.approx(0.003, rel=0.1)


def test_a_round_of_several_sequences_is_learned_once():
    one, four = calibrated(), calibrated()
    cost = drafting(4, verify_s=0.09)
    one.observe(cost)
    for _ in range(4):
        four.observe(cost)
    assert one.to_dict() == four.to_dict()


def test_without_a_calibration_nothing_is_known_before_three_passes():
    model = CostModel()
    for done in range(TRUSTED_PASSES):
        assert not model.is_known, done
        observe(model, ROUND._replace(verify_s=0.2))
    assert model.is_known
    curve = model.curve(100)
    assert curve.passes[0] == pytest.approx(0.2)
    assert 0.2 < curve.passes[4] < 0.4
    assert 0 < curve.draft_step < 0.05
    assert calibrated().is_known


def test_how_long_ago_plain_decoding_was_measured():
    model = calibrated()
    assert model.rounds_since_plain(100) == 0
    observe(model, drafting(2, verify_s=0.052), 5)
    assert model.rounds_since_plain(100) == 5
    assert model.rounds_since_plain(5000) == 0
    observe(model, ROUND)
    assert model.rounds_since_plain(100) == 0


def test_a_plain_pass_much_faster_than_known_is_measured_again_at_once():
    model, asked = calibrated(), 0
    fast = 0.5 * model.curve(100).passes[0]
    while not asked or model.rounds_since_plain(100):
        observe(model, ROUND._replace(verify_s=fast))
        asked += 1
        assert asked < 20
    assert asked >= 2
    assert model.curve(100).passes[0] < 1.3 * fast
    observe(model, ROUND._replace(verify_s=3 * fast))  # a hiccup asks for nothing
    assert model.rounds_since_plain(100) == 0


def test_a_curve_is_built_anew_only_for_news():
    model = calibrated()
    observe(model, ROUND, 20)
    curve = model.curve(100)
    observe(model, ROUND._replace(verify_s=0.0501), 20)
    assert model.curve(100) is curve
    observe(model, ROUND._replace(verify_s=0.060), 20)
    assert model.curve(100) is not curve


# --- What else runs -----------------------------------------------------------------------------


def lived_in_turn(model, *, factor=1.0, turns=20, lengths=(0, 2)):
    for _ in range(turns):
        for length in lengths:
            seconds = factor * (0.05 + 0.001 * length)
            observe(
                model,
                drafting(length, verify_s=seconds, draft_s=factor * 0.002)
                if length
                else ROUND._replace(verify_s=seconds),
            )


def ratios(model):
    passes = model.curve(100).passes
    return [seconds / passes[0] for seconds in passes]


def test_load_is_told_from_costs():
    """All shapes take three times as long for a while: none of them has become dear."""
    model = calibrated()
    lived_in_turn(model)
    before = ratios(model)
    lived_in_turn(model, factor=3.0)
    assert model.load > 2.0
    assert ratios(model) == pytest.approx(before, rel=0.05)
    lived_in_turn(model)
    assert ratios(model) == pytest.approx(before, rel=0.05)


def test_a_shape_that_runs_under_load_only_does_not_become_dear():
    model = calibrated()
    lived_in_turn(model, lengths=(0,))
    lived_in_turn(model, lengths=(0,), factor=3.0, turns=5)
    lived_in_turn(model, lengths=(0, 2), factor=3.0)
    lived_in_turn(model, lengths=(0,))
    passes = model.curve(100).passes
    assert passes[2] / passes[0] == pytest.approx(1.04, abs=0.1)


def test_small_changes_are_changes_of_the_machine():
    model = calibrated()
    lived_in_turn(model)
    lived_in_turn(model, factor=1.2)
    assert model.load == 1.0
    assert model.curve(100).passes[0] == pytest.approx(0.06, rel=0.02)


def test_a_shape_that_grows_dear_beside_others_is_noticed():
    model = calibrated()
    lived_in_turn(model)
    for _ in range(60):
        observe(model, ROUND)
        observe(model, drafting(2, verify_s=0.104))
    passes = model.curve(100).passes
    assert passes[2] / passes[0] == pytest.approx(2.08, rel=0.1)


def test_few_samples_of_a_shape_say_less_than_many_of_another():
    """Three passes of five rows came while something else ran, before anything was established."""
    model = calibrated()
    observe(model, drafting(4, verify_s=0.160), 3)
    observe(model, ROUND, 40)
    passes = model.curve(100).passes
    assert passes[4] < 0.09
    observe(model, drafting(4, verify_s=0.100), 40)
    assert model.curve(100).passes[4] == pytest.approx(0.100, rel=0.05)


def test_a_round_after_one_of_another_kind_can_only_lower_what_is_known():
    """It may be slow because the processor's caches held something else."""
    model = calibrated()
    lived_in_turn(model)
    before = model.curve(100)
    for _ in range(30):
        model.observe(drafting(2, verify_s=0.07, draft_s=2 * 0.002), is_steady=False)
    after = model.curve(100)
    assert (after.passes, after.draft_step) == (before.passes, before.draft_step)
    for _ in range(30):
        model.observe(drafting(2, verify_s=0.045, draft_s=0.001), is_steady=False)
    after = model.curve(100)
    assert after.passes[2] < before.passes[2]
    assert after.draft_step < before.draft_step


def test_what_is_too_slow_for_cold_caches_is_learned_from_rounds_apart():
    """A drafter ten times slower than it was measured, asked once in a while."""
    model = calibrated()
    before = model.curve(100)
    for _ in range(12):
        observe(model, ROUND)
        model.observe(drafting(2, verify_s=0.25, draft_s=0.05), is_steady=False)
    after = model.curve(100)
    assert after.draft_fixed + 2 * after.draft_step > 0.95 * 0.05 / COLD
    assert after.passes[2] > 1.2 * before.passes[2]


def test_hiccups_of_a_first_shape_leave_no_load_behind():
    """Half the cost and twice the load explain each pass as well: an error must not last."""
    model = calibrated()
    observe(model, drafting(3, verify_s=0.053), 16)
    observe(model, drafting(3, verify_s=0.160), 3)
    assert model.load > 2.0
    observe(model, ROUND, 40)
    assert model.load == 1.0
    assert model.curve(100).passes[0] == pytest.approx(0.050, rel=0.02)


def test_one_slow_pass_of_the_first_established_shape_is_no_load():
    model = calibrated()
    observe(model, drafting(3, verify_s=0.053), 16)
    observe(model, drafting(3, verify_s=0.160))
    assert model.load == 1.0


def test_a_load_that_lasts_is_the_machine():
    model = calibrated()
    lived_in_turn(model)
    before = model.curve(100)
    lived_in_turn(model, factor=2.0, turns=math.ceil(LASTING_S / 0.2) + 20)
    after = model.curve(100)
    assert model.load == 1.0
    assert after.passes[:3] == pytest.approx([2 * s for s in before.passes[:3]], rel=0.05)
    assert after.draft_step == pytest.approx(2 * before.draft_step, rel=0.05)


def test_of_short_established_passes_one_in_four_is_learned_from():
    model = CostModel({1: 0.0002, 16: 0.001}, (1e-6, 1e-6), 1e-6)
    short = ROUND._replace(verify_s=0.0002, overhead_s=1e-6)
    observe(model, short, ESTABLISHED)
    cell = model._bucket(7, 1).cells[1]
    observe(model, short, 4 * 10)
    assert cell.count == ESTABLISHED + 10
    observe(model, drafting(1, verify_s=0.0003, draft_s=2e-6))
    assert model.rounds_since_plain(100) == 1


# --- Keeping ------------------------------------------------------------------------------------


def lived():
    model = calibrated()
    generator = random.Random(2)
    for _ in range(200):
        length = generator.randrange(6)
        context = generator.choice([100, 2000, 30_000])
        observe(
            model,
            drafting(
                length, verify_s=0.05 + 0.003 * length + 1e-7 * context, context_length=context
            ),
        )
    return model


def test_what_is_kept_comes_back():
    model = lived()
    kept = json.loads(json.dumps(model.to_dict()))
    again = CostModel.from_dict(kept)
    assert again.to_dict() == model.to_dict()
    for context in (100, 2000, 30_000, 200_000):
        assert again.curve(context).passes == pytest.approx(model.curve(context).passes, rel=0.02)
    assert again.is_known
    assert not CostModel.from_dict(CostModel().to_dict()).is_known


DAMAGE = {
    "nothing": lambda kept: None,
    "a list": lambda kept: [],
    "another format": lambda kept: kept | {"format": 1},
    "true as a format": lambda kept: kept | {"format": True},
    "a field too many": lambda kept: kept | {"more": 1},
    "a field too few": lambda kept: {k: v for k, v in kept.items() if k != "seed"},
    "no seed": lambda kept: kept | {"seed": []},
    "a seed that does not ascend": lambda kept: kept | {"seed": [[2, 0.1], [1, 0.1]]},
    "rows twice": lambda kept: kept | {"seed": [[1, 0.1], [1, 0.1]]},
    "rows that are no whole number": lambda kept: kept | {"seed": [[1.5, 0.1]]},
    "no rows": lambda kept: kept | {"seed": [[0, 0.1]]},
    "negative seconds": lambda kept: kept | {"seed": [[1, -0.1]]},
    "seconds that are no number": lambda kept: kept | {"seed": [[1, "0.1"]]},
    "infinite seconds": lambda kept: kept | {"seed": [[1, math.inf]]},
    "huge seconds": lambda kept: kept | {"draft": [10**400, 0.1]},
    "NaN": lambda kept: kept | {"draft": [math.nan, 0.1]},
    "a draft of three": lambda kept: kept | {"draft": [0.1, 0.1, 0.1]},
    "a parent to come": lambda kept: kept | {"buckets": [kept["buckets"][0] | {"parent": 0}]},
    "a parent that is none": lambda kept: (
        kept | {"buckets": [kept["buckets"][0] | {"parent": None}]}
    ),
    "a bucket too far": lambda kept: kept | {"buckets": [kept["buckets"][0] | {"key": [65, 1]}]},
    "a thousand buckets": lambda kept: kept | {"buckets": kept["buckets"] * 1000},
    "a cell that is damaged": lambda kept: (
        kept | {"buckets": [kept["buckets"][0] | {"cells": [[1, 0.0]]}]}
    ),
    "known as a number": lambda kept: kept | {"known": 1},
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_refused(name):
    kept = copy.deepcopy(lived().to_dict())
    with pytest.raises(ConfigError):
        CostModel.from_dict(DAMAGE[name](kept))


@pytest.mark.parametrize("passes", [{0: 0.1}, {1: 0.0}, {1: math.nan}, {1: 1e9}, {5000: 0.1}])
def test_an_impossible_calibration_is_refused(passes):
    with pytest.raises(ConfigError):
        CostModel(passes)
