"""The cost of verifying: T(M) for M = 1 to 16, prefill, decoding, drafts, overhead and memory.

    python benchmarks/verify_cost.py --geometry E2B --quant Q4_0 --llama-cpp python3

Writes a model of a released geometry with random weights (`synthetic_gguf`), measures it, and with
--llama-cpp measures the same file in llama.cpp in turn. Prints a table; the last line is one JSON
document, which is also kept with a figure in benchmarks/results/<machine>/.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cost_measure import (
    Decoding,
    LlamaSide,
    Paceline,
    Samples,
    Side,
    measure_decoding,
    measure_prefill,
    measure_rows,
)
from cost_report import Results, document, draw, table
from llama_cpp_worker import LlamaCpp, LlamaCppError
from memory_probe import probe
from paceline.bench.ceiling import read_speed
from paceline.bench.figure import check_figure
from paceline.bench.provenance import processor_name, provenance
from paceline.config import check_range
from paceline.engine import PREFILL_CHUNK
from paceline.errors import PacelineError
from paceline.loading import LoadedPair, choose_runtime, load_pair
from released_geometries import NAMES, Geometry, geometry
from synthetic_gguf import DTYPES, SyntheticPair, ordinary_tokens, write_pair

RESULTS = Path(__file__).parent / "results"
READ_BYTES = 512 << 20
QUIET = 0.5


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What is measured with both sides loaded: fields of `Results`."""

    rows: Samples
    prefill: dict[str, list[float]]
    decoding: Decoding
    bandwidths: list[float]
    product_rates: dict[int, float]
    llama: dict[str, Any] | None


def measure(asked: argparse.Namespace, shape: Geometry, files: SyntheticPair) -> Results:
    """Everything, in the order from little memory to much."""
    memory_alone = memory = None
    if asked.memory:
        say("measuring memory and load time, each in a process of its own")
        settings = {"runtime": asked.runtime, "threads": asked.threads, "context": asked.context}
        memory_alone = probe(files.target, None, cold=True, **settings)
        memory = probe(files.target, files.drafter, **settings)
    say("loading")
    pair = load_pair(files.target, files.drafter, runtime=asked.runtime, threads=asked.threads)
    if asked.llama_cpp:
        with LlamaCpp(asked.llama_cpp) as llama:
            measured = measure_both(asked, pair, files.target, llama)
    else:
        measured = measure_both(asked, pair, files.target, None)
    return Results(
        geometry=shape,
        dtype=asked.quant,
        runtime=asked.runtime,
        threads=asked.threads,
        context=asked.context,
        draft=asked.draft,
        prefill_tokens=asked.prefill_tokens,
        memory=memory,
        memory_alone=memory_alone,
        **vars(measured),
    )


def measure_both(
    asked: argparse.Namespace, pair: LoadedPair, target: Path, llama: LlamaCpp | None
) -> Measured:
    """Our side, in turn with llama.cpp where that takes part."""
    needed = max(asked.context + asked.rows, asked.prefill_tokens)
    tokens = ordinary_tokens(needed, pair.target.config.vocab_size)
    context, following = tokens[: asked.context], tokens[asked.context :]
    room = needed + asked.decode_tokens + 1
    sides: list[Side] = [Paceline(pair.target, room, asked.rows)]
    about = None
    if llama:
        about = llama.about | llama.ask(
            "load",
            path=str(target),
            threads=asked.threads,
            max_length=room,
            max_outputs=asked.rows,
        )
        sides.append(LlamaSide(llama))
    bandwidths: list[float] = []
    read = bandwidth_meter(asked.runtime, asked.threads)
    say(f"passes of 1 to {asked.rows} rows after {asked.context} tokens")
    numbers = range(1, asked.rows + 1)
    rows = measure_rows(
        sides, context, following, numbers, asked.repeats, lambda: bandwidths.append(read())
    )
    say("decoding and rounds")
    decoding = measure_decoding(
        pair, context, asked.decode_tokens, asked.draft, asked.repeats, llama
    )
    say(f"prefill of {asked.prefill_tokens} tokens")
    prefill = measure_prefill(sides, tokens[: asked.prefill_tokens], asked.repeats)
    if llama and about:
        about["memory"] = llama.ask("memory")
    return Measured(
        rows=rows,
        prefill=prefill,
        decoding=decoding,
        bandwidths=bandwidths,
        product_rates=product_rates(asked, [*numbers, PREFILL_CHUNK]),
        llama=about,
    )


def bandwidth_meter(runtime: str, threads: int) -> Callable[[], float]:
    """What measures the bytes a second that a plain loop reads on the runtime's own threads."""
    if runtime == "torch":
        return lambda: read_speed(threads, READ_BYTES)
    from paceline import _native

    pool = _native.Pool(threads)
    return lambda: float(_native.read_bandwidth(pool, READ_BYTES))


def product_rates(asked: argparse.Namespace, rows: Sequence[int]) -> dict[int, float]:
    """Products a second by number of rows, of the runtime's kernel with weights in the cache."""
    if asked.runtime == "torch":
        return {}
    from paceline import _native

    pool = _native.Pool(asked.threads)
    return {m: float(_native.product_rate(pool, asked.quant, m)) for m in rows}


# --- The script ---------------------------------------------------------------------------------


def machine_name() -> str:
    """The folder for this machine's results."""
    processor = re.sub(r"[^a-z0-9]+", "-", processor_name().lower()).strip("-")
    return f"{processor}-{os.cpu_count()}-cores"


def default_work() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "paceline" / "synthetic"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--geometry", default="E2B", help=f"one of {', '.join(NAMES)}; default E2B")
    add("--layers", type=int, help="fewer layers, in whole periods; the larger ones default to so")
    add("--quant", default="Q4_0", choices=DTYPES, help="type of the file; default Q4_0")
    add("--work", type=Path, default=default_work(), help="folder of the model files: %(default)s")
    add("--context", type=int, default=512, help="tokens before the measured passes; default 512")
    add("--rows", type=int, default=16, help="largest M; default 16")
    add("--prefill-tokens", type=int, default=512, help="default 512")
    add("--decode-tokens", type=int, default=32, help="of an answer; default 32")
    add("--draft", type=int, default=4, help="draft length of the measured rounds; default 4")
    add("--repeats", type=int, default=7, help="that count, after a warm-up; default 7")
    add("--threads", type=int, default=available_threads(), help="default: %(default)s")
    add("--runtime", default="native", choices=("native", "torch"), help="default native")
    add(
        "--llama-cpp",
        nargs="?",
        const=sys.executable,
        metavar="PYTHON",
        help="compare with llama.cpp: an interpreter that has llama_cpp, else this one",
    )
    add("--no-memory", dest="memory", action="store_false", help="leave out memory and load time")
    add("--results", type=Path, default=RESULTS / machine_name(), help="default: %(default)s")
    add("--no-save", dest="save", action="store_false", help="keep neither JSON nor figure")
    return parser.parse_args(arguments)


def available_threads() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def check(asked: argparse.Namespace) -> None:
    """
    Raises:
        ConfigError: a number is out of range.
    """
    check_range("--rows", asked.rows, 1, 64)
    check_range("--context", asked.context, 2, 1 << 17)
    check_range("--prefill-tokens", asked.prefill_tokens, 2, 1 << 17)
    check_range("--draft", asked.draft, 1, 15)
    check_range("--decode-tokens", asked.decode_tokens, 2 * (asked.draft + 1), 1 << 12)
    check_range("--repeats", asked.repeats, 1, 1000)
    check_range("--threads", asked.threads, 1, 1024)
    choose_runtime(asked.runtime, None)


def run(asked: argparse.Namespace) -> dict[str, Any]:
    """Measure, print the table, keep the results.

    Raises:
        PacelineError: a setting is not possible, the disk is too full, or something is missing.
        LlamaCppError: llama.cpp cannot take part.
    """
    check(asked)
    shape = geometry(asked.geometry, asked.layers)
    path = asked.results / f"verify-cost-{shape.name.lower()}-{asked.quant.lower()}.png"
    if asked.save:
        check_figure(path)
    if asked.llama_cpp:
        LlamaCpp(asked.llama_cpp).close()  # find out before the long part
    load = load_average()
    if load is not None and load > QUIET:
        say(f"other programs keep {load:.1f} processors busy: these times will be worth little")
    say(f"{shape.name}, {shape.layers} layers, {asked.quant}: files in {asked.work}")
    files = write_pair(shape, asked.quant, asked.work)
    results = measure(asked, shape, files)
    where = provenance(threads=asked.threads)
    where["load_average_before"] = load
    found = document(results, where)
    for line in table(found):
        print(line)
    if asked.save:
        asked.results.mkdir(parents=True, exist_ok=True)
        text = json.dumps(found, allow_nan=False, indent=1)
        path.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
        draw(found, path)
    return found


def load_average() -> float | None:
    """Processes that ran or waited over the last minute; None where the system does not say."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    try:
        found = run(parse(arguments))
    except (PacelineError, LlamaCppError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(found, allow_nan=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
