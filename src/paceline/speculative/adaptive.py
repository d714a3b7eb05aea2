"""Chooses each draft length by expected tokens over measured time, plain decoding among them.

The rule is reference section 2.1: go on drafting while what the next token adds to the expected
tokens, relative to them, exceeds what it adds to the time. Before a draft it is applied to the
acceptance expected of this text; inside the draft the drafter applies it to each token, through a
bound on its margin. A budget keeps the whole loss small whatever the drafter is worth.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from paceline.speculative.acceptance import MAX_POSITIONS, AcceptanceModel, MarginCurve, Profiles
from paceline.speculative.controller import DraftContext, DraftPlan, RoundOutcome
from paceline.speculative.costs import CostModel, Curve

FIRST_CREDIT, CREDIT_RATE, MOST_CREDIT = 1.5, 0.008, 8.0
PROBE_FIRST, PROBE_LAST, PROBE_SHARE = 4, 512, 0.0025
REFRESH_FIRST, REFRESH_SHARE = 32, 0.002
FULL_FIRST, FULL_EVERY, FULL_DEEPER = 3, 16, 2

OWN_SOURCES = ("drafter", "none")
"""Who drafted where this policy decided; what came of a text says nothing about the drafter."""


class Forecast(NamedTuple):
    """The best draft length and what to expect of a round with it."""

    length: int
    tokens: float
    seconds: float


class AdaptiveDraftLength:
    """The policy of one sequence.

    Args:
        costs: of this machine, shared by all sequences.
        profiles: of the drafter, likewise.
        limit: longest draft.
    """

    def __init__(self, costs: CostModel, profiles: Profiles, limit: int = MAX_POSITIONS) -> None:
        self.costs = costs
        self.profiles = profiles
        self.limit = min(limit, MAX_POSITIONS)
        self.credit = FIRST_CREDIT
        self._kind = ""
        self._models: dict[str, AcceptanceModel] = {}
        self._model = self._model_of("")
        self._expected: list[float] = []
        self._plan = DraftPlan(max_draft_tokens=0)
        self._bounds: tuple[float, ...] = ()
        self._curve: Curve | None = None
        self._drafts = 0
        self._parked = 0
        self._interval = PROBE_FIRST
        self._is_probe = False

    # --- Planning -------------------------------------------------------------------------------

    def plan(self, context: DraftContext) -> DraftPlan:
        self._turn_to(context.kind)
        curve = self._curve = self.costs.curve(context.context_length)
        self._plan = self._planned(context, curve)
        return self._plan

    def _planned(self, context: DraftContext, curve: Curve) -> DraftPlan:
        plain = DraftPlan(max_draft_tokens=0, expected_s=curve.plain, plain_s=curve.plain)
        room = min(context.room, self.limit)
        self._is_probe = False
        if room <= 0 or not self.costs.is_known:
            return plain
        model = self._model
        expected = self._expected = model.expected()
        best = best_length(expected, model.kept, curve, room)
        if best.length == 0:
            return self._probe(curve) if self._probe_is_due(curve) else plain
        length = self._affordable(best.length, curve)
        if not length or self._refresh_is_due(best, context, curve):
            return plain
        rate = best.tokens / best.seconds
        self._bounds = margin_bounds(length, expected, model.kept, curve, rate, model.profile.curve)
        self._drafts += 1
        if self._drafts <= FULL_FIRST or self._drafts % FULL_EVERY == 0:
            length = max(length, self._affordable(min(length + FULL_DEEPER, room), curve))
            bounds: tuple[float, ...] = ()
        else:
            bounds = self._bounds
        return DraftPlan(
            max_draft_tokens=length,
            min_confidences=bounds,
            expected_tokens=best.tokens,
            expected_s=best.seconds,
            plain_s=curve.plain,
        )

    def _turn_to(self, kind: str) -> None:
        if kind != self._kind:
            self._kind = kind
            self._model = self._model_of(kind)
            self._interval, self._parked = PROBE_FIRST, 0

    def _model_of(self, kind: str) -> AcceptanceModel:
        model = self._models.get(kind)
        if model is None:
            model = self._models[kind] = AcceptanceModel(self.profiles.of(kind))
        return model

    def _affordable(self, length: int, curve: Curve) -> int:
        """The longest draft up to `length` that the credit pays for, should all of it be wrong."""
        while length and loss_of(length, curve) > self.credit:
            length -= 1
        return length

    def _refresh_is_due(self, best: Forecast, context: DraftContext, curve: Curve) -> bool:
        """Whether to measure plain decoding again: the rarer, the more a plain round would lose."""
        age = self.costs.rounds_since_plain(context.context_length)
        if age < REFRESH_FIRST:
            return False
        lost = 1.0 - best.seconds / (best.tokens * curve.plain)
        return age * REFRESH_SHARE > lost

    def _probe_is_due(self, curve: Curve) -> bool:
        self._parked += 1
        loss = loss_of(1, curve)
        interval = min(self._interval, max(PROBE_FIRST, loss / PROBE_SHARE))
        return self._parked >= interval and loss <= self.credit

    def _probe(self, curve: Curve) -> DraftPlan:
        self._parked = 0
        self._is_probe = True
        self._bounds = ()
        tokens = 1.0 + self._expected[0]
        seconds = curve.plain + curve.draft_fixed + curve.draft_step
        seconds += curve.passes[1] - curve.passes[0]
        return DraftPlan(
            max_draft_tokens=1, expected_tokens=tokens, expected_s=seconds, plain_s=curve.plain
        )

    # --- Learning -------------------------------------------------------------------------------

    def observe(self, outcome: RoundOutcome) -> None:
        self.costs.observe(outcome.cost)
        plan, model, curve = self._plan, self._model, self._curve
        self.credit = min(
            MOST_CREDIT, self.credit + CREDIT_RATE * (1 + outcome.num_accepted_tokens)
        )
        asked, drafted = plan.max_draft_tokens, outcome.num_draft_tokens
        if not asked or curve is None or outcome.source not in OWN_SOURCES:
            model.pass_time()
            return
        held = drafted < asked
        self._settle_credit(outcome, held, curve)
        if plan.min_confidences:
            model.observe_kept(drafted, held)
        accepted = outcome.num_accepted_tokens
        judged = accepted + (accepted < outcome.num_verified_tokens)
        model.observe(self._expected, accepted, judged, outcome.confidences, self._bounds)
        if self._is_probe:
            self._interval = (
                1 if accepted else min(PROBE_LAST, max(PROBE_FIRST, 2 * self._interval))
            )

    def _settle_credit(self, outcome: RoundOutcome, held: bool, curve: Curve) -> None:
        """Take what the draft cost more than plain decoding, give what it saved, in tokens."""
        cost = outcome.cost
        if not cost.num_draft_steps:
            return
        share = (outcome.num_draft_tokens + held) / cost.num_draft_steps
        extra = cost.draft_s + cost.verify_s - curve.passes[0]
        foreseen = loss_of(outcome.num_draft_tokens, curve) * curve.plain
        extra = min(max(extra, 0.0), 2.0 * foreseen + curve.plain)
        lost = share * cost.num_sequences * extra / curve.plain
        self.credit = min(MOST_CREDIT, self.credit + outcome.num_accepted_tokens - lost)


def loss_of(length: int, curve: Curve) -> float:
    """Tokens that plain decoding could have made in the time of a draft that is all wrong."""
    extra = curve.draft_fixed + length * curve.draft_step + curve.passes[length] - curve.passes[0]
    return extra / curve.plain


def best_length(
    expected: Sequence[float], kept: Sequence[float], curve: Curve, room: int
) -> Forecast:
    """The draft length with most expected tokens a second, 0 included.

    Equals: the largest (1 + S_1 + ... + S_k) / T_k over all k.
    """
    passes, step = curve.passes, curve.draft_step
    best_k, best_tokens, best_seconds = 0, 1.0, curve.plain
    tokens, seconds = 1.0, curve.plain + curve.draft_fixed
    reached = survival = 1.0
    before = passes[0]
    for k in range(room):
        share, after = kept[k], passes[k + 1]
        seconds += reached * (step + share * (after - before))
        before = after
        reached *= share
        survival *= share * expected[k]
        tokens += survival
        if tokens * best_seconds > best_tokens * seconds:
            best_k, best_tokens, best_seconds = k + 1, tokens, seconds
    return Forecast(best_k, best_tokens, best_seconds)


def margin_bounds(
    length: int,
    expected: Sequence[float],
    kept: Sequence[float],
    curve: Curve,
    rate: float,
    margins: MarginCurve,
) -> tuple[float, ...]:
    """Margins below which a token and those after it are not worth their time at this rate.

    A token with chance p, reached with survival q, adds q p (1 + a) tokens, a being what is
    expected to follow it; that must exceed `rate` times its row and what follows costs.
    """
    if margins.slope == 0.0:
        return ()
    passes, step = curve.passes, curve.draft_step
    survivals, survival = [], 1.0
    for k in range(length):
        survivals.append(survival)
        survival *= expected[k]
    bounds = [0.0] * length
    follow = cost = 0.0
    for k in range(length - 1, -1, -1):
        row = passes[k + 1] - passes[k] + cost
        chance = rate * row / (survivals[k] * (1.0 + follow))
        bounds[k] = max(0.0, margins.margin_at(min(max(chance, 1e-4), 0.999)))
        follow = kept[k] * expected[k] * (1.0 + follow)
        cost = step + kept[k] * row
    return tuple(bounds)
