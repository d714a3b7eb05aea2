"""The slow twin of native/acceptance.cc and native/draft_length.cc, to be read beside them.

Levels are NumPy arrays and tables their products. What is answered here and there is the same up to
rounding. Why its constants are what they are is said in their headers.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from paceline.runtime.protocols import MAX_DRAFT_TOKENS
from paceline.speculative.acceptance import Judgement
from paceline.speculative.costs import Curve

MAX_POSITIONS = MAX_DRAFT_TOKENS

KNOTS = (0, 1, 2, 4, 7)
STARTING_ACCEPTANCE = (0.72, 0.68, 0.65, 0.65, 0.65)
OFFSET_RATE, OFFSET_WARMUP = 0.05, 8.0
LARGEST_OFFSET, LARGEST_MOVE = 5.0, 1.0

LEVELS = np.array([-6.0, -4.0, -3.0, -2.2, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.2, 3.0, 4.0])
GENERAL_PRIOR = np.exp(-0.5 * (LEVELS / 1.3) ** 2) + 0.05
GENERAL_PRIOR /= GENERAL_PRIOR.sum()
GENERAL_SHARE = 0.2
PRIOR_RATE, PRIOR_EVERY = 0.02, 4
MOST_OFF_CENTRE = 0.5
HAZARD = 0.01
TABULATE_AFTER = 32
KEEP_RATE = 0.1

MAX_MARGIN, SUREST = 30.0, 0.999
MARGIN_BINS = (0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 9.0, 13.0)
REFIT_AFTER = 64
MARGIN_MEMORY = 0.95
LEAST_OBSERVATIONS = 100.0
RIDGE = 0.5
LEAST_SLOPE = 0.02
NEWTON_STEPS = 4

LEAST_GAIN = 1.015


def before(judgement: Judgement, bounds: Sequence[float]) -> Judgement:
    """As if the draft had ended where a margin is below its bound."""
    for position, (margin, bound) in enumerate(zip(judgement.margins, bounds, strict=False)):
        if position >= judgement.num_judged:
            break
        if margin < bound:
            return Judgement(min(judgement.num_accepted, position), position)
    return judgement


def shifted(weights: NDArray[np.float64], offset: float) -> NDArray[np.float64]:
    """[L] Each weight at the two levels nearest to its own plus `offset`."""
    places = np.interp(LEVELS + offset, LEVELS, np.arange(len(LEVELS)))
    lower = np.minimum(places.astype(int), len(LEVELS) - 2)
    moved = np.zeros_like(weights)
    np.add.at(moved, lower, weights * (1.0 - (places - lower)))
    np.add.at(moved, lower + 1, weights * (places - lower))
    return moved


def _share_matrix() -> NDArray[np.float64]:
    """[K, knots] what the offset of a position is made of."""
    units = np.eye(len(KNOTS))
    columns = [np.interp(range(MAX_POSITIONS), KNOTS, unit) for unit in units]
    return np.stack(columns, axis=1)


SHARE_MATRIX = _share_matrix()


class MarginCurve:
    """The chance of a token by the drafter's margin: sigmoid(slope * margin + intercept).

    Its sufficient statistics are counts by bins of the margin, which forget at each fit.
    """

    def __init__(self) -> None:
        bins = len(MARGIN_BINS) + 1
        self.seen = [0.0] * bins
        self.accepted = [0.0] * bins
        self.margins = [0.0] * bins
        self.slope = 0.0  # 0 as long as margins tell nothing
        self.intercept = 0.0
        self._new = 0

    def observe(self, margins: Sequence[float], num_accepted: int) -> None:
        """Learn from tokens that were judged, of which the first were accepted."""
        seen, accepted, sums = self.seen, self.accepted, self.margins
        for position, margin in enumerate(margins):
            if not 0.0 <= margin <= MAX_MARGIN:  # NaN tells nothing either
                margin = MAX_MARGIN if margin > 0.0 else 0.0
            place = bisect_left(MARGIN_BINS, margin)
            seen[place] += 1.0
            sums[place] += margin
            if position < num_accepted:
                accepted[place] += 1.0
        self._new += len(margins)
        if self._new >= REFIT_AFTER:
            self._new = 0
            self.fit()
            for counts in (seen, accepted, sums):
                counts[:] = [count * MARGIN_MEMORY for count in counts]

    def margin_at(self, chance: float) -> float:
        """The margin from which a token has this chance; there must be a slope."""
        if chance >= SUREST:
            chance = SUREST
        margin = (math.log(chance / (1.0 - chance) + 1e-9) - self.intercept) / self.slope
        return margin if margin > 0.0 else 0.0

    def fit(self) -> None:
        """Newton's method from no slope at all; a slope that is not positive is no knowledge."""
        seen = sum(self.seen)
        rate = (sum(self.accepted) + 0.5) / (seen + 1.0)
        slope, intercept = 0.0, math.log(rate / (1.0 - rate))
        for _ in range(NEWTON_STEPS if seen >= LEAST_OBSERVATIONS else 0):
            slope, intercept = self._improved(slope, intercept)
        known = slope >= LEAST_SLOPE and math.isfinite(intercept)
        self.slope, self.intercept = (slope, intercept) if known else (0.0, 0.0)

    def _improved(self, slope: float, intercept: float) -> tuple[float, float]:
        g_slope, g_intercept = -RIDGE * slope, 0.0
        h_slope, h_both, h_intercept = RIDGE, 0.0, 1e-6
        for seen, accepted, margins in zip(self.seen, self.accepted, self.margins, strict=True):
            if seen < 1e-3:
                continue
            margin = margins / seen
            chance = sigmoid(slope * margin + intercept)
            error, weight = accepted - seen * chance, seen * chance * (1.0 - chance)
            g_slope += error * margin
            g_intercept += error
            h_slope += weight * margin * margin
            h_both += weight * margin
            h_intercept += weight
        determinant = h_slope * h_intercept - h_both * h_both
        if determinant <= 1e-12:
            return slope, intercept
        return (
            slope + clamp((g_slope * h_intercept - g_intercept * h_both) / determinant, 1.0),
            intercept + clamp((g_intercept * h_slope - g_slope * h_both) / determinant, 2.0),
        )


class Profile:
    """What is known of text of one kind before a sequence writes any, and what margins tell."""

    def __init__(self) -> None:
        self.knots = [log_odds(chance) for chance in STARTING_ACCEPTANCE]
        self.counts = [0.0] * len(KNOTS)
        self.curve = MarginCurve()
        self.prior = GENERAL_PRIOR
        self._learned = GENERAL_PRIOR
        self._until_prior = PRIOR_EVERY
        self._tabulate()

    def learn(
        self,
        survivals: Sequence[float],
        judgements: Sequence[Judgement],
        weights: NDArray[np.float64],
    ) -> None:
        """Take what came of drafts, and the weights of the levels in their text after them."""
        errors, seen = self._errors, self._seen
        for num_accepted, num_judged, _ in judgements:
            before = survivals[0]
            for position in range(num_judged):
                after = survivals[position + 1]
                errors[position] += (position < num_accepted) - after / before
                seen[position] += 1
                before = after
        self._new += len(judgements)
        self._until_prior -= len(judgements)
        if self._until_prior <= 0:
            self._until_prior = PRIOR_EVERY
            self._learned = self._learned + PRIOR_RATE * (weights - self._learned)
        if self._new >= min(TABULATE_AFTER, 4 + self.counts[0] / 8.0):
            self._move_knots()
            self._recentre()
            self._tabulate()

    def likelihood(self, judgements: Sequence[Judgement]) -> NDArray[np.float64]:
        """[L] How likely all of this is in a text of each level."""
        rows = [
            num_accepted + (MAX_POSITIONS + 1 if num_accepted < num_judged else 0)
            for num_accepted, num_judged, _ in judgements
        ]
        if len(rows) == 1:
            found: NDArray[np.float64] = self._outcomes[rows[0]]
        else:
            found = self._outcomes[rows].prod(axis=0)
        return found

    def _move_knots(self) -> None:
        """Follow the errors since the last time."""
        errors = SHARE_MATRIX.T @ np.array(self._errors)
        seen = SHARE_MATRIX.T @ np.array(self._seen, np.float64)
        for knot, (error, weight) in enumerate(zip(errors.tolist(), seen.tolist(), strict=True)):
            count = self.counts[knot]
            self.counts[knot] = count + weight
            rate = OFFSET_RATE + (1.0 - OFFSET_RATE) / (1.0 + (count + weight) / OFFSET_WARMUP)
            moved = self.knots[knot] + clamp(rate * error, LARGEST_MOVE)
            self.knots[knot] = clamp(moved, LARGEST_OFFSET)

    def _recentre(self) -> None:
        centre = float(self._learned @ LEVELS)
        if abs(centre) <= MOST_OFF_CENTRE:
            return
        self._learned = shifted(self._learned, -centre)
        self.knots = [clamp(knot + centre, LARGEST_OFFSET) for knot in self.knots]

    def _tabulate(self) -> None:
        self._new = 0
        self._errors = [0.0] * MAX_POSITIONS
        self._seen = [0] * MAX_POSITIONS
        self.prior = GENERAL_SHARE * GENERAL_PRIOR + (1.0 - GENERAL_SHARE) * self._learned
        offsets = SHARE_MATRIX @ np.array(self.knots)
        chances = 1.0 / (1.0 + np.exp(-offsets[:, None] - LEVELS))  # [K, L]
        self.survivals = np.vstack([np.ones(len(LEVELS)), np.cumprod(chances, axis=0)])
        rejections = self.survivals[:-1] * (1.0 - chances)
        self._outcomes = np.vstack([self.survivals, rejections])


class AcceptanceModel:
    """What to expect of the next draft of one sequence, in text of one kind.

    `kept[n]` is the share of drafts that reached token n and then kept it, its margin not being
    below its bound; survivals are those of kept tokens.
    """

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self.weights = profile.prior
        self.kept = [1.0] * MAX_POSITIONS

    def survivals(self) -> list[float]:
        """Entry n is the chance that the first n tokens of a draft are all taken."""
        survivals: list[float] = (self.profile.survivals @ self.weights).tolist()
        return survivals

    def observe(
        self,
        survivals: Sequence[float],
        judgements: Sequence[Judgement],
        bounds: Sequence[float] = (),
    ) -> None:
        """Learn from one or more drafts of a text that did not change between them.

        Args:
            survivals: what this model expected of each.
            bounds: margins below which a token would have been held back, even if it was not.
        """
        profile = self.profile
        for judgement in judgements:
            if judgement.margins:
                margins = judgement.margins[: judgement.num_judged]
                profile.curve.observe(margins, judgement.num_accepted)
        if bounds:  # of what is held back nothing is expected
            judgements = [before(judgement, bounds) for judgement in judgements]
        likelihood = profile.likelihood(judgements)
        stays = (1.0 - HAZARD) ** len(judgements)
        weights = self.weights * likelihood
        weights *= stays / float(self.weights @ likelihood)
        weights += (1.0 - stays) * profile.prior
        self.weights = weights
        profile.learn(survivals, judgements, weights)

    def observe_kept(self, num_kept: int, held_back: bool) -> None:
        """Learn how many tokens of a draft were kept, and whether the next was held back."""
        kept = self.kept
        for position in range(num_kept):
            kept[position] += KEEP_RATE * (1.0 - kept[position])
        if held_back and num_kept < MAX_POSITIONS:
            kept[num_kept] -= KEEP_RATE * kept[num_kept]

    def doubt(self, share: float) -> None:
        """The text may have changed: believe so much less of what was learned of it."""
        self.weights = self.weights + share * (self.profile.prior - self.weights)


def sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x)) if x > -700.0 else 0.0


def log_odds(chance: float) -> float:
    return math.log(chance / (1.0 - chance))


def clamp(value: float, limit: float) -> float:
    return max(-limit, min(limit, value))


def best_length(
    survivals: Sequence[float],
    kept: Sequence[float],
    curve: Curve,
    room: int,
    others: float = 0.0,
) -> tuple[int, float, float, float]:
    """The draft length with most expected tokens a second, 0 included.

    Args:
        survivals: entry n is the chance that the first n tokens are taken.
        kept: entry n is the chance that the drafter does not hold back the token after n.
        others: tokens that other sequences emit in the round.

    Equals: the largest (1 + S_1 + ... + S_k) / T_k over all k.
    """
    passes, step = curve.passes, curve.draft_step
    best_k, best_tokens, best_seconds = 0, LEAST_GAIN * (1.0 + others), curve.plain
    tokens, seconds = 1.0 + others, curve.plain + curve.draft_fixed
    reached = 1.0
    before = passes[0]
    for k in range(1, room + 1):
        share, after = kept[k - 1], passes[k]
        seconds += reached * (step + share * (after - before))
        before = after
        reached *= share
        tokens += reached * survivals[k]
        if tokens * best_seconds > best_tokens * seconds:
            best_k, best_tokens, best_seconds = k, tokens, seconds
    if not best_k:
        best_tokens = 1.0 + others
    return best_k, best_tokens - others, best_seconds, best_tokens / best_seconds


def margin_bounds(
    length: int,
    survivals: Sequence[float],
    kept: Sequence[float],
    curve: Curve,
    rate: float,
    margins: MarginCurve,
) -> tuple[float, ...]:
    """Margins below which a token and those after it are not worth their time at this rate.

    A token with chance p, reached with survival q, adds q p (1 + a) tokens, a being what is
    expected to follow it; that must exceed `rate` times what its row and all that follows cost.
    """
    if margins.slope == 0.0:
        return ()
    passes, step = curve.passes, curve.draft_step
    bounds = [0.0] * length
    follow = cost = 0.0
    for k in range(length, 0, -1):
        row = passes[k] - passes[k - 1] + cost
        survival = survivals[k - 1]
        chance = rate * row / (survival * (1.0 + follow))
        bounds[k - 1] = margins.margin_at(chance)
        share = kept[k - 1]
        follow = share * survivals[k] / survival * (1.0 + follow)
        cost = step + share * row
    return tuple(bounds)
