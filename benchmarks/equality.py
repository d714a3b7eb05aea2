"""Contract C3 on a real pair: the text is that of plain decoding, whatever drafts it.

    python benchmarks/equality.py --prompts 40 --tokens 200

Answers every prompt without drafting, then with each drafter, draft length and temperature, and
compares token ids, log-probabilities and text to the bit. Prints one JSON document last; the exit
status is 1 at the first difference. tests/test_equality.py runs the same check.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product

import numpy as np

from paceline.bench.prompts import bundled_prompts
from paceline.bench.provenance import provenance
from paceline.checkpoint.names import TensorSpec, drafter_table
from paceline.checkpoint.weights import Weight, Weights
from paceline.config import DrafterConfig
from paceline.engine import Engine, Generation
from paceline.loading import LoadedPair, load_pair
from paceline.runtime.protocols import Draft, Drafter, DraftRequest, KVCache
from paceline.sampling import SamplingParams
from paceline.sequence import ActiveSequence
from paceline.speculative.controller import DraftLengthPolicy
from wrapped_drafter import WrappedDrafter

DRAFTERS = ("real", "recorded", "random", "wrong")
DraftLength = int | Callable[[], DraftLengthPolicy]


class Divergence(AssertionError):
    """Two texts that must be equal are not."""


# --- Drafters -----------------------------------------------------------------------------------


class InformedDrafter(WrappedDrafter):
    """A drafter that is told the plain answer of each sequence.

    Args:
        inner: proposes, and lends its limits.
    """

    def __init__(self, inner: Drafter) -> None:
        super().__init__(inner)
        self._answers: dict[int, tuple[int, ...]] = {}

    def expect(self, cache: KVCache, token_ids: tuple[int, ...]) -> None:
        """Learn the prompt and answer of the sequence that owns a cache."""
        self._answers[id(cache)] = token_ids

    def coming(self, request: DraftRequest) -> tuple[int, ...]:
        """The tokens after the last one; none if nobody has told."""
        return self._answers.get(id(request.cache), ())[request.cache.length + 1 :]


class RecordedDrafter(InformedDrafter):
    """Says what the plain run said, but for one position in six: long accepted drafts, and cuts
    at every place in them, whatever the real drafter is worth."""

    def draft(self, requests: Sequence[DraftRequest]) -> list[Draft]:
        return [self._draft_one(request) for request in requests]

    def _draft_one(self, request: DraftRequest) -> Draft:
        vocab_size, first = self.config.vocab_size, request.cache.length + 1
        coming = self.coming(request)[: request.max_draft_tokens]
        tokens = tuple(
            (token + 1) % vocab_size if position % 6 == 0 else token
            for position, token in enumerate(coming, first)
        )
        return Draft(tokens=tokens, confidences=(1.0,) * len(tokens))


class WrongDrafter(InformedDrafter):
    """The real drafter's tokens, but never the target's: every draft is rejected whole."""

    def draft(self, requests: Sequence[DraftRequest]) -> list[Draft]:
        drafts = self.inner.draft(requests)
        return [self._spoiled(*pair) for pair in zip(requests, drafts, strict=True)]

    def _spoiled(self, request: DraftRequest, draft: Draft) -> Draft:
        coming = self.coming(request)
        tokens = tuple(
            (token + 1) % self.config.vocab_size if token == right else token
            for token, right in zip(draft.tokens, coming, strict=False)
        )
        return draft._replace(tokens=tokens, confidences=draft.confidences[: len(tokens)])


def with_random_weights(pair: LoadedPair, seed: int = 0) -> Drafter:
    """A drafter of the same architecture in the same runtime, untrained."""
    assert pair.drafter is not None
    weights = _random_weights(pair.drafter.config, np.random.default_rng(seed))
    if pair.runtime == "native":
        from paceline.runtime.native import load as native

        pool = native.new_pool(pair.threads, 0)
        return native.load_drafter(pair.drafter.config, weights, pool, _ignore, pair.target)
    from paceline.runtime.torch import load as in_torch

    return in_torch.load_drafter(pair.drafter.config, weights, pair.dtype, _ignore, pair.target)


def _random_weights(config: DrafterConfig, random: np.random.Generator) -> Weights:
    """Norms of one, matrices at unit gain, tokens in order."""
    return Weights(tensors=tuple(_random_weight(x, random) for x in drafter_table(config).specs))


def _random_weight(spec: TensorSpec, random: np.random.Generator) -> Weight:
    if spec.kind == "token_ordering":
        return Weight(spec=spec, where="", dtype="I64", data=np.arange(spec.shape[0]))
    if len(spec.shape) == 1:
        data = np.ones(spec.shape, np.float32)
    else:
        data = random.standard_normal(spec.shape, np.float32) * spec.shape[-1] ** -0.5
    return Weight(spec=spec, where="", dtype="F32", data=data.astype(np.float32))


def _ignore(num_bytes: int) -> None:
    """Progress that nobody watches."""


def drafters_of(pair: LoadedPair) -> dict[str, Drafter]:
    """Everything that may draft, by name."""
    real = pair.drafter
    assert real is not None, "the pair has no drafter"
    return {
        "real": real,
        "recorded": RecordedDrafter(real),
        "random": with_random_weights(pair),
        "wrong": WrongDrafter(real),
    }


# --- Answers ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """What is compared with what.

    Args:
        prompts: token ids.
        runs: which drafter with which draft length (or what makes a policy).
        ends: let the model end its turns; otherwise every answer has `max_tokens` tokens.
        params: of every answer, but for temperature and seed.
    """

    prompts: Sequence[Sequence[int]]
    max_tokens: int
    runs: Sequence[tuple[str, DraftLength]] = tuple(product(DRAFTERS, (1, 2, 4, 8)))
    temperatures: Sequence[float] = (0.0, 1.0)
    batch_size: int = 8
    ends: bool = False
    stop: Sequence[str] = ()
    params: SamplingParams = field(default_factory=lambda: SamplingParams(top_logprobs=2))


def answers(
    engine: Engine,
    matrix: Matrix,
    temperature: float,
    draft: DraftLength,
    plain: Sequence[Generation] | None = None,
) -> list[Generation]:
    """The answers to all prompts, `batch_size` of them in each pass; each has its own seed.

    Args:
        plain: the answers without drafting, for a drafter that wants to know them.
    """
    results: list[Generation] = []
    for begin in range(0, len(matrix.prompts), matrix.batch_size):
        numbers = range(begin, min(begin + matrix.batch_size, len(matrix.prompts)))
        group = [_opened(engine, matrix, temperature, draft, number) for number in numbers]
        for number, sequence in zip(numbers, group, strict=True):
            engine.prefill(sequence)
            if isinstance(engine.pair.drafter, InformedDrafter) and plain:
                token_ids = sequence.prompt_token_ids + plain[number].token_ids
                engine.pair.drafter.expect(sequence.cache, token_ids)
        while active := [sequence for sequence in group if sequence.finish_reason is None]:
            engine.step(active)
        results += [engine.close(sequence) for sequence in group]
    return results


def _opened(
    engine: Engine, matrix: Matrix, temperature: float, draft: DraftLength, number: int
) -> ActiveSequence:
    return engine.open(
        matrix.prompts[number],
        sampling=replace(matrix.params, temperature=temperature, seed=1000 + number),
        max_tokens=matrix.max_tokens,
        stop=matrix.stop,
        draft=draft if isinstance(draft, int) else draft(),
    )


# --- The check ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Run:
    """One drafter with one draft length at one temperature: all its answers were equal."""

    drafter: str
    draft: str
    temperature: float
    answers: int
    tokens: int
    rounds: int
    acceptance_length: float | None


@dataclass(frozen=True, kw_only=True)
class Report:
    prompts: int
    plain_tokens: int
    tokens_compared: int
    smallest_greedy_margin: float | None
    """Least lead of a most likely token over the second, in nats: how near a tie came."""
    runs: list[Run]


def check(
    pair: LoadedPair,
    matrix: Matrix,
    progress: Callable[[Run], None] = lambda run: None,
    drafters: dict[str, Drafter] | None = None,
) -> Report:
    """Compare every answer with the plain one.

    Raises:
        Divergence: at the first difference; says where, and how near to a tie it was.
    """
    if not matrix.ends:
        end = tuple(pair.defaults.eos_token_ids)
        suppressed = (*pair.defaults.suppressed_token_ids, *end)
        pair = replace(pair, defaults=replace(pair.defaults, suppressed_token_ids=suppressed))
    available = drafters or drafters_of(pair)
    engine = Engine(pair, kept_caches=0)
    plain = {t: answers(engine, matrix, t, 0) for t in matrix.temperatures}
    runs: list[Run] = []
    for temperature, (name, draft) in product(matrix.temperatures, matrix.runs):
        drafting = Engine(replace(pair, drafter=available[name]), kept_caches=0)
        got = answers(drafting, matrix, temperature, draft, plain[temperature])
        where = f"drafter {name}, draft {_named(draft)}, temperature {temperature:g}"
        compare(plain[temperature], got, where)
        runs.append(_run(name, _named(draft), temperature, got))
        progress(runs[-1])
    greedy = [token.top for result in plain.get(0.0, ()) for token in result.tokens]
    return Report(
        prompts=len(matrix.prompts),
        plain_tokens=sum(len(r.tokens) for results in plain.values() for r in results),
        tokens_compared=sum(run.tokens for run in runs),
        smallest_greedy_margin=min((top[0][1] - top[1][1] for top in greedy if top), default=None),
        runs=runs,
    )


def _named(draft: DraftLength) -> str:
    return str(draft) if isinstance(draft, int) else draft.__name__


def _run(name: str, draft: str, temperature: float, results: Sequence[Generation]) -> Run:
    drafting = sum(sum(r.stats.acceptance_histogram) for r in results)
    accepted = sum(r.stats.accepted_tokens for r in results)
    return Run(
        drafter=name,
        draft=draft,
        temperature=temperature,
        answers=len(results),
        tokens=sum(len(r.tokens) for r in results),
        rounds=sum(r.stats.rounds for r in results),
        acceptance_length=round(1 + accepted / drafting, 4) if drafting else None,
    )


def compare(expected: Sequence[Generation], got: Sequence[Generation], where: str) -> None:
    """Token ids, log-probabilities, text and reason of every answer, to the bit.

    Raises:
        Divergence: see `check`.
    """
    for number, (plain, other) in enumerate(zip(expected, got, strict=True)):
        for index, (a, b) in enumerate(zip(plain.tokens, other.tokens, strict=False)):
            if (a.token_id, a.logprob, a.top) != (b.token_id, b.logprob, b.top):
                raise Divergence(
                    f"{where}: prompt {number} differs at token {index}: {a.token_id} plain, "
                    f"{b.token_id} drafted. Most likely plain {a.top}, drafted {b.top}."
                )
        if _ending(plain) != _ending(other):
            raise Divergence(
                f"{where}: prompt {number} ends differently: {_ending(plain)} plain, "
                f"{_ending(other)} drafted."
            )


def _ending(result: Generation) -> tuple[int, str, bytes]:
    text = (result.reasoning + result.text).encode()
    return len(result.tokens), result.finish_reason, text


# --- The script ---------------------------------------------------------------------------------


def chat_prompts(pair: LoadedPair, count: int) -> list[list[int]]:
    """The first `count` bundled prompts, as the chat format writes them."""
    engine = Engine(pair)
    return [engine.encode(prompt.turns[0]) for prompt in bundled_prompts()[:count]]


def long_prompts(pair: LoadedPair, count: int, length: int) -> list[list[int]]:
    """Prompts of at least `length` tokens: their answers begin where sliding rings have turned."""
    texts = [prompt.turns[0] for prompt in bundled_prompts()]
    engine = Engine(pair)
    results: list[list[int]] = []
    for begin in range(count):
        text, end = texts[begin], begin
        while len(token_ids := engine.encode(text)) < length:
            end += 1
            text += "\n\n" + texts[end % len(texts)]
        results.append(token_ids)
    return results


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a target's folder; the shipped pair if not given")
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--long-prompts", type=int, default=4, help="of 280 tokens or more")
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--drafts", type=numbers, default=[1, 2, 4, 8], help="0 is compared to")
    parser.add_argument("--temperatures", type=numbers, default=[0, 1])
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--runtime", default="auto", help="native, torch or auto")
    parser.add_argument("--dtype", help="of the torch runtime: float32 or bfloat16")
    parser.add_argument("--isa", help="instruction set of the native runtime")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    asked = parse(arguments)
    if asked.isa:  # read by the native runtime when it is first used
        os.environ["PACELINE_ISA"] = asked.isa
    pair = load_pair(asked.model, runtime=asked.runtime, dtype=asked.dtype, threads=asked.threads)
    matrix = Matrix(
        prompts=chat_prompts(pair, asked.prompts) + long_prompts(pair, asked.long_prompts, 280),
        max_tokens=asked.tokens,
        runs=list(product(DRAFTERS, [draft for draft in asked.drafts if draft])),
        temperatures=[float(temperature) for temperature in asked.temperatures],
        batch_size=asked.batch_size,
    )
    started = time.perf_counter()
    outcome: dict[str, object]
    try:
        outcome = {"equal": True, **asdict(check(pair, matrix, lambda run: print(line(run))))}
    except Divergence as difference:
        outcome = {"equal": False, "difference": str(difference)}
    document = {
        **provenance(threads=asked.threads),
        "model": pair.name,
        "runtime": pair.runtime,
        "isa": isa_of(pair),
        "dtype": pair.dtype,
        "batch_size": asked.batch_size,
        "seconds": round(time.perf_counter() - started, 1),
        **outcome,
    }
    print(json.dumps(document, allow_nan=False))
    return 0 if document["equal"] else 1


def isa_of(pair: LoadedPair) -> str | None:
    """The instruction set that the native runtime uses."""
    if pair.runtime != "native":
        return None
    return importlib.import_module("paceline._native").isa_name()


def line(run: Run) -> str:
    length = "" if run.acceptance_length is None else f", {run.acceptance_length:.2f} a round"
    return (
        f"equal: {run.drafter} drafter, draft {run.draft}, temperature {run.temperature:g}: "
        f"{run.answers} answers, {run.tokens} tokens{length}"
    )


if __name__ == "__main__":
    sys.exit(main())
