"""Writes the measured figures of the documents from the recorded results.

    python benchmarks/tables.py            # in place
    python benchmarks/tables.py --check    # changes nothing; exit 1 and names what differs

A table stands between `<!-- table: NAME -->` and `<!-- end -->`, figures within a sentence between
`<!-- figures: NAME -->` and `<!-- end -->`. One function here says how each of them is worded; what
it says is in results/ alone.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = Path("benchmarks/results")
PART = re.compile(r"(<!-- (table|figures): (\S+) -->)(.*?)(<!-- end -->)", re.DOTALL)
OPENING = re.compile(r"<!-- (table|figures): (\S+) -->")

NUM_ROWS = (1, 2, 4, 5, 8, 16)  # of a pass, in the tables of verify_cost
FIXED_DRAFT = 4  # the draft length that stands for fixed ones


class TablesError(Exception):
    """A document or a result lacks something, by name."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """A recorded document, or a row of one, that names the key it lacks."""

    name: str
    value: Any

    def at(self, *keys: str) -> Any:
        """The value under keys of objects within objects.

        Raises:
            TablesError: a key is missing, or its value is null.
        """
        value = self.value
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        if value is None:
            raise TablesError(f"{self.name} has no value for {'.'.join(keys)}. Record it again.")
        return value

    def rows(self, key: str) -> list[Record]:
        """Each element of a list."""
        return [
            Record(name=f"{self.name}, {key}[{number}],", value=row)
            for number, row in enumerate(self.at(key))
        ]

    def row(self, key: str, **wanted: object) -> Record:
        """The element of a list that has these values.

        Raises:
            TablesError: there is none.
        """
        for row in self.rows(key):
            if all(row.at(name) == value for name, value in wanted.items()):
                return row
        asked = ", ".join(f"{name}={value!r}" for name, value in wanted.items())
        raise TablesError(f"{self.name} has no row in {key} with {asked}. Record it again.")


Write = Callable[..., list[str]]


@dataclass(frozen=True, kw_only=True)
class Part:
    """How a part is written, and the results that it is written from."""

    write: Write
    results: tuple[str, ...]


PARTS: dict[tuple[str, str], Part] = {}  # by kind and name, as in the marker


def part(kind: str, name: str, *results: str) -> Callable[[Write], Write]:
    """Registers a function that takes these results as records and returns lines of Markdown."""

    def register(write: Write) -> Write:
        PARTS[kind, name] = Part(write=write, results=results)
        return write

    return register


# --- Words --------------------------------------------------------------------------------------


def milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.1f}"


def percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:z.{digits}f} %".replace("-", "−")


def span(ends: Sequence[float]) -> str:
    low, high = ends
    return f"{low:.2f} to {high:.2f}"


def table(header: Iterable[object], rows: Iterable[Iterable[object]]) -> list[str]:
    header = list(header)
    return [line(header), "|" + "---|" * len(header), *map(line, rows)]


def line(cells: Iterable[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


# --- The cost of checking -----------------------------------------------------------------------

MACHINE = "amd-epyc-2-cores"
E2B = f"{MACHINE}/verify-cost-e2b-q4_0.json"
E2B_ZEN_5 = f"{MACHINE}/verify-cost-e2b-q4_0-zen-5.json"
E4B = f"{MACHINE}/verify-cost-e4b-q4_0.json"


def pass_rows(name: str, run: Record, *side: str) -> list[list[object]]:
    """Two rows of a table: times, and what they are in passes of one row."""
    times = [milliseconds(run.at(*side, "T_s", str(rows))) for rows in NUM_ROWS]
    ratios = [f"{run.at(*side, 'v', str(rows)):.2f}" for rows in NUM_ROWS]
    return [[f"{name}, ms", *times], ["in passes of one row", *ratios]]


@part("table", "verify-cost", E2B, E4B)
def verify_cost(e2b: Record, e4b: Record) -> list[str]:
    rows = [
        *pass_rows("E2B", e2b),
        *pass_rows("E2B in llama.cpp", e2b, "llama_cpp"),
        *pass_rows("E4B", e4b),
    ]
    return table(["rows in one pass", *NUM_ROWS], rows)


@part("figures", "verify-cost-zen-5", E2B_ZEN_5)
def verify_cost_zen_5(e2b: Record) -> list[str]:
    ratios = ", ".join(f"{e2b.at('v', str(rows)):.2f}" for rows in NUM_ROWS)
    return [f"{ratios} passes of one row, which took {milliseconds(e2b.at('T_s', '1'))} ms"]


@part("figures", "verify-cost-speeds", E2B)
def verify_cost_speeds(e2b: Record) -> list[str]:
    ours, theirs = e2b.at("decode_tps"), e2b.at("llama_cpp", "decode_tps")
    prompt, their_prompt = e2b.at("prefill_tps"), e2b.at("llama_cpp", "prefill_tps")
    return [
        f"{ours:.1f} against {theirs:.1f} tokens a second, a prompt of {e2b.at('prefill_tokens')} "
        f"tokens at {prompt:,.0f} against {their_prompt:,.0f}"
    ]


@part("figures", "verify-cost-spread", E2B)
def verify_cost_spread(e2b: Record) -> list[str]:
    low, high = e2b.at("T_s_spread", "1")
    return [f"{1000 * low:.0f} to {1000 * high:.0f} ms"]


@part("figures", "memory", E2B)
def memory(e2b: Record) -> list[str]:
    resident, peak = e2b.at("memory", "rss_bytes") / 1e6, e2b.at("peak_rss_bytes") / 1e6
    share, drafter = e2b.at("resident_share"), e2b.at("drafter_rss_bytes") / 1e6
    return [
        f"{resident:,.0f} MB resident, {share:.2f} times weights in use and KV, and at most "
        f"{peak:,.0f} MB at any time; the drafter is {drafter:.0f} MB of it"
    ]


@part("figures", "load", E2B)
def load_time(e2b: Record) -> list[str]:
    warm, cold = e2b.at("load_s"), e2b.at("load_cold_s")
    return [f"{warm:.1f} s, {cold:.1f} s with the file not in memory"]


# --- The shipped pair on prompts ----------------------------------------------------------------

SHIPPED = f"{MACHINE}/bench-shipped-pair.json"
OTHER_PROMPTS = {
    "Spec-Bench": f"{MACHINE}/bench-spec_bench.json",
    "HumanEval": f"{MACHINE}/bench-humaneval.json",
    "GSM8K": f"{MACHINE}/bench-gsm8k_test.json",
}


@part("table", "kinds", SHIPPED)
def kinds(bench: Record) -> list[str]:
    fixed = [draft or "off" for draft in bench.at("settings", "drafts") if draft != "auto"]
    header = [
        "kind of prompt",
        "draft length by itself",
        "lowest to highest prompt",
        f"against the best of {', '.join(map(str, fixed))}",
        f"with {FIXED_DRAFT} draft tokens",
    ]
    names = dict.fromkeys(row.at("kind") for row in bench.rows("kinds"))
    return table(header, (kind_row(bench, name) for name in names))


def kind_row(bench: Record, name: str) -> list[str]:
    auto = bench.row("kinds", kind=name, draft="auto")
    best = bench.row("auto_against_best", kind=name)
    fixed = bench.row("kinds", kind=name, draft=FIXED_DRAFT)
    return [
        name,
        f"{auto.at('ratio'):.2f}",
        span(auto.at("ratio_spread")),
        f"{best.at('ratio'):.2f}",
        f"{fixed.at('ratio'):.2f}",
    ]


@part("figures", "kinds-counts", SHIPPED)
def kinds_counts(bench: Record) -> list[str]:
    prompts = {row.at("prompt") for row in bench.rows("runs")}
    repeats = bench.at("settings", "repeats")
    return [f"{len(prompts)} prompts, medians of {repeats} interleaved repeats"]


@part("figures", "kinds-noise", SHIPPED)
def kinds_noise(bench: Record) -> list[str]:
    spreads = [row.at("noise_spread") for row in bench.rows("runs") if row.at("draft") == 0]
    return [span((min(low for low, _ in spreads), max(high for _, high in spreads)))]


@part("figures", "kinds-passes", SHIPPED)
def kinds_passes(bench: Record) -> list[str]:
    one, two = (1000 * bench.at("explanation", "passes_s", rows) for rows in ("1", "2"))
    return [f"a pass of one row takes {one:.2f} ms and one of two rows {two:.2f}"]


@part("figures", "other-prompts", *OTHER_PROMPTS.values())
def other_prompts(*benches: Record) -> list[str]:
    # Of several kinds the last row is all of them; the links are the README's.
    ratios = [bench.rows("auto_against_best")[-1].at("ratio") for bench in benches]
    named = zip(OTHER_PROMPTS.items(), ratios, strict=True)
    return [", ".join(f"[{name}]({RESULTS / path}) {ratio:.2f}" for (name, path), ratio in named)]


@part("figures", "slower-prompts", SHIPPED, *OTHER_PROMPTS.values())
def slower_prompts(*benches: Record) -> list[str]:
    names = ("these prompts", *OTHER_PROMPTS)
    counts = (
        f"{len(bench.at('slower_than_off'))} of "
        f"{len({row.at('prompt') for row in bench.rows('runs')})} of {name}"
        for name, bench in zip(names, benches, strict=True)
    )
    return [", ".join(counts)]


# --- Never slower -------------------------------------------------------------------------------

NEVER_SLOWER = f"{MACHINE}/never-slower.json"
NEVER_SLOWER_E2B = f"{MACHINE}/never-slower-e2b.json"


@part("table", "never-slower", NEVER_SLOWER)
def never_slower(measured: Record) -> list[str]:
    return ways(measured)


@part("table", "never-slower-e2b", NEVER_SLOWER_E2B)
def never_slower_e2b(measured: Record) -> list[str]:
    return ways(measured)


def ways(measured: Record) -> list[str]:
    header = ("case", "drafting", "against", "speed", "worst prompt")
    rows = (
        (
            *(row.at("part"), row.at("way"), row.at("against")),
            *(f"{row.at('speed'):.3f}", f"{row.at('worst'):.3f}"),
        )
        for row in measured.rows("never_slower")
    )
    return table(header, rows)


@part("figures", "never-slower-counts", NEVER_SLOWER)
def never_slower_counts(measured: Record) -> list[str]:
    return [counts(measured)]


@part("figures", "never-slower-e2b-counts", NEVER_SLOWER_E2B)
def never_slower_e2b_counts(measured: Record) -> list[str]:
    return [counts(measured)]


def counts(measured: Record) -> str:
    repeats = measured.at("repeats")
    how = f"the fastest of {repeats} interleaved repeats" if repeats > 1 else "ways taking turns"
    return f"{measured.at('prompts')} prompts, {measured.at('tokens')} tokens each, {how}"


@part("figures", "texts", NEVER_SLOWER)
def texts(measured: Record) -> list[str]:
    known, greedy, sampled = (
        measured.row("never_slower", part=part, way=way, against="drafter alone").at("speed")
        for part, way in (
            ("answer known but for a word", "with a prediction"),
            ("greedy", "drafter and texts"),
            ("sampled", "drafter and texts"),
        )
    )
    return [
        f"a prediction makes it {known:.2f} times as fast as the drafter alone; texts that repeat "
        f"themselves make greedy answers of {measured.at('tokens')} tokens {greedy:.2f} times as "
        f"fast, sampled ones {sampled:.2f} times"
    ]


@part("figures", "always-wrong", NEVER_SLOWER)
def always_wrong(measured: Record) -> list[str]:
    row = measured.row("never_slower", part="cannot win", way="always wrong", against="off")
    added = 1 / row.at("speed") - 1
    how = "longer" if added >= 0 else "less"
    return [f"{measured.at('tokens')} tokens take {percent(abs(added), 0)} {how}"]


# --- Simulated ----------------------------------------------------------------------------------

SIMULATED = "simulated/controller.json"
REGRETS = {
    ("steady", "cold"): "first answer of an engine that knows no drafter",
    ("steady", "warm"): "later answers",
    ("changing", "cold"): "kinds that take turns, first answer",
    ("changing", "warm"): "the same, later answers",
}


@part("table", "simulated-regret", SIMULATED)
def simulated_regret(simulated: Record) -> list[str]:
    rows = (
        (words, *(percent(simulated.at(*keys, which)) for which in ("mean_regret", "worst_regret")))
        for keys, words in REGRETS.items()
    )
    return table(("time lost to the best fixed length in hindsight", "mean", "worst"), rows)


@part("figures", "simulated-loss", SIMULATED)
def simulated_loss(simulated: Record) -> list[str]:
    mean = max(simulated.at(*keys, "mean_regret") for keys in REGRETS)
    worst = max(simulated.at(*keys, "worst_regret") for keys in REGRETS)
    return [f"{percent(mean, 0)} on average to the best length and {percent(worst, 0)} at worst"]


@part("figures", "simulated-adverse", SIMULATED)
def simulated_adverse(simulated: Record) -> list[str]:
    wrong, wrong_worst = adversity(simulated, "always wrong")
    slow, slow_worst = adversity(simulated, "and ten times as slow")
    return [
        f"{wrong} on average over texts, {wrong_worst} on the worst; one that is ten times as slow "
        f"besides, {slow}, and {slow_worst}"
    ]


def adversity(simulated: Record, drafter: str) -> tuple[str, str]:
    """The lowest and highest mean loss of a machine, and the worst loss of all."""
    rows = [row for row in simulated.rows("adverse") if row.at("drafter") == drafter]
    if not rows:
        raise TablesError(f"{simulated.name} has no row in adverse with drafter={drafter!r}.")
    means = [row.at("mean_loss") for row in rows]
    worst = max(row.at("worst_loss") for row in rows)
    return f"{100 * min(means):.1f} to {percent(max(means))}", percent(worst)


REPLAYED = "simulated/replay-shipped-pair.json"
REPLAYED_SETS = {
    "own": "the project's own prompts",
    "gsm8k_test": "GSM8K",
    "humaneval": "HumanEval",
    "spec_bench": "Spec-Bench",
}


@part("table", "replayed", REPLAYED)
def replayed(found: Record) -> list[str]:
    header = ("answers to", "speed", "against the best of each kind", "below 0.98 of off", "lowest")
    rows = (
        replayed_row(found.row("sets", name=name), title) for name, title in REPLAYED_SETS.items()
    )
    return table(header, rows)


def replayed_row(row: Record, title: str) -> list[str]:
    return [
        title,
        f"{row.at('total', 'speed'):.2f}",
        f"{row.at('total', 'against_best'):.2f}",
        f"{row.at('below_few')} of {row.at('prompts')}",
        f"{row.at('worst_speed'):.2f} ({row.at('worst_tokens')} tokens)",
    ]


@part("figures", "replayed-adverse", REPLAYED)
def replayed_adverse(found: Record) -> list[str]:
    said = []
    for engine in ("knows nothing", "knows its profile"):
        rows = (found.row("adverse", engine=engine, drafter=name) for name in ADVERSE)
        said.append(", ".join(percent(row.at("mean_loss")) for row in rows))
    return [f"{said[0]}, and where the engine has a profile that promises the contrary {said[1]}"]


ADVERSE = ("always wrong", "ten times slower", "both")


# --- Documents ----------------------------------------------------------------------------------


def documents(root: Path) -> list[Path]:
    """Where parts may stand."""
    patterns = ("*.md", "docs/**/*.md", "benchmarks/*.md")
    return [path for pattern in patterns for path in sorted(root.glob(pattern))]


def record(root: Path, name: str) -> Record:
    """A result from its file."""
    path = RESULTS / name
    try:
        return Record(name=str(path), value=json.loads((root / path).read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise TablesError(f"{path} is missing. Record it, or remove what names it.") from None
    except ValueError as error:
        raise TablesError(f"{path} is not JSON: {error}.") from None


def written(root: Path, kind: str, name: str) -> str:
    """What stands between the markers of a part.

    Raises:
        TablesError: there is no such part, or a result lacks what it says.
    """
    if (kind, name) not in PARTS:
        known = ", ".join(other for of, other in PARTS if of == kind)
        raise TablesError(f"there is no {kind} {name!r}. Known: {known}.")
    found = PARTS[kind, name]
    lines = found.write(*(record(root, result) for result in found.results))
    return "\n\n" + "\n".join(lines) + "\n\n" if kind == "table" else " ".join(lines)


def rewritten(root: Path, text: str) -> tuple[str, list[str]]:
    """A document as the results have it, and the names of its parts that were not.

    Raises:
        TablesError: as in `written`, or a part has no end.
    """
    changed = []

    def replaced(match: re.Match[str]) -> str:
        opening, kind, name, body, end = match.groups()
        new = written(root, kind, name)
        if new != body:
            changed.append(f"{kind} {name}")
        return opening + new + end

    check_ends(text)
    return PART.sub(replaced, text), changed


def check_ends(text: str) -> None:
    ended = {match.start() for match in PART.finditer(text)}
    for match in OPENING.finditer(text):
        if match.start() not in ended:
            raise TablesError(f"{match[0]} is inside another part, or a part has no <!-- end -->.")


def update(root: Path, *, check: bool) -> list[str]:
    """Writes all documents, or only looks. Returns what differed, by document and part."""
    differing = []
    for path in documents(root):
        text = path.read_text(encoding="utf-8")
        try:
            new, changed = rewritten(root, text)
        except TablesError as error:
            raise TablesError(f"{path.relative_to(root)}: {error}") from None
        differing += [f"{path.relative_to(root)}: {name}" for name in changed]
        if changed and not check:
            path.write_text(new, encoding="utf-8")
    return differing


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if it would")
    asked = parser.parse_args(arguments)
    try:
        differing = update(root, check=asked.check)
    except TablesError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for name in differing:
        print(f"{name} {'is not what is recorded' if asked.check else 'is written'}")
    return int(asked.check and bool(differing))


if __name__ == "__main__":
    sys.exit(main())
