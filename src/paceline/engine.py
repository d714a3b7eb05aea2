"""The engine: a target with its drafter, answering one or more requests.

    engine = Engine.load("gemma-4-E2B-it")
    print(engine.generate("Why is the sky blue?").text)

Owns sequences and their caches, batches their rounds, and turns prompts into token ids. Knows no
file format and no tensor library.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict, Unpack

from paceline.calibration import Calibration, calibrate
from paceline.chat import Message, ToolCall, ToolDeclaration, reasoning_is_open, render
from paceline.config import check_range
from paceline.cpu import processor_name
from paceline.errors import ConfigError, PromptError
from paceline.output import Delta, OutputText
from paceline.prefix_cache import PrefixCache
from paceline.runtime.protocols import Rows
from paceline.sampling import Sampler, SamplingParams, random_seed
from paceline.sequence import ActiveSequence, EmittedToken, FinishReason
from paceline.speculative.controller import (
    DraftLengthPolicy,
    FixedDraftLength,
    LateLearner,
    RoundOutcome,
)
from paceline.speculative.costs import CostModel
from paceline.speculative.earlier import EarlierAnswers, answers_file
from paceline.speculative.learned import Learned, LearnedFile, profiles_file, read_profiles
from paceline.speculative.round import run_round, settle
from paceline.speculative.sources import TextSources
from paceline.speculative.suffix import MAX_PROPOSAL
from paceline.speculative.trace import RoundHook, RoundTrace
from paceline.stats import GenerationStats

if TYPE_CHECKING:
    from paceline.checkpoint.huggingface import GenerationDefaults
    from paceline.loading import LoadedPair, LoadProgress, RuntimeChoice

Prompt = str | Sequence[Message]
DraftLength = int | Literal["auto"]
DraftChoice = DraftLength | DraftLengthPolicy | None
PrefillProgress = Callable[[int, int], None]
"""Called with (prompt tokens done, prompt tokens in all) after each prefill chunk."""

PREFILL_CHUNK = 128
DEFAULT_MAX_TOKENS = 1024
MAX_MAX_TOKENS = 1 << 30
MAX_PREDICTION_LENGTH = 1 << 20
CALIBRATION_TEXT = (
    "The sky is blue because air scatters the short waves of light more than the long ones.\n\n"
    "def total(items):\n    return sum(item.price * item.count for item in items)\n"
)
DEFAULT_BATCH_SIZE = 8
KEPT_CACHES = 2


class AnswerSettings(TypedDict, total=False):
    """Keyword arguments of everything that answers a prompt.

    raw: the prompt is plain text to go on with, not a message to answer.
    thinking: ask for reasoning before the answer.
    tools: what the model may call.
    sampling: None takes the model's own defaults.
    max_tokens: at most this many tokens are emitted, reasoning and tool calls included.
    stop: strings that end the text and are not part of it.
    draft: "auto" drafts what pays on this machine and text, also from text that repeats itself;
        a number of tokens for the drafter to draft each round (0 = off); or an object that
        decides. None is "auto".
    prediction: a text that the answer is expected to follow, as when a file is edited; it is
        drafted from and changes nothing but the speed. At most 1,048,576 characters.
    """

    raw: bool
    thinking: bool
    tools: Sequence[ToolDeclaration]
    sampling: SamplingParams | None
    max_tokens: int
    stop: Sequence[str]
    draft: DraftChoice
    prediction: str | None


@dataclass(frozen=True, kw_only=True)
class Generation:
    """A finished answer.

    Args:
        text: without reasoning and tool calls.
        tokens: all that was emitted, the token that ended the answer included.
        finish_reason: "stop" (end of turn or stop string), "length" (`max_tokens` or the
            context), "tool_calls", or "cancelled".
        seed: gives the same text again, with any drafter and any draft length.
    """

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

    Not thread-safe: one thread at a time may use it.

    Args:
        pair: target, drafter or None, tokenizer and the model's own sampling defaults.
        kept_caches: KV caches of finished sequences that are kept for the next turn.
        learned: what is known of this machine's costs and of acceptance; None knows nothing.
        earlier: the user's earlier answers, to draft from and to add to; None keeps none.
        on_round: is told of each sequence's part of each round.
    """

    def __init__(
        self,
        pair: LoadedPair,
        *,
        kept_caches: int = KEPT_CACHES,
        learned: Learned | None = None,
        earlier: EarlierAnswers | None = None,
        on_round: RoundHook | None = None,
    ) -> None:
        self.pair = pair
        self.learned = learned or Learned()
        self.earlier = earlier
        self.on_round = on_round
        self.calibration: Calibration | None = None
        self._kept_in: LearnedFile | None = None
        self._prefixes = PrefixCache(kept_caches)
        self._numbers = count()

    @classmethod
    def load(
        cls,
        target: str | Path | None = None,
        drafter: str | Path | None = "auto",
        *,
        runtime: RuntimeChoice = "auto",
        dtype: str | None = None,
        threads: int | None = None,
        cache_folder: str | Path | None = None,
        learns: bool = True,
        remembers: bool = False,
        progress: LoadProgress | None = None,
    ) -> Engine:
        """Load a pair from disk.

        Args:
            target: a Hugging Face folder or a GGUF file; None is the pair that ships.
            drafter: a folder or file, "auto" for the one that lies with the target, None for none.
            runtime: "native", "torch", or "auto": native, unless `dtype` asks for torch.
            dtype: "float32" or "bfloat16", of the torch runtime only.
            threads: processor threads; None leaves it to the runtime.
            cache_folder: where the engine may keep things between processes; None keeps nothing.
            learns: measure the costs of drafting on this machine, a second or two, unless they
                are in the cache folder; without one they are learned from the first rounds.
            remembers: keep answers in the cache folder, and draft from them.
            progress: called with (bytes read, bytes in all) while weights load.

        Raises:
            CheckpointError: a file is missing, damaged or of another kind.
            PairMismatchError: the drafter was made for another target.
            ConfigError: `runtime`, `dtype` or `threads` is not possible.
            MissingDependencyError: the runtime is not installed.
        """
        from paceline.loading import load_pair

        pair = load_pair(
            target, drafter, runtime=runtime, dtype=dtype, threads=threads, progress=progress
        )
        path = pair.drafter_path
        profiles = None if path is None else read_profiles(profiles_file(path))
        engine = cls(pair, learned=Learned(profiles=profiles))
        if cache_folder is not None:
            engine._use_cache(Path(cache_folder), learns, remembers)
        return engine

    def _use_cache(self, folder: Path, learns: bool, remembers: bool) -> None:
        if remembers:
            tokenizer = self.pair.tokenizer
            texts = (tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size))
            self.earlier = EarlierAnswers(answers_file(folder, texts), tokenizer.vocab_size)
        if learns:
            self._kept_in = LearnedFile(folder, self._cost_key())
            kept = self._kept_in.load()
            if kept is None:
                self.recalibrate()
            else:
                self.learned = kept

    def _cost_key(self) -> dict[str, str | int]:
        """All that the costs of drafting depend on."""
        pair = self.pair
        return {
            "processor": processor_name(),
            "threads": pair.threads,
            "runtime": pair.runtime,
            "dtype": pair.dtype,
            "model": pair.name,
            "target_parameters": pair.num_target_parameters,
            "drafter_parameters": pair.num_drafter_parameters,
            "weight_bytes": pair.weight_bytes,
            "version": version("paceline"),
        }

    def measure_costs(self) -> Calibration | None:
        """Measure passes and draft steps now; None if the clock gave nothing to go by."""
        token_ids = self.pair.tokenizer.encode_text(CALIBRATION_TEXT)
        return calibrate(self.pair.target, self.pair.drafter, token_ids)

    def recalibrate(self) -> Calibration | None:
        """Measure this machine, forget what was learned of it, and keep what was measured."""
        self.calibration = calibration = self.measure_costs()
        if calibration is not None:
            costs = CostModel(calibration.passes, calibration.draft)
            self.learned = Learned(costs, self.learned.profiles)
            self.keep_learned()
        return calibration

    def keep_learned(self) -> None:
        """Write what was learned to the cache folder, if there is one. That it cannot be written
        is no error."""
        if self._kept_in is not None:
            self._kept_in.save(self.learned)

    @property
    def defaults(self) -> GenerationDefaults:
        """The sampling settings that the model's maker recommends."""
        return self.pair.defaults

    @property
    def context_length(self) -> int:
        """How many tokens prompt and answer may have together."""
        return self.pair.target.config.context_length

    @property
    def max_draft_tokens(self) -> int:
        """Longest draft that a round may use; 0 without a drafter."""
        return self.pair.drafter.max_draft_tokens if self.pair.drafter else 0

    @property
    def _longest_draft(self) -> int:
        """That a cache must survive: texts propose up to so many tokens without a drafter."""
        return max(self.max_draft_tokens, MAX_PROPOSAL)

    def default_sampling(self) -> SamplingParams:
        return SamplingParams(
            temperature=self.defaults.temperature,
            top_k=self.defaults.top_k,
            top_p=self.defaults.top_p,
        )

    # --- Whole answers --------------------------------------------------------------------------

    def generate(self, prompt: Prompt, **settings: Unpack[AnswerSettings]) -> Generation:
        """Answer a prompt.

        Raises:
            PromptError: the prompt is empty, too long or cannot be rendered.
            ConfigError: a setting is out of range.
        """
        with self.stream(prompt, **settings) as stream:
            for _ in stream:
                pass
        return stream.result

    def stream(
        self,
        prompt: Prompt,
        *,
        prefill_progress: PrefillProgress | None = None,
        **settings: Unpack[AnswerSettings],
    ) -> Stream:
        """Answer a prompt piece by piece. What can be refused is refused now; work begins with
        the first piece that is asked for.

        Raises:
            PromptError: the prompt is empty, too long or cannot be rendered.
            ConfigError: a setting is out of range.
        """
        return Stream(self, self.begin(prompt, **settings), prefill_progress)

    def generate_batch(
        self,
        prompts: Sequence[Prompt],
        *,
        batch_size: int = DEFAULT_BATCH_SIZE,
        **settings: Unpack[AnswerSettings],
    ) -> list[Generation]:
        """Answer several prompts, up to `batch_size` of them in each pass of the target.

        Each answer is the one that `generate` gives, and each takes a cache of its own.

        Raises:
            PromptError: a prompt is empty, too long or cannot be rendered.
            ConfigError: a setting is out of range.
        """
        check_range("batch_size", batch_size, 1, 1024)
        sequences = [self.begin(prompt, **settings) for prompt in prompts]
        waiting = deque(sequences)
        active: list[ActiveSequence] = []
        results: dict[int, Generation] = {}
        try:
            while waiting or active:
                while waiting and len(active) < batch_size:
                    active.append(waiting.popleft())
                    self.prefill(active[-1])
                self.step([s for s in active if s.finish_reason is None])
                for sequence in [s for s in active if s.finish_reason]:
                    results[id(sequence)] = self.close(sequence)
                    active.remove(sequence)
        finally:
            for sequence in active:
                self.close(sequence)
        return [results[id(sequence)] for sequence in sequences]

    # --- Step by step ---------------------------------------------------------------------------

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
                raise PromptError(
                    "a raw prompt must be text, got a list of messages. Pass text, or leave out "
                    "raw."
                )
            if thinking or tools:
                raise PromptError("a raw prompt has no chat format: leave out thinking and tools.")
            return [tokenizer.control.bos, *tokenizer.encode_text(prompt)]
        messages = [Message(role="user", content=prompt)] if isinstance(prompt, str) else prompt
        return render(
            messages,
            tokenizer,
            tools=tools,
            thinking=thinking,
            empty_thought=self.pair.empty_thought,
        )

    def begin(
        self,
        prompt: Prompt,
        *,
        raw: bool = False,
        thinking: bool = False,
        tools: Sequence[ToolDeclaration] = (),
        sampling: SamplingParams | None = None,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        stop: Sequence[str] = (),
        draft: DraftChoice = None,
        prediction: str | None = None,
    ) -> ActiveSequence:
        """`encode`, then `open`."""
        token_ids = self.encode(prompt, raw=raw, thinking=thinking, tools=tools)
        return self.open(
            token_ids,
            sampling=sampling,
            max_tokens=max_tokens,
            stop=stop,
            draft=draft,
            prediction=prediction,
            raw=raw,
        )

    def open(
        self,
        prompt_token_ids: Sequence[int],
        *,
        sampling: SamplingParams | None = None,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        stop: Sequence[str] = (),
        draft: DraftChoice = None,
        prediction: str | None = None,
        raw: bool = False,
    ) -> ActiveSequence:
        """A sequence that has not begun: `prefill` once, then `step` until it has a finish reason,
        then `close`. Costs no cache yet. The settings are those of `AnswerSettings`.

        Raises:
            PromptError: the prompt is empty, too long, or holds ids outside the vocabulary.
            ConfigError: a setting is out of range.
        """
        check_range("max_tokens", max_tokens, 1, MAX_MAX_TOKENS)
        self._check_prompt(prompt_token_ids)
        tokenizer = self.pair.tokenizer
        params = sampling or self.default_sampling()
        seed = random_seed() if params.seed is None else params.seed
        in_reasoning = not raw and reasoning_is_open(prompt_token_ids, tokenizer)
        max_tokens = min(max_tokens, self.context_length - len(prompt_token_ids))
        return ActiveSequence(
            number=next(self._numbers),
            prompt_token_ids=prompt_token_ids,
            sampler=Sampler(
                replace(params, seed=seed),
                vocab_size=self.pair.target.config.vocab_size,
                seed=seed,
                prompt_token_ids=prompt_token_ids,
                suppressed_token_ids=self.defaults.suppressed_token_ids,
            ),
            policy=self._policy(draft),
            new_sources=self._new_sources(draft, prompt_token_ids, prediction),
            output=OutputText(tokenizer, stop=stop, raw=raw, in_reasoning=in_reasoning),
            end_token_ids=frozenset(self.defaults.eos_token_ids),
            max_tokens=max_tokens,
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
        unknown = next((token for token in token_ids if not 0 <= token < vocab_size), None)
        if unknown is not None:
            raise PromptError(
                f"the prompt holds the token id {unknown}, but this model has ids 0 to "
                f"{vocab_size - 1}. Encode the prompt with this model's tokenizer."
            )

    def _policy(self, draft: DraftChoice) -> DraftLengthPolicy:
        limit = self.max_draft_tokens
        if draft is None or draft == "auto":
            return self.learned.new_policy(limit)
        if isinstance(draft, DraftLengthPolicy):
            return draft
        if isinstance(draft, bool) or not isinstance(draft, int):
            raise ConfigError(
                f'draft={draft!r} cannot be used: expected "auto", a number of tokens, 0 for none, '
                "or an object that decides."
            )
        if draft > 0 and not limit:
            raise ConfigError(
                f"draft={draft} needs a drafter, and none is loaded. Pass 0, or load one."
            )
        if not 0 <= draft <= limit:
            raise ConfigError(
                f"draft={draft} is out of range: this drafter supports 1 to {limit} tokens, and "
                f"0 is off. Pass {limit} or less."
            )
        return FixedDraftLength(draft, limit)

    def _new_sources(
        self, draft: DraftChoice, prompt: Sequence[int], prediction: str | None
    ) -> Callable[[], TextSources] | None:
        """What makes the texts to draft from once the sequence begins. A given number of tokens,
        and a policy that was not made for them, drafts from none unless it is asked to."""
        predicted = self._prediction_ids(draft, prediction)
        if draft not in (None, "auto") and not predicted:
            return None
        return lambda: TextSources(
            prompt,
            self.learned.trust,
            prediction=predicted,
            earlier=self.earlier.text if self.earlier else None,
            end_token_ids=frozenset(self.defaults.eos_token_ids),
        )

    def _prediction_ids(self, draft: DraftChoice, prediction: str | None) -> list[int]:
        if prediction is None:
            return []
        if isinstance(draft, int):
            raise ConfigError(
                f"prediction cannot be used with draft={draft}, which drafts with the drafter or "
                'not at all. Pass draft="auto", or leave out prediction.'
            )
        if not isinstance(prediction, str):
            raise ConfigError(f"prediction must be text, got {type(prediction).__name__}.")
        if len(prediction) > MAX_PREDICTION_LENGTH:
            raise ConfigError(
                f"prediction has {len(prediction)} characters, at most {MAX_PREDICTION_LENGTH} "
                "are possible. Pass the part that the answer will repeat."
            )
        try:
            prediction.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ConfigError(
                f"prediction is not valid text: the character at {error.start} is half of a "
                "surrogate pair."
            ) from error
        return self.pair.tokenizer.encode_text(prediction)

    def prefill(self, sequence: ActiveSequence, progress: PrefillProgress | None = None) -> None:
        """Feed what no kept cache holds of the prompt, and emit the first token.

        If it raises, the sequence can only be closed, and what it has fed stays of use.
        """
        started = time.perf_counter()
        prompt = sequence.prompt_token_ids
        sequence.attach_cache(
            self._prefixes.take(prompt)
            or self.pair.target.new_cache(self.context_length, self._longest_draft)
        )
        output = None
        for begin in range(sequence.cache.length, len(prompt), PREFILL_CHUNK):
            chunk = prompt[begin : begin + PREFILL_CHUNK]
            end = begin + len(chunk)
            rows = Rows(
                cache=sequence.cache,
                token_ids=chunk,
                num_outputs=int(end == len(prompt)),
                num_candidates=sequence.sampler.num_candidates,
            )
            output = self.pair.target.forward([rows])[0]
            if progress:
                progress(end, len(prompt))
        assert output is not None
        settle(sequence, (), output)
        sequence.stats.prefill_s = sequence.stats.ttft_s = time.perf_counter() - started

    def step(self, sequences: Sequence[ActiveSequence]) -> None:
        """One round for all sequences, with one pass of the target.

        If it raises, all of them are cancelled and can only be closed; the engine and their
        caches stay good.
        """
        if not sequences:
            return
        assert all(sequence.finish_reason is None for sequence in sequences)
        started = time.perf_counter()
        lengths = [sequence.cache.length for sequence in sequences]
        try:
            outcomes = run_round(self.pair.target, self.pair.drafter, sequences, self.learned.costs)
        except BaseException:  # an interrupt too: no cache may keep an unverified draft
            for sequence, length in zip(sequences, lengths, strict=True):
                sequence.roll_back(length)
            raise
        elapsed = time.perf_counter() - started
        for sequence, outcome in zip(sequences, outcomes, strict=True):
            stats = sequence.stats
            stats.record_round(
                outcome.num_verified_tokens, outcome.num_accepted_tokens, outcome.source
            )
            stats.decode_s += elapsed
            stats.draft_s += outcome.draft_s
            stats.verify_s += outcome.verify_s
        if self.on_round is not None:
            for sequence, outcome, length in zip(sequences, outcomes, lengths, strict=True):
                self.on_round(_trace(sequence, outcome, length + 1, started))

    def close(self, sequence: ActiveSequence) -> Generation:
        """End a sequence and keep its cache for a next turn. Harmless when repeated."""
        sequence.finish("cancelled")
        assert sequence.finish_reason is not None
        cache = sequence.detach_cache()
        if cache is not None:
            if isinstance(sequence.policy, LateLearner):
                sequence.policy.learn()
            self._prefixes.give(sequence.token_ids[: cache.length], cache)
            if self.earlier is not None:
                self.earlier.add([token.token_id for token in sequence.tokens])
        return Generation(
            text=sequence.output.text,
            reasoning=sequence.output.reasoning,
            tool_calls=tuple(sequence.output.tool_calls),
            tokens=tuple(sequence.tokens),
            finish_reason=sequence.finish_reason,
            stats=sequence.stats,
            seed=sequence.seed,
        )


def _trace(
    sequence: ActiveSequence, outcome: RoundOutcome, position: int, started_s: float
) -> RoundTrace:
    """What to report of a round, whose first token has this position."""
    cost = outcome.cost
    return RoundTrace(
        sequence=sequence.number,
        round=sequence.stats.rounds - 1,
        position=position,
        kind=sequence.text_kind,
        source=outcome.source,
        max_draft_tokens=outcome.plan.max_draft_tokens,
        num_draft_tokens=outcome.num_draft_tokens,
        num_accepted_tokens=outcome.num_accepted_tokens,
        num_tokens=len(sequence.prompt_token_ids) + len(sequence.tokens) - position,
        predicted_gain=outcome.plan.predicted_gain,
        started_s=started_s,
        draft_s=cost.draft_s,
        verify_s=cost.verify_s,
        overhead_s=cost.overhead_s,
    )


class Stream:
    """The deltas of one answer, in order; `result` is the whole of it.

    Closing early (also by leaving a `with` block, by an error or by an interrupt) ends the
    sequence with the finish reason "cancelled" and keeps what was written.
    """

    def __init__(
        self, engine: Engine, sequence: ActiveSequence, prefill_progress: PrefillProgress | None
    ) -> None:
        self._engine = engine
        self._sequence = sequence
        self._result: Generation | None = None
        self._deltas = self._run(prefill_progress)

    def _run(self, prefill_progress: PrefillProgress | None) -> Generator[Delta]:
        try:
            self._engine.prefill(self._sequence, prefill_progress)
            yield from self._sequence.take_deltas()
            while self._sequence.finish_reason is None:
                self._engine.step([self._sequence])
                yield from self._sequence.take_deltas()
        finally:
            self._result = self._engine.close(self._sequence)

    def __iter__(self) -> Iterator[Delta]:
        return self._deltas

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop here. Harmless on a finished stream."""
        self._deltas.close()
        if self._result is None:  # it had not begun: the generator's `finally` has not run
            self._result = self._engine.close(self._sequence)

    @property
    def result(self) -> Generation:
        """The answer, once the stream has ended or was closed."""
        assert self._result is not None, "the stream has not ended: exhaust or close it first"
        return self._result
