"""Chooses each draft length by expected tokens over measured time, plain decoding among them.

The rule is reference section 2.1: go on drafting while what the next token adds to the expected
tokens, relative to them, exceeds what it adds to the time. Before a draft it is applied to the
acceptance expected of this text; inside the draft the drafter applies it to each token, through a
bound on its margin. A credit of tokens limits what all wrong drafts of a text may cost together.

The constants were chosen on the grid of `benchmarks/simulate_controller.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import ceil
from typing import NamedTuple

from paceline.extension import _native
from paceline.speculative.acceptance import (
    MAX_POSITIONS,
    PROBE_FIRST,
    AcceptanceModel,
    Judgement,
    MarginCurve,
    Profiles,
)
from paceline.speculative.controller import (
    DraftContext,
    DraftLengthPolicy,
    DraftPlan,
    RoundCost,
    RoundOutcome,
)
from paceline.speculative.costs import CostModel, Curve

LEAST_GAIN = _native.LEAST_GAIN
"""Drafting for less than this is not worth being wrong about it: an always wrong drafter keeps an
expected acceptance of a few percent, which would pay where rows are nearly free."""

FIRST_CREDIT, CREDIT_RATE = 2.8, 0.004
"""Tokens that wrong drafts may cost at first, and what grows again with each token, up to as many.
Over 200 tokens that is 3.6, 1.8 % of them. With less, text where drafting just pays is given up by
bad luck."""

KNOWN_CREDIT, WELL_KNOWN = 5.0, 300.0
"""The first credit where so many drafts of this kind of text are known: what is expected of a text
is then worth more, and a short credit cuts drafts that pay."""

MOST_CREDIT = 20.0
"""What drafting has won may be lost again, so far: a hard passage in easy text then ends with
probes that are frequent enough to notice its end."""

STAKE = 0.5
"""A draft may cost this share of the credit: the less is left, the shorter the drafts, so that a
few wrong ones do not end drafting altogether."""

PROBE_LAST = 512
"""A parked drafter is tried after a few rounds, twice as many after each failure, and at most so
many."""

NEW_TEXT = 64
"""An answer that begins counts as so many parked rounds, half the interval at most: its text may be
easier than the last one."""

PROBE_SHARE, EARNED_SHARE = 0.0025, 0.002
"""Probes need not be rarer than this share of the time allows, and than that share more for each
token that drafting has won: text that was easy once will be again."""

PROBE_MEMORY = 0.75
"""Share that the average cost of probes keeps at each of them."""

PROBE_DOUBT = 0.2
"""At a probe the text is taken for another one with this chance, so that a success counts."""

FULL_PROBE = 6
"""One probe in so many verifies its token whatever the margin, lest the curve of the margins be
wrong for ever."""

FULL_FIRST, FULL_UNTIL, FULL_EVERY, FULL_DEEPER = 2, 500.0, 48, 2
"""The first two drafts of a text, until 500 are known of its kind, and one in 48 are not cut by
margins and are longer by two tokens: what is never verified is never learned."""

BOUNDS_EVERY = 4
"""Bounds serve for four drafts of a length: they move slowly, and each takes a logarithm."""

REFRESH_NEW, DOUBTED_GAIN = 8, 2.0
"""Plain decoding is first measured after so many drafts, if they seem to gain less than that: a
calibration may have met a load that has ended. Where they gain more, a plain round costs more."""

REFRESH_FIRST, REFRESH_LAST, REFRESH_SHARE = 32, 192, 0.002
"""Plain decoding is measured again after 32 rounds at the earliest and 192 at the latest; between
them so rarely that it costs at most this share of the time."""

SLOW = 4.0
"""A draft that took so much longer than known is believed at once where the credit is concerned: a
median needs three of them, which may cost more than there is."""

OWN_SOURCES = ("drafter", "none")
"""Who drafted where this policy decided; what came of a text says nothing about the drafter."""

ALL_KEPT = (1.0,) * MAX_POSITIONS
ALL_RIGHT = (1.0,) * (MAX_POSITIONS + 1)


class Forecast(NamedTuple):
    """A draft length, and what to expect of a round with it.

    Args:
        tokens: that its sequence emits.
        seconds: of the round.
        rate: tokens a second, by all sequences together.
    """

    length: int
    tokens: float
    seconds: float
    rate: float


class Outlook(NamedTuple):
    """What a sequence's draft is weighed with.

    Args:
        curve: of the round, by tokens of this draft; those of other sequences are in every pass.
        pass_s: seconds of the target's pass without any draft.
        plain_s: of the round without any draft.
        rate: tokens a second of plain decoding, by all sequences together.
        others: tokens that the other sequences are expected to emit in the round.
    """

    curve: Curve
    pass_s: float
    plain_s: float
    rate: float
    others: float = 0.0

    def loss(self, length: int, slowness: float = 1.0) -> float:
        """Tokens that plain decoding makes in the time of a draft, should all of it be wrong."""
        curve = self.curve
        draft_s = slowness * (curve.draft_fixed + length * curve.draft_step)
        return self.rate * (draft_s + curve.passes[length] - curve.passes[0])

    def plain(self) -> DraftPlan:
        return DraftPlan(max_draft_tokens=0, expected_s=self.plain_s, plain_s=self.plain_s)


class Decision(NamedTuple):
    """A plan, and what it was made from.

    Args:
        survivals: see `AcceptanceModel.survivals`.
        bounds: margins below which a token would be held back; the plan may ask for whole drafts.
        is_usual: no probe, not there to measure or to learn from, and not the first of an engine.
        num_quiet: rounds before the next probe, where the drafter is parked.
    """

    plan: DraftPlan
    outlook: Outlook
    survivals: Sequence[float]
    bounds: tuple[float, ...] = ()
    is_probe: bool = False
    is_usual: bool = False
    num_quiet: int = 0


class AdaptiveDraftLength:
    """The policy of one sequence.

    Args:
        costs: of this machine, shared by all sequences of an engine.
        profiles: of the drafter, likewise.
        limit: longest draft.

    Cost: see `benchmarks/decision_cost.py`.
    """

    def __init__(self, costs: CostModel, profiles: Profiles, limit: int = MAX_POSITIONS) -> None:
        self.costs = costs
        self.profiles = profiles
        self.limit = min(limit, MAX_POSITIONS)
        self.credit = self._first_credit = FIRST_CREDIT
        self._slowness = 1.0
        self._kind: str | None = None
        self._models: dict[str, AcceptanceModel] = {}
        self.decision: Decision | None = None
        self._survivals: list[float] = []
        self._bounds: tuple[float, ...] = ()
        self._num_drafts = self._num_probes = 0
        self._last_drafted: bool | None = None
        self.turn_to_kind("")

    # --- Planning -------------------------------------------------------------------------------

    def plan(self, context: DraftContext) -> DraftPlan:
        room = self._turn_to(context)
        curve = self.costs.curve(context.context_length)
        outlook = Outlook(curve, curve.passes[0], curve.plain, 1.0 / curve.plain)
        best = best_length(self._survivals, self._model.kept, curve, room)
        refresh = best.length > 0 and self._refresh_is_due(
            best.rate, context.context_length, 1, outlook.rate
        )
        return self._decide(None if refresh else best, room, outlook)

    def plan_round(
        self, policies: Sequence[DraftLengthPolicy], contexts: Sequence[DraftContext]
    ) -> list[DraftPlan]:
        """Rows go where they are most likely to be accepted, as many as pay in one pass."""
        count = len(policies)
        mean_length = sum(context.context_length for context in contexts) // count
        plans, members, fixed_rows = self._members(policies, contexts)
        most_fixed = max(fixed_rows, MAX_POSITIONS * (count - len(members)))
        curve = self.costs.curve(mean_length, count, most_fixed + MAX_POSITIONS * len(members))
        states = [(m._survivals, m._model.kept, room) for m, room in members.values()]
        forecasts = shared_lengths(states, curve, count, fixed_rows)
        num_rows = fixed_rows + sum(forecast.length for forecast in forecasts)
        num_tokens = sum(forecast.tokens for forecast in forecasts) + count - len(members)
        plain_rate = count / curve.plain
        refresh = num_rows > fixed_rows == 0 and self._refresh_is_due(
            forecasts[0].rate, mean_length, count, plain_rate
        )
        for (index, (member, room)), best in zip(members.items(), forecasts, strict=True):
            start = num_rows - best.length
            outlook = Outlook(
                curve=replace(curve, passes=curve.passes[start : start + MAX_POSITIONS + 1]),
                pass_s=curve.passes[0],
                plain_s=curve.plain,
                rate=plain_rate,
                others=num_tokens - best.tokens,
            )
            plans[index] = member._decide(None if refresh else best, room, outlook)
        return [plans[index] for index in range(count)]

    def _members(
        self, policies: Sequence[DraftLengthPolicy], contexts: Sequence[DraftContext]
    ) -> tuple[dict[int, DraftPlan], dict[int, tuple[AdaptiveDraftLength, int]], int]:
        """The plans of sequences that cannot be decided for, those that can with their room, both
        by place, and the rows of the former."""
        plans, members, rows = {}, {}, 0
        for index, (policy, context) in enumerate(zip(policies, contexts, strict=True)):
            if isinstance(policy, AdaptiveDraftLength) and policy.costs is self.costs:
                members[index] = (policy, policy._turn_to(context))
            else:
                plans[index] = plan = policy.plan(context)
                rows += min(plan.max_draft_tokens, context.room)
        return plans, members, rows

    def _turn_to(self, context: DraftContext) -> int:
        """Expect text of the context's kind; the longest draft that is of use."""
        self.turn_to_kind(context.kind)
        self._survivals = self._model.survivals()
        return min(context.room, self.limit) if self.costs.is_known else 0

    def turn_to_kind(self, kind: str) -> None:
        if kind == self._kind:
            return
        self._kind = kind
        self._probing = self.profiles.probing(kind)
        if kind not in self._models:
            self._models[kind] = AcceptanceModel(self.profiles.of(kind))
            self._probing.num_parked += min(NEW_TEXT, self._probing.interval // 2)
        self._model = self._models[kind]
        if self._model.profile.counts[0] >= WELL_KNOWN and self._first_credit < KNOWN_CREDIT:
            self.credit += KNOWN_CREDIT - self._first_credit
            self._first_credit = KNOWN_CREDIT

    def _decide(self, best: Forecast | None, room: int, outlook: Outlook) -> DraftPlan:
        """Take the best length, None measures plain decoding, if what it may lose can be paid."""
        if best is None:
            return self._decided(outlook.plain(), outlook)
        if best.length == 0 and room:
            return self._parked(room, outlook)
        model, survivals = self._model, self._survivals
        length = self._affordable(best.length, outlook)
        if length < best.length:
            best = best_length(survivals, model.kept, outlook.curve, length, outlook.others)
            length = best.length
        if length == 0:
            return self._decided(outlook.plain(), outlook, is_usual=self.costs.is_known)
        if self._num_drafts % BOUNDS_EVERY == 0 or len(self._bounds) != length:
            self._bounds = margin_bounds(
                length, survivals, model.kept, outlook.curve, best.rate, model.profile.curve
            )
        plan = DraftPlan(
            max_draft_tokens=length,
            min_confidences=self._bounds,
            expected_tokens=best.tokens,
            expected_s=best.seconds,
            plain_s=outlook.plain_s,
        )
        if self._explores():
            return self._decided(self._longer(plan, room, outlook), outlook)
        return self._decided(plan, outlook, is_usual=self.costs.has_drafted)

    def _decided(
        self,
        plan: DraftPlan,
        outlook: Outlook,
        *,
        is_probe: bool = False,
        is_usual: bool = False,
        num_quiet: int = 0,
    ) -> DraftPlan:
        self.decision = Decision(
            plan, outlook, self._survivals, self._bounds, is_probe, is_usual, num_quiet
        )
        return plan

    def _longer(self, plan: DraftPlan, room: int, outlook: Outlook) -> DraftPlan:
        """To learn from: longer, and whole."""
        whole = best_length(self._survivals, ALL_KEPT, outlook.curve, room, outlook.others).length
        length = self._affordable(min(max(1, whole) + FULL_DEEPER, room), outlook)
        return replace(plan, max_draft_tokens=length, min_confidences=())

    def _explores(self) -> bool:
        """Whether the draft is there to learn from it."""
        self._num_drafts += 1
        is_young = self._model.profile.counts[0] < FULL_UNTIL and self._num_drafts <= FULL_FIRST
        return is_young or self._num_drafts % FULL_EVERY == 0

    def _affordable(self, length: int, outlook: Outlook) -> int:
        """The longest draft up to `length` that the credit pays for, should all of it be wrong.
        The first of an engine is of one token: its drafter may be slower than when it was measured.
        """
        if not self.costs.has_drafted:
            length = min(length, 1)
        most = STAKE * self.credit
        while length and outlook.loss(length, self._slowness) > most:
            length -= 1
        return length

    def _refresh_is_due(
        self, rate: float, context_length: int, num_sequences: int, plain_rate: float
    ) -> bool:
        """Whether to measure plain decoding again: the rarer, the more a plain round would
        lose."""
        age = self.costs.rounds_since_plain(context_length, num_sequences)
        if age < REFRESH_NEW:
            return False
        if age < REFRESH_FIRST:
            is_doubted = rate < DOUBTED_GAIN * plain_rate
            return is_doubted and not self.costs.has_seen_plain(context_length, num_sequences)
        return age >= REFRESH_LAST or age * REFRESH_SHARE > 1.0 - plain_rate / rate

    def _parked(self, room: int, outlook: Outlook) -> DraftPlan:
        """Nothing is drafted, but for one token to see whether the text has changed, if that is
        due. As a rule only a token of some promise is verified: to look at its margin costs but a
        step of the drafter."""
        bounds = self._probe_bounds(outlook) if (self._num_probes + 1) % FULL_PROBE else ()
        loss = outlook.loss(1, self._slowness)
        if bounds:
            row_s = outlook.curve.passes[1] - outlook.curve.passes[0]
            loss -= outlook.rate * (1.0 - self._model.kept[0]) * row_s
        loss = max(loss, self._probing.loss)
        num_quiet = self._rounds_to_probe(loss, room, outlook)
        if num_quiet:
            plan, is_usual = outlook.plain(), self.costs.is_known
            return self._decided(plan, outlook, is_usual=is_usual, num_quiet=num_quiet)
        self._probing.num_parked = 0
        self._num_probes += 1
        self._bounds = bounds
        self._model.doubt(PROBE_DOUBT)
        plan = DraftPlan(
            max_draft_tokens=1,
            min_confidences=bounds,
            expected_tokens=1.0 + self._survivals[1],
            expected_s=outlook.plain_s + loss / outlook.rate,
            plain_s=outlook.plain_s,
        )
        return self._decided(plan, outlook, is_probe=True)

    def _probe_bounds(self, outlook: Outlook) -> tuple[float, ...]:
        model, rate = self._model, outlook.rate
        return margin_bounds(
            1, self._survivals, model.kept, outlook.curve, rate, model.profile.curve
        )

    def _rounds_to_probe(self, loss: float, room: int, outlook: Outlook) -> int:
        """In how many rounds the next probe is due, and can be paid: it costs so many tokens. Where
        even drafts that are always right would not pay, it can only show that the machine has
        changed."""
        may_pay = best_length(ALL_RIGHT, ALL_KEPT, outlook.curve, room, outlook.others).length > 0
        share = PROBE_SHARE + EARNED_SHARE * max(0.0, self.credit - self._first_credit)
        usual = self._probing.interval if may_pay else PROBE_LAST
        interval = min(usual, max(PROBE_FIRST, loss / share))
        lacking = (loss / STAKE - self.credit) / CREDIT_RATE
        return max(0, ceil(lacking), ceil(interval) - 1 - self._probing.num_parked)

    # --- Learning -------------------------------------------------------------------------------

    def observe(self, outcome: RoundOutcome) -> None:
        self.observe_all((outcome,))

    def observe_all(self, outcomes: Sequence[RoundOutcome]) -> None:
        """Learn from the rounds, one at least, that the last decision stood for."""
        if self.decision is None or not self.decision.plan.max_draft_tokens:
            self.observe_parked(outcomes[len(outcomes) // 2], len(outcomes))
            return
        # The cost of one round in the middle: those of all would take longer than they are worth,
        # and the last one may be the last because it took long.
        middle = (len(outcomes) - 1) // 2
        if middle:
            self._last_drafted = outcomes[middle - 1].cost.num_draft_steps > 0
        self._observe_cost(outcomes[middle].cost, len(outcomes))
        self._last_drafted = outcomes[-1].cost.num_draft_steps > 0
        self._grow_credit(sum(1 + outcome.num_accepted_tokens for outcome in outcomes))
        drafts = [outcome for outcome in outcomes if outcome.source in OWN_SOURCES]
        if drafts:
            self._learn_from(drafts, self.decision)

    def observe_parked(self, usual: RoundOutcome, num_rounds: int) -> None:
        """Learn from rounds of a parked drafter, of which one is told, from the middle of them."""
        if num_rounds > 1:
            self._last_drafted = False
        self._observe_cost(usual.cost, num_rounds)
        self._grow_credit(num_rounds)
        self._probing.num_parked += num_rounds

    def _grow_credit(self, num_tokens: int) -> None:
        if self.credit < self._first_credit:
            self.credit = min(self._first_credit, self.credit + CREDIT_RATE * num_tokens)

    def _observe_cost(self, cost: RoundCost, num_rounds: int) -> None:
        drafted = cost.num_draft_steps > 0
        self.costs.observe(cost, self._last_drafted == drafted, num_rounds)
        self._last_drafted = drafted

    def _learn_from(self, drafts: Sequence[RoundOutcome], decision: Decision) -> None:
        is_whole = not decision.plan.min_confidences
        model, judgements, lost = self._model, [], 0.0
        for outcome in drafts:
            drafted = outcome.num_draft_tokens
            if outcome.num_draft_steps:
                lost = self._charge(outcome, decision.outlook)
            if not is_whole:
                model.observe_kept(drafted, outcome.num_draft_steps > drafted)
            judgements.append(judgement_of(outcome))
        model.observe(decision.survivals, judgements, decision.bounds if is_whole else ())
        if decision.is_probe:
            self._learn_from_probe(drafts[-1].num_accepted_tokens > 0, lost)
        elif drafts[-1].num_accepted_tokens:
            self._probing.interval = PROBE_FIRST

    def _learn_from_probe(self, was_right: bool, lost: float) -> None:
        """Between two short rounds without drafts a probe costs more than a row and a step: it
        finds the processor's caches without its weights, and leaves them without the next ones."""
        probing = self._probing
        probing.loss += (1.0 - PROBE_MEMORY) * (lost - probing.loss)
        longer = min(PROBE_LAST, max(PROBE_FIRST, 2 * probing.interval))
        probing.interval = 1 if was_right else longer

    def _tokens_missed(self, cost: RoundCost, outlook: Outlook) -> float:
        """Tokens that plain decoding would have made in what the round took longer than its."""
        return outlook.rate * ((cost.draft_s + cost.verify_s) / self.costs.load - outlook.pass_s)

    def won_by(self, outcome: RoundOutcome) -> float:
        """Tokens that a round of this sequence alone has won on plain decoding in the same time,
        as the last decision knew it; negative where it has lost."""
        assert self.decision is not None
        missed = self._tokens_missed(outcome.cost, self.decision.outlook)
        return outcome.num_accepted_tokens - missed

    def _charge(self, outcome: RoundOutcome, outlook: Outlook) -> float:
        """Take from the credit what the draft cost more than plain decoding, in tokens, and add
        what it won. A clock's hiccup is not charged: at most twice what is known, and a round.

        Returns:
            What was taken.
        """
        cost, curve, load = outcome.cost, outlook.curve, self.costs.load
        extra = self._tokens_missed(cost, outlook) * outcome.num_draft_steps / cost.num_draft_steps
        foreseen = outlook.loss(outcome.num_draft_tokens)
        known_s = cost.num_drafts * curve.draft_fixed + cost.num_draft_steps * curve.draft_step
        slowness = cost.draft_s / (known_s * load) if known_s > 0.0 else 1.0
        self._slowness = slowness if slowness > SLOW else 1.0
        lost = max(0.0, min(extra, 2.0 * foreseen + 1.0))
        self.credit = min(MOST_CREDIT, self.credit + outcome.num_accepted_tokens - lost)
        return lost


def judgement_of(outcome: RoundOutcome) -> Judgement:
    accepted = outcome.num_accepted_tokens
    judged = accepted + (accepted < outcome.num_verified_tokens)
    return Judgement(accepted, judged, outcome.confidences)


def best_length(
    survivals: Sequence[float],
    kept: Sequence[float],
    curve: Curve,
    room: int,
    others: float = 0.0,
) -> Forecast:
    """The draft length with most expected tokens a second, 0 included.

    Args:
        survivals: entry n is the chance that the first n tokens are taken.
        kept: entry n is the chance that the drafter does not hold back the token after n.
        others: tokens that other sequences emit in the round.

    Equals: the largest (1 + S_1 + ... + S_k) / T_k over all k.
    """
    return Forecast(
        *_native.best_length(
            survivals,
            kept,
            curve.passes,
            curve.draft_step,
            curve.plain,
            curve.draft_fixed,
            room,
            others,
        )
    )


def shared_lengths(
    members: Sequence[tuple[Sequence[float], Sequence[float], int]],
    curve: Curve,
    num_sequences: int,
    fixed_rows: int,
) -> list[Forecast]:
    """The draft lengths of sequences that share a pass, with most expected tokens a second.

    A sequence's survivals fall with the length of its draft, so that taking them in descending
    order takes each draft from its beginning.

    Args:
        members: survivals, kept shares and room of each sequence that can be decided for.
        num_sequences: in the pass, the others included.
        fixed_rows: draft tokens of the others.
    """
    gains = []
    for index, (survivals, kept, room) in enumerate(members):
        reached = 1.0
        for k in range(1, room + 1):
            reached *= kept[k - 1]
            gains.append((-reached * survivals[k], index, k))
    gains.sort()
    passes, before = curve.passes, curve.passes[fixed_rows]
    tokens = float(num_sequences)
    seconds = curve.plain + before - passes[0]
    best, best_count = LEAST_GAIN * tokens / seconds, 0
    for count, (gain, _, k) in enumerate(gains, 1):
        after = passes[fixed_rows + count]
        seconds += curve.draft_step + after - before + (curve.draft_fixed if k == 1 else 0.0)
        before = after
        tokens -= gain
        if tokens > best * seconds:
            best, best_count = tokens / seconds, count
    return _forecasts(len(members), gains[:best_count], curve, num_sequences, fixed_rows)


def _forecasts(
    num_members: int,
    taken: Sequence[tuple[float, int, int]],
    curve: Curve,
    num_sequences: int,
    fixed_rows: int,
) -> list[Forecast]:
    lengths, tokens = [0] * num_members, [1.0] * num_members
    for gain, index, _ in taken:
        lengths[index] += 1
        tokens[index] -= gain
    drafts = curve.draft_fixed * sum(map(bool, lengths)) + curve.draft_step * len(taken)
    seconds = curve.passes[fixed_rows + len(taken)] + curve.overhead + drafts
    rate = (sum(tokens) + num_sequences - num_members) / seconds
    return [
        Forecast(length, own, seconds, rate) for length, own in zip(lengths, tokens, strict=True)
    ]


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
    return _native.margin_bounds(
        survivals, kept, curve.passes, curve.draft_step, length, rate, margins
    )
