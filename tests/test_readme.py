"""The README's Python runs as it stands, and its commands exist."""

import re
import shlex
from pathlib import Path

import pytest

from paceline.cli.app import main

README = Path(__file__).parent.parent / "README.md"


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def commands():
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    return [line for line in lines if line.startswith("paceline ")]


def test_there_is_something_to_check():
    assert blocks("python")
    assert commands()


@pytest.mark.parametrize("code", blocks("python"))
def test_python_blocks_run(code):
    exec(compile(code, "README.md", "exec"), {})


@pytest.mark.parametrize("line", commands())
def test_commands_exist(line, capsys):
    assert main([shlex.split(line)[1], "--help"]) == 0
    options = [word for word in shlex.split(line) if word.startswith("--")]
    shown = capsys.readouterr().out
    assert all(option in shown for option in options)
