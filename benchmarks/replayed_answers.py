"""Recorded answers, written again by rounds of a simulated machine.

The controller decides as in a real round, and asks texts as in one. What a round takes is what it
takes on the machine, to which what deciding takes is added; the controller is told of noise and
hiccups that are not counted.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import repeat
from typing import Any, NamedTuple, Protocol, cast

import numpy as np

from paceline.speculative.acceptance import Profiles
from paceline.speculative.adaptive import AdaptiveDraftLength, Decision
from paceline.speculative.controller import (
    DraftContext,
    DraftPlan,
    FixedDraftLength,
    RoundCost,
    RoundOutcome,
)
from paceline.speculative.learned import Learned
from paceline.speculative.pace import PacedDraftLength
from paceline.speculative.round import NO_TOKENS, RoundDraft, Verdict
from paceline.speculative.simulation import Machine, noise_factors
from paceline.speculative.sources import DRAFTER, NOBODY, TextDraft, TextSources, text_drafts
from paceline.speculative.suffix import MAX_PROPOSAL
from recorded_answers import Answer

# --- Machine ------------------------------------------------------------------------------------

PASS_MS = {1: 0.241, 2: 0.327, 3: 0.41, 4: 0.494, 5: 0.602, 6: 0.69, 9: 1.0, 16: 1.72}

MACHINE = Machine(
    name="rounds of the shipped pair",
    passes=tuple((rows, taken / PASS_MS[1]) for rows, taken in PASS_MS.items()),
    draft_fixed=0.022 / PASS_MS[1],
    draft_step=0.029 / PASS_MS[1],
    overhead=0.040 / PASS_MS[1],
    noise=0.03,
    hiccups=0.02,
    pass_s=PASS_MS[1] / 1e3,
)
"""Assumed, near what rounds of the shipped pair took in a busy hour of the slower AMD EPYC."""


@dataclass(frozen=True, kw_only=True)
class Deciding:
    """Seconds that the controller takes beside the rounds themselves; none of a fixed length.

    Assumed, near what a clock around them said between passes of the shipped pair, which empty the
    caches.

    Args:
        decide_s: of a decision.
        learn_s: of taking in what came of one.
        draft_round_s: of a round with a draft.
        text_round_s: of a round that asks texts for a draft.
        parked_round_s: of a round without a draft.
        parked_text_round_s: the same where texts are followed.
    """

    decide_s: float = 55e-6
    learn_s: float = 45e-6
    draft_round_s: float = 12e-6
    text_round_s: float = 8e-6
    parked_round_s: float = 1e-6
    parked_text_round_s: float = 3e-6


FREE = Deciding(**dict.fromkeys((field.name for field in fields(Deciding)), 0.0))


def noise_of(machine: Machine, seed: int) -> Iterator[float]:
    """By what measured times differ from those that are counted, for ever."""
    generator = np.random.default_rng(seed)
    while True:
        yield from noise_factors(machine, generator, 4096)


# --- What chooses the drafts of an answer -------------------------------------------------------


class Choice(NamedTuple):
    """What to draft in a round.

    Args:
        text: takes the place of what was planned.
        seconds: that it took to choose.
    """

    plan: DraftPlan
    text: TextDraft | None = None
    seconds: float = 0.0


class Drafting(Protocol):
    """Chooses the drafts of one answer."""

    def choose(self, context: DraftContext) -> Choice: ...

    def observe(self, outcome: RoundOutcome, token_ids: Sequence[int]) -> float:
        """Learn what came of a round, and what it emitted; the seconds that this took."""

    def end(self) -> float:
        """The answer has ended; the seconds that this took."""


class FixedDrafting:
    """Always the same length, which takes no time to choose."""

    def __init__(self, length: int, limit: int) -> None:
        self._policy = FixedDraftLength(length, limit)

    def choose(self, context: DraftContext) -> Choice:
        return Choice(self._policy.plan(context))

    def observe(self, outcome: RoundOutcome, token_ids: Sequence[int]) -> float:
        return 0.0

    def end(self) -> float:
        return 0.0


class CountedLength:
    """Stands in for an adaptive draft length and counts how often it decides and learns."""

    def __init__(self, length: AdaptiveDraftLength) -> None:
        self._length = length
        self.num_decided = self.num_learned = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._length, name)

    @property
    def decision(self) -> Decision | None:
        return self._length.decision

    @decision.setter
    def decision(self, decision: Decision | None) -> None:
        self._length.decision = decision

    def plan(self, context: DraftContext) -> DraftPlan:
        self.num_decided += 1
        return self._length.plan(context)

    def observe_all(self, outcomes: Sequence[RoundOutcome]) -> None:
        self.num_learned += 1
        self._length.observe_all(outcomes)

    def observe_parked(self, usual: RoundOutcome, num_rounds: int) -> None:
        self.num_learned += 1
        self._length.observe_parked(usual, num_rounds)


class AutoDrafting:
    """The controller of an answer, as an engine runs it.

    Args:
        sources: texts to draft from; they know the prompt and the first token of the answer.
    """

    def __init__(
        self, learned: Learned, limit: int, deciding: Deciding, sources: TextSources | None
    ) -> None:
        policy = learned.new_policy(limit)
        assert isinstance(policy, PacedDraftLength)
        self._length = CountedLength(policy.policy)
        policy.policy = cast(AdaptiveDraftLength, self._length)
        self._policy = policy
        self._costs = learned.costs
        self._deciding = deciding
        self._sources = sources

    def choose(self, context: DraftContext) -> Choice:
        plan = self._policy.plan(context)
        seconds = self._taken_s()
        if self._sources is None:
            return Choice(plan, None, seconds)
        if self._sources.has_proposal:
            seconds += self._deciding.text_round_s
        [text] = text_drafts([self._sources], [context], [plan], self._costs)
        return Choice(plan, text, seconds)

    def observe(self, outcome: RoundOutcome, token_ids: Sequence[int]) -> float:
        if self._sources is not None:
            for token_id in token_ids:
                self._sources.push(token_id)
        self._policy.observe(outcome)
        return self._taken_s() + self._kept_s(outcome)

    def end(self) -> float:
        self._policy.learn()
        return self._taken_s()

    def _taken_s(self) -> float:
        """Seconds of what was decided and learned since the last call."""
        length, deciding = self._length, self._deciding
        seconds = deciding.decide_s * length.num_decided + deciding.learn_s * length.num_learned
        length.num_decided = length.num_learned = 0
        return seconds

    def _kept_s(self, outcome: RoundOutcome) -> float:
        """Seconds that a round takes longer than one of a fixed length, though nothing is decided
        and nothing learned."""
        deciding = self._deciding
        if outcome.num_draft_steps or outcome.num_draft_tokens:
            return deciding.draft_round_s
        return deciding.parked_round_s if self._sources is None else deciding.parked_text_round_s


# --- Replaying an answer ------------------------------------------------------------------------


class Replay(NamedTuple):
    """What a way of drafting made of an answer.

    Args:
        seconds: of all rounds and of deciding, without noise.
        sources: who drafted, by round.
    """

    seconds: float
    sources: tuple[str, ...]


def replay(
    answer: Answer,
    drafting: Drafting,
    machine: Machine,
    limit: int,
    factors: Iterator[float] | None = None,
) -> Replay:
    """Write an answer by rounds.

    Args:
        limit: longest draft of the drafter.
        factors: of the seconds that are told, not of those that are counted.

    Equals: what `run_round` drafts, verifies and tells in the same place.
    """
    factors = repeat(1.0) if factors is None else factors
    place, seconds, sources = 0, 0.0, []
    while place < answer.num_places:
        context = context_at(answer, place, limit)
        choice = drafting.choose(context)
        draft = draft_at(answer, place, choice, context.room)
        verdict = verdict_at(answer, place, draft.tokens)
        cost = cost_of(context, draft, verdict, machine, choice.seconds)
        told = outcome_of(choice, draft, verdict, _with_noise(cost, factors))
        seconds += cost.draft_s + cost.verify_s + cost.overhead_s
        seconds += drafting.observe(told, verdict.token_ids)
        sources.append(draft.source)
        place += len(verdict.token_ids)
    return Replay(seconds + drafting.end(), tuple(sources))


def context_at(answer: Answer, place: int, limit: int) -> DraftContext:
    """Where a sequence stands that has written the answer up to a place."""
    room = answer.max_tokens - (place + 1) - 1  # the bonus token takes one
    return DraftContext(
        room=max(0, min(room, limit)),
        context_length=len(answer.prompt_ids) + place,
        kind=answer.text_kinds[place],
        text_room=max(0, min(room, MAX_PROPOSAL)),
    )


def draft_at(answer: Answer, place: int, choice: Choice, room: int) -> RoundDraft:
    """What is drafted: the text's proposal, or the recorded draft as far as it was asked for and
    the drafter was sure enough, see `StopRule`."""
    if choice.text is not None:
        return RoundDraft(choice.text.source, choice.text.token_ids)
    asked = min(choice.plan.max_draft_tokens, room)
    tokens, margins = answer.drafts[place].tokens[:asked], answer.drafts[place].confidences[:asked]
    if not tokens:
        return NO_TOKENS
    length = steps = len(tokens)
    for step, (margin, bound) in enumerate(zip(margins, choice.plan.min_confidences, strict=False)):
        if margin < bound:
            length, steps = step, step + 1
            break
    source = DRAFTER if length else NOBODY
    return RoundDraft(source, tokens[:length], margins[:length], steps)


def verdict_at(answer: Answer, place: int, draft: Sequence[int]) -> Verdict:
    """What the target makes of a draft. Where the answer ends with an accepted token, what follows
    was not judged, and there is no bonus token.

    Equals: `round.verify`, on the recorded answer.
    """
    coming = answer.token_ids[place + 1 :]
    accepted = 0
    for said, right in zip(draft, coming, strict=False):
        if said != right:
            break
        accepted += 1
    if accepted == len(coming):
        return Verdict(coming, accepted, accepted)
    return Verdict(coming[: accepted + 1], len(draft), accepted)


def cost_of(
    context: DraftContext,
    draft: RoundDraft,
    verdict: Verdict,
    machine: Machine,
    choosing_s: float,
) -> RoundCost:
    """What a round takes on a machine; the clock of a round runs while a draft is chosen."""
    return RoundCost(
        num_sequences=1,
        num_rows=1 + len(draft.tokens),
        context_length=context.context_length,
        num_drafts=int(draft.num_steps > 0),
        num_draft_steps=draft.num_steps,
        num_tokens=len(verdict.token_ids),
        draft_s=machine.draft_s(draft.num_steps),
        verify_s=machine.verify_s(1 + len(draft.tokens)),
        overhead_s=machine.overhead_s + choosing_s,
    )


def _with_noise(cost: RoundCost, factors: Iterator[float]) -> RoundCost:
    return cost._replace(
        draft_s=cost.draft_s * next(factors),
        verify_s=cost.verify_s * next(factors),
        overhead_s=cost.overhead_s * next(factors),
    )


def outcome_of(
    choice: Choice, draft: RoundDraft, verdict: Verdict, cost: RoundCost
) -> RoundOutcome:
    """What a policy is told of a round."""
    plan = choice.text.instead_of(choice.plan) if choice.text else choice.plan
    return RoundOutcome(
        num_draft_tokens=len(draft.tokens),
        num_verified_tokens=verdict.num_verified_tokens,
        num_accepted_tokens=verdict.num_accepted_tokens,
        cost=cost,
        num_draft_steps=draft.num_steps,
        confidences=draft.confidences,
        source=draft.source,
        plan=plan,
    )


# --- Engines ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a replay runs with.

    Args:
        limit: longest draft of the drafter.
        new_profiles: what an engine begins with; None where it knows no drafter.
        seed: of the noise.
    """

    machine: Machine
    limit: int
    end_token_ids: frozenset[int] = frozenset()
    deciding: Deciding = Deciding()
    new_profiles: Callable[[], Profiles | None] = lambda: None
    seed: int = 0

    def fixed_s(self, answer: Answer, length: int) -> float:
        """Seconds of an answer with a fixed draft length."""
        return replay(answer, FixedDrafting(length, self.limit), self.machine, self.limit).seconds

    def off_s(self, answer: Answer) -> float:
        """Seconds of an answer without drafting."""
        return answer.num_places * (self.machine.verify_s(1) + self.machine.overhead_s)


class SimulatedEngine:
    """Answers one prompt after another, and learns.

    Args:
        real: the machine, if it is another one than that which the engine was calibrated on.
    """

    def __init__(self, setting: Setting, real: Machine | None = None) -> None:
        self._setting = setting
        self._machine = real or setting.machine
        self._learned = Learned(setting.machine.calibrated(), setting.new_profiles())
        self._noise = noise_of(self._machine, setting.seed)

    def answer(self, answer: Answer, *, has_texts: bool = True) -> Replay:
        """Write an answer, with texts to draft from or without."""
        setting = self._setting
        sources = self._sources(answer) if has_texts else None
        drafting = AutoDrafting(self._learned, setting.limit, setting.deciding, sources)
        return replay(answer, drafting, self._machine, setting.limit, self._noise)

    def _sources(self, answer: Answer) -> TextSources:
        ends = self._setting.end_token_ids
        sources = TextSources(answer.prompt_ids, self._learned.trust, end_token_ids=ends)
        sources.push(answer.token_ids[0])
        return sources
