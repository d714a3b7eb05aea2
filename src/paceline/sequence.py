"""One request being answered: its tokens, its limits, its text and its statistics.

Implements what a round needs (`speculative.round.RoundSequence`). Runs nothing itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from paceline.output import Delta, OutputText
from paceline.runtime.protocols import Hidden, KVCache
from paceline.sampling import Choice, Sampler
from paceline.speculative.controller import DraftLengthPolicy
from paceline.stats import GenerationStats

FinishReason = Literal["stop", "length", "tool_calls", "cancelled"]


@dataclass(frozen=True, kw_only=True)
class EmittedToken:
    """One token of the answer; `drafted`: the drafter had foreseen it."""

    token_id: int
    drafted: bool
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class ActiveSequence:
    """A sequence from its first prefill chunk to its end."""

    def __init__(
        self,
        *,
        prompt_token_ids: Sequence[int],
        cache: KVCache,
        sampler: Sampler,
        policy: DraftLengthPolicy,
        output: OutputText,
        end_token_ids: frozenset[int],
        max_tokens: int,
    ) -> None:
        self.prompt_token_ids = tuple(prompt_token_ids)
        self.cache = cache
        self.sampler = sampler
        self.policy = policy
        self.output = output
        self.end_token_ids = end_token_ids
        self.max_tokens = max_tokens
        self.last_token = self.prompt_token_ids[-1]
        self.hidden: Hidden = None
        self.tokens: list[EmittedToken] = []
        self.new_deltas: list[Delta] = []
        self.finish_reason: FinishReason | None = None
        self.stats = GenerationStats(
            prompt_tokens=len(self.prompt_token_ids), cached_tokens=cache.length
        )

    @property
    def num_tokens_left(self) -> int:
        return self.max_tokens - len(self.tokens)

    @property
    def cached_token_ids(self) -> tuple[int, ...]:
        """The tokens whose keys and values the cache holds."""
        everything = self.prompt_token_ids + tuple(token.token_id for token in self.tokens)
        return everything[: self.cache.length]

    def push(self, choice: Choice, *, drafted: bool) -> bool:
        """Take one token of the answer; False when the text ends with it."""
        token = EmittedToken(
            token_id=choice.token_id, drafted=drafted, logprob=choice.logprob, top=choice.top
        )
        self.tokens.append(token)
        self.stats.generated_tokens += 1
        if choice.token_id in self.end_token_ids:
            self.finish("tool_calls" if self.output.num_tool_calls else "stop")
        else:
            self.new_deltas += self.output.push(choice.token_id, drafted=drafted)
            if self.output.stopped:
                self.finish("stop")
            elif not self.num_tokens_left:
                self.finish("length")
        return self.finish_reason is None

    def finish(self, reason: FinishReason) -> None:
        if self.finish_reason is None:
            self.finish_reason = reason
            self.new_deltas += self.output.finish()

    def take_deltas(self) -> tuple[Delta, ...]:
        """The deltas since the last call."""
        deltas, self.new_deltas = tuple(self.new_deltas), []
        return deltas
