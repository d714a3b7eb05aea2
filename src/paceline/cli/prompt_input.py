"""Text from standard input, a whole prompt or line by line, and from files.

Bytes are decoded here, strictly and as UTF-8, whatever the locale says.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from paceline.cli.terminal import is_terminal
from paceline.errors import ConfigError, PromptError

MAX_FILE_BYTES = 4 << 20


class NoPromptError(ConfigError, PromptError):
    """No prompt was given: neither as an argument nor through a pipe."""


def read_prompt(argument: str | None, *, keep_line_end: bool = False) -> str:
    """The prompt of a command: its argument, what is piped in, or both in this order.

    Args:
        argument: the words on the command line.
        keep_line_end: keep the line end that `echo` and editors put after the last line.

    Raises:
        NoPromptError: there is none, or it is blank.
        PromptError: standard input cannot be read or is not UTF-8.
    """
    piped = "" if is_terminal(sys.stdin) else read_piped(required=argument is None)
    if not keep_line_end:
        piped = piped.removesuffix("\n").removesuffix("\r")
    prompt = "\n\n".join(part for part in (argument, piped) if part)
    if prompt.strip():
        return prompt
    if argument is None and is_terminal(sys.stdin):
        raise NoPromptError("there is no prompt: pass it as an argument or through a pipe.")
    raise NoPromptError("the prompt is empty: pass some text.")


def read_piped(*, required: bool = True) -> str:
    """All of standard input. `required`: a closed one is an error, not an empty text."""
    if sys.stdin is None:
        if required:
            raise PromptError("standard input is closed: pass the prompt as an argument.")
        return ""
    try:
        data = sys.stdin.buffer.read()
    except OSError as error:
        raise _unreadable(error) from error
    return _decoded(data, first_byte=0)


def piped_lines() -> Iterator[str]:
    """The lines of standard input, as they come, without their ends."""
    if sys.stdin is None:
        raise PromptError("standard input is closed: there is nobody to talk to.")
    position = 0
    while True:
        try:
            line = sys.stdin.buffer.readline()
        except OSError as error:
            raise _unreadable(error) from error
        if not line:
            return
        yield _decoded(line, first_byte=position).removesuffix("\n").removesuffix("\r")
        position += len(line)


def read_text_file(path: Path, option: str) -> str:
    """The text of a file that an option names.

    Raises:
        ConfigError: it cannot be read, is too large or not UTF-8.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{option} {path} cannot be read: {error.strerror or error}.") from error
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(
            f"{option} {path} is larger than {MAX_FILE_BYTES >> 20} MB. Pass the part that matters."
        )
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{option} {path} is not UTF-8 text: byte {error.start} is 0x{data[error.start]:02x}."
        ) from error


def _decoded(data: bytes, *, first_byte: int) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PromptError(
            f"standard input is not UTF-8: byte {first_byte + error.start} is "
            f"0x{data[error.start]:02x}. Convert it first, for example with iconv -t UTF-8."
        ) from error


def _unreadable(error: OSError) -> PromptError:
    return PromptError(f"standard input cannot be read: {error.strerror or error}.")
