"""What drafting costs where it cannot win, and what texts add where an answer repeats one.

    python benchmarks/never_slower.py --prompts 12 --repeats 7 --output FILE.json

The shipped pair, answers of 200 tokens each, every way of drafting in turn within each repeat:

- a drafter that is always wrong, one that takes ten times as long, and one that is both, each
  against drafting off, with the draft length chosen by measured costs and no texts to draft from;
- the drafter alone against the drafter and texts: where the answer is known but for one word (given
  as a prediction, as when a file is edited), where it is not, and for sampled text, which repeats
  nothing.

The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median

from equality import InformedDrafter, WrongDrafter, chat_prompts
from paceline.bench.provenance import provenance
from paceline.engine import DraftChoice, Engine, Generation
from paceline.loading import LoadedPair, load_pair
from paceline.runtime.protocols import Draft, Drafter, DraftRequest
from paceline.sampling import SamplingParams

SLOWNESS = 10
TOKENS = 200
GREEDY, SAMPLED = SamplingParams(temperature=0.0), SamplingParams(temperature=1.0, top_k=64, seed=7)


class SlowDrafter(InformedDrafter):
    """Drafts ten times in place of once."""

    def draft(self, requests: Sequence[DraftRequest]) -> list[Draft]:
        for _ in range(SLOWNESS - 1):
            self.inner.draft(requests)
        return self.inner.draft(requests)

    def expect(self, cache: object, token_ids: tuple[int, ...]) -> None:
        """Of use to what drafts inside."""
        if isinstance(self.inner, InformedDrafter):
            self.inner.expect(cache, token_ids)  # type: ignore[arg-type]


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
    """One way against another: medians over repeats, per prompt, and of all prompts together.

    Args:
        speed: of all prompts together, in that of the other way.
        worst: speed of the prompt that fared worst, and its number.
        noise: speeds of the other way against itself in the next repeat: the middle nine tenths.
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


def drafter_alone(engine: Engine) -> DraftChoice:
    """The same policy, handed over, drafts from no texts."""
    return engine.learned.new_policy(engine.max_draft_tokens)


def engine_with(pair: LoadedPair, drafter: Drafter | None) -> Engine:
    engine = Engine(replace(pair, drafter=drafter), kept_caches=0)
    engine.recalibrate()
    return engine


def parts_of(pair: LoadedPair) -> dict[str, tuple[SamplingParams, list[Way]]]:
    """The ways of each part; each but the first is compared with the first."""
    real = pair.drafter
    assert real is not None
    wrong = WrongDrafter(real)
    plain = Way(name="off", engine=engine_with(pair, real), draft=off)
    adverse = [
        Way(name=name, engine=engine_with(pair, drafter), draft=drafter_alone)
        for name, drafter in (
            ("always wrong", wrong),
            ("ten times slower", SlowDrafter(real)),
            ("both", SlowDrafter(wrong)),
        )
    ]
    alone = Way(name="drafter alone", engine=engine_with(pair, real), draft=drafter_alone)
    texts = Way(name="drafter and texts", engine=engine_with(pair, real), draft=auto)
    predicted = replace(texts, name="with a prediction", engine=engine_with(pair, real))
    predicted = replace(predicted, predicts=True)
    return {
        "cannot win": (GREEDY, [plain, *adverse]),
        "answer known but for a word": (GREEDY, [alone, predicted, plain]),
        "greedy": (GREEDY, [alone, texts, plain]),
        "sampled": (SAMPLED, [alone, texts, plain]),
    }


# --- Measuring ----------------------------------------------------------------------------------


def answer(
    way: Way, prompt: Sequence[int], params: SamplingParams, plain: Generation | None
) -> Generation:
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
    while sequence.finish_reason is None:
        engine.step([sequence])
    return engine.close(sequence)


def changed(text: str) -> str:
    """The word in the middle is another one."""
    words = text.split(" ")
    words[len(words) // 2] = "something"
    return " ".join(words)


def measure(
    ways: Sequence[Way], prompts: Sequence[Sequence[int]], params: SamplingParams, repeats: int
) -> dict[str, list[list[float]]]:
    """Decode seconds by way, prompt and repeat. The first repeat is a warm-up.

    Raises:
        AssertionError: two ways gave two texts.
    """
    reference = next(way for way in ways if way.draft is off)
    plain = [answer(reference, prompt, params, None) for prompt in prompts]
    seconds: dict[str, list[list[float]]] = {way.name: [[] for _ in prompts] for way in ways}
    for repeat in range(repeats + 1):
        for number, prompt in enumerate(prompts):
            for way in ways if repeat % 2 else ways[::-1]:
                result = answer(way, prompt, params, plain[number])
                assert result.token_ids == plain[number].token_ids, way.name
                if repeat:
                    seconds[way.name][number].append(result.stats.decode_s)
    return seconds


def compared(part: str, seconds: dict[str, list[list[float]]]) -> list[Row]:
    first, *others = seconds
    base = seconds[first]
    steps = sorted(a / b for taken in base for a, b in pairwise(taken))
    noise = steps[len(steps) // 20], steps[-1 - len(steps) // 20]
    rows = []
    for way in others:
        ratios = [
            median(a / b for a, b in zip(*pair, strict=True))
            for pair in zip(base, seconds[way], strict=True)
        ]
        together = sum(map(median, base)) / sum(map(median, seconds[way]))
        worst = min(range(len(ratios)), key=ratios.__getitem__)
        rows.append(
            Row(
                part=part,
                way=way,
                against=first,
                speed=together,
                worst=ratios[worst],
                worst_prompt=worst,
                noise=noise,
            )
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=Path, help="write the JSON document there too")
    asked = parser.parse_args()
    pair = load_pair()
    prompts = chat_prompts(pair, 1000)
    prompts = prompts[:: max(1, len(prompts) // asked.prompts)][: asked.prompts]
    ends = (*pair.defaults.suppressed_token_ids, *pair.defaults.eos_token_ids)
    pair = replace(pair, defaults=replace(pair.defaults, suppressed_token_ids=ends))
    started = time.perf_counter()
    rows = []
    for part, (params, ways) in parts_of(pair).items():
        found = compared(part, measure(ways, prompts, params, asked.repeats))
        for row in found:
            print(
                f"{row.part}: {row.way} runs at {row.speed:.3f} of {row.against}, the worst prompt "
                f"at {row.worst:.3f} ({row.against} against itself: {row.noise[0]:.2f} to "
                f"{row.noise[1]:.2f})"
            )
        rows += found
    document = {
        "never_slower": [asdict(row) for row in rows],
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
