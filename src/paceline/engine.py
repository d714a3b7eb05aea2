"""The engine: a target with its drafter, answering one or more requests.

    engine = Engine.load("google/gemma-4-E2B-it")
    print(engine.generate("Why is the sky blue?").text)

Owns sequences and their caches, batches their rounds, and turns prompts into token ids. Knows no
file format and no tensor library.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from paceline.chat import Message, ToolCall, ToolDeclaration, render
from paceline.checkpoint.huggingface import GenerationDefaults
from paceline.config import check_range
from paceline.errors import ConfigError, PromptError
from paceline.loading import LoadedPair, LoadProgress, load_pair
from paceline.output import Delta, OutputText
from paceline.prefix_cache import PrefixCache
from paceline.runtime.protocols import Rows
from paceline.sampling import Sampler, SamplingParams, random_seed
from paceline.sequence import ActiveSequence, EmittedToken, FinishReason
from paceline.speculative.controller import DraftLengthPolicy, FixedDraftLength
from paceline.speculative.round import run_round
from paceline.stats import GenerationStats

Prompt = str | Sequence[Message]
PrefillProgress = Callable[[int, int], None]
"""Called with (prompt tokens done, prompt tokens in all) between prefill chunks."""

PREFILL_CHUNK = 64
DEFAULT_MAX_TOKENS = 1024
DEFAULT_DRAFT_TOKENS = 4
KEPT_CACHES = 2


@dataclass(frozen=True, kw_only=True)
class Generation:
    """A finished answer."""

    text: str
    reasoning: str
    tool_calls: tuple[ToolCall, ...]
    tokens: tuple[EmittedToken, ...]
    finish_reason: FinishReason
    stats: GenerationStats
    seed: int

    @property
    def token_ids(self) -> tuple[int, ...]:
        return tuple(token.token_id for token in self.tokens)


class Engine:
    """Answers prompts with a target and, where there is one, its drafter.

    Args:
        pair: target, drafter or None, tokenizer and the model's own sampling defaults.
    """

    def __init__(self, pair: LoadedPair, *, kept_caches: int = KEPT_CACHES) -> None:
        self.pair = pair
        self._prefixes = PrefixCache(kept_caches)

    @classmethod
    def load(
        cls,
        target: str | Path | None = None,
        drafter: str | Path | None = "auto",
        *,
        dtype: str = "float32",
        threads: int | None = None,
        progress: LoadProgress | None = None,
    ) -> Engine:
        """Load a pair from disk.

        Args:
            target: a Hugging Face folder; None is the pair that ships with Paceline.
            drafter: a folder, "auto" for the one that lies with the target, None for none.
            dtype: "float32" or "bfloat16".
            threads: processor threads; None leaves it to the runtime.
            progress: called with (bytes read, bytes in all) while weights load.

        Raises:
            CheckpointError: a file is missing, damaged or of another kind.
            PairMismatchError: the drafter was made for another target.
            MissingDependencyError: the runtime is not installed.
        """
        return cls(load_pair(target, drafter, dtype=dtype, threads=threads, progress=progress))

    @property
    def defaults(self) -> GenerationDefaults:
        """The sampling settings that the model's maker recommends."""
        return self.pair.defaults

    @property
    def context_length(self) -> int:
        return self.pair.target.config.context_length

    def default_sampling(self) -> SamplingParams:
        return SamplingParams(
            temperature=self.defaults.temperature,
            top_k=self.defaults.top_k,
            top_p=self.defaults.top_p,
        )

    def encode(
        self,
        prompt: Prompt,
        *,
        raw: bool = False,
        thinking: bool = False,
        tools: Sequence[ToolDeclaration] = (),
    ) -> list[int]:
        """Token ids of a prompt: in the chat format, or as plain text after <bos> when `raw`.

        Raises:
            PromptError: the prompt is empty or cannot be rendered.
        """
        if not prompt or (isinstance(prompt, str) and not prompt.strip()):
            raise PromptError("the prompt is empty: pass some text.")
        tokenizer = self.pair.tokenizer
        if raw:
            if not isinstance(prompt, str):
                raise PromptError("a raw prompt must be text, got a list of messages.")
            return [tokenizer.control.bos, *tokenizer.encode_text(prompt)]
        messages = [Message(role="user", content=prompt)] if isinstance(prompt, str) else prompt
        return render(messages, tokenizer, tools=tools, thinking=thinking)

    def open(
        self,
        prompt_token_ids: Sequence[int],
        *,
        sampling: SamplingParams | None = None,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        stop: Sequence[str] = (),
        draft: int | DraftLengthPolicy | None = None,
        raw: bool = False,
    ) -> ActiveSequence:
        """Begin a sequence; `prefill` and then `step` advance it.

        Args:
            sampling: None takes the model's own defaults.
            max_tokens: at most this many tokens are emitted.
            stop: strings that end the text and are not part of it.
            draft: tokens to draft each round (0 = off), or an object that decides.
            raw: the answer is plain text, without reasoning or tool calls.

        Raises:
            PromptError: the prompt is empty, too long, or holds ids outside the vocabulary.
            ConfigError: a setting is out of range.
        """
        check_range("max_tokens", max_tokens, 1, 1 << 30)
        self._check_prompt(prompt_token_ids)
        params = sampling or self.default_sampling()
        seed = random_seed() if params.seed is None else params.seed
        config = self.pair.target.config
        cache = self._prefixes.take(prompt_token_ids)
        return ActiveSequence(
            prompt_token_ids=prompt_token_ids,
            cache=cache or self.pair.target.new_cache(config.context_length, self.max_draft_tokens),
            sampler=Sampler(
                replace(params, seed=seed),
                vocab_size=config.vocab_size,
                seed=seed,
                prompt_token_ids=prompt_token_ids,
                suppressed_token_ids=self.defaults.suppressed_token_ids,
            ),
            policy=self._policy(draft),
            output=OutputText(self.pair.tokenizer, stop=stop, raw=raw),
            end_token_ids=frozenset(self.defaults.eos_token_ids),
            max_tokens=min(max_tokens, self.context_length - len(prompt_token_ids)),
            seed=seed,
        )

    def _check_prompt(self, token_ids: Sequence[int]) -> None:
        if not token_ids:
            raise PromptError("the prompt is empty: pass at least one token.")
        if len(token_ids) >= self.context_length:
            raise PromptError(
                f"the prompt has {len(token_ids)} tokens, but this model's context holds "
                f"{self.context_length}, the answer included. Shorten the prompt."
            )
        vocab_size = self.pair.target.config.vocab_size
        if not all(0 <= token < vocab_size for token in token_ids):
            raise PromptError(f"the prompt holds token ids outside 0 to {vocab_size - 1}.")

    @property
    def max_draft_tokens(self) -> int:
        """Longest draft that a round may use; 0 without a drafter."""
        return self.pair.drafter.max_draft_tokens if self.pair.drafter else 0

    def _policy(self, draft: int | DraftLengthPolicy | None) -> DraftLengthPolicy:
        if draft is None:
            draft = min(DEFAULT_DRAFT_TOKENS, self.max_draft_tokens)
        if not isinstance(draft, int):
            return draft
        if draft and not self.max_draft_tokens:
            raise ConfigError(f"draft={draft}, but no drafter is loaded. Pass 0, or load one.")
        if not 0 <= draft <= self.max_draft_tokens:
            raise ConfigError(
                f"draft={draft} is out of range: this drafter supports 0 to "
                f"{self.max_draft_tokens}."
            )
        return FixedDraftLength(draft, self.max_draft_tokens)

    def prefill(self, sequence: ActiveSequence, progress: PrefillProgress | None = None) -> None:
        """Feed what the cache does not hold of the prompt, and emit the first token."""
        started = time.perf_counter()
        prompt = sequence.prompt_token_ids
        output = None
        for begin in range(sequence.cache.length, len(prompt), PREFILL_CHUNK):
            chunk = prompt[begin : begin + PREFILL_CHUNK]
            last = begin + len(chunk) == len(prompt)
            rows = Rows(cache=sequence.cache, token_ids=chunk, num_outputs=int(last))
            output = self.pair.target.forward([rows])[0]
            if progress:
                progress(begin + len(chunk), len(prompt))
        assert output is not None
        sequence.start(output.logits[-1], output.hidden[-1])
        sequence.stats.prefill_s = sequence.stats.ttft_s = time.perf_counter() - started

    def step(self, sequences: Sequence[ActiveSequence]) -> None:
        """One round for all sequences, with one pass of the target."""
        started = time.perf_counter()
        outcomes = run_round(self.pair.target, self.pair.drafter, sequences)
        elapsed = time.perf_counter() - started
        for sequence, outcome in zip(sequences, outcomes, strict=True):
            sequence.stats.record_round(outcome.num_draft_tokens, outcome.num_accepted_tokens)
            sequence.stats.decode_s += elapsed
            sequence.stats.draft_s += outcome.draft_s
            sequence.stats.verify_s += outcome.verify_s

    def close(self, sequence: ActiveSequence) -> Generation:
        """End a sequence and keep its cache for a next turn."""
        sequence.finish("cancelled")
        self._prefixes.give(sequence.cached_token_ids, sequence.cache)
        assert sequence.finish_reason is not None
        return Generation(
            text=sequence.output.text,
            reasoning=sequence.output.reasoning,
            tool_calls=tuple(sequence.output.tool_calls),
            tokens=tuple(sequence.tokens),
            finish_reason=sequence.finish_reason,
            stats=sequence.stats,
            seed=sequence.seed,
        )

    def stream(
        self,
        prompt: Prompt,
        *,
        raw: bool = False,
        thinking: bool = False,
        tools: Sequence[ToolDeclaration] = (),
        sampling: SamplingParams | None = None,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        stop: Sequence[str] = (),
        draft: int | DraftLengthPolicy | None = None,
        prefill_progress: PrefillProgress | None = None,
    ) -> Stream:
        """Answer a prompt piece by piece; see `encode` and `open` for the arguments."""
        token_ids = self.encode(prompt, raw=raw, thinking=thinking, tools=tools)
        sequence = self.open(
            token_ids, sampling=sampling, max_tokens=max_tokens, stop=stop, draft=draft, raw=raw
        )
        return Stream(self, sequence, prefill_progress)

    def generate(
        self,
        prompt: Prompt,
        *,
        raw: bool = False,
        thinking: bool = False,
        tools: Sequence[ToolDeclaration] = (),
        sampling: SamplingParams | None = None,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        stop: Sequence[str] = (),
        draft: int | DraftLengthPolicy | None = None,
    ) -> Generation:
        """Answer a prompt; see `encode` and `open` for the arguments."""
        stream = self.stream(
            prompt,
            raw=raw,
            thinking=thinking,
            tools=tools,
            sampling=sampling,
            max_tokens=max_tokens,
            stop=stop,
            draft=draft,
        )
        for _ in stream:
            pass
        return stream.result


class Stream:
    """The deltas of one answer, in order; `result` is the whole of it.

    Closing early (also by leaving a `with` block or by an interrupt) ends the sequence with the
    finish reason "cancelled" and keeps what was written.
    """

    def __init__(
        self, engine: Engine, sequence: ActiveSequence, prefill_progress: PrefillProgress | None
    ) -> None:
        self._engine = engine
        self.sequence = sequence
        self._result: Generation | None = None
        self._deltas = self._run(prefill_progress)

    def _run(self, prefill_progress: PrefillProgress | None) -> Iterator[Delta]:
        try:
            self._engine.prefill(self.sequence, prefill_progress)
            yield from self.sequence.take_deltas()
            while self.sequence.finish_reason is None:
                self._engine.step([self.sequence])
                yield from self.sequence.take_deltas()
        finally:
            self._result = self._engine.close(self.sequence)

    def __iter__(self) -> Iterator[Delta]:
        return self._deltas

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop here. Harmless on a finished stream."""
        if self._result is None:
            self._result = self._engine.close(self.sequence)

    @property
    def result(self) -> Generation:
        """The answer, once the stream has ended or was closed."""
        assert self._result is not None, "the stream has not ended"
        return self._result
