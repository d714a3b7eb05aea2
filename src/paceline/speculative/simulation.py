"""Runs a draft length policy on made-up or recorded text and machines: thousands of generations in
seconds, without a model.

A `Text` says for every place which tokens of a draft made there would be taken, and with what
margins; a `Machine` says what passes and drafts cost. Both are the same for every policy, so that
two policies differ by their decisions only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from paceline.runtime.protocols import MAX_DRAFT_TOKENS
from paceline.speculative.controller import (
    DraftContext,
    DraftLengthPolicy,
    DraftPlan,
    RoundCost,
    RoundOutcome,
)
from paceline.speculative.costs import CostModel, between

CONTEXT_LENGTH = 256
HICCUP = 3.0
BUSY_SAMPLES = 120  # three a round

Seed = int | Sequence[int]
Profile = tuple[float, ...]
"""Chance of a draft token by its position, those before it being taken; the last for the rest."""


# --- Machines -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What rounds cost, in passes of one row.

    Args:
        passes: cost by rows; between these rows it is interpolated.
        draft_step: cost of one step of the drafter.
        draft_fixed: cost of a draft however short it is.
        noise: standard deviation of the logarithm of each measured time.
        hiccups: share of measured times that are three times as long.
        busy: share of the time in which all that is measured takes three times as long, for some
            40 rounds each.
        pass_s: seconds of a pass of one row.
    """

    name: str
    passes: tuple[tuple[int, float], ...]
    draft_step: float
    draft_fixed: float = 0.0
    overhead: float = 0.01
    noise: float = 0.0
    hiccups: float = 0.0
    busy: float = 0.0
    pass_s: float = 0.05

    def verify_s(self, rows: int) -> float:
        return self.pass_s * between(self.passes, rows)

    def draft_s(self, steps: int) -> float:
        return self.pass_s * (self.draft_fixed + self.draft_step * steps) if steps else 0.0

    @property
    def overhead_s(self) -> float:
        return self.pass_s * self.overhead

    def calibrated(self) -> CostModel:
        """A cost model that was told what this machine costs."""
        rows = range(1, MAX_DRAFT_TOKENS + 2)
        draft = (self.pass_s * self.draft_fixed, self.pass_s * self.draft_step)
        return CostModel({n: self.verify_s(n) for n in rows}, draft, self.overhead_s)


def linear(slope: float) -> tuple[tuple[int, float], ...]:
    """Each row after the first costs the same."""
    return ((1, 1.0), (MAX_DRAFT_TOKENS + 1, 1.0 + slope * MAX_DRAFT_TOKENS))


# --- Texts --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Text:
    """What drafts meet in one text.

    Args:
        taken: [tokens, K]; whether token k of a draft that begins at this place is the target's,
            those before it being so.
        margins: [tokens, K] the drafter's.
        kinds: of the text, by token; of all where there is one.
    """

    taken: NDArray[np.bool_]
    margins: NDArray[np.float64]
    kinds: tuple[str, ...] = ("text",)

    def __len__(self) -> int:
        return len(self.taken)

    def kind(self, place: int) -> str:
        return self.kinds[min(place, len(self.kinds) - 1)]


SPREAD = 2.0
"""Of log-odds between the tokens of a text. Margins then tell taken from rejected tokens with an
area under the curve of 0.86 to 0.89; published for top-2 margins: 0.88."""

_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(41)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()


def made_up(profile: Profile, num_tokens: int, seed: Seed, *, informative: bool = True) -> Text:
    """A text in which draft tokens are taken as often as the profile says.

    Args:
        informative: margins grow with the chance of a token; otherwise they tell nothing.
    """
    generator = np.random.default_rng(seed)
    chances = [profile[min(k, len(profile) - 1)] for k in range(MAX_DRAFT_TOKENS)]
    centres = np.array([_centre(chance) for chance in chances])
    odds = centres + SPREAD * generator.standard_normal((num_tokens, MAX_DRAFT_TOKENS))
    taken = generator.random(odds.shape) < 1.0 / (1.0 + np.exp(-odds))
    margins = np.logaddexp(0.0, odds + 1.0)
    if not informative:
        margins = generator.permuted(margins)
    return Text(taken=taken & (np.array(chances) > 0.0), margins=margins)


def _centre(chance: float) -> float:
    """The mean of normal log-odds whose expected chance is this, by bisection."""
    low, high = -20.0, 20.0
    for _ in range(50):
        middle = (low + high) / 2
        mean = float(_WEIGHTS @ (1.0 / (1.0 + np.exp(-middle - SPREAD * _NODES))))
        low, high = (middle, high) if mean < chance else (low, middle)
    return max(low, -6.0)  # of a drafter that is never right, margins as of a bad one


def joined(texts: Sequence[Text]) -> Text:
    """One text after another."""
    return Text(
        taken=np.concatenate([text.taken for text in texts]),
        margins=np.concatenate([text.margins for text in texts]),
        kinds=tuple(text.kind(place) for text in texts for place in range(len(text))),
    )


# --- Running ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a policy made of a text.

    Args:
        seconds: of all rounds, without the noise that the policy saw.
        lengths: of the drafts that were verified, by round.
    """

    tokens: int
    seconds: float
    lengths: tuple[int, ...] = field(repr=False)


def simulate(policy: DraftLengthPolicy, text: Text, machine: Machine, seed: Seed = 0) -> Run:
    """Write a text by rounds.

    Args:
        seed: of the noise of measured times, and of nothing else.
    """
    factors = noise_factors(machine, np.random.default_rng(seed), 3 * len(text))
    place, seconds, lengths = 0, 0.0, []
    while place < len(text):
        context = DraftContext(
            room=min(MAX_DRAFT_TOKENS, len(text) - place - 1),
            context_length=CONTEXT_LENGTH + place,
            kind=text.kind(place),
        )
        outcome = _round(policy.plan(context), context, text, place, machine, factors)
        policy.observe(outcome)
        drafted = outcome.num_draft_tokens
        seconds += machine.draft_s(outcome.cost.num_draft_steps) + machine.overhead_s
        seconds += machine.verify_s(1 + drafted)
        lengths.append(drafted)
        place += 1 + outcome.num_accepted_tokens
    return Run(tokens=place, seconds=seconds, lengths=tuple(lengths))


def _round(
    plan: DraftPlan,
    context: DraftContext,
    text: Text,
    place: int,
    machine: Machine,
    factors: Iterator[float],
) -> RoundOutcome:
    margins = text.margins[place].tolist()
    drafted = steps = min(plan.max_draft_tokens, context.room)
    for k, bound in enumerate(plan.min_confidences[:drafted]):
        if margins[k] < bound:
            drafted, steps = k, k + 1
            break
    accepted = 0
    while accepted < drafted and text.taken[place, accepted]:
        accepted += 1
    cost = RoundCost(
        num_sequences=1,
        num_rows=1 + drafted,
        context_length=context.context_length,
        num_drafts=int(steps > 0),
        num_draft_steps=steps,
        num_tokens=1 + accepted,
        draft_s=machine.draft_s(steps) * next(factors),
        verify_s=machine.verify_s(1 + drafted) * next(factors),
        overhead_s=machine.overhead_s * next(factors),
    )
    return RoundOutcome(
        num_draft_tokens=drafted,
        num_verified_tokens=drafted,
        num_accepted_tokens=accepted,
        num_draft_steps=steps,
        confidences=tuple(margins[:drafted]),
        plan=plan,
        cost=cost,
    )


def noise_factors(machine: Machine, generator: np.random.Generator, count: int) -> Iterator[float]:
    """By what so many measured times differ from what was to be measured."""
    factors = np.exp(machine.noise * generator.standard_normal(count))
    factors[generator.random(count) < machine.hiccups] *= HICCUP
    if machine.busy:
        spans = generator.random(count // BUSY_SAMPLES + 1) < machine.busy
        factors[np.repeat(spans, BUSY_SAMPLES)[:count]] *= HICCUP
    return iter(factors.tolist())


# --- Oracles ------------------------------------------------------------------------------------


class FixedByKind:
    """Knows the best length of each kind of text, and what kind is coming."""

    def __init__(self, lengths: dict[str, int]) -> None:
        self._plans = {kind: DraftPlan(max_draft_tokens=n) for kind, n in lengths.items()}

    def plan(self, context: DraftContext) -> DraftPlan:
        return self._plans[context.kind]

    def observe(self, outcome: RoundOutcome) -> None:
        """An oracle learns nothing."""


class Unlabelled:
    """A policy that is not told the kind of text."""

    def __init__(self, policy: DraftLengthPolicy) -> None:
        self._policy = policy

    def plan(self, context: DraftContext) -> DraftPlan:
        return self._policy.plan(
            DraftContext(room=context.room, context_length=context.context_length)
        )

    def observe(self, outcome: RoundOutcome) -> None:
        self._policy.observe(outcome)


def total_s(
    new_policy: Callable[[], DraftLengthPolicy], texts: Sequence[Text], machine: Machine
) -> float:
    """Seconds of all texts, each with a policy of its own and noise of its own."""
    return sum(seconds_of(new_policy, texts, machine))


def seconds_of(
    new_policy: Callable[[], DraftLengthPolicy], texts: Sequence[Text], machine: Machine
) -> list[float]:
    """Seconds of each text."""
    return [
        simulate(new_policy(), text, machine, seed=number).seconds
        for number, text in enumerate(texts)
    ]


def best_fixed(texts: Sequence[Text], machine: Machine) -> tuple[int, float]:
    """The one draft length that takes least time for all these texts, and that time."""
    kinds = {kind for text in texts for kind in text.kinds}
    seconds = []
    for length in range(MAX_DRAFT_TOKENS + 1):
        plan_for = dict.fromkeys(kinds, length)
        seconds.append(total_s(partial(FixedByKind, plan_for), texts, machine))
    best = min(range(len(seconds)), key=seconds.__getitem__)
    return best, seconds[best]
