"""`paceline generate`: answer one prompt, from the command line or a pipe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from paceline.cli import answer, common, options
from paceline.cli.prompt_input import read_prompt, read_text_file
from paceline.errors import ConfigError

if TYPE_CHECKING:
    from paceline.engine import Prompt


def generate(
    prompt: Annotated[
        str | None, typer.Argument(help="The prompt; text that is piped in follows it.")
    ] = None,
    model: options.Model = None,
    drafter: options.Drafter = "auto",
    draft: options.Draft = "auto",
    prediction: options.Prediction = None,
    remember: options.Remember = False,
    max_tokens: options.MaxTokens = options.MAX_TOKENS,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
    seed: options.Seed = None,
    stop: options.Stop = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the prompt as plain text, without chat format.")
    ] = False,
    system: options.System = None,
    think: options.Think = False,
    show_draft: options.ShowDraft = False,
    stats: options.Stats = None,
    trace: options.Trace = None,
    threads: options.Threads = None,
    runtime: options.RuntimeOption = options.Runtime.AUTO,
    dtype: options.DtypeOption = None,
    no_progress: options.NoProgress = False,
) -> None:
    """Answer one prompt. Standard output carries the model's text and nothing else."""
    length = common.parse_drafting(draft, trace, prediction=prediction, remember=remember)
    _check_raw(raw, system, think)
    predicted = None if prediction is None else read_text_file(prediction, "--prediction")
    text = read_prompt(prompt, keep_line_end=raw)
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
        prediction=predicted,
        raw=raw,
        thinking=think,
        show_draft=show_draft,
        stats=answer.default_stats(stats),
        progress=not no_progress,
    )
    if show_draft:
        answer.show_legend()
    with common.at_work(engine, trace):
        result = answer.stream_answer(engine, _with_system(text, system), settings)
    if result.finish_reason == "cancelled":
        raise KeyboardInterrupt


def _check_raw(raw: bool, system: str | None, think: bool) -> None:
    for name, given in (("--system", system is not None), ("--think", think)):
        if raw and given:
            raise ConfigError(f"{name} belongs to the chat format: leave out {name} or --raw.")


def _with_system(text: str, system: str | None) -> Prompt:
    if system is None:
        return text
    from paceline.chat import Message

    return [Message(role="system", content=system), Message(role="user", content=text)]
