"""Decides how many tokens to draft. Asked once per sequence and round, told what came of it.

A policy never sees tokens or tensors, and cannot change the text: only the time it takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from paceline.config import check_range


class DraftContext(NamedTuple):
    """Where a sequence stands before its round.

    Args:
        room: a draft longer than this is of no use: the tokens left, the cache, the drafter.
        context_length: positions that its cache holds.
        kind: of the text that is being written; a label of few values.
        text_room: `room` for a draft that needs no drafter, see `sources`.
    """

    room: int
    context_length: int
    kind: str = ""
    text_room: int = 0


@dataclass(frozen=True, kw_only=True)
class DraftPlan:
    """What to draft in the coming round. `min_confidences`: see `StopRule`.

    Args:
        expected_tokens: that this sequence will emit, the bonus token included.
        expected_s: seconds of the whole round; None where the policy cannot tell.
        plain_s: of a whole round without any draft, likewise.
    """

    max_draft_tokens: int
    min_confidences: tuple[float, ...] = ()
    expected_tokens: float = 1.0
    expected_s: float | None = None
    plain_s: float | None = None

    @property
    def predicted_gain(self) -> float | None:
        """Expected speed over that of plain decoding."""
        if self.expected_s is None or self.plain_s is None or self.expected_s <= 0:
            return None
        return self.expected_tokens * self.plain_s / self.expected_s


NO_DRAFT = DraftPlan(max_draft_tokens=0)


class RoundCost(NamedTuple):
    """What a round did for all its sequences together, and the seconds that it took.

    Args:
        num_rows: of the target's pass: each sequence's last token and its draft.
        context_length: positions that a sequence's cache held before the pass, on average.
        num_drafts: sequences that were drafted for.
        num_draft_steps: tokens that the drafter made, those included that it then held back.
        num_tokens: emitted by all sequences.
        draft_s: seconds of all drafts.
        verify_s: seconds of the target's pass.
        overhead_s: seconds of everything else.
    """

    num_sequences: int
    num_rows: int
    context_length: int
    num_drafts: int
    num_draft_steps: int
    num_tokens: int
    draft_s: float
    verify_s: float
    overhead_s: float


class RoundOutcome(NamedTuple):
    """What one sequence's round did.

    Args:
        num_draft_tokens: how many were drafted and verified.
        num_verified_tokens: how many of these the target has judged. It is fewer only where the
            text ended on an accepted token: what follows was neither accepted nor rejected.
        num_accepted_tokens: how many the target would have said itself; the bonus is not in it.
        cost: of the whole round, the same object for each of its sequences.
        num_draft_steps: tokens that the drafter made, the one included that it may have held back.
        confidences: of the drafted tokens, see `Draft`; fewer or none where none are known.
        source: who drafted: "drafter", "none", or a text (see `sources`), of whose tokens nothing
            can be learned about the drafter.
        plan: what was decided before.
    """

    num_draft_tokens: int
    num_verified_tokens: int
    num_accepted_tokens: int
    cost: RoundCost
    num_draft_steps: int = 0
    confidences: tuple[float, ...] = ()
    source: str = "drafter"
    plan: DraftPlan = NO_DRAFT

    @property
    def draft_s(self) -> float:
        """Seconds that the drafts of all sequences of the round took."""
        return self.cost.draft_s

    @property
    def verify_s(self) -> float:
        """Seconds of the target's pass."""
        return self.cost.verify_s


@runtime_checkable
class DraftLengthPolicy(Protocol):
    def plan(self, context: DraftContext) -> DraftPlan: ...

    def observe(self, outcome: RoundOutcome) -> None: ...


@runtime_checkable
class RoundPolicy(DraftLengthPolicy, Protocol):
    """A policy that weighs the sequences of a round against each other."""

    def plan_round(
        self, policies: Sequence[DraftLengthPolicy], contexts: Sequence[DraftContext]
    ) -> list[DraftPlan]:
        """A plan for each sequence, this policy's own among them."""


@runtime_checkable
class LateLearner(DraftLengthPolicy, Protocol):
    """A policy that learns from several rounds at once."""

    def learn(self) -> None:
        """Take in what was observed and is not yet learned: the sequence has ended."""


def plan_round(
    policies: Sequence[DraftLengthPolicy], contexts: Sequence[DraftContext]
) -> list[DraftPlan]:
    """A plan for each sequence of a round: weighed together by the first that can, if any."""
    if len(policies) > 1:
        for policy in policies:
            if isinstance(policy, RoundPolicy):
                return policy.plan_round(policies, contexts)
    return [policy.plan(context) for policy, context in zip(policies, contexts, strict=True)]


class FixedDraftLength:
    """Always the same length; 0 is plain decoding."""

    def __init__(self, num_draft_tokens: int, limit: int) -> None:
        check_range("draft length", num_draft_tokens, 0, limit)
        self._plan = DraftPlan(max_draft_tokens=num_draft_tokens)

    def plan(self, context: DraftContext) -> DraftPlan:
        return self._plan

    def observe(self, outcome: RoundOutcome) -> None:
        """A fixed length learns nothing."""
