"""`paceline doctor`: what this machine offers, and whether a model is whole and fits it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from paceline.cli import environment, options

if TYPE_CHECKING:
    from paceline.diagnosis import Check


def doctor(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="Hugging Face folder or GGUF file of a Gemma 4. Default: the pair that ships.",
        ),
    ] = None,
    drafter: options.Drafter = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Check this machine, and the files of a model without loading it.

    Each line begins with ok, note or problem. The exit status is 1 if there is a problem.
    """
    from paceline.diagnosis import check_machine, check_model

    checks = check_machine(environment.hub_folder(), environment.forced_instruction_set())
    checks += check_model(model, None if drafter == "none" else drafter)
    print(_document(checks) if as_json else _table(checks))
    if any(check.status == "problem" for check in checks):
        raise typer.Exit(1)


def _table(checks: list[Check]) -> str:
    width = max(len(check.name) for check in checks)
    return "\n".join(f"{check.status:<7}  {check.name:<{width}}  {check.text}" for check in checks)


def _document(checks: list[Check]) -> str:
    report = {
        check.name: {"status": check.status, "text": check.text, **check.values} for check in checks
    }
    return json.dumps(report, allow_nan=False)
