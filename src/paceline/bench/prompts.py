"""Prompts to measure with: the project's own, and files of the standard sets.

    {"name": "list-files", "kind": "shell", "prompt": "..."}           this project's form
    {"question_id": 81, "category": "writing", "turns": ["...", ...]}  Spec-Bench
    {"question": "...", "answer": "..."}                               GSM8K
    {"task_id": "HumanEval/0", "prompt": "def ..."}                    HumanEval

Knows no engine and no tokens.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from paceline.errors import ConfigError, PromptError


@dataclass(frozen=True, kw_only=True)
class BenchPrompt:
    """One conversation to measure: the user's turns, each answered before the next."""

    name: str
    kind: str
    turns: tuple[str, ...]


def bundled_prompts() -> list[BenchPrompt]:
    """The prompts that were written for this project."""
    text = resources.files("paceline.bench").joinpath("prompts.jsonl").read_text("utf-8")
    return parse_prompts(text, source="the bundled prompts")


def read_prompts(path: Path) -> list[BenchPrompt]:
    """The prompts of a file in one of the four forms above.

    Raises:
        PromptError: the file cannot be read, or a line is in none of the forms.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise PromptError(f"{path} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise PromptError(f"{path} is not UTF-8 text: byte {error.start} is at fault.") from error
    return parse_prompts(text, source=str(path))


def parse_prompts(text: str, *, source: str) -> list[BenchPrompt]:
    prompts = [
        _parse_line(line, f"{source}, line {number}", number)
        for number, line in enumerate(text.split("\n"), start=1)
        if line.strip()
    ]
    if not prompts:
        raise PromptError(f"{source}: there are no prompts in it.")
    repeated = [name for name, count in Counter(p.name for p in prompts).items() if count > 1]
    if repeated:
        raise PromptError(f"{source}: the name {repeated[0]} occurs twice; names must differ.")
    return prompts


def _parse_line(line: str, place: str, number: int) -> BenchPrompt:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise PromptError(f"{place} is not JSON: {error}.") from error
    name, kind, turns = _recognised(row, number) if isinstance(row, dict) else ("", "", [])
    if not (_all_text([name, kind]) and isinstance(turns, list) and turns and _all_text(turns)):
        raise PromptError(
            f"{place} is not a prompt: expected an object with kind and prompt, or a line of "
            "Spec-Bench (category, turns), GSM8K (question) or HumanEval (task_id, prompt)."
        )
    return BenchPrompt(name=name, kind=kind, turns=tuple(turns))


def _recognised(row: dict[str, Any], number: int) -> tuple[Any, Any, Any]:
    """Name, kind and turns of a row, as they stand in the file: not yet checked."""
    if "turns" in row:
        return f"spec_bench/{row.get('question_id', number)}", row.get("category"), row["turns"]
    if "task_id" in row:
        request = f"Complete this Python function:\n\n{row.get('prompt')}"
        return row["task_id"], "code", [request] if row.get("prompt") else []
    if "question" in row:
        return f"gsm8k/{number}", "maths", [row["question"]]
    kind = row.get("kind")
    return row.get("name", f"{kind}/{number}"), kind, [row.get("prompt")]


def _all_text(values: Iterable[object]) -> bool:
    return all(isinstance(value, str) and value.strip() for value in values)


def select(
    prompts: Sequence[BenchPrompt], *, kinds: Sequence[str] = (), limit: int | None = None
) -> list[BenchPrompt]:
    """The prompts of these kinds (none = all), at most `limit` of each kind, in their order.

    Raises:
        ConfigError: no prompt is of a kind that was asked for.
    """
    known = list(dict.fromkeys(prompt.kind for prompt in prompts))
    for kind in kinds:
        if kind not in known:
            raise ConfigError(f"no prompt is of kind {kind!r}: the kinds are {', '.join(known)}.")
    taken: Counter[str] = Counter()
    chosen = []
    for prompt in prompts:
        if kinds and prompt.kind not in kinds:
            continue
        taken[prompt.kind] += 1
        if limit is None or taken[prompt.kind] <= limit:
            chosen.append(prompt)
    return chosen
