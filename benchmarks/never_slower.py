"""What drafting costs where it cannot win, and what texts add where an answer repeats one.

    python benchmarks/never_slower.py --prompts 12 --repeats 7 --output FILE.json
    python benchmarks/never_slower.py --model FILE.gguf --drafter FILE.gguf --prompts 3 --repeats 1

The shipped pair, answers of 200 tokens each, every way of drafting in turn within each repeat. What
counts is the fastest repeat, because what else runs only ever adds time; the first way runs twice
in each repeat and is compared with itself as well.

- a drafter that is always wrong, one that takes ten times as long, and one that is both, each
  against drafting off, with the draft length chosen by measured costs and no texts to draft from;
- the drafter alone against the drafter and texts: where the answer is known but for one word (given
  as a prediction, as when a file is edited), where it is not, and for sampled text, which repeats
  nothing.

Of another pair, such as the synthetic ones that `verify_cost.py` writes, the first part, and a
drafter that is right five times in six: its draft costs what drafts cost, what it says is recorded.
There the ways take turns within each answer.

The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from random import Random

from equality import InformedDrafter, WrongDrafter, chat_prompts
from paceline.bench.provenance import provenance
from paceline.engine import DraftChoice, Engine, Generation
from paceline.loading import LoadedPair, load_pair
from paceline.runtime.protocols import Draft, Drafter, DraftRequest, KVCache, StopRule
from paceline.sampling import SamplingParams
from paceline.sequence import ActiveSequence

SLOWNESS = 10
TOKENS = 200
AGAIN = "itself"

STRETCH = 5
"""Where a pass takes long enough to empty the caches anyway, ways take turns every few tokens: the
speed of a machine's memory changes from one answer to the next."""
GREEDY, SAMPLED = SamplingParams(temperature=0.0), SamplingParams(temperature=1.0, top_k=64, seed=7)


class OftenRightDrafter(InformedDrafter):
    """Drafts, and then says what the plain run said but for one position in six, by chance."""

    def draft(self, requests: Sequence[DraftRequest]) -> list[Draft]:
        self.inner.draft([request._replace(stop=StopRule()) for request in requests])
        return [self._often_right(request) for request in requests]

    def _often_right(self, request: DraftRequest) -> Draft:
        first, vocab_size = request.cache.length + 1, self.config.vocab_size
        coming = self.coming(request)[: request.max_draft_tokens]
        tokens = tuple(
            (token + (Random(position).random() < 1 / 6)) % vocab_size
            for position, token in enumerate(coming, first)
        )
        return Draft(tokens=tokens, confidences=(1.0,) * len(tokens))


class SlowDrafter(InformedDrafter):
    """Drafts ten times in place of once."""

    def draft(self, requests: Sequence[DraftRequest]) -> list[Draft]:
        for _ in range(SLOWNESS - 1):
            self.inner.draft(requests)
        return self.inner.draft(requests)

    def expect(self, cache: KVCache, token_ids: tuple[int, ...]) -> None:
        """Of use to what drafts inside."""
        if isinstance(self.inner, InformedDrafter):
            self.inner.expect(cache, token_ids)


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way of answering.

    Args:
        draft: makes the draft setting of an answer.
        predicts: give the plain answer, one word of it changed, as the prediction.
    """

    name: str
    engine: Engine
    draft: Callable[[Engine], DraftChoice]
    predicts: bool = False


@dataclass(frozen=True, kw_only=True)
class Row:
    """One way against another, each by its fastest repeat of each prompt.

    Args:
        speed: of all prompts together, in that of the other way.
        worst: speed of the prompt that fared worst, and its number.
        noise: the other way against itself: of the slowest prompt, of the fastest.
    """

    part: str
    way: str
    against: str
    speed: float
    worst: float
    worst_prompt: int
    noise: tuple[float, float]


# --- Ways ---------------------------------------------------------------------------------------


def off(engine: Engine) -> DraftChoice:
    return 0


def auto(engine: Engine) -> DraftChoice:
    return "auto"


def always(length: int, engine: Engine) -> DraftChoice:
    return length


def drafter_alone(engine: Engine) -> DraftChoice:
    """The same policy, handed over, drafts from no texts."""
    return engine.learned.new_policy(engine.max_draft_tokens)


def engine_with(pair: LoadedPair, drafter: Drafter | None) -> Engine:
    engine = Engine(replace(pair, drafter=drafter), kept_caches=0)
    engine.recalibrate()
    return engine


Part = tuple[SamplingParams, list[Way]]
"""Each way but the first is compared with the first."""


def cannot_win(pair: LoadedPair, real: Drafter) -> Part:
    wrong = WrongDrafter(real)
    drafters = {
        "always wrong": wrong,
        "ten times slower": SlowDrafter(real),
        "both": SlowDrafter(wrong),
    }
    adverse = [
        Way(name=name, engine=engine_with(pair, drafter), draft=drafter_alone)
        for name, drafter in drafters.items()
    ]
    return GREEDY, [Way(name="off", engine=engine_with(pair, real), draft=off), *adverse]


def often_right(pair: LoadedPair, real: Drafter) -> Part:
    engine = engine_with(pair, OftenRightDrafter(real))
    fixed = [Way(name=f"{n} tokens", engine=engine, draft=partial(always, n)) for n in (2, 4, 8)]
    chosen = Way(name="auto", engine=engine, draft=drafter_alone)
    return GREEDY, [Way(name="off", engine=engine, draft=off), *fixed, chosen]


def texts_help(pair: LoadedPair, real: Drafter) -> dict[str, Part]:
    plain = Way(name="off", engine=engine_with(pair, real), draft=off)
    alone = Way(name="drafter alone", engine=engine_with(pair, real), draft=drafter_alone)
    texts = Way(name="drafter and texts", engine=engine_with(pair, real), draft=auto)
    predicted = Way(
        name="with a prediction", engine=engine_with(pair, real), draft=auto, predicts=True
    )
    return {
        "answer known but for a word": (GREEDY, [alone, predicted, plain]),
        "greedy": (GREEDY, [alone, texts, plain]),
        "sampled": (SAMPLED, [alone, texts, plain]),
    }


def parts_of(pair: LoadedPair, *, ships: bool) -> dict[str, Part]:
    real = pair.drafter
    assert real is not None, "the pair has no drafter"
    parts = {"cannot win": cannot_win(pair, real)}
    if ships:
        return parts | texts_help(pair, real)
    return parts | {"right five times in six": often_right(pair, real)}


# --- Measuring ----------------------------------------------------------------------------------


def answers(
    ways: Sequence[Way],
    prompt: Sequence[int],
    params: SamplingParams,
    plain: Generation | None,
    stretch: int,
) -> list[Generation]:
    """The same answer by each way, so many tokens by one way and then by the next."""
    sequences = [begin(way, prompt, params, plain) for way in ways]
    for end in range(stretch, TOKENS + stretch, stretch):
        for way, sequence in zip(ways, sequences, strict=True):
            while sequence.finish_reason is None and len(sequence.tokens) < end:
                way.engine.step([sequence])
    return [way.engine.close(sequence) for way, sequence in zip(ways, sequences, strict=True)]


def begin(
    way: Way, prompt: Sequence[int], params: SamplingParams, plain: Generation | None
) -> ActiveSequence:
    engine = way.engine
    sequence = engine.open(
        prompt,
        sampling=params,
        max_tokens=TOKENS,
        draft=way.draft(engine),
        prediction=changed(plain.text) if way.predicts and plain else None,
    )
    engine.prefill(sequence)
    if isinstance(engine.pair.drafter, InformedDrafter) and plain:
        engine.pair.drafter.expect(sequence.cache, (*prompt, *plain.token_ids))
    return sequence


def changed(text: str) -> str:
    """The word in the middle is another one."""
    words = text.split(" ")
    words[len(words) // 2] = "something"
    return " ".join(words)


def measure(
    ways: Sequence[Way],
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    *,
    repeats: int,
    stretch: int,
) -> dict[str, list[float]]:
    """Decode seconds of each prompt's fastest repeat by way.

    Raises:
        AssertionError: two ways gave two texts.
    """
    reference = next(way for way in ways if way.draft is off)
    plain = [answers([reference], prompt, params, None, TOKENS)[0] for prompt in prompts]
    turns = [*ways, replace(ways[0], name=AGAIN)]
    seconds = {way.name: [math.inf] * len(prompts) for way in turns}
    for repeat in range(repeats):
        for number, prompt in enumerate(prompts):
            order = turns if repeat % 2 else turns[::-1]
            results = answers(order, prompt, params, plain[number], stretch)
            for way, result in zip(order, results, strict=True):
                assert result.token_ids == plain[number].token_ids, way.name
                taken = seconds[way.name]
                taken[number] = min(taken[number], result.stats.decode_s)
        print(f"repeat {repeat + 1} of {repeats}", file=sys.stderr, flush=True)
    return seconds


def compared(part: str, seconds: dict[str, list[float]]) -> list[Row]:
    first, *others = seconds
    base = seconds[first]
    own = [a / b for a, b in zip(base, seconds[AGAIN], strict=True)]
    rows = []
    for way in others:
        ratios = [a / b for a, b in zip(base, seconds[way], strict=True)]
        worst = min(range(len(ratios)), key=ratios.__getitem__)
        rows.append(
            Row(
                part=part,
                way=way,
                against=first,
                speed=sum(base) / sum(seconds[way]),
                worst=ratios[worst],
                worst_prompt=worst,
                noise=(min(own), max(own)),
            )
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--model", type=Path, help="another pair than the one that ships")
    parser.add_argument("--drafter", type=Path, help="of that model")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--output", type=Path, help="write the JSON document there too")
    asked = parser.parse_args()
    if (asked.model is None) != (asked.drafter is None):
        parser.error("--model and --drafter go together")
    pair = load_pair(asked.model, asked.drafter or "auto", threads=asked.threads)
    prompts = chat_prompts(pair, 1000)
    prompts = prompts[:: max(1, len(prompts) // asked.prompts)][: asked.prompts]
    ends = (*pair.defaults.suppressed_token_ids, *pair.defaults.eos_token_ids)
    pair = replace(pair, defaults=replace(pair.defaults, suppressed_token_ids=ends))
    stretch = TOKENS if asked.model is None else STRETCH
    started = time.perf_counter()
    rows = []
    for part, (params, ways) in parts_of(pair, ships=asked.model is None).items():
        seconds = measure(ways, prompts, params, repeats=asked.repeats, stretch=stretch)
        found = compared(part, seconds)
        for row in found:
            print(
                f"{row.part}: {row.way} runs at {row.speed:.3f} of {row.against}, the worst prompt "
                f"at {row.worst:.3f} ({row.against} against itself: {row.noise[0]:.3f} to "
                f"{row.noise[1]:.3f})"
            )
        rows += found
    document = {
        "never_slower": [asdict(row) for row in rows],
        "model": pair.name,
        "tokens": TOKENS,
        "prompts": len(prompts),
        "repeats": asked.repeats,
        "seconds": round(time.perf_counter() - started, 1),
        "provenance": provenance(threads=pair.threads),
    }
    if asked.output:
        asked.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(document))


if __name__ == "__main__":
    main()
