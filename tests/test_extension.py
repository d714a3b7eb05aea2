"""Where the extension module is missing: one error says so, and what needs no model still works."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import paceline

PACKAGE = Path(paceline.__file__).parent
MISSING = "import sys; sys.modules['paceline._native'] = None\n"


def run_without(code, *arguments):
    command = [sys.executable, "-c", MISSING + code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def paceline_without(*arguments):
    return run_without("from paceline.cli.app import main; sys.exit(main())", *arguments)


@pytest.mark.parametrize(
    "module",
    [
        "paceline.engine",
        "paceline.sampling",
        "paceline.runtime.native.load",
        "paceline.speculative.suffix",
    ],
)
def test_it_says_what_is_wrong_and_what_to_do(module):
    error = run_without(f"import {module}").stderr.splitlines()[-1]
    assert error.startswith("paceline.errors.MissingDependencyError: the extension module")
    assert "import of paceline._native halted" in error
    assert "C++20 compiler: run `pip install .`" in error


def test_a_command_that_runs_a_model_ends_in_one_line():
    outcome = paceline_without("generate", "Hi")
    assert (outcome.returncode, outcome.stdout) == (1, "")
    assert outcome.stderr.startswith("error: the extension module of Paceline cannot be imported")
    assert outcome.stderr.count("\n") == 1


def test_the_doctor_and_a_plan_need_no_extension_module():
    doctor = paceline_without("doctor")
    assert doctor.returncode == 1
    problems = [x for x in doctor.stdout.splitlines() if x.startswith("problem")]
    assert len(problems) == 1
    assert "the extension module of Paceline cannot be imported" in problems[0]
    plan = paceline_without("plan")
    assert (plan.returncode, plan.stderr) == (0, "")
    assert "native" in plan.stdout


def test_one_module_imports_it():
    """import-linter cannot see that."""
    importer = re.compile(r"import paceline\._native|from paceline(\._native)? import.*\b_native\b")
    files = [
        str(file.relative_to(PACKAGE))
        for file in PACKAGE.rglob("*.py")
        if importer.search(file.read_text(encoding="utf-8"))
    ]
    assert files == ["extension.py"]
