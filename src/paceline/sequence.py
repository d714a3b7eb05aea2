"""One request being answered: its tokens, its limits, its text and its statistics.

Implements what a round needs (`speculative.round.RoundSequence`). Runs nothing itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, get_args

from paceline.errors import CacheError
from paceline.output import Delta, OutputText, TextKind
from paceline.runtime.protocols import Hidden, KVCache
from paceline.sampling import Choice, Sampler
from paceline.speculative.controller import DraftLengthPolicy
from paceline.speculative.sources import TextSources
from paceline.stats import GenerationStats

FinishReason = Literal["stop", "length", "tool_calls", "cancelled"]

SAMPLED = {kind: f"sampled {kind}" for kind in get_args(TextKind)}
"""Names of the kinds of text that are drawn at random: their drafts are taken less often."""


class EmittedToken(NamedTuple):
    """One token of the answer.

    Args:
        drafted: the drafter had foreseen it.
        logprob: see `sampling.Choice`; None unless it was asked for.
        top: the most likely tokens and their log-probabilities.
    """

    token_id: int
    drafted: bool
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class ActiveSequence:
    """A sequence from its opening to its end. It has a cache and texts to draft from its first
    prefill chunk on, so that waiting costs no memory.

    Args:
        number: tells it apart in a trace.
        new_sources: makes the texts to draft from; None if the drafter alone drafts.
    """

    def __init__(
        self,
        *,
        prompt_token_ids: Sequence[int],
        sampler: Sampler,
        policy: DraftLengthPolicy,
        output: OutputText,
        end_token_ids: frozenset[int],
        max_tokens: int,
        seed: int,
        number: int = 0,
        new_sources: Callable[[], TextSources] | None = None,
    ) -> None:
        self.prompt_token_ids = tuple(prompt_token_ids)
        self.sampler = sampler
        self.policy = policy
        self.output = output
        self.end_token_ids = end_token_ids
        self.max_tokens = max_tokens
        self.seed = seed
        self.number = number
        self.sources: TextSources | None = None
        self.last_token = self.prompt_token_ids[-1]
        self.hidden: Hidden = None
        self.tokens: list[EmittedToken] = []
        self.finish_reason: FinishReason | None = None
        self.stats = GenerationStats(prompt_tokens=len(self.prompt_token_ids))
        self._new_sources = new_sources
        self._cache: KVCache | None = None
        self._new_deltas: list[Delta] = []

    @property
    def cache(self) -> KVCache:
        assert self._cache is not None, "the sequence was not prefilled, or is closed"
        return self._cache

    def attach_cache(self, cache: KVCache) -> None:
        """Take a cache that holds the first `cache.length` tokens of the prompt."""
        assert self._cache is None
        assert cache.length < len(self.prompt_token_ids)
        self._cache = cache
        self.stats.cached_tokens = cache.length
        self.sources = self._new_sources() if self._new_sources else None

    def detach_cache(self) -> KVCache | None:
        """Give the cache away; None if there is none, or none any more."""
        cache, self._cache = self._cache, None
        return cache

    @property
    def num_tokens_left(self) -> int:
        return self.max_tokens - len(self.tokens)

    @property
    def text_kind(self) -> str:
        """What is being written, see `DraftContext`."""
        kind = self.output.kind
        return kind if self.sampler.is_greedy else SAMPLED[kind]

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Prompt and answer: the first `cache.length` of them are in the cache."""
        return self.prompt_token_ids + tuple(token.token_id for token in self.tokens)

    def push(self, choice: Choice, *, drafted: bool) -> bool:
        """Take one token of the answer; False when the text ends with it."""
        token_id, logprob, top = choice
        self.tokens.append(EmittedToken(token_id, drafted, logprob, top))
        self.stats.generated_tokens += 1
        if self.sources is not None:
            self.sources.push(token_id)
        if token_id in self.end_token_ids:
            self.finish("tool_calls" if self.output.num_tool_calls else "stop")
        else:
            self._new_deltas += self.output.push(token_id, drafted=drafted)
            if self.output.stopped:
                self.finish("stop")
            elif not self.num_tokens_left:
                self.finish("length")
        return self.finish_reason is None

    def finish(self, reason: FinishReason) -> None:
        """End the text, for the first reason that is given."""
        if self.finish_reason is None:
            self.finish_reason = reason
            self._new_deltas += self.output.finish()

    def roll_back(self, length: int) -> None:
        """End inside a pass that did not complete: the cache again holds `length` positions, as
        before the pass, or nothing."""
        self.finish("cancelled")
        try:
            self.cache.truncate(length)
        except CacheError:
            self.cache.truncate(0)

    def take_deltas(self) -> tuple[Delta, ...]:
        """The deltas since the last call."""
        deltas, self._new_deltas = tuple(self._new_deltas), []
        return deltas
