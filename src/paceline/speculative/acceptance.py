"""How likely the target is to take each token of a draft.

The log-odds of a draft token, given that those before it were taken, are an offset of its position
in text of this kind (learned slowly, from all sequences) plus how easy this text is, which each
sequence follows by Bayes' rule. Where the drafter says how sure it is, a logistic curve of that
margin tells good tokens of a draft from bad ones. Knows no tokens, seconds or draft lengths.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from paceline.errors import ConfigError
from paceline.runtime.protocols import MAX_DRAFT_TOKENS
from paceline.speculative.kept_values import fields_of, format_of, numbers_of

MAX_POSITIONS = MAX_DRAFT_TOKENS
MAX_KINDS = 16

KNOTS = (0, 1, 2, 4, 7)
"""Positions, from 0, whose offsets are learned. Between them offsets are interpolated and after the
last they are constant: deep tokens are seen too rarely to be told apart."""

STARTING_ACCEPTANCE = (0.72, 0.68, 0.65, 0.65, 0.65)
"""At the knots: published figures for chat, between prose and code."""

OFFSET_RATE, OFFSET_WARMUP = 0.05, 8.0
"""Offsets follow the average error of about the last hundred observations, faster at first."""

LARGEST_OFFSET, LARGEST_MOVE = 5.0, 1.0

LEVELS = np.array([-6.0, -4.0, -3.0, -2.2, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.2, 3.0, 4.0])
"""How much easier than usual for its kind a text may be, in log-odds: from a drafter that is always
wrong to a text that is copied."""

GENERAL_PRIOR = np.exp(-0.5 * (LEVELS / 1.3) ** 2) + 0.05
GENERAL_PRIOR /= GENERAL_PRIOR.sum()
"""Before anything was seen: acceptances from 0.4 to 0.9 are usual, none is excluded."""

GENERAL_SHARE = 0.2
"""What all sequences have taught counts for the rest: a kind of text may hold surprises."""

PRIOR_RATE, PRIOR_EVERY = 0.02, 4
"""The levels of a kind of text are an average over its last 200 rounds: several answers."""

HAZARD = 0.01
"""Chance that the text changes between two drafts. Higher values find a change sooner and are less
sure of a text that stays; an expected acceptance can never fall below this, and where rows are
nearly free, so little acceptance pays."""

TABULATE_AFTER = 32
"""Offsets move slowly: the tables that follow from them are renewed after so many drafts."""

KEEP_RATE = 0.1
"""Shares of kept tokens are an average of the last ten drafts: they follow the text too."""

MAX_MARGIN, SUREST = 30.0, 0.999
MARGIN_BINS = (0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 9.0, 13.0)
REFIT_AFTER = 64
MARGIN_MEMORY = 0.95
"""At each fit: about the last 1,300 observations count."""

LEAST_OBSERVATIONS = 100.0
"""A curve of fewer would hold back good tokens as often as bad ones."""

RIDGE = 0.5
LEAST_SLOPE = 0.02
NEWTON_STEPS = 4

FORMAT = 1


class Judgement(NamedTuple):
    """What came of a draft.

    Args:
        num_accepted: of its tokens.
        num_judged: tokens that were observed: the accepted ones and the first that was not. Those
            after it, and those behind the end of the text, say nothing.
        margins: the drafter's, of all its tokens; fewer or none where none are known.
    """

    num_accepted: int
    num_judged: int
    margins: Sequence[float] = ()

    def before(self, bounds: Sequence[float]) -> Judgement:
        """As if the draft had ended where a margin is below its bound."""
        for position, (margin, bound) in enumerate(zip(self.margins, bounds, strict=False)):
            if position >= self.num_judged:
                break
            if margin < bound:
                return Judgement(min(self.num_accepted, position), position)
        return self


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

    def to_dict(self) -> dict[str, Any]:
        return {"seen": self.seen, "accepted": self.accepted, "margins": self.margins}

    @classmethod
    def from_dict(cls, value: object) -> MarginCurve:
        """
        Raises:
            ConfigError: it is not what `to_dict` gives.
        """
        kept = fields_of(value, ("seen", "accepted", "margins"), "a margin curve")
        curve = cls()
        bins = len(MARGIN_BINS) + 1
        curve.seen, curve.accepted, curve.margins = (
            numbers_of(kept[name], name, bins, 0.0, 1e9) for name in ("seen", "accepted", "margins")
        )
        if any(right > all_ for right, all_ in zip(curve.accepted, curve.seen, strict=True)):
            raise ConfigError("a margin curve has accepted more than it has seen.")
        curve.fit()
        return curve


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

    def to_dict(self) -> dict[str, Any]:
        return {
            "knots": self.knots,
            "counts": self.counts,
            "levels": self._learned.tolist(),
            "curve": self.curve.to_dict(),
        }

    @classmethod
    def from_dict(cls, value: object) -> Profile:
        """
        Raises:
            ConfigError: it is not what `to_dict` gives.
        """
        kept = fields_of(value, ("knots", "counts", "levels", "curve"), "a profile")
        profile = cls()
        profile.knots = numbers_of(
            kept["knots"], "knots", len(KNOTS), -LARGEST_OFFSET, LARGEST_OFFSET
        )
        profile.counts = numbers_of(kept["counts"], "counts", len(KNOTS), 0.0, 1e15)
        levels = np.array(numbers_of(kept["levels"], "levels", len(LEVELS), 0.0, 1.0))
        if not 0.99 < levels.sum() < 1.01:
            raise ConfigError("the weights of the levels of a profile do not add up to 1.")
        profile._learned = levels
        profile.curve = MarginCurve.from_dict(kept["curve"])
        profile._tabulate()
        return profile


class Profiles:
    """A profile for each kind of text, shared by the sequences of an engine."""

    def __init__(self) -> None:
        self._profiles: dict[str, Profile] = {}

    def of(self, kind: str) -> Profile:
        """Kinds beyond the first few are one."""
        if kind not in self._profiles and len(self._profiles) >= MAX_KINDS:
            kind = next(iter(self._profiles))
        profile = self._profiles.get(kind)
        if profile is None:
            profile = self._profiles[kind] = Profile()
        return profile

    def to_dict(self) -> dict[str, Any]:
        """All that was learned, ready for `json.dumps`."""
        profiles = {kind: profile.to_dict() for kind, profile in self._profiles.items()}
        return {"format": FORMAT, "profiles": profiles}

    @classmethod
    def from_dict(cls, value: object) -> Profiles:
        """
        Raises:
            ConfigError: it is not what `to_dict` gives.
        """
        kept = fields_of(value, ("format", "profiles"), "acceptance profiles")
        format_of(kept["format"], FORMAT, "acceptance profiles")
        found = kept["profiles"]
        if not isinstance(found, dict) or len(found) > MAX_KINDS:
            raise ConfigError(f"there must be an object with at most {MAX_KINDS} profiles.")
        profiles = cls()
        profiles._profiles = {str(k): Profile.from_dict(v) for k, v in found.items()}
        return profiles


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
            judgements = [judgement.before(bounds) for judgement in judgements]
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
