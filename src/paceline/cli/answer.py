"""Streams one answer: its text to standard output, all else about it to standard error."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TextIO

from paceline.cli import terminal
from paceline.cli.common import AnswerSettings
from paceline.cli.footer import footer, stats_json
from paceline.cli.options import StatsFormat
from paceline.cli.progress import LateBar

if TYPE_CHECKING:
    from paceline.engine import Engine, Generation, Prompt
    from paceline.output import Delta


def stream_answer(engine: Engine, prompt: Prompt, settings: AnswerSettings) -> Generation:
    """Ask, show the answer as it comes, and say what it cost.

    An interrupt ends the answer; what was written stands, with the finish reason "cancelled".
    """
    writer = AnswerWriter(show_draft=settings.show_draft)
    with (
        LateBar("reading the prompt", enabled=settings.progress) as bar,
        engine.stream(
            prompt,
            raw=settings.raw,
            thinking=settings.thinking,
            sampling=settings.sampling,
            max_tokens=settings.max_tokens,
            stop=settings.stop,
            draft=settings.draft,
            prediction=settings.prediction,
            prefill_progress=bar,
        ) as stream,
    ):
        try:
            for delta in stream:
                bar.close()
                writer.write(delta)
        except KeyboardInterrupt:
            stream.close()
        finally:
            writer.finish()
    show_stats(stream.result, settings.stats)
    return stream.result


def default_stats(asked: StatsFormat | None) -> StatsFormat:
    """A footer where a person reads it, nothing where a program does."""
    if asked is not None:
        return asked
    return StatsFormat.FOOTER if terminal.is_terminal(sys.stderr) else StatsFormat.NONE


def show_stats(result: Generation, form: StatsFormat) -> None:
    if form is StatsFormat.JSON:
        terminal.note(stats_json(result))
    elif form is StatsFormat.FOOTER:
        line = footer(result)
        terminal.note(terminal.dimmed(line) if terminal.takes_marks(sys.stderr) else line)


def show_legend() -> None:
    """Say what `--show-draft` marks, or why it cannot."""
    if terminal.takes_marks(sys.stdout):
        terminal.note(f"{terminal.drafted('underlined')}: tokens that the drafter had foreseen")
    else:
        terminal.note(
            "note: --show-draft marks text on a terminal only. "
            "Set FORCE_COLOR=1 to keep the marks in a pipe."
        )


class AnswerWriter:
    """Writes the deltas of one answer. Reasoning and tool calls go to standard error."""

    def __init__(self, *, show_draft: bool = False) -> None:
        self._marks_drafts = show_draft and terminal.takes_marks(sys.stdout)
        self._open_line: dict[TextIO, bool] = {}

    def write(self, delta: Delta) -> None:
        if delta.kind == "text":
            self._end_line(sys.stderr)
            self._write(sys.stdout, delta.text, marked=self._marks_drafts and delta.drafted)
        elif delta.kind == "reasoning":
            self._write(sys.stderr, delta.text, dim=True)
        elif delta.tool_call is not None:
            self._end_line(sys.stderr)
            terminal.note(f"tool call: {delta.tool_call}")

    def _write(self, stream: TextIO, text: str, *, marked: bool = False, dim: bool = False) -> None:
        if not text:
            return
        self._open_line[stream] = not text.endswith("\n")
        if terminal.is_terminal(stream):
            text = terminal.visible(text)
        if marked:
            text = terminal.drafted(text)
        if dim and terminal.takes_marks(stream):
            text = terminal.dimmed(text)
        stream.write(text)
        stream.flush()

    def _end_line(self, stream: TextIO) -> None:
        if self._open_line.pop(stream, False):
            stream.write("\n")
            stream.flush()

    def finish(self) -> None:
        """End lines that the answer left open."""
        self._end_line(sys.stderr)
        self._end_line(sys.stdout)
