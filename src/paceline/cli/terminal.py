"""What a terminal may show: marks for drafted tokens, dimmed reasoning, no control characters.

Knows streams and escape sequences, no engine.
"""

from __future__ import annotations

import sys
from typing import TextIO

from paceline.cli import environment

_RESET = "\x1b[0m"
_UNDERLINE = "\x1b[4m"
_UNDERLINE_CYAN = "\x1b[4;36m"  # told apart by the line, not by the colour alone
_DIM = "\x1b[2m"

# A model can write any bytes; those that move a cursor or rename a window stay visible as symbols.
_VISIBLE = {
    code: chr(0x2400 + code) if code < 0x20 else "\N{REPLACEMENT CHARACTER}"
    for code in (*range(0x20), *range(0x7F, 0xA0))
    if chr(code) not in "\n\t"
}


def is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()


def takes_marks(stream: TextIO) -> bool:
    """Whether escape sequences may be written to this stream."""
    if environment.marks_forced():
        return True
    return is_terminal(stream) and not environment.terminal_is_dumb()


def visible(text: str) -> str:
    """The text without control characters, except line ends and tabs."""
    return text.translate(_VISIBLE)


def drafted(text: str) -> str:
    """The text underlined, and coloured unless NO_COLOR is set. Line ends stay unmarked."""
    return _marked(text, _UNDERLINE if environment.colours_refused() else _UNDERLINE_CYAN)


def dimmed(text: str) -> str:
    return text if environment.colours_refused() else _marked(text, _DIM)


def note(text: str) -> None:
    """One line on standard error."""
    print(text, file=sys.stderr, flush=True)


def _marked(text: str, mark: str) -> str:
    return "\n".join(f"{mark}{line}{_RESET}" if line else "" for line in text.split("\n"))
