"""Acceptance is learned from what was judged, and from nothing else; as its slow twin learns it."""

import copy
import gc
import json
import math
import random
from itertools import accumulate, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import acceptance_twin as twin
from acceptance_twin import (
    GENERAL_PRIOR,
    KNOTS,
    LEAST_OBSERVATIONS,
    LEVELS,
    MARGIN_BINS,
    REFIT_AFTER,
)
from paceline import _native
from paceline.errors import ConfigError
from paceline.speculative.acceptance import (
    MAX_KINDS,
    MAX_POSITIONS,
    AcceptanceModel,
    Judgement,
    MarginCurve,
    Profile,
    Profiles,
)
from paceline.speculative.adaptive import best_length, margin_bounds
from paceline.speculative.costs import Curve


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def draw(generator, chances):
    """How many tokens of a draft are taken."""
    taken = 0
    while taken < len(chances) and generator.random() < chances[taken]:
        taken += 1
    return taken


def live(model, chances, rounds, seed=0):
    """Drafts whose token n is taken with the n-th of these chances, all of them judged."""
    generator = random.Random(seed)
    for _ in range(rounds):
        accepted = draw(generator, chances)
        judged = accepted + (accepted < len(chances))
        model.observe(model.survivals(), [Judgement(accepted, judged)])
    return model


def conditional(model, count):
    survivals = model.survivals()
    return [survivals[n + 1] / survivals[n] for n in range(count)]


# --- Levels and offsets -------------------------------------------------------------------------


def test_the_first_expectation_is_that_of_chat():
    assert conditional(AcceptanceModel(Profile()), 3) == pytest.approx((0.67, 0.71, 0.74), abs=0.05)
    assert sum(Profile().prior) == pytest.approx(1)
    assert KNOTS[-1] < MAX_POSITIONS


@pytest.mark.parametrize(
    "chances", [(0.95,) * 6, (0.9, 0.8, 0.7, 0.6), (0.7, 0.6, 0.5), (0.3, 0.2), (0.05,), (0.0,)]
)
def test_a_steady_text_is_found(chances):
    model = live(AcceptanceModel(Profile()), chances, 400)
    means = [0.0] * len(chances)
    for seed in range(200):
        live(model, chances, 1, seed=seed)
        means = [m + x / 200 for m, x in zip(means, conditional(model, len(chances)), strict=True)]
    assert means == pytest.approx(chances, abs=0.09)


def test_a_survival_is_an_expectation_over_levels():
    """A text that is either copied or hopeless survives long drafts as often as it is copied."""
    model = AcceptanceModel(Profile())
    model.weights = [0.5 * (abs(level) == 4.0) for level in LEVELS]
    survivals = model.survivals()
    per_level = [
        [
            1.0,
            *accumulate([sigmoid(log_odds + level) for log_odds in offsets()], lambda a, b: a * b),
        ]
        for level in (-4.0, 4.0)
    ]
    assert survivals == pytest.approx([sum(pair) / 2 for pair in zip(*per_level, strict=True)])


def offsets():
    """Of an untaught profile."""
    knots = [math.log(c / (1 - c)) for c in (0.72, 0.68, 0.65, 0.65, 0.65)]
    return np.interp(range(MAX_POSITIONS), KNOTS, knots)


def test_a_change_of_text_is_followed_in_a_few_rounds():
    model = live(AcceptanceModel(Profile()), (0.95,) * 4, 100)
    assert model.survivals()[1] > 0.9
    for _ in range(6):
        model.observe(model.survivals(), [Judgement(0, 1)])
    assert model.survivals()[1] < 0.3
    live(model, (1.0,) * 4, 4)
    assert model.survivals()[1] > 0.6


def test_what_was_not_judged_teaches_nothing():
    one, other = AcceptanceModel(Profile()), AcceptanceModel(Profile())
    before = one.survivals()
    one.observe(before, [Judgement(0, 0)])
    assert one.survivals() == pytest.approx(before, rel=0.01)
    # The text ended on the second accepted token of eight: nothing is known of the third.
    one, other = AcceptanceModel(Profile()), AcceptanceModel(Profile())
    for _ in range(30):
        one.observe(one.survivals(), [Judgement(2, 2)])
        other.observe(other.survivals(), [Judgement(2, 3)])
    assert one.survivals()[3] / one.survivals()[2] > other.survivals()[3] / other.survivals()[2]
    assert one.profile.counts[2] == 0
    assert other.profile.counts[2] > 20  # those since the last table are still to come


def test_drafts_that_are_learned_together_teach_almost_what_they_teach_in_turn():
    """They differ by what may change between two drafts."""
    together, in_turn = AcceptanceModel(Profile()), AcceptanceModel(Profile())
    margins = (2.0, 1.0, 0.5)
    judgements = [Judgement(3, 3, margins), Judgement(2, 3, margins), Judgement(3, 3, margins)]
    together.observe(together.survivals(), judgements, (0.1, 0.1, 0.7))
    for judgement in judgements:
        in_turn.observe(in_turn.survivals(), [judgement], (0.1, 0.1, 0.7))
    assert together.survivals() == pytest.approx(in_turn.survivals(), abs=0.01)
    assert together.profile.curve.seen == in_turn.profile.curve.seen
    nothing = AcceptanceModel(Profile())
    assert abs(together.survivals()[1] - nothing.survivals()[1]) > 0.05


def test_tokens_that_would_have_been_held_back_are_not_expected():
    """A full draft shows tokens that bounds hide as a rule: they speak for the margins only."""
    with_bounds, without = AcceptanceModel(Profile()), AcceptanceModel(Profile())
    for _ in range(20):
        judgements = [Judgement(0, 1, (0.3, 2.0))]
        with_bounds.observe(with_bounds.survivals(), judgements, (0.5, 0.5))
        without.observe(without.survivals(), judgements)
    assert with_bounds.survivals()[1] == pytest.approx(AcceptanceModel(Profile()).survivals()[1])
    assert without.survivals()[1] < 0.3
    assert with_bounds.profile.curve.seen == without.profile.curve.seen
    # Those before it count.
    model = AcceptanceModel(Profile())
    for _ in range(20):
        model.observe(model.survivals(), [Judgement(1, 2, (2.0, 0.1))], (0.5, 0.5))
    assert model.survivals()[1] > 0.85


def test_sequences_teach_the_kind_of_text():
    profile = Profile()
    for seed in range(6):
        live(AcceptanceModel(profile), (0.0,) * 3, 60, seed=seed)
    assert AcceptanceModel(profile).survivals()[1] < 0.25
    assert AcceptanceModel(Profile()).survivals()[1] > 0.6
    profiles = Profiles()
    live(AcceptanceModel(profiles.of("code")), (0.95,) * 8, 60)
    assert profiles.of("prose").knots == Profile().knots
    assert profiles.of("code") is profiles.of("code")


def test_a_world_of_kinds_is_bounded():
    profiles = Profiles()
    found = {id(profiles.of(str(number))) for number in range(1000)}
    assert len(found) == MAX_KINDS


def test_kept_shares_follow_what_is_held_back():
    model = AcceptanceModel(Profile())
    for _ in range(60):
        model.observe_kept(2, held_back=True)
    assert model.kept[:4] == pytest.approx([1.0, 1.0, 0.0, 1.0], abs=0.01)
    for _ in range(60):
        model.observe_kept(MAX_POSITIONS, held_back=False)
    assert min(model.kept) > 0.99
    model.observe_kept(MAX_POSITIONS, held_back=True)  # nothing is behind the last


def test_doubt_goes_back_to_what_is_usual():
    model = live(AcceptanceModel(Profile()), (0.0,), 60)
    low = model.survivals()[1]
    model.doubt(0.2)
    usual = AcceptanceModel(model.profile).survivals()[1]
    assert model.survivals()[1] == pytest.approx(0.8 * low + 0.2 * usual, rel=0.01)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.integers(0, MAX_POSITIONS),
            st.integers(0, 1),
            st.lists(st.floats(), max_size=MAX_POSITIONS),
            st.lists(st.floats(0, 30), max_size=MAX_POSITIONS),
        ),
        max_size=80,
    )
)
def test_no_history_breaks_the_expectation(history):
    model = AcceptanceModel(Profile())
    for accepted, rejected, confidences, bounds in history:
        judged = min(MAX_POSITIONS, accepted + rejected)
        model.observe(model.survivals(), [Judgement(accepted, judged, confidences)], bounds)
        survivals = model.survivals()
        assert len(survivals) == MAX_POSITIONS + 1
        assert survivals[0] == pytest.approx(1)
        assert all(0 < b <= a <= 1.000001 for a, b in pairwise(survivals))
        curve = model.profile.curve
        assert curve.slope >= 0
        assert math.isfinite(curve.slope + curve.intercept)
    profiles = Profiles()
    profiles._profiles = {"text": model.profile}
    again = Profiles.from_dict(json.loads(json.dumps(profiles.to_dict(), allow_nan=False)))
    assert again.of("text").prior == pytest.approx(GENERAL_PRIOR, abs=1)


# --- Margins ------------------------------------------------------------------------------------


def margins_seen(slope, intercept, count, seed=1, margin=lambda g: g.expovariate(0.5)):
    curve, generator = MarginCurve(), random.Random(seed)
    for _ in range(count):
        m = margin(generator)
        curve.observe((m,), generator.random() < sigmoid(slope * m + intercept))
    return curve


@pytest.mark.parametrize(("slope", "intercept"), [(0.5, -1.0), (1.0, 0.5), (2.0, -2.0), (0.3, 1.0)])
def test_the_curve_of_the_margin_is_found(slope, intercept):
    curve = margins_seen(slope, intercept, 64 * 60)
    assert curve.slope == pytest.approx(slope, rel=0.25)
    for margin in (0.5, 1.0, 2.0, 4.0):
        found = sigmoid(curve.slope * margin + curve.intercept)
        assert found == pytest.approx(sigmoid(slope * margin + intercept), abs=0.06)
    expected = max(0.0, (0.8473 - intercept) / slope)
    assert curve.margin_at(0.7) == pytest.approx(expected, abs=0.3)
    assert 0 <= curve.margin_at(1e-12) <= curve.margin_at(2.0) < 40  # no chance, more than any


@pytest.mark.parametrize("slope", [-0.5, -3.0])
def test_a_curve_that_falls_is_no_knowledge(slope):
    assert margins_seen(slope, 1.0, 64 * 30).slope == 0


@pytest.mark.parametrize("accepted", [0, 1])
def test_always_wrong_or_right_tells_nothing_of_margins(accepted):
    curve = MarginCurve()
    generator = random.Random(2)
    for _ in range(64 * 20):
        curve.observe((generator.expovariate(0.5),), accepted)
    assert math.isfinite(curve.intercept)
    assert curve.slope < 3


def test_few_observations_tell_nothing():
    few = margins_seen(3.0, -3.0, REFIT_AFTER)
    assert few.slope == 0
    assert few.seen != [0] * (len(MARGIN_BINS) + 1)
    assert margins_seen(3.0, -3.0, 3 * REFIT_AFTER).slope > 0
    assert REFIT_AFTER < LEAST_OBSERVATIONS < 3 * REFIT_AFTER


def test_a_curve_forgets_another_drafter():
    curve = margins_seen(2.0, -4.0, 64 * 40)
    generator = random.Random(4)
    for _ in range(64 * 80):
        margin = generator.expovariate(0.5)
        curve.observe((margin,), generator.random() < sigmoid(0.5 * margin + 1))
    assert (curve.slope, curve.intercept) == pytest.approx((0.5, 1.0), abs=0.3)


@pytest.mark.parametrize("margin", [math.inf, math.nan, -1.0, 0.0, 1e308])
def test_no_margin_breaks_the_curve(margin):
    curve = MarginCurve()
    for number in range(64 * 4):
        curve.observe((margin if number % 2 else 1.0,), number % 3 > 0)
    assert math.isfinite(curve.slope + curve.intercept + sum(curve.margins))


# --- The twin -----------------------------------------------------------------------------------

exactly = {"rel": 1e-9, "abs": 1e-12}
counts = st.integers(0, MAX_POSITIONS)
margins_or_bounds = st.lists(st.floats(0, 12) | st.floats(), max_size=MAX_POSITIONS)


@st.composite
def judgement(draw):
    accepted, rejected = draw(counts), draw(st.integers(0, 1))
    judged = min(MAX_POSITIONS, accepted + rejected)
    return Judgement(accepted, judged, draw(margins_or_bounds))


events = st.one_of(
    st.tuples(st.just("observe"), st.lists(judgement(), max_size=6), margins_or_bounds),
    st.tuples(st.just("observe_kept"), counts, st.booleans()),
    st.tuples(st.just("doubt"), st.floats(0, 1)),
    st.tuples(st.just("another sequence")),
)


def happens(model, event):
    """The model of the sequence that comes next."""
    name, *arguments = event
    if name == "another sequence":
        return type(model)(model.profile)
    if name == "observe":
        arguments = [model.survivals(), *arguments]
    getattr(model, name)(*arguments)
    return model


def state(model):
    """All that is told of it, and what decides what comes next."""
    profile, curve = model.profile, model.profile.curve
    levels = profile.levels if isinstance(profile, Profile) else profile._learned
    lists = (model.survivals(), model.weights, model.kept, profile.knots, profile.counts, levels)
    sums = (profile.prior, curve.seen, curve.accepted, curve.margins)
    return [float(number) for numbers in (*lists, *sums) for number in numbers]


def compare(history):
    """Let it happen to both; the slope that they have learned."""
    slow, fast = twin.AcceptanceModel(twin.Profile()), AcceptanceModel(Profile())
    for event in history:
        slow, fast = happens(slow, event), happens(fast, event)
        assert state(fast) == pytest.approx(state(slow), **exactly)
    curves = [model.profile.curve for model in (slow, fast)]
    lines = [(curve.slope, curve.intercept) for curve in curves]
    assert lines[1] == pytest.approx(lines[0], **exactly)
    if curves[0].slope:
        chances = (0.0, 0.1, 0.5, 0.9, 1.0, 2.0)
        found, expected = ([curve.margin_at(p) for p in chances] for curve in curves[::-1])
        assert found == pytest.approx(expected, **exactly)
    return curves[1].slope


@settings(derandomize=True, deadline=None, max_examples=150)
@given(st.lists(events, max_size=40))
def test_it_learns_what_its_twin_learns(history):
    compare(history)


@pytest.mark.parametrize("seed", range(4))
def test_it_learns_what_its_twin_learns_in_long_texts(seed):
    """Where the curve of the margins has a slope and offsets have moved."""
    generator, history = random.Random(seed), []
    for number in range(400):
        margins = [generator.expovariate(0.5) for _ in range(1 + number % MAX_POSITIONS)]
        accepted = draw(generator, [sigmoid(margin - 0.5 * seed) for margin in margins])
        judged = accepted + (accepted < len(margins))
        bounds = (0.3,) * len(margins) if number % 3 == 0 else ()
        history.append(("observe", [Judgement(accepted, judged, margins)], bounds))
        if number % 100 == 99:
            history.append(("another sequence",))
    assert compare(history) > 0.3


unit = st.floats(0.001, 1.0)
sixteen = st.lists(unit, min_size=MAX_POSITIONS, max_size=MAX_POSITIONS)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(sixteen, sixteen, sixteen, st.integers(0, MAX_POSITIONS), unit, unit, st.floats(0, 5))
def test_draft_lengths_and_bounds_are_those_of_the_twin(taken, kept, rows, room, step, rate, more):
    survivals = list(accumulate(taken, lambda a, b: a * b, initial=1.0))
    passes = tuple(accumulate(rows, initial=1.0))
    curve = Curve(passes=passes, draft_fixed=step, draft_step=step, overhead=rate, version=0)
    found = best_length(survivals, kept, curve, room, more)
    assert found == pytest.approx(twin.best_length(survivals, kept, curve, room, more), **exactly)
    margins = margins_seen(1.0, -1.0, 64 * 4)
    bounds = margin_bounds(room, survivals, kept, curve, rate, margins)
    expected = twin.margin_bounds(room, survivals, kept, curve, rate, margins)
    assert isinstance(bounds, tuple)
    assert bounds == pytest.approx(expected, **exactly)
    assert margin_bounds(room, survivals, kept, curve, rate, MarginCurve()) == ()


# --- What is refused ----------------------------------------------------------------------------


def refused():
    return pytest.raises(ValueError, match=r"expected|add up|than it has seen|slope is 0")


def test_nothing_wrong_is_learned():
    model = AcceptanceModel(Profile())
    survivals, before = model.survivals(), state(model)
    for wrong in ([], survivals[:-1], [*survivals, 0.1], [0.0] * 16, [math.nan] * 16):
        with refused():
            model.observe(wrong, [Judgement(1, 2, (1.0,))])
    for accepted, judged in ((-1, 0), (0, -1), (3, 2), (15, 16), (2**62, 2**62)):
        with refused():
            model.observe(survivals, [Judgement(1, 2, (1.0,)), Judgement(accepted, judged)])
    for number in (-1, MAX_POSITIONS + 1, -(2**62)):
        with refused():
            model.observe_kept(number, held_back=True)
    for share in (-0.1, 1.1, math.nan, math.inf):
        with refused():
            model.doubt(share)
    for weights in ([], [1.0], [0.0] * len(LEVELS), [math.nan] * len(LEVELS)):
        with refused():
            model.weights = weights
    for nothing in (None, 3, "x", [None], [(1,)], [(1, 2, None)], [(2**70, 2**70, ())]):
        with pytest.raises(TypeError):
            model.observe(survivals, nothing)
    with pytest.raises(TypeError):
        AcceptanceModel(None)
    assert state(model) == before


def test_nothing_wrong_is_built():
    knots, counts, levels = Profile().knots, Profile().counts, Profile().levels
    bins = MarginCurve().seen
    for wrong in (knots[1:], [math.nan] * 5, [1e300] * 5, [-math.inf] * 5):
        with refused():
            Profile(wrong, counts, levels, MarginCurve())
    with refused():
        Profile(knots, [-1.0] * 5, levels, MarginCurve())
    with refused():
        Profile(knots, counts, [1.0] * len(levels), MarginCurve())
    for wrong in (bins[1:], [1.0] * len(bins), [math.nan] * len(bins)):
        with refused():
            MarginCurve(bins, wrong, bins)
    with refused():
        MarginCurve().margin_at(0.5)


@pytest.mark.parametrize("length", [-1, 3, 2**62])
def test_no_draft_is_longer_than_what_is_known(length):
    terms = ([1.0, 0.9, 0.8], [1.0, 1.0], (1.0, 1.1, 1.2), 0.1)
    with pytest.raises(ValueError, match="not covered"):
        _native.best_length(*terms, 1.0, 0.0, length, 0.0)
    with pytest.raises(ValueError, match="not covered"):
        _native.margin_bounds(*terms, length, 1.0, MarginCurve())


# --- Keeping ------------------------------------------------------------------------------------


def taught():
    profiles, generator = Profiles(), random.Random(9)
    for kind, chances in (("code", (0.9,) * 8), ("prose", (0.6, 0.5, 0.4))):
        model = AcceptanceModel(profiles.of(kind))
        for _ in range(100):
            accepted = draw(generator, chances)
            margins = [generator.expovariate(0.5) for _ in chances]
            judged = accepted + (accepted < len(chances))
            model.observe(model.survivals(), [Judgement(accepted, judged, margins)])
    return profiles


def test_what_is_kept_comes_back():
    profiles = taught()
    again = Profiles.from_dict(json.loads(json.dumps(profiles.to_dict(), allow_nan=False)))
    assert again.to_dict() == profiles.to_dict()
    for kind in ("code", "prose"):
        one, other = AcceptanceModel(profiles.of(kind)), AcceptanceModel(again.of(kind))
        assert other.survivals()[:8] == pytest.approx(one.survivals()[:8], rel=0.1)


def test_a_copy_learns_alone():
    """Simulations begin many texts from one state."""
    profiles = taught()
    before = profiles.to_dict()
    again = copy.deepcopy(profiles)
    assert again.to_dict() == before
    for kind in ("code", "prose"):
        live(AcceptanceModel(again.of(kind)), (0.1,) * 4, 60)
    assert profiles.to_dict() == before != again.to_dict()
    curve = copy.deepcopy(profiles.of("code").curve)
    curve.observe((1.0,), 1)
    assert curve.seen != profiles.of("code").curve.seen


def test_what_belongs_to_something_outlives_it():
    curve = AcceptanceModel(taught().of("code")).profile.curve
    gc.collect()
    assert sum(curve.seen) > 0


def _spoil(*path, value):
    def spoil(kept):
        place = kept
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = value
        return kept

    return spoil


CODE = ("profiles", "code")
DAMAGE = {
    "nothing": lambda kept: None,
    "another format": _spoil("format", value=99),
    "a field too many": lambda kept: kept | {"more": 1},
    "profiles in a list": _spoil("profiles", value=[]),
    "too many profiles": lambda kept: (
        kept | {"profiles": {str(n): kept["profiles"]["code"] for n in range(MAX_KINDS + 1)}}
    ),
    "a profile too short": _spoil(*CODE, "knots", value=[0.0]),
    "a knot too large": _spoil(*CODE, "knots", value=[9.0] * len(KNOTS)),
    "a knot that is text": _spoil(*CODE, "knots", value=["0"] * len(KNOTS)),
    "NaN": _spoil(*CODE, "knots", value=[math.nan] * len(KNOTS)),
    "a negative count": _spoil(*CODE, "counts", value=[-1.0] * len(KNOTS)),
    "weights beyond one": _spoil(*CODE, "levels", value=[1.0] * len(LEVELS)),
    "no weights": _spoil(*CODE, "levels", value=[0.0] * len(LEVELS)),
    "more accepted than seen": _spoil(*CODE, "curve", "accepted", 0, value=1e8),
    "a curve without bins": _spoil(*CODE, "curve", "seen", value=[]),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_refused(name):
    with pytest.raises(ConfigError):
        Profiles.from_dict(DAMAGE[name](copy.deepcopy(taught().to_dict())))


# --- Offsets and levels -------------------------------------------------------------------------


@pytest.mark.parametrize("chance", [0.1, 0.5, 0.95])
def test_offsets_and_levels_do_not_drift_apart(chance):
    """Both explain the same drafts; the average text stays near level 0, however long it goes."""
    profile = Profile()
    for seed in range(60):
        live(AcceptanceModel(profile), [chance] * 6, 60, seed)
        assert abs(float(np.array(profile.levels) @ LEVELS)) < 0.8
    first = AcceptanceModel(profile).survivals()[1]
    assert first == pytest.approx(chance, abs=0.12)


def test_moving_levels_moves_their_centre_and_keeps_their_sum():
    levels = GENERAL_PRIOR
    for offset in (-0.7, 0.3, 1.9):
        moved = twin.shifted(levels, offset)
        assert moved.sum() == pytest.approx(1.0)
        assert float(moved @ LEVELS) == pytest.approx(float(levels @ LEVELS) + offset, abs=0.25)
