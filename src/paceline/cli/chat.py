"""`paceline chat`: a conversation, on a terminal or line by line through a pipe."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from paceline.cli import answer, common, options, terminal
from paceline.cli.line_input import LineInput, PipedInput, TerminalInput

if TYPE_CHECKING:
    from paceline.engine import Engine


def chat(
    model: options.Model = None,
    drafter: options.Drafter = "auto",
    draft: options.Draft = "auto",
    remember: options.Remember = False,
    max_tokens: options.MaxTokens = options.MAX_TOKENS,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
    seed: options.Seed = None,
    stop: options.Stop = None,
    system: options.System = None,
    think: options.Think = False,
    show_draft: options.ShowDraft = False,
    stats: options.Stats = None,
    trace: options.Trace = None,
    no_history: Annotated[
        bool, typer.Option("--no-history", help="Do not keep typed lines for the next time.")
    ] = False,
    threads: options.Threads = None,
    runtime: options.RuntimeOption = options.Runtime.AUTO,
    dtype: options.DtypeOption = None,
    no_progress: options.NoProgress = False,
) -> None:
    """Talk with the model. Ctrl-C stops an answer, Ctrl-D leaves, /help lists commands.

    Through a pipe each line is a turn, and standard output carries the answers only.
    """
    length = common.parse_drafting(draft, trace, remember=remember)
    interactive = terminal.is_terminal(sys.stdin)
    source: LineInput = TerminalInput(keep_history=not no_history) if interactive else PipedInput()
    engine = common.load_engine(
        model,
        drafter,
        runtime=runtime,
        dtype=dtype,
        threads=threads,
        learns=length == "auto",
        remembers=remember,
        progress=not no_progress,
    )
    settings = common.AnswerSettings(
        sampling=common.sampling_params(
            engine, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed
        ),
        max_tokens=max_tokens,
        stop=tuple(stop or ()),
        draft=common.check_draft(engine, length),
        thinking=think,
        show_draft=show_draft,
        stats=answer.default_stats(stats),
        progress=not no_progress,
    )
    with common.at_work(engine, trace):
        well = _run(engine, settings, system, source, interactive=interactive)
    if not well:
        raise typer.Exit(1)


def _run(
    engine: Engine,
    settings: common.AnswerSettings,
    system: str | None,
    source: LineInput,
    *,
    interactive: bool,
) -> bool:
    """Talk until the end. False if a turn of a piped conversation failed."""
    from paceline.cli.chat_session import ChatSession

    session = ChatSession(engine, settings, system=system, interactive=interactive)
    if interactive:
        terminal.note("/help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves.")
    if settings.show_draft:
        answer.show_legend()
    session.run(source)
    return interactive or not session.failed
