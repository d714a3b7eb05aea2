"""How likely the target is to take each token of a draft.

The log-odds of a draft token, given that those before it were taken, are an offset of its position
in text of this kind (learned slowly, from all sequences) plus a level of this text (learned fast,
by each sequence). Where the drafter says how sure it is, a logistic curve of that margin tells
good tokens of a draft from bad ones. Knows no tokens, no seconds and no draft lengths.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

from paceline.errors import ConfigError
from paceline.speculative.kept_values import fields_of, format_of, list_of, number_of

MAX_POSITIONS = 15
MAX_KINDS = 16

STARTING_ACCEPTANCE = (0.72, 0.68, 0.65)
"""By position, the last for all that follow: published figures for chat, between prose and code."""

OFFSET_RATE, OFFSET_WARMUP = 0.05, 8.0
"""Offsets follow the average error of about the last hundred observations, faster at first."""

STARTING_VARIANCE = 1.0
"""Of the level: texts of a kind differ by about one in log-odds, as 0.5 does from 0.73."""

DRIFT = 0.02
"""Growth of that variance in a round. In the steady state about the last ten draft tokens count:
enough to tell lengths apart, few enough to follow a change of passage within a few rounds."""

LARGEST_LEVEL = 5.0
KEEP_RATE = 0.1

MAX_MARGIN = 30.0
MARGIN_BINS = (0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 9.0, 13.0)
REFIT_AFTER = 64
MARGIN_MEMORY = 0.95
"""At each fit: about the last 1,300 observations count."""

LEAST_OBSERVATIONS = 100.0
RIDGE = 0.5
LEAST_SLOPE = 0.02
NEWTON_STEPS = 4

FORMAT = 1


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

    def observe(self, margin: float, accepted: bool) -> None:
        margin = min(margin, MAX_MARGIN)
        place = bisect_left(MARGIN_BINS, margin)
        self.seen[place] += 1.0
        self.accepted[place] += accepted
        self.margins[place] += margin
        self._new += 1
        if self._new >= REFIT_AFTER:
            self._new = 0
            self.fit()
            for counts in (self.seen, self.accepted, self.margins):
                counts[:] = [count * MARGIN_MEMORY for count in counts]

    def margin_at(self, chance: float) -> float:
        """The margin from which a token has this chance, 0 < `chance` < 1."""
        return (math.log(chance / (1.0 - chance)) - self.intercept) / self.slope

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
            [number_of(n, name, 0.0, 1e9) for n in list_of(kept[name], name, bins, bins)]
            for name in ("seen", "accepted", "margins")
        )
        if any(right > all_ for right, all_ in zip(curve.accepted, curve.seen, strict=True)):
            raise ConfigError("a margin curve has accepted more than it has seen.")
        curve.fit()
        return curve


class Profile:
    """What is known of text of one kind before a sequence writes any, and what margins tell."""

    def __init__(self) -> None:
        last = len(STARTING_ACCEPTANCE) - 1
        self.offsets = [log_odds(STARTING_ACCEPTANCE[min(n, last)]) for n in range(MAX_POSITIONS)]
        self.counts = [0.0] * MAX_POSITIONS
        self.curve = MarginCurve()

    def learn(self, position: int, error: float) -> None:
        """Take 1 or 0 minus the expected acceptance of a token."""
        count = self.counts[position]
        self.counts[position] = count + 1.0
        rate = OFFSET_RATE + (1.0 - OFFSET_RATE) / (1.0 + count / OFFSET_WARMUP)
        self.offsets[position] = clamp(self.offsets[position] + rate * error, LARGEST_LEVEL)

    def to_dict(self) -> dict[str, Any]:
        return {"offsets": self.offsets, "counts": self.counts, "curve": self.curve.to_dict()}

    @classmethod
    def from_dict(cls, value: object) -> Profile:
        """
        Raises:
            ConfigError: it is not what `to_dict` gives.
        """
        kept = fields_of(value, ("offsets", "counts", "curve"), "a profile")
        profile, size = cls(), MAX_POSITIONS
        profile.offsets = [
            number_of(offset, "offsets", -LARGEST_LEVEL, LARGEST_LEVEL)
            for offset in list_of(kept["offsets"], "offsets", size, size)
        ]
        profile.counts = [
            number_of(count, "counts", 0.0, 1e15)
            for count in list_of(kept["counts"], "counts", size, size)
        ]
        profile.curve = MarginCurve.from_dict(kept["curve"])
        return profile


class Profiles:
    """A profile for each kind of text, shared by the sequences of an engine."""

    def __init__(self) -> None:
        self._profiles: dict[str, Profile] = {}

    def of(self, kind: str) -> Profile:
        """Kinds beyond the first few are one."""
        if kind not in self._profiles and len(self._profiles) >= MAX_KINDS:
            kind = next(iter(self._profiles))
        return self._profiles.setdefault(kind, Profile())

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
    below its bound; `expected` is about kept tokens.
    """

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self.level = 0.0
        self.variance = STARTING_VARIANCE
        self.kept = [1.0] * MAX_POSITIONS

    def expected(self) -> list[float]:
        """By position: the chance of a token, if those before it are taken."""
        odds = math.exp(-self.level)
        exp = math.exp
        return [1.0 / (1.0 + odds * exp(-offset)) for offset in self.profile.offsets]

    def observe(
        self,
        expected: Sequence[float],
        num_accepted: int,
        num_judged: int,
        confidences: Sequence[float] = (),
        bounds: Sequence[float] = (),
    ) -> None:
        """Learn from a draft.

        Args:
            expected: what this model expected.
            num_judged: tokens that were observed: the accepted ones and the first that was not.
                Those after it, and those behind the end of the text, say nothing.
            bounds: margins below which a token would have been held back, even if it was not.
        """
        self.pass_time()
        errors = curvature = 0.0
        learn, curve = self.profile.learn, self.profile.curve
        counts = True
        for position in range(num_judged):
            accepted = position < num_accepted
            if position < len(confidences):
                margin = confidences[position]
                curve.observe(margin, accepted)
                if position < len(bounds) and margin < bounds[position]:
                    counts = False  # of what is never verified nothing is expected
            if counts:
                chance = expected[position]
                error = accepted - chance
                errors += error
                curvature += chance * (1.0 - chance)
                learn(position, error)
        self.variance /= 1.0 + self.variance * curvature
        self.level = clamp(self.level + self.variance * errors, LARGEST_LEVEL)

    def observe_kept(self, num_kept: int, held_back: bool) -> None:
        """Learn how many tokens of a draft were kept, and whether the next was held back."""
        kept = self.kept
        for position in range(num_kept):
            kept[position] += KEEP_RATE * (1.0 - kept[position])
        if held_back and num_kept < MAX_POSITIONS:
            kept[num_kept] -= KEEP_RATE * kept[num_kept]

    def pass_time(self) -> None:
        """A round went by: what was learned of this text is a little less certain."""
        self.variance = min(STARTING_VARIANCE, self.variance + DRIFT)


def sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x)) if x > -700.0 else 0.0


def log_odds(chance: float) -> float:
    return math.log(chance / (1.0 - chance))


def clamp(value: float, limit: float) -> float:
    return max(-limit, min(limit, value))
