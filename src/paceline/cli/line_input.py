"""Where the lines of a chat come from: a terminal with history, or a pipe.

Also joins lines between triple quotes to one message. Knows no engine and no commands.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from paceline.cli import environment
from paceline.cli.prompt_input import piped_lines
from paceline.cli.terminal import note
from paceline.errors import MissingDependencyError

if TYPE_CHECKING:
    from prompt_toolkit.history import History

PROMPT = ">>> "
CONTINUATION = "... "
QUOTES = '"""'


class LineInput(Protocol):
    def read_line(self, prompt: str) -> str:
        """The next line, without its end. Raises EOFError after the last one, and
        KeyboardInterrupt where the user threw the line away."""


class PipedInput:
    """Lines of standard input, without a prompt."""

    def __init__(self) -> None:
        self._lines = piped_lines()

    def read_line(self, prompt: str) -> str:
        for line in self._lines:
            return line
        raise EOFError


class TerminalInput:
    """Lines that are edited on the terminal.

    Raises:
        MissingDependencyError: prompt_toolkit is not installed.
    """

    def __init__(self, *, keep_history: bool) -> None:
        try:
            from prompt_toolkit import PromptSession
        except ImportError as error:
            raise MissingDependencyError(
                "paceline chat needs prompt_toolkit on a terminal: pip install 'paceline[chat]'"
            ) from error
        self._session: PromptSession[str] = PromptSession(
            history=_history() if keep_history else None
        )

    def read_line(self, prompt: str) -> str:
        return self._session.prompt(prompt)


def _history() -> History | None:
    """A file that only its user can read; None where there can be none."""
    from prompt_toolkit.history import FileHistory

    path = environment.state_folder() / "chat_history"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.open("ab").close()
    except OSError as error:
        note(f"note: no history is kept: {path}: {error.strerror}.")
        return None
    return FileHistory(path)


def read_message(source: LineInput) -> str:
    """One line, or all lines between two triple quotes. An end of input closes open quotes."""
    line = source.read_line(PROMPT)
    if not line.lstrip().startswith(QUOTES):
        return line
    first = line.lstrip().removeprefix(QUOTES)
    if first.rstrip().endswith(QUOTES):
        return first.rstrip().removesuffix(QUOTES)
    lines = [first] if first.strip() else []
    while True:
        try:
            line = source.read_line(CONTINUATION)
        except EOFError:
            return "\n".join(lines)
        if line.rstrip().endswith(QUOTES):
            last = line.rstrip().removesuffix(QUOTES)
            return "\n".join([*lines, last] if last.strip() else lines)
        lines.append(line)
