"""`paceline bench`: the same prompts with drafting off and on in turn, outputs compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from paceline.cli import common, options, terminal
from paceline.cli.progress import LateBar
from paceline.errors import ConfigError, PromptError

if TYPE_CHECKING:
    from paceline.bench.ceiling import Ceiling
    from paceline.bench.measure import Plan, Skipped
    from paceline.bench.prompts import BenchPrompt
    from paceline.bench.summary import RunSummary
    from paceline.calibration import Calibration
    from paceline.engine import DraftLength, Engine


def bench(
    model: options.Model = None,
    drafter: options.Drafter = "auto",
    compare: Annotated[
        str,
        typer.Option(metavar="off,N,auto,...", help="Draft lengths; off is always among them."),
    ] = "off,2,4,auto",
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="JSONL of prompts: kind and prompt, or Spec-Bench, GSM8K, "
            "HumanEval. Default: the project's own.",
        ),
    ] = None,
    kind: Annotated[
        list[str] | None, typer.Option(help="Only prompts of this kind. Repeatable.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most this many prompts of each kind.")
    ] = None,
    repeats: Annotated[
        int, typer.Option(min=1, help="Counted runs of each prompt and draft length.")
    ] = 5,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 takes the most likely token.")] = 0.0,
    seed: Annotated[int, typer.Option(help="The same for all runs.")] = 0,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the document here.")
    ] = None,
    figure: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw speed-up and acceptance: .svg, .png.")
    ] = None,
    explain: Annotated[
        bool,
        typer.Option(
            "--explain",
            help="Show costs, acceptance by position, and predicted against measured speed-up; "
            "with --figure also in FILE-explain.",
        ),
    ] = False,
    trace: options.Trace = None,
    threads: options.Threads = None,
    runtime: options.RuntimeOption = options.Runtime.AUTO,
    dtype: options.DtypeOption = None,
    no_progress: options.NoProgress = False,
) -> None:
    """Measure drafting: runs in turn, outputs compared, medians and spread.

    The last line of standard output is one JSON document. The exit status is 1 if any output
    differs from that without drafting.
    """
    drafts = parse_compare(compare)
    _check_explain(explain, drafts)
    _check_outputs(json_file, figure, trace)
    chosen = _chosen_prompts(prompts, kind or [], limit)
    engine = common.load_engine(
        model,
        drafter,
        runtime=runtime,
        dtype=dtype,
        threads=threads,
        learns="auto" in drafts,
        progress=not no_progress,
    )
    plan = _plan(engine, drafts, repeats, max_tokens, temperature, seed)
    ceiling = _ceiling(engine)
    calibration = engine.measure_costs() if explain else None
    with common.at_work(engine, trace):
        summaries, skipped = _measured(engine, chosen, plan, progress=not no_progress)
    report = _reported(summaries, skipped, plan, ceiling, _conditions(engine))
    if calibration is not None and summaries:
        report["explanation"] = _explained(summaries, calibration, figure)
    _write_files(report, summaries, json_file, figure)
    print(json.dumps(report, allow_nan=False))
    if not summaries:
        raise PromptError(f"none of the {len(chosen)} prompts could be measured, see above.")
    if not all(summary.equal for summary in summaries):
        raise typer.Exit(1)


def parse_compare(text: str) -> tuple[DraftLength, ...]:
    """Draft lengths, each once, 0 first.

    Raises:
        ConfigError: a part is neither "auto" nor "off" nor a whole number.
    """
    lengths = [options.parse_draft(part.strip(), option="--compare") for part in text.split(",")]
    return tuple(dict.fromkeys([0, *(length for length in lengths if length)]))


def _check_explain(explain: bool, drafts: tuple[DraftLength, ...]) -> None:
    if explain and not any(isinstance(draft, int) and draft for draft in drafts):
        raise ConfigError("--explain needs a draft length to learn from: --compare off,8,auto.")


def _check_outputs(json_file: Path | None, figure: Path | None, trace: Path | None) -> None:
    """Find out before a long run whether its results can be written."""
    if trace is not None:
        from paceline.speculative.trace import check_trace

        check_trace(trace)
    for option, path in (("--json", json_file), ("--figure", figure)):
        if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
            raise ConfigError(f"{option} {path} is not a file in a folder that exists.")
    if figure is not None:
        from paceline.bench.figure import check_figure

        check_figure(figure)


def _chosen_prompts(path: Path | None, kinds: list[str], limit: int | None) -> list[BenchPrompt]:
    from paceline.bench.prompts import bundled_prompts, read_prompts, select

    return select(read_prompts(path) if path else bundled_prompts(), kinds=kinds, limit=limit)


def _plan(
    engine: Engine,
    drafts: tuple[DraftLength, ...],
    repeats: int,
    max_tokens: int,
    temperature: float,
    seed: int,
) -> Plan:
    from paceline.bench.measure import Plan

    for draft in drafts:
        common.check_draft(engine, draft, option="--compare")
    sampling = common.sampling_params(engine, temperature=temperature, seed=seed)
    return Plan(drafts=drafts, repeats=repeats, max_tokens=max_tokens, sampling=sampling)


def _measured(
    engine: Engine, prompts: list[BenchPrompt], plan: Plan, *, progress: bool
) -> tuple[list[RunSummary], list[Skipped]]:
    from paceline.bench.measure import measure
    from paceline.bench.summary import summarise

    with LateBar("measuring", enabled=progress) as bar:
        runs, skipped = measure(engine, prompts, plan, bar)
    for prompt in skipped:
        terminal.note(f"skipped: {prompt.prompt.name}: {prompt.reason}")
    return summarise(runs), skipped


def _ceiling(engine: Engine) -> Ceiling:
    from paceline.bench.ceiling import measure_ceiling
    from paceline.bench.report import ceiling_line

    ceiling = measure_ceiling(engine.pair)
    print(ceiling_line(ceiling), flush=True)
    return ceiling


def _conditions(engine: Engine) -> dict[str, object]:
    """What was measured, and on what."""
    from paceline.bench.provenance import provenance

    model = {
        "name": engine.pair.name,
        "runtime": engine.pair.runtime,
        "dtype": engine.pair.dtype,
        "target_parameters": engine.pair.num_target_parameters,
        "drafter_parameters": engine.pair.num_drafter_parameters,
    }
    return {**provenance(threads=engine.pair.threads), "model": model}


def _reported(
    summaries: list[RunSummary],
    skipped: list[Skipped],
    plan: Plan,
    ceiling: Ceiling,
    conditions: dict[str, object],
) -> dict[str, object]:
    """Print the table, and return the document."""
    from paceline.bench.report import document, reached_line, table

    for line in [*table(summaries), *reached_line(summaries, ceiling)]:
        print(line)
    return document(summaries, skipped, plan, ceiling, conditions)


def _explained(
    summaries: list[RunSummary], calibration: Calibration, figure: Path | None
) -> dict[str, object]:
    """Print the explanation, draw it, and return the document."""
    from paceline.bench.explain import explain, explanation_document, explanation_lines
    from paceline.bench.figure import draw_explanation

    explanation = explain(summaries, calibration)
    for line in explanation_lines(explanation):
        print(line)
    if figure is not None:
        draw_explanation(explanation, figure.with_name(f"{figure.stem}-explain{figure.suffix}"))
    return explanation_document(explanation)


def _write_files(
    report: dict[str, object],
    summaries: list[RunSummary],
    json_file: Path | None,
    figure: Path | None,
) -> None:
    from paceline.bench.figure import draw
    from paceline.bench.summary import by_kind

    if json_file is not None:
        json_file.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    if figure is not None:
        draw(by_kind(summaries), figure)
