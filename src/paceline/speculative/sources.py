"""Drafts from text that is known already: what was written before, or a text given as prediction.

Keeps a follower for each such text, learns how far their matches can be trusted, and proposes
where that promises more tokens a second than the drafter does. A proposal is verified as any
draft is, so that it cannot change the text. Knows tokens and seconds; no files and no tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from paceline.speculative.controller import DraftContext, DraftPlan
from paceline.speculative.suffix import MAX_PROPOSAL, Follower, IndexedText, Trust, WrittenText

NOBODY = "none"
DRAFTER = "drafter"
SUFFIX = "suffix"
PREDICTION = "prediction"
EARLIER = "earlier"

LEAST_TRUST = 0.1
LEAST_SURVIVAL = 0.02
MARGIN = 1.02

Seconds = Callable[[int], float]
"""Of a round whose pass has so many rows, without a drafter."""


class SharedTrust:
    """What all sequences have learned, by source and kind of text."""

    def __init__(self) -> None:
        self._trusts: dict[tuple[str, str], Trust] = {}

    def of(self, source: str, kind: str) -> Trust:
        return self._trusts.setdefault((source, kind), Trust())


@dataclass(frozen=True, kw_only=True)
class TextDraft:
    """A proposal that pays.

    Args:
        expected_tokens: that a round with it emits, the bonus token included.
    """

    token_ids: tuple[int, ...]
    source: str
    expected_tokens: float
    seconds: float


class TextSource:
    """One text to draft from, as one sequence uses it."""

    def __init__(
        self,
        name: str,
        follower: Follower,
        shared: SharedTrust,
        end_token_ids: frozenset[int] = frozenset(),
    ) -> None:
        self._name = name
        self._follower = follower
        self._shared = shared
        self._end_token_ids = end_token_ids
        self._trusts: dict[str, tuple[Trust, Trust]] = {}
        self.turn_to("")

    def turn_to(self, kind: str) -> None:
        """Another kind of text is being written."""
        if kind not in self._trusts:
            shared = self._shared.of(self._name, kind)
            self._trusts[kind] = (shared.of_new_sequence(), shared)
        self._trust, shared = self._trusts[kind]
        self._follower.turn_to(self._trust, shared)

    def draft(
        self, room: int, seconds: Seconds, best_rate: float, other_tokens: float
    ) -> TextDraft | None:
        """The proposal with most tokens a second, if that is more than `best_rate`.

        Args:
            seconds: of the round with so many more rows than without this sequence's draft.
            other_tokens: that the round's other sequences are expected to emit.
        """
        first = self._follower.first_trust
        if room <= 0 or first < LEAST_TRUST:
            return None
        longest = 1 + MAX_PROPOSAL * first
        if other_tokens + longest < best_rate * seconds(1):
            return None
        return self._longest_that_pays(room, seconds, best_rate, other_tokens)

    def _longest_that_pays(
        self, room: int, seconds: Seconds, best_rate: float, other_tokens: float
    ) -> TextDraft | None:
        tokens, shares = self._follower.propose(min(room, MAX_PROPOSAL))
        survival, expected, best = 1.0, 1.0, best_rate * MARGIN
        length, draft = self._follower.match_length, None
        for count, share in enumerate(shares, 1):
            survival *= self._trust.factor(length + count - 1) * share
            if survival < LEAST_SURVIVAL:
                break
            expected += survival
            rate = (other_tokens + expected) / seconds(count)
            if rate > best:
                best, draft = rate, (count, expected)
            if tokens[count - 1] in self._end_token_ids:
                break
        if draft is None:
            return None
        count, expected = draft
        return TextDraft(
            token_ids=tuple(tokens[:count]),
            source=self._name,
            expected_tokens=expected,
            seconds=seconds(count),
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
        self._written = WrittenText()
        self._written.text.extend(prompt[:-1])
        self._sources: list[TextSource] = []
        self._kind = ""

        def add(name: str, text: IndexedText) -> Follower:
            follower = self._written.follow(text)
            self._sources.append(TextSource(name, follower, shared, end_token_ids))
            return follower

        add(SUFFIX, self._written.text)
        if earlier is not None:
            add(EARLIER, earlier)
        for token_id in prompt[-1:]:
            self.push(token_id)
        if prediction:
            predicted = IndexedText()
            predicted.extend(prediction)
            add(PREDICTION, predicted).start_at(0)

    @property
    def has_proposal(self) -> bool:
        """Whether a source is worth asking."""
        return self._written.first_trust >= LEAST_TRUST

    def push(self, token_id: int) -> None:
        """The text goes on."""
        self._written.push(token_id)

    def draft(
        self, kind: str, room: int, seconds: Seconds, rate: float, other_tokens: float = 0.0
    ) -> TextDraft | None:
        """The best proposal of all sources, if it promises more tokens a second than `rate`."""
        if kind != self._kind:
            self._kind = kind
            for source in self._sources:
                source.turn_to(kind)
        best = None
        for source in self._sources:
            found = source.draft(room, seconds, rate, other_tokens)
            if found is not None:
                best, rate = found, (other_tokens + found.expected_tokens) / found.seconds
        return best


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

    def others(self, index: int) -> tuple[Seconds, float]:
        """Seconds by rows of this sequence's draft, which costs nothing; tokens of the others."""
        rows = sum(self._rows) - self._rows[index]
        drafts_s = self._drafts_s([*self._steps[:index], *self._steps[index + 1 :]])
        passes = self._curve.passes
        other_tokens = sum(self._tokens) - self._tokens[index]
        return lambda more: passes[rows + more] + drafts_s, other_tokens

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
    """
    drafts: list[TextDraft | None] = [None] * len(sources)
    asked = [(i, s) for i, s in enumerate(sources) if s is not None and s.has_proposal]
    if not asked:
        return drafts
    count = len(contexts)
    mean_length = sum(context.context_length for context in contexts) // count
    curve = costs.curve(mean_length, count, MAX_PROPOSAL * count)
    outlook = _Outlook(contexts, plans, curve)
    for index, source in asked:
        context = contexts[index]
        seconds, other_tokens = outlook.others(index)
        draft = source.draft(context.kind, context.text_room, seconds, outlook.rate, other_tokens)
        if draft is not None:
            drafts[index] = draft
            outlook.take(index, draft)
    return drafts
