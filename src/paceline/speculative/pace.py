"""How long a decision stands.

To learn and to decide takes a tenth of a millisecond where a pass has just emptied the processor's
caches. In front of a pass of 30 ms that is nothing, and each round is decided for. Where rounds are
shorter, a decision stands for several of them, what came of them is learned together, and an answer
begins with the newest decision of earlier ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from paceline.speculative.adaptive import AdaptiveDraftLength, Decision
from paceline.speculative.controller import (
    DraftContext,
    DraftLengthPolicy,
    DraftPlan,
    RoundOutcome,
)

DECISION_S, DECISION_SHARE = 1e-4, 0.01
"""What learning and deciding take, and the share of the time that they may take."""

STANDS_S = DECISION_S / DECISION_SHARE

MOST_ROUNDS, MOST_QUIET_ROUNDS = 32, 128
"""For which it stands; the latter where the drafter is parked and no probe is due before."""

PATIENCE, MOST_PATIENCE = 1.5, 3.0
"""A decision no longer stands once its rounds have lost so many tokens to plain decoding in their
time; what they had won before is counted up to the latter. That they won less than expected is no
reason to decide anew: on a model of 0.2 ms that takes as long as half a pass."""

OPENING_USES = 16
"""An opening serves so many answers. One without a draft would teach nothing, and serves none."""

KNOWN_DRAFTS = 100.0
"""So many drafts of a kind of text must have been seen before its answers share an opening."""


@dataclass
class Opening:
    """What answers begin with in text of one kind: the newest decision to draft. The first ones of
    answers alone were tried, and were worse: they know less."""

    decision: Decision
    uses_left: int = OPENING_USES


Openings = dict[str, Opening]
"""By kind of text."""


class PacedDraftLength:
    """An adaptive draft length that is asked as often as that is worth its time.

    Args:
        policy: of the same sequence.
        openings: shared by all sequences of an engine.
    """

    def __init__(self, policy: AdaptiveDraftLength, openings: Openings | None = None) -> None:
        self.policy = policy
        self._openings: Openings = {} if openings is None else openings
        self._kind: str | None = None
        self._standing: dict[str | None, Decision] = {}
        self._plan = DraftPlan(max_draft_tokens=0)
        self._told: list[RoundOutcome] = []
        self._usual: RoundOutcome | None = None
        self._num_rounds = self._rounds_left = 0
        self._patience = 0.0

    # --- Planning -------------------------------------------------------------------------------

    def plan(self, context: DraftContext) -> DraftPlan:
        if self._rounds_left > 0 and context.kind == self._kind:
            return self._plan
        self.learn()
        decision = self._known(context.kind) if context.kind != self._kind else None
        self._kind = context.kind
        if decision is None:
            decision = self._decide(context)
        self._plan = decision.plan
        if decision.is_usual:
            self._stand(decision)
        return self._plan

    def _known(self, kind: str) -> Decision | None:
        """What stood when text of this kind was last written, in this answer or another one."""
        decision = self._standing.get(kind)
        if decision is None:
            opening = self._openings.get(kind)
            if opening is None or not opening.uses_left:
                return None
            opening.uses_left -= 1
            decision = opening.decision
        self.policy.turn_to_kind(kind)
        self.policy.decision = decision
        return decision

    def _decide(self, context: DraftContext) -> Decision:
        self.policy.plan(context)
        decision = self.policy.decision
        assert decision is not None
        if self._may_open(decision, context):
            self._openings[context.kind] = Opening(decision)
        elif decision.is_usual and not decision.plan.max_draft_tokens:
            self._openings.pop(context.kind, None)
        return decision

    def _may_open(self, decision: Decision, context: DraftContext) -> bool:
        drafts = decision.is_usual and decision.plan.max_draft_tokens > 0
        is_short = decision.outlook.plain_s * MOST_ROUNDS < STANDS_S
        return (
            drafts and is_short and self.policy.profiles.of(context.kind).counts[0] > KNOWN_DRAFTS
        )

    def _stand(self, decision: Decision) -> None:
        self._standing[self._kind] = decision
        self._num_rounds = self._rounds_left = _rounds_of(decision)
        self._patience = PATIENCE

    def plan_round(
        self, policies: Sequence[DraftLengthPolicy], contexts: Sequence[DraftContext]
    ) -> list[DraftPlan]:
        """Of several sequences each round is decided for."""
        inner: list[DraftLengthPolicy] = []
        for policy in policies:
            if isinstance(policy, PacedDraftLength):
                policy.learn()
                inner.append(policy.policy)
            else:
                inner.append(policy)
        return self.policy.plan_round(inner, contexts)

    # --- Learning -------------------------------------------------------------------------------

    def observe(self, outcome: RoundOutcome) -> None:
        """Of rounds that a parked drafter had no part in, one is kept: to keep all would cost more
        than what else is done between two short passes."""
        stands = self._rounds_left > 0
        self._rounds_left -= 1
        if stands and not self._plan.max_draft_tokens:
            if self._usual is None or self._rounds_left == self._num_rounds // 2:
                self._usual = outcome
        else:
            self._told.append(outcome)
            if stands:
                self._patience = min(MOST_PATIENCE, self._patience + self.policy.won_by(outcome))
        if self._rounds_left <= 0 or self._patience < 0.0:
            self._standing.pop(self._kind, None)
            self.learn()

    def learn(self) -> None:
        """Take in the rounds that the decision stood for; it stands no longer."""
        told, self._told = self._told, []
        usual, self._usual = self._usual, None
        num_rounds = self._num_rounds - self._rounds_left
        self._rounds_left = 0
        if told:
            self.policy.observe_all(told)
        elif usual is not None:
            self.policy.observe_parked(usual, num_rounds)


def _rounds_of(decision: Decision) -> int:
    """For how many rounds a decision stands."""
    expected_s = decision.plan.expected_s
    assert expected_s is not None
    rounds = int(STANDS_S / expected_s)
    if rounds <= 1:
        return 1
    return min(MOST_QUIET_ROUNDS, max(min(MOST_ROUNDS, rounds), decision.num_quiet))
