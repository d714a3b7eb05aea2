"""`paceline`: finds the command, and turns every error into one line and an exit status.

The commands' modules import the engine when they run, not before: a help text must not wait.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import typer

from paceline.cli.bench import bench
from paceline.cli.calibrate import calibrate
from paceline.cli.chat import chat
from paceline.cli.convert import convert
from paceline.cli.demo import demo
from paceline.cli.doctor import doctor
from paceline.cli.forget import forget
from paceline.cli.generate import generate
from paceline.cli.plan import plan
from paceline.errors import ConfigError, PacelineError

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

app = typer.Typer(
    rich_markup_mode=None,  # plain help: the same in a pipe, in the docs and on every terminal
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (generate, chat, bench, demo, convert, plan, doctor, calibrate, forget):
    app.command()(command)


@dataclass
class Invocation:
    """What the options before the command said."""

    debug: bool = False


@app.callback(invoke_without_command=True)
def paceline(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    """Gemma 4 with its multi-token-prediction drafter: the same text, sooner."""
    context.obj.debug = debug
    if version:
        from importlib.metadata import version as installed_version

        print(f"paceline {installed_version('paceline')}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the words after the program's name; None takes those of the process.

    Returns:
        The exit status: 0, 1 for a failure, 2 for wrong usage, 130 for an interrupt.
    """
    invocation = Invocation()
    try:
        status = typer.main.get_command(app).main(
            args=argv, prog_name="paceline", standalone_mode=False, obj=invocation
        )
    except SystemExit as leaving:  # a reader of our output that went away, such as head
        return leaving.code if isinstance(leaving.code, int) else EXIT_FAILURE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except Exception as error:
        if invocation.debug:
            traceback.print_exc()
        message, status = _explained(error)
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
        return status
    return status if isinstance(status, int) else 0


def _explained(error: Exception) -> tuple[str, int]:
    """What to say of an error, and the exit status."""
    if isinstance(error, PacelineError):
        return str(error), EXIT_USAGE if isinstance(error, ConfigError) else EXIT_FAILURE
    if isinstance(error, typer.TyperException):
        return error.format_message(), error.exit_code
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{error.strerror or error}", EXIT_FAILURE
    if isinstance(error, MemoryError):
        return "the memory is not enough for this model and context.", EXIT_FAILURE
    return (
        f"{type(error).__name__}: {error}. This is a fault of Paceline, not yours: "
        "paceline --debug shows where.",
        EXIT_FAILURE,
    )
