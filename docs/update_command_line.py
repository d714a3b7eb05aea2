"""Puts the help texts of the program into command-line.md: `python docs/update_command_line.py`.

A test fails when the page and the program differ.
"""

from __future__ import annotations

import re
from pathlib import Path

from typer.testing import CliRunner

from paceline.cli.app import Invocation, app

PAGE = Path(__file__).with_name("command-line.md")
BLOCK = re.compile(r"(<!-- help: (\w+) -->\n```text\n).*?(```\n)", re.DOTALL)


def help_text(verb: str) -> str:
    """What `paceline VERB --help` prints, 80 columns wide; of "paceline" the program's own."""
    words = ["--help"] if verb == "paceline" else [verb, "--help"]
    result = CliRunner().invoke(app, words, prog_name="paceline", obj=Invocation())
    assert result.exit_code == 0, result.output
    return result.stdout


def updated(page: str) -> str:
    """The page with the help texts of today."""
    return BLOCK.sub(lambda block: block[1] + help_text(block[2]) + block[3], page)


if __name__ == "__main__":
    PAGE.write_text(updated(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
