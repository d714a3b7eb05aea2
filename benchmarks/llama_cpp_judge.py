"""llama.cpp as an outside judge of the shipped pair: does it say the same, token by token?

    python benchmarks/llama_cpp_judge.py --llama-cpp python3

Answers prompts greedily with drafting on, then has llama.cpp read each answer from the same GGUF
file and say at every place which token it would have taken. The two round differently, so that a
tie may fall the other way: a difference is a near-tie if our best token leads the second by less
than --bound. The last line is one JSON document; the exit status is 1 at any other difference.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from llama_cpp_worker import LlamaCpp, LlamaCppError
from paceline.bench.prompts import BenchPrompt, bundled_prompts
from paceline.bench.provenance import provenance
from paceline.checkpoint.convert import convert_drafter, convert_target
from paceline.checkpoint.gguf_model import SUFFIX
from paceline.checkpoint.huggingface import open_drafter, open_target
from paceline.engine import Engine, Generation
from paceline.errors import PacelineError
from paceline.loading import LoadedPair, find_drafter, find_target, load_pair
from paceline.sampling import SamplingParams

BOUND = 0.1
CONTEXT = 2048
GREEDY = SamplingParams(temperature=0.0, seed=0, top_logprobs=2)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A place where llama.cpp would have taken another token.

    Args:
        place: in the answer, 0 is its first token.
        margin: by which our best token leads our second, in nats.
        their_margin: by which their token leads ours in llama.cpp, in nats.
    """

    prompt: str
    place: int
    our_token: int
    their_token: int
    margin: float
    their_margin: float


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What came of all prompts.

    Args:
        agreeing_prompts: whose answers are the same to the last token.
        near_ties: differences below the bound.
        differences: all others.
        tokenizer_differences: prompts that llama.cpp splits into other tokens.
    """

    prompts: int
    tokens: int
    agreeing_prompts: int
    near_ties: list[Difference]
    differences: list[Difference]
    tokenizer_differences: list[str]

    @property
    def agrees(self) -> bool:
        return not self.differences and not self.tokenizer_differences


def judge(
    pair: LoadedPair,
    llama: LlamaCpp,
    prompts: Sequence[BenchPrompt],
    max_tokens: int,
    bound: float = BOUND,
) -> Judgement:
    """Compare answers of `max_tokens` tokens to the first turn of each prompt.

    No answer ends early: tokens that would end it are suppressed on both sides.
    """
    suppressed = (*pair.defaults.suppressed_token_ids, *pair.defaults.eos_token_ids)
    defaults = replace(pair.defaults, suppressed_token_ids=suppressed)
    engine = Engine(replace(pair, defaults=defaults))
    found: list[Difference] = []
    split: list[str] = []
    tokens = 0
    for prompt in prompts:
        text = prompt.turns[0]
        if llama.ask("tokenize", text=text)["token_ids"] != engine.encode(text, raw=True):
            split.append(prompt.name)
        result = engine.generate(text, sampling=GREEDY, max_tokens=max_tokens)
        told = llama.ask(
            "follow",
            prompt=engine.encode(text),
            answer=[int(token) for token in result.token_ids],
            suppressed=[int(token) for token in suppressed],
        )
        found += differences(prompt.name, result, told)
        tokens += len(result.tokens)
    other = {difference.prompt for difference in found}
    return Judgement(
        prompts=len(prompts),
        tokens=tokens,
        agreeing_prompts=sum(prompt.name not in other for prompt in prompts),
        near_ties=[x for x in found if x.margin < bound],
        differences=[x for x in found if not x.margin < bound],
        tokenizer_differences=split,
    )


def differences(name: str, ours: Generation, theirs: dict[str, Any]) -> Iterator[Difference]:
    """Every place where the tokens differ."""
    told = zip(theirs["token_ids"], theirs["leads"], strict=True)
    for place, (token, (their_token, lead)) in enumerate(zip(ours.tokens, told, strict=True)):
        if token.token_id != their_token:
            (_, first), (_, second) = token.top
            yield Difference(
                prompt=name,
                place=place,
                our_token=token.token_id,
                their_token=their_token,
                margin=round(first - second, 5),
                their_margin=round(lead, 5),
            )


# --- The script ---------------------------------------------------------------------------------


@contextmanager
def files_of(model: str | None, dtype: str) -> Iterator[tuple[Path, Path | None]]:
    """The pair as GGUF files: its own, or conversions that are deleted afterwards."""
    target = find_target(model)
    drafter = find_drafter(target, "auto")
    if target.suffix == SUFFIX:
        yield target, drafter
        return
    with tempfile.TemporaryDirectory() as folder:
        yield _converted(target, drafter, Path(folder), dtype)


def _converted(
    target: Path, drafter: Path | None, folder: Path, dtype: Any
) -> tuple[Path, Path | None]:
    opened = open_target(target)
    path = folder / "model.gguf"
    convert_target(opened, path, dtype, name="model", count=lambda _: None)
    if drafter is None:
        return path, None
    drafter_path = folder / "model-assistant.gguf"
    convert_drafter(
        open_drafter(drafter),
        drafter_path,
        dtype,
        name="model-assistant",
        tokenizer_file=opened.tokenizer_file,
        count=lambda _: None,
    )
    return path, drafter_path


def judge_files(
    llama_cpp: str,
    *,
    model: str | None = None,
    quant: str = "Q8_0",
    runtime: str = "auto",
    num_prompts: int = 24,
    max_tokens: int = 100,
    bound: float = BOUND,
    threads: int = 1,
) -> tuple[str, Judgement]:
    """(llama.cpp's version, the judgement) of a pair on disk.

    Args:
        llama_cpp: a Python that has llama_cpp.
        model: None is the shipped pair.
        quant: of the conversion, where the pair is no GGUF file yet.
    """
    with files_of(model, quant) as (target, drafter), LlamaCpp(llama_cpp) as llama:
        pair = load_pair(target, drafter, runtime=runtime, threads=threads)
        llama.ask("load", path=str(target), threads=threads, max_length=CONTEXT, max_outputs=1)
        prompts = spread_out(bundled_prompts(), num_prompts)
        judgement = judge(pair, llama, prompts, max_tokens, bound)
        return str(llama.about["version"]), judgement


def spread_out(prompts: Sequence[BenchPrompt], count: int) -> list[BenchPrompt]:
    """`count` prompts at even distances, so that every kind is among them."""
    count = min(count, len(prompts))
    return [prompts[index * len(prompts) // count] for index in range(count)]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--llama-cpp", default=sys.executable, metavar="PYTHON", help="one that has llama_cpp")
    add("--model", help="a target's folder or GGUF file; the shipped pair if not given")
    add("--quant", default="Q8_0", help="of the conversion, for a folder; default Q8_0")
    add("--runtime", default="auto", help="auto, native or torch")
    add("--prompts", dest="num_prompts", type=int, default=24)
    add("--tokens", dest="max_tokens", type=int, default=100)
    add("--bound", type=float, default=BOUND, help="of a near-tie, in nats; default %(default)s")
    add("--threads", type=int, default=1)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    asked = parse(arguments)
    settings = vars(asked)
    try:
        version, found = judge_files(settings.pop("llama_cpp"), **settings)
    except (PacelineError, LlamaCppError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for kind in ("near_ties", "differences"):
        for difference in getattr(found, kind):
            print(f"{kind}: {difference}")
    document = {
        **provenance(threads=asked.threads),
        "llama_cpp": version,
        "bound": asked.bound,
        "agrees": found.agrees,
        **asdict(found),
    }
    print(json.dumps(document, allow_nan=False))
    return 0 if found.agrees else 1


if __name__ == "__main__":
    sys.exit(main())
