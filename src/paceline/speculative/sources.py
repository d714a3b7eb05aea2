"""Drafts from text that is known already: what was written before, or a text given as prediction.

Keeps a follower for each such text, learns how far their matches can be trusted, and proposes
where that promises more tokens a second than the drafter does. A proposal is verified as any
draft is, so that it cannot change the text. Knows tokens and seconds; no files and no tensors.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from paceline.speculative.controller import DraftContext, DraftPlan
from paceline.speculative.suffix import MAX_PROPOSAL, Follower, IndexedText

NOBODY = "none"
DRAFTER = "drafter"
SUFFIX = "suffix"
PREDICTION = "prediction"
EARLIER = "earlier"

BUCKET_STARTS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
"""Matches of 4 and 5 tokens are trusted alike, and so on."""

LONGEST_BUCKET = BUCKET_STARTS[-1]
BUCKETS = array(
    "i", [sum(start <= n for start in BUCKET_STARTS) - 1 for n in range(LONGEST_BUCKET + 1)]
)
STARTING_TRUST = (0.5, 0.35, 0.5, 0.52, 0.58, 0.65, 0.68, 0.72, 0.8, 0.92, 0.96)
STARTING_WEIGHT = 8.0
"""Trust in a match before anything was seen, worth so many observations: as in HumanEval, GSM8K,
the source of this package and answers of the pair that ships, which differ by up to 0.2."""

SHARED_WEIGHT = 16.0
MEMORY = 1 - 1 / 64
SHARED_MEMORY = 1 - 1 / 256
SHARED_EVERY = 4
"""What one sequence has seen counts as at most 64 observations, and as 16 for a new one. All
sequences together remember 256 of every fourth."""

LEAST_TRUST = 0.1
LEAST_SURVIVAL = 0.02
MARGIN = 1.02

Seconds = Callable[[int], float]
"""Of a round whose pass has so many rows, without a drafter."""


class Trust:
    """How often the token after a match was right, by the length of the match.

    Right tokens are counted against the agreement of the places, so that what is learned is the
    factor that makes a share of places a probability. Both counts forget.
    """

    def __init__(self, memory: float = SHARED_MEMORY) -> None:
        self._memory = memory
        self._right = [STARTING_WEIGHT * trust for trust in STARTING_TRUST]
        self._expected = [STARTING_WEIGHT] * len(STARTING_TRUST)

    def of_new_sequence(self) -> Trust:
        """What a sequence starts from."""
        trust = Trust(MEMORY)
        for bucket, expected in enumerate(self._expected):
            scale = min(1.0, SHARED_WEIGHT / expected)
            trust._right[bucket] = self._right[bucket] * scale
            trust._expected[bucket] = expected * scale
        return trust

    def record(self, match_length: int, share: float, right: bool) -> None:
        bucket = BUCKETS[match_length] if match_length < LONGEST_BUCKET else -1
        self._right[bucket] = self._right[bucket] * self._memory + right
        self._expected[bucket] = self._expected[bucket] * self._memory + share

    def factor(self, match_length: int) -> float:
        bucket = BUCKETS[match_length] if match_length < LONGEST_BUCKET else -1
        return min(1.0, self._right[bucket] / self._expected[bucket])


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
        self.name = name
        self.follower = follower
        self._shared = shared
        self._end_token_ids = end_token_ids
        self._trusts: dict[str, tuple[Trust, Trust]] = {}
        self._seen = 0
        self.turn_to("")

    def turn_to(self, kind: str) -> None:
        """Another kind of text is being written."""
        if kind not in self._trusts:
            shared = self._shared.of(self.name, kind)
            self._trusts[kind] = (shared.of_new_sequence(), shared)
        self._trust, self._shared_trust = self._trusts[kind]

    @property
    def first_trust(self) -> float:
        """The chance of the first token of a proposal; 0 if there is none."""
        follower = self.follower
        if not follower.places:
            return 0.0
        return self._trust.factor(follower.match_length) * follower.next_share

    def push(self, token_id: int) -> None:
        """The text goes on. Every token shows whether a proposal would have been right, so that
        nothing need be drafted to learn."""
        follower = self.follower
        if follower.places:
            right, share = follower.next_token == token_id, follower.next_share
            self._trust.record(follower.match_length, share, right)
            self._seen += 1
            if self._seen % SHARED_EVERY == 0:
                self._shared_trust.record(follower.match_length, share, right)
        follower.push(token_id)

    def draft(
        self, room: int, seconds: Seconds, best_rate: float, other_tokens: float
    ) -> TextDraft | None:
        """The proposal with most tokens a second, if that is more than `best_rate`.

        Args:
            seconds: of the round with so many more rows than without this sequence's draft.
            other_tokens: that the round's other sequences are expected to emit.
        """
        first = self.first_trust
        if room <= 0 or first < LEAST_TRUST:
            return None
        longest = 1 + MAX_PROPOSAL * first
        if other_tokens + longest < best_rate * seconds(1):
            return None
        return self._longest_that_pays(room, seconds, best_rate, other_tokens)

    def _longest_that_pays(
        self, room: int, seconds: Seconds, best_rate: float, other_tokens: float
    ) -> TextDraft | None:
        proposal = self.follower.propose(min(room, MAX_PROPOSAL))
        survival, expected, best, length = 1.0, 1.0, best_rate * MARGIN, proposal.match_length
        draft = None
        for count, share in enumerate(proposal.shares, 1):
            survival *= self._trust.factor(length + count - 1) * share
            if survival < LEAST_SURVIVAL:
                break
            expected += survival
            rate = (other_tokens + expected) / seconds(count)
            if rate > best:
                best, draft = rate, (count, expected)
            if proposal.tokens[count - 1] in self._end_token_ids:
                break
        if draft is None:
            return None
        count, expected = draft
        return TextDraft(
            token_ids=proposal.tokens[:count],
            source=self.name,
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
        self._own = IndexedText()
        self._own.extend(prompt[:-1])
        self._sources: list[TextSource] = []
        self._kind = ""

        def add(name: str, text: IndexedText) -> Follower:
            follower = Follower(text, self._own.end, own=text is self._own)
            self._sources.append(TextSource(name, follower, shared, end_token_ids))
            return follower

        add(SUFFIX, self._own)
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
        return any(source.first_trust >= LEAST_TRUST for source in self._sources)

    def push(self, token_id: int) -> None:
        """The text goes on."""
        self._own.append(token_id)
        for source in self._sources:
            source.push(token_id)

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
