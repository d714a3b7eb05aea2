"""`paceline demo`: one question, answered with drafting off and on, compared and timed."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from paceline.cli import answer, common, options, terminal
from paceline.cli.progress import LateBar
from paceline.errors import ConfigError

if TYPE_CHECKING:
    from paceline.bench.measure import Output
    from paceline.bench.summary import RunSummary
    from paceline.engine import DraftLength, Engine

QUESTION = "How do I list all files, also the hidden ones, with ls?"


def demo(
    question: Annotated[str, typer.Argument(help="What to ask.")] = QUESTION,
    model: options.Model = None,
    drafter: options.Drafter = "auto",
    draft: options.Draft = "4",
    max_tokens: options.MaxTokens = 200,
    repeats: Annotated[int, typer.Option(min=1, help="Counted runs with and without.")] = 5,
    temperature: Annotated[float, typer.Option(help="0 takes the most likely token.")] = 0.0,
    seed: Annotated[int, typer.Option(help="The same for all runs.")] = 0,
    threads: options.Threads = None,
    runtime: options.RuntimeOption = options.Runtime.AUTO,
    dtype: options.DtypeOption = None,
    no_progress: options.NoProgress = False,
) -> None:
    """See what drafting does: the same answer, and how much sooner.

    The exit status is 1 if the two answers differ.
    """
    length = options.parse_draft(draft)
    if not length:
        raise ConfigError("--draft must be auto, or 1 or more: the demo compares it with off.")
    engine = common.load_engine(
        model,
        drafter,
        runtime=runtime,
        dtype=dtype,
        threads=threads,
        learns=length == "auto",
        progress=not no_progress,
    )
    settings = common.AnswerSettings(
        sampling=common.sampling_params(engine, temperature=temperature, seed=seed),
        max_tokens=max_tokens,
        show_draft=True,
        progress=not no_progress,
    )
    common.check_draft(engine, length)
    print(f"question: {question}\n", flush=True)
    with common.at_work(engine):
        plain = _shown("drafting off", engine, question, settings, 0)
        title = "drafting what pays" if length == "auto" else f"drafting {length} tokens a round"
        drafted = _shown(title, engine, question, settings, length)
        off, on = _timed(engine, question, settings, length, repeats)
    equal = plain == drafted and off.equal and on.equal
    print(_verdict(plain, equal))
    for line in _figures(off, on, repeats):
        print(line)
    if not equal:
        raise typer.Exit(1)


def _shown(
    title: str, engine: Engine, question: str, settings: common.AnswerSettings, draft: DraftLength
) -> Output:
    """Print one answer as it comes, drafted tokens underlined where a terminal shows it."""
    from paceline.bench.measure import output_of

    marks = draft and terminal.takes_marks(sys.stdout)
    print(f"--- {title}" + (", what it foresaw underlined" if marks else ""), flush=True)
    settings.draft = draft
    result = answer.stream_answer(engine, question, settings)
    if result.finish_reason == "cancelled":
        raise KeyboardInterrupt
    print(flush=True)
    return output_of(result)


def _timed(
    engine: Engine,
    question: str,
    settings: common.AnswerSettings,
    draft: DraftLength,
    repeats: int,
) -> tuple[RunSummary, RunSummary]:
    from paceline.bench.measure import Plan, measure_prompt
    from paceline.bench.prompts import BenchPrompt
    from paceline.bench.summary import summarise

    plan = Plan(
        drafts=(0, draft),
        repeats=repeats,
        max_tokens=settings.max_tokens,
        sampling=settings.sampling,
    )
    prompt = BenchPrompt(name="demo", kind="demo", turns=(question,))
    with LateBar("timing", enabled=settings.progress) as bar:
        runs = measure_prompt(engine, prompt, plan, lambda done: bar(done, plan.num_runs))
    off, on = summarise(runs)
    return off, on


def _verdict(plain: Output, equal: bool) -> str:
    if not equal:
        return "The answers DIFFER. This is a fault of Paceline: drafting must not change the text."
    size = len(plain.text.encode("utf-8"))
    return f"The two answers are equal: {size} bytes, {len(plain.token_ids)} tokens."


def _figures(off: RunSummary, on: RunSummary, repeats: int) -> list[str]:
    """Acceptance and speed, as measured, also where drafting does not pay."""
    lines = []
    if on.acceptance_length is not None and on.totals.acceptance_rate is not None:
        lines.append(
            f"acceptance length {on.acceptance_length:.2f} tokens a round, "
            f"{100 * on.totals.acceptance_rate:.0f} % of drafts accepted"
        )
    if on.ratio is None or on.decode_tps is None or off.decode_tps is None:
        return [*lines, "speed-up not measured: the answer is too short."]
    ratio = on.ratio
    lines.append(
        f"speed-up {ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f}): "
        f"{on.decode_tps.median:.1f} against {off.decode_tps.median:.1f} tokens/s, "
        f"medians of {repeats} runs in turn"
    )
    if ratio.median < 1.0:
        lines.append("Here drafting is slower than not drafting.")
    return lines
