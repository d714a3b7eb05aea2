"""Drafts from text that is known already: what was written before, or a text given as prediction.

Keeps a follower for each such text, learns for each kind of text how far their matches can be
trusted, and proposes where that promises more tokens a second than the drafter does. A proposal is
verified as any draft is, so that it cannot change the text. Knows tokens and seconds; no files and
no tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from paceline.speculative.controller import DraftContext, DraftPlan
from paceline.speculative.suffix import MAX_PROPOSAL, Follower, IndexedText, Trust, WrittenText

NOBODY = "none"
DRAFTER = "drafter"
SUFFIX = "suffix"
PREDICTION = "prediction"
EARLIER = "earlier"


class SharedTrust:
    """What all sequences have learned, by source and kind of text."""

    def __init__(self) -> None:
        self._trusts: dict[tuple[str, str], Trust] = {}

    def of(self, source: str, kind: str) -> Trust:
        return self._trusts.setdefault((source, kind), Trust())


@dataclass(slots=True)
class TextDraft:
    """A proposal that pays.

    Args:
        expected_tokens: that this sequence emits in a round with it, the bonus token included.
        seconds: of the round.
    """

    token_ids: tuple[int, ...]
    source: str
    expected_tokens: float
    seconds: float

    def instead_of(self, plan: DraftPlan) -> DraftPlan:
        """The plan of a round in which this is drafted."""
        return replace(
            plan,
            max_draft_tokens=len(self.token_ids),
            min_confidences=(),
            expected_tokens=self.expected_tokens,
            expected_s=self.seconds,
        )


class RoundCurve(Protocol):
    """Seconds of the parts of a round; `passes` by draft tokens in all, see `costs.Curve`."""

    @property
    def passes(self) -> Sequence[float]: ...

    @property
    def draft_fixed(self) -> float: ...

    @property
    def draft_step(self) -> float: ...

    @property
    def overhead(self) -> float: ...


class RoundCosts(Protocol):
    def curve(
        self, context_length: int, num_sequences: int, max_draft_tokens: int
    ) -> RoundCurve: ...


class TextSources:
    """All the texts that one sequence drafts from, its own among them.

    Args:
        prediction: token ids of a text that the answer is expected to follow.
        earlier: what was written before by other sequences of the same user.
        end_token_ids: after one of these nothing is proposed.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        shared: SharedTrust,
        *,
        prediction: Sequence[int] = (),
        earlier: IndexedText | None = None,
        end_token_ids: frozenset[int] = frozenset(),
    ) -> None:
        self._written = WrittenText(sorted(end_token_ids))
        self._written.text.extend(prompt[:-1])
        self._shared = shared
        self._names: list[str] = []
        self._followers: list[Follower] = []
        self._trusts: dict[str, list[tuple[Trust, Trust]]] = {}
        self._follow(SUFFIX, self._written.text)
        if earlier is not None:
            self._follow(EARLIER, earlier)
        for token_id in prompt[-1:]:
            self.push(token_id)
        if prediction:
            predicted = IndexedText()
            predicted.extend(prediction)
            self._follow(PREDICTION, predicted).start_at(0)
        self._turn_to("")
        self.has_proposal = self._written.has_proposal
        """Whether a draft is worth asking for."""

    def _follow(self, name: str, text: IndexedText) -> Follower:
        follower = self._written.follow(text)
        self._names.append(name)
        self._followers.append(follower)
        return follower

    def _turn_to(self, kind: str) -> None:
        """Another kind of text is being written: what is learned of it is kept apart."""
        self._kind = kind
        if kind not in self._trusts:
            shared = [self._shared.of(name, kind) for name in self._names]
            self._trusts[kind] = [(trust.of_new_sequence(), trust) for trust in shared]
        for follower, trusts in zip(self._followers, self._trusts[kind], strict=True):
            follower.turn_to(*trusts)

    def push(self, token_id: int) -> None:
        """The text goes on."""
        self.has_proposal = self._written.push(token_id)

    def draft(
        self,
        kind: str,
        passes: Sequence[float],
        other_seconds: float,
        other_tokens: float,
        best_rate: float,
    ) -> TextDraft | None:
        """The best proposal of all sources, if it promises more tokens a second than `best_rate`.

        Args:
            kind: of the text that is being written.
            passes: seconds of the round's pass by tokens of the draft, from none to as many as
                there is room for, ascending.
            other_seconds: of the rest of the round.
            other_tokens: that the round's other sequences are expected to emit.
        """
        if kind != self._kind:
            self._turn_to(kind)
        found = self._written.best_draft(passes, other_seconds, other_tokens, best_rate)
        if found is None:
            return None
        token_ids, follower, expected_tokens, seconds = found
        return TextDraft(tuple(token_ids), self._names[follower], expected_tokens, seconds)


class _Outlook:
    """What a round is expected to emit and how long it takes, while texts replace plans."""

    def __init__(
        self, contexts: Sequence[DraftContext], plans: Sequence[DraftPlan], curve: RoundCurve
    ) -> None:
        self._curve = curve
        self._rows = [min(p.max_draft_tokens, c.room) for p, c in zip(plans, contexts, strict=True)]
        self._steps = list(self._rows)
        self._tokens = [plan.expected_tokens for plan in plans]
        self._seconds = plans[0].expected_s
        if self._seconds is None:
            self._seconds = curve.passes[sum(self._rows)] + self._drafts_s(self._steps)

    @property
    def rate(self) -> float:
        """Tokens a second, of plain decoding if that is more: a plan may be there to learn."""
        assert self._seconds is not None
        plain = len(self._tokens) / (self._curve.passes[0] + self._curve.overhead)
        return max(plain, sum(self._tokens) / self._seconds)

    def others(self, index: int, room: int) -> tuple[Sequence[float], float, float]:
        """What `TextSources.draft` wants to know: this sequence's draft is no work of the drafter,
        and at most `room` tokens."""
        rows = sum(self._rows) - self._rows[index]
        drafts_s = self._drafts_s([*self._steps[:index], *self._steps[index + 1 :]])
        other_tokens = sum(self._tokens) - self._tokens[index]
        return self._curve.passes[rows : rows + 1 + room], drafts_s, other_tokens

    def _drafts_s(self, steps: Sequence[int]) -> float:
        curve, drafting = self._curve, sum(n > 0 for n in steps)
        return curve.overhead + curve.draft_fixed * drafting + curve.draft_step * sum(steps)

    def take(self, index: int, draft: TextDraft) -> None:
        self._rows[index], self._steps[index] = len(draft.token_ids), 0
        self._tokens[index], self._seconds = draft.expected_tokens, draft.seconds


def text_drafts(
    sources: Sequence[TextSources | None],
    contexts: Sequence[DraftContext],
    plans: Sequence[DraftPlan],
    costs: RoundCosts,
) -> list[TextDraft | None]:
    """For each sequence of a round the proposal that pays better than its plan, if one does.

    A plan that does not say what it expects is taken for one that expects nothing of its draft.

    Cost: one sequence alone waits for this before each of its passes, which may take no longer
    than 300 us and leave none of it in the processor's caches. So it gets a short way.
    """
    if len(sources) == 1 and plans[0].expected_s is not None:
        return [_draft_alone(sources[0], contexts[0], plans[0], costs)]
    drafts: list[TextDraft | None] = [None] * len(sources)
    asked = [(i, s) for i, s in enumerate(sources) if s is not None and s.has_proposal]
    if not asked:
        return drafts
    count = len(contexts)
    mean_length = sum(context.context_length for context in contexts) // count
    outlook = _Outlook(contexts, plans, costs.curve(mean_length, count, MAX_PROPOSAL * count))
    for index, source in asked:
        context = contexts[index]
        others = outlook.others(index, context.text_room)
        draft = source.draft(context.kind, *others, outlook.rate)
        if draft is not None:
            drafts[index] = draft
            outlook.take(index, draft)
    return drafts


def _draft_alone(
    source: TextSources | None, context: DraftContext, plan: DraftPlan, costs: RoundCosts
) -> TextDraft | None:
    """What `_Outlook` comes to in a round of one sequence."""
    if source is None or not source.has_proposal:
        return None
    assert plan.expected_s is not None
    curve = costs.curve(context.context_length, 1, MAX_PROPOSAL)
    passes, overhead = curve.passes, curve.overhead
    plain, planned = 1 / (passes[0] + overhead), plan.expected_tokens / plan.expected_s
    best_rate = plain if plain > planned else planned
    return source.draft(context.kind, passes[: 1 + context.text_room], overhead, 0.0, best_rate)
