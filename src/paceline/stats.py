"""What a generation cost and what drafting brought, in the words of the round.

Counts and seconds are stored, every rate is derived, so that merged statistics are totals over
totals. Knows no clock: who measures, adds.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from itertools import zip_longest


@dataclass(kw_only=True)
class SourceStats:
    """What one source of drafts brought."""

    rounds: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0

    def add(self, other: SourceStats) -> None:
        self.rounds += other.rounds
        self.drafted_tokens += other.drafted_tokens
        self.accepted_tokens += other.accepted_tokens


@dataclass(kw_only=True)
class GenerationStats:
    """Statistics of one generation, or of several after `add`.

    Args:
        generations: how many are in it; 0 to start a total.
        prompt_tokens: tokens of the prompts, the cached ones included.
        cached_tokens: prompt tokens that a prefix cache saved from prefill.
        draft_histogram: entry n is the number of rounds that drafted n tokens.
        acceptance_histogram: entry n is the number of drafting rounds that accepted n tokens.
        sources: the same in totals, by who drafted.
        ttft_s: time to first token; of several generations the mean.
        prefill_s: seconds of prompt passes.
        decode_s: seconds from the first token to the last.
        draft_s: the part of `decode_s` that the drafter took.
        verify_s: the part of `decode_s` that target passes took.
    """

    generations: int = 1
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    draft_histogram: list[int] = field(default_factory=list)
    acceptance_histogram: list[int] = field(default_factory=list)
    sources: dict[str, SourceStats] = field(default_factory=dict)
    ttft_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    draft_s: float = 0.0
    verify_s: float = 0.0

    def record_round(self, num_drafted: int, num_accepted: int, source: str = "drafter") -> None:
        """Count one round. `num_accepted` leaves the bonus token out."""
        assert 0 <= num_accepted <= num_drafted, (num_drafted, num_accepted)
        _count(self.draft_histogram, num_drafted)
        if num_drafted:
            _count(self.acceptance_histogram, num_accepted)
            brought = self._source(source)
            brought.rounds += 1
            brought.drafted_tokens += num_drafted
            brought.accepted_tokens += num_accepted

    def _source(self, name: str) -> SourceStats:
        if name not in self.sources:
            self.sources[name] = SourceStats()
        return self.sources[name]

    def add(self, other: GenerationStats) -> None:
        """Merge the statistics of other generations into this one."""
        generations = self.generations + other.generations
        if generations:
            waited = self.ttft_s * self.generations + other.ttft_s * other.generations
            self.ttft_s = waited / generations
        self.generations = generations
        self.prompt_tokens += other.prompt_tokens
        self.cached_tokens += other.cached_tokens
        self.generated_tokens += other.generated_tokens
        self.draft_histogram = _summed(self.draft_histogram, other.draft_histogram)
        self.acceptance_histogram = _summed(self.acceptance_histogram, other.acceptance_histogram)
        for name, source in other.sources.items():
            self._source(name).add(source)
        self.prefill_s += other.prefill_s
        self.decode_s += other.decode_s
        self.draft_s += other.draft_s
        self.verify_s += other.verify_s

    @property
    def rounds(self) -> int:
        return sum(self.draft_histogram)

    @property
    def plain_rounds(self) -> int:
        """Rounds without a draft."""
        return sum(self.draft_histogram[:1])

    @property
    def drafted_per_position(self) -> list[int]:
        """Entry i is the number of rounds that drafted an (i+1)-th token."""
        return _at_least(self.draft_histogram)

    @property
    def accepted_per_position(self) -> list[int]:
        """Entry i is the number of rounds that accepted an (i+1)-th token."""
        return _at_least(self.acceptance_histogram)

    @property
    def drafted_tokens(self) -> int:
        return sum(self.drafted_per_position)

    @property
    def accepted_tokens(self) -> int:
        return sum(self.accepted_per_position)

    @property
    def acceptance_rate(self) -> float | None:
        """Accepted of the drafted tokens; None if nothing was drafted."""
        return _ratio(self.accepted_tokens, self.drafted_tokens)

    @property
    def acceptance_length(self) -> float | None:
        """Tokens that a drafting round emits on average; None if nothing was drafted."""
        rounds = sum(self.acceptance_histogram)
        return _ratio(rounds + self.accepted_tokens, rounds)

    @property
    def prefill_tps(self) -> float | None:
        """Prompt tokens per second, the cached ones left out; None if none was measured."""
        return _ratio(self.prompt_tokens - self.cached_tokens, self.prefill_s)

    @property
    def decode_tps(self) -> float | None:
        """Tokens per second after the first one of each generation; None if there was none."""
        after_first = self.generated_tokens - self.generations
        return _ratio(after_first, self.decode_s) if after_first > 0 else None

    def to_json(self) -> dict[str, object]:
        """All counts and rates under stable names, ready for `json.dumps`."""
        return {
            "generations": self.generations,
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "generated_tokens": self.generated_tokens,
            "rounds": self.rounds,
            "plain_rounds": self.plain_rounds,
            "drafted_tokens": self.drafted_tokens,
            "accepted_tokens": self.accepted_tokens,
            "acceptance_rate": self.acceptance_rate,
            "acceptance_length": self.acceptance_length,
            "acceptance_histogram": list(self.acceptance_histogram),
            "drafted_per_position": self.drafted_per_position,
            "accepted_per_position": self.accepted_per_position,
            "sources": {name: asdict(source) for name, source in self.sources.items()},
            "ttft_s": self.ttft_s,
            "prefill_s": self.prefill_s,
            "decode_s": self.decode_s,
            "draft_s": self.draft_s,
            "verify_s": self.verify_s,
            "prefill_tps": self.prefill_tps,
            "decode_tps": self.decode_tps,
        }


def _count(histogram: list[int], value: int) -> None:
    if value >= len(histogram):
        histogram.extend([0] * (value + 1 - len(histogram)))
    histogram[value] += 1


def _summed(one: list[int], other: list[int]) -> list[int]:
    return [n + m for n, m in zip_longest(one, other, fillvalue=0)]


def _at_least(histogram: list[int]) -> list[int]:
    """Entry i counts the occurrences of i + 1 and more."""
    return [sum(histogram[value:]) for value in range(1, len(histogram))]


def _ratio(amount: float, total: float) -> float | None:
    return amount / total if total > 0 else None
