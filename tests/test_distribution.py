"""The emitted text is distributed as the target, whatever the drafter does (contract C2).

Two kinds of evidence. *Enumeration*: a round is a program over finite random choices, every
outcome is followed, probabilities are exact fractions, so a right rule has distance 0 and no
tolerance hides a bug. *Seeded*: the real sampler against the softmax, by chi-square. Every check
is shown to fail on planted bugs.
"""

import math
import random
from collections import defaultdict
from fractions import Fraction
from functools import lru_cache, partial
from itertools import product

import numpy as np
import pytest

from paceline import sampling
from paceline.runtime.protocols import ArrayOutput
from paceline.sampling import Choice, DrawRule, Sampler, SamplingParams, draw
from paceline.speculative.round import verify
from score_row_twin import NumpyScoreRow

# --- A finite world -----------------------------------------------------------------------------
# The shared randomness of a position is one of `cells` equally likely outcomes. The target maps
# it to a token by the inverse distribution function; a drafter may map it in any way it likes.


class World:
    """Target and drafter distributions in units of 1 / cells, different after every prefix."""

    def __init__(self, vocab, cells):
        self.vocab, self.cells = vocab, cells
        self.p, self.q = (lru_cache(None)(partial(self._row, name)) for name in "pq")

    def _row(self, name, prefix):
        rng = random.Random(f"{name} {self.vocab} {prefix}")
        drawn = [rng.randrange(self.vocab) for _ in range(self.cells)]
        return tuple(drawn.count(token) for token in range(self.vocab))

    def joint(self, length):
        """The target's law of `length` tokens."""
        law = {}
        for tokens in product(range(self.vocab), repeat=length):
            rows = [self.p(tokens[:i])[tokens[i]] for i in range(length)]
            law[tokens] = Fraction(math.prod(rows), self.cells**length)
        return law

    def noise(self, chance, key):
        return chance.pick(key, (1,) * self.cells)


def inverse(row, cell):
    """The token whose share of the cells holds this one."""
    for token, share in enumerate(row):
        cell -= share
        if cell < 0:
            return token
    raise AssertionError("the row has fewer cells than the world")


class Path:
    """One way through a program's random choices; equal keys share one choice."""

    def __init__(self, choices):
        self.choices, self.taken, self.untried = choices, [], []
        self.known, self.numerator, self.denominator = {}, 1, 1

    def pick(self, key, weights):
        if key not in self.known:
            self.known[key] = choice = self._next(weights)
            self.taken.append(choice)
            self.numerator *= weights[choice]
            self.denominator *= sum(weights)
        return self.known[key]

    def fresh(self, weights):
        return self.pick(("fresh", len(self.taken)), weights)

    def _next(self, weights):
        if len(self.taken) < len(self.choices):
            return self.choices[len(self.taken)]
        first, *others = (i for i, weight in enumerate(weights) if weight)
        self.untried += [(*self.taken, other) for other in others]
        return first


class Seeded:
    """One fixed outcome per key: a concrete noise, for comparing texts instead of laws."""

    def __init__(self, seed):
        self.seed, self.count = seed, 0

    def pick(self, key, weights):
        return random.Random(f"{self.seed} {key}").choices(range(len(weights)), weights)[0]

    def fresh(self, weights):
        self.count += 1
        return self.pick(("fresh", self.count), weights)


def law_of(program):
    """Exact distribution of a program's result over all its random choices."""
    law = defaultdict(Fraction)
    pending = [()]
    while pending:
        path = Path(pending.pop())
        law[program(path)] += Fraction(path.numerator, path.denominator)
        pending += path.untried
    return law


def distance(law, other):
    """Total variation."""
    return sum(abs(law.get(x, 0) - other.get(x, 0)) for x in law.keys() | other.keys()) / 2


def generate(world, rule, k, length, chance):
    tokens = ()
    while len(tokens) < length:
        tokens += tuple(rule(world, chance, tokens, k))
    return tokens[:length]


def bias(world, rule, k, length):
    """Distance of what the rule emits from what the target emits."""
    return distance(law_of(partial(generate, world, rule, k, length)), world.joint(length))


# --- Rules --------------------------------------------------------------------------------------


def coupled(world, chance, prefix):
    return inverse(world.q(prefix), world.noise(chance, len(prefix)))


def mirrored(world, chance, prefix):
    return inverse(world.q(prefix), world.cells - 1 - world.noise(chance, len(prefix)))


def independent(world, chance, prefix):
    return inverse(world.q(prefix), chance.fresh((1,) * world.cells))


def oracle(world, chance, prefix):
    return inverse(world.p(prefix), world.noise(chance, len(prefix)))


def always_wrong(world, chance, prefix):
    return (oracle(world, chance, prefix) + 1) % world.vocab


def constant(world, chance, prefix):
    return 0


SHARED_NOISE_DRAFTERS = [coupled, mirrored, oracle, always_wrong, constant]
DRAFTERS = [*SHARED_NOISE_DRAFTERS, independent]


def draft_of(world, chance, prefix, k, drafter):
    draft = ()
    for _ in range(k):
        draft += (drafter(world, chance, prefix + draft),)
    return draft


def target_rows(world, chance, prefix, draft, key=lambda position: position):
    """The target's own token at each of the K + 1 rows of a verify pass."""
    rows = [prefix + draft[:i] for i in range(len(draft) + 1)]
    return [inverse(world.p(row), world.noise(chance, key(len(row)))) for row in rows]


class Endless:
    """A sequence that never ends, whose sampler finds its choices made: rows are tokens."""

    def __init__(self):
        self.sampler, self.takes_order = self, False

    def choose(self, token, position, candidates):
        return Choice(token)

    def commit(self, token):
        pass

    def push(self, choice, *, drafted):
        return True


def judged(draft, chosen):
    """The verdict of the code under test."""
    return verify(Endless(), draft, ArrayOutput.without_candidates(chosen, ()), 0)


def sample_matching(world, chance, prefix, k, drafter=coupled):
    """The rule of this project."""
    draft = draft_of(world, chance, prefix, k, drafter)
    chosen = target_rows(world, chance, prefix, draft)
    return judged(draft, chosen).token_ids


def matching_with_dropped_drafts(world, chance, prefix, k):
    """Looks at the draft and drops what it dislikes: harmless here, see `drop_after_look`."""
    draft = draft_of(world, chance, prefix, k, coupled)
    draft = draft[: draft.index(0)] if 0 in draft else draft
    chosen = target_rows(world, chance, prefix, draft)
    return judged(draft, chosen).token_ids


def independent_test(world, chance, p, q, cell):
    return chance.fresh((min(p, q), q - min(p, q))) == 0


def positive_part(p, q):
    return tuple(max(a - b, 0) for a, b in zip(p, q, strict=True))


def ratio_test(
    world, chance, prefix, k, accept=independent_test, residual=positive_part, min_share=0
):
    """Rejection sampling, every random number drawn anew: the other exact rule."""
    emitted = ()
    for _ in range(k):
        p, q = world.p(prefix + emitted), world.q(prefix + emitted)
        cell = chance.fresh((1,) * world.cells)
        token = inverse(q, cell)
        if q[token] < min_share:
            break
        if not accept(world, chance, p[token], q[token], cell):
            return (*emitted, chance.fresh(residual(p, q)))
        emitted += (token,)
    return (*emitted, chance.fresh(world.p(prefix + emitted)))


# --- Planted bugs -------------------------------------------------------------------------------


def reused_noise_test(world, chance, p, q, cell):
    return (2 * cell + 1) * q < 2 * world.cells * p  # u is the middle of the draft's own cell


ratio_test_on_shared_noise = partial(ratio_test, accept=reused_noise_test)
residual_from_p = partial(ratio_test, residual=lambda p, q: p)
drop_after_look = partial(ratio_test, min_share=2)


def bonus_from_the_last_row(world, chance, prefix, k):
    draft = draft_of(world, chance, prefix, k, coupled)
    chosen = target_rows(world, chance, prefix, draft)
    return (*draft[: judged(draft, chosen).num_accepted_tokens], chosen[-1])


def matching_on_shared_noise_with_retry(world, chance, prefix, k):
    """Throws the target's token away after a mismatch and chooses again with new noise."""
    draft = draft_of(world, chance, prefix, k, coupled)
    chosen = target_rows(world, chance, prefix, draft)
    accepted = draft[: judged(draft, chosen).num_accepted_tokens]
    return (*accepted, chance.fresh(world.p(prefix + accepted)))


class CallCounter:
    """Keys the noise by how often a token was chosen so far, rejected rows included."""

    def __init__(self):
        self.calls = 0

    def __call__(self, world, chance, prefix, k):
        draft = draft_of(world, chance, prefix, k, coupled)
        chosen = target_rows(world, chance, prefix, draft, key=self._next_key)
        return judged(draft, chosen).token_ids

    def _next_key(self, position):
        self.calls += 1
        return ("call", self.calls)


# --- Enumeration --------------------------------------------------------------------------------

# vocabulary, cells, draft length, tokens emitted: several rounds, so that noise which a rejected
# draft has already seen is met again.
SIZES = [(3, 4, 1, 4), (3, 4, 2, 4), (3, 4, 3, 3), (3, 4, 4, 2), (4, 5, 2, 3), (5, 6, 1, 3)]
# Every token of an independent draft multiplies the outcomes by the cells.
SMALL_SIZES = [(3, 4, 1, 3), (3, 4, 2, 2), (2, 3, 3, 2), (2, 2, 4, 2)]
CASES = [(drafter, *size) for drafter in SHARED_NOISE_DRAFTERS for size in SIZES]
CASES += [(independent, *size) for size in SMALL_SIZES]


@pytest.mark.parametrize(("drafter", "vocab", "cells", "k", "length"), CASES)
def test_sample_matching_emits_the_target_law(drafter, vocab, cells, k, length):
    rule = partial(sample_matching, drafter=drafter)
    assert bias(World(vocab, cells), rule, k, length) == 0


@pytest.mark.parametrize("k", [1, 2, 3])
def test_dropping_drafts_after_a_look_is_exact_under_sample_matching(k):
    assert bias(World(3, 4), matching_with_dropped_drafts, k, 3) == 0


def test_the_check_accepts_the_other_exact_rule():
    assert bias(World(3, 4), ratio_test, 2, 2) == 0


@pytest.mark.parametrize(
    "rule",
    [
        ratio_test_on_shared_noise,
        residual_from_p,
        drop_after_look,
        bonus_from_the_last_row,
        matching_on_shared_noise_with_retry,
    ],
    ids=lambda rule: getattr(rule, "__name__", None),
)
def test_the_check_fails_on_a_planted_bug(rule):
    assert bias(World(3, 4), rule, 2, 2) > 0.01


# --- One text for every K -----------------------------------------------------------------------


def texts_by_k(make_rule, seed):
    """The texts of one noise with drafting off and with 1 to 4 draft tokens."""
    world = World(4, 8)
    return {generate(world, make_rule(), k, 12, Seeded(seed)) for k in range(5)}


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_the_text_does_not_depend_on_k_or_drafter(drafter):
    rule = partial(sample_matching, drafter=drafter)
    plain = partial(sample_matching, drafter=constant)
    for seed in range(20):
        expected = generate(World(4, 8), plain, 0, 12, Seeded(seed))
        assert texts_by_k(lambda: rule, seed) == {expected}


@pytest.mark.parametrize(
    "make_rule",
    [
        CallCounter,
        lambda: ratio_test,
        lambda: bonus_from_the_last_row,
        lambda: matching_on_shared_noise_with_retry,
    ],
    ids=["call_counter", "ratio_test", "bonus_from_the_last_row", "retry"],
)
def test_the_text_check_fails_on_a_planted_bug(make_rule):
    assert any(len(texts_by_k(make_rule, seed)) > 1 for seed in range(20))


# --- The real sampler, seeded -------------------------------------------------------------------

P_LOGITS = np.log(np.array([0.35, 0.25, 0.2, 0.1, 0.07, 0.03])).astype(np.float32)
Q_LOGITS = np.log(np.array([0.1, 0.3, 0.05, 0.3, 0.2, 0.05])).astype(np.float32)
POSITIONS = 6000


def chosen_tokens(params, seed=11):
    sampler = Sampler(params, vocab_size=len(P_LOGITS), seed=seed)
    return np.array([sampler.choose(P_LOGITS, t).token_id for t in range(POSITIONS)])


def softmax(logits, temperature=1.0):
    weights = np.exp(logits.astype(np.float64) / temperature)
    return weights / weights.sum()


def chi_square(counts, probabilities):
    expected = counts.sum() * probabilities
    return ((counts - expected) ** 2 / expected).sum()


def marginal_statistic(tokens, probabilities):
    return chi_square(np.bincount(tokens, minlength=len(probabilities)), probabilities)


def pair_statistic(tokens, probabilities):
    """Neighbours must be independent."""
    size = len(probabilities)
    pairs = np.bincount(tokens[0::2] * size + tokens[1::2], minlength=size * size)
    return chi_square(pairs, np.outer(probabilities, probabilities).ravel())


# An honest sampler exceeds these once in a million (5 and 35 degrees of freedom). All expected
# marginal counts are above 150; the rarest pair (0.03 x 0.03 of 3,000) is expected 2.7 times, the
# only one below 5, which the distance between right and planted (thousands) makes harmless.
MARGINAL_BOUND, PAIR_BOUND = 35.9, 89.9


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
def test_choices_follow_the_softmax(temperature):
    tokens = chosen_tokens(SamplingParams(temperature=temperature))
    probabilities = softmax(P_LOGITS, temperature)
    assert marginal_statistic(tokens, probabilities) < MARGINAL_BOUND
    assert pair_statistic(tokens, probabilities) < PAIR_BOUND


def test_choices_follow_the_renormalised_filter():
    tokens = chosen_tokens(SamplingParams(top_k=3))
    assert tokens.max() == 2
    assert marginal_statistic(tokens, softmax(P_LOGITS[:3])) < MARGINAL_BOUND


@pytest.mark.parametrize(
    "key",
    [
        lambda seed, position, ids: (seed, 0, ids),
        lambda seed, position, ids: (seed, position // 2, ids),
        lambda seed, position, ids: (seed, position, ids * 0),
    ],
    ids=["without_position", "position_shared_by_two", "without_token_id"],
)
def test_the_softmax_check_fails_on_planted_noise(monkeypatch, key):
    noise = sampling.gumbel
    monkeypatch.setattr(sampling, "gumbel", lambda *args: noise(*key(*args)))
    monkeypatch.setattr(sampling, "score_row", NumpyScoreRow)  # native rows have their own noise
    tokens, probabilities = chosen_tokens(SamplingParams()), softmax(P_LOGITS)
    marginal = marginal_statistic(tokens, probabilities)
    pairs = pair_statistic(tokens, probabilities)
    assert marginal > 10 * MARGINAL_BOUND or pairs > 10 * PAIR_BOUND


def matches(draw_seed):
    """At how many positions the drafter's draw meets the target's choice."""
    sampler = Sampler(SamplingParams(), vocab_size=len(P_LOGITS), seed=11)
    rule = DrawRule(temperature=1.0, seed=draw_seed)
    return sum(
        draw(Q_LOGITS, t, rule)[0] == sampler.choose(P_LOGITS, t).token_id for t in range(POSITIONS)
    )


def test_shared_noise_matches_as_often_as_the_formula_says():
    """Match probability of two Gumbel-max draws on one noise: sum_x 1 / sum_y max(p_y / p_x,
    q_y / q_x). Five standard deviations of the count are the margin."""
    p, q = softmax(P_LOGITS), softmax(Q_LOGITS)
    expected = (1.0 / np.maximum(p / p[:, None], q / q[:, None]).sum(axis=1)).sum()
    margin = 5 * math.sqrt(POSITIONS * expected * (1 - expected))
    assert abs(matches(draw_seed=11) - POSITIONS * expected) < margin
    assert matches(draw_seed=12) < POSITIONS * expected - margin  # planted: noise not shared
    total_variation = np.abs(p - q).sum() / 2
    assert expected >= (1 - total_variation) / (1 + total_variation)
