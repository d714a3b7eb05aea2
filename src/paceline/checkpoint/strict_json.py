"""JSON from files that nobody vouches for: bounded in size, no key twice, no NaN.

Every failure is a CheckpointError that names the file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

from paceline.errors import CheckpointError

MAX_CONFIG_BYTES = 4 << 20


def shown(value: object, limit: int = 80) -> str:
    """A value from a file, safe to print: escaped and cut."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def read_json_object(path: Path, max_bytes: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        CheckpointError: unreadable, larger than `max_bytes`, or not one JSON object.
    """
    return parse_json_object(_read_bounded(path, max_bytes), str(path))


def read_small_text(path: Path, max_bytes: int = MAX_CONFIG_BYTES) -> str:
    """A small UTF-8 file that lies beside the JSON ones.

    Raises:
        CheckpointError: unreadable, larger than `max_bytes`, or not UTF-8.
    """
    try:
        return _read_bounded(path, max_bytes).decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8 text: {error.reason}.") from error


def _read_bounded(path: Path, max_bytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}.") from error
    if len(content) > max_bytes:
        raise CheckpointError(
            f"{path} is larger than {max_bytes} bytes: this is not the file of a model."
        )
    return content


def parse_json_object(content: bytes, where: str) -> dict[str, Any]:
    """The object in `content`; `where` names it in errors."""
    try:
        value = json.loads(
            content.decode("utf-8"),
            object_pairs_hook=_without_duplicates,
            parse_constant=_refuse_constant,
        )
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise CheckpointError(f"{where} is not valid JSON: {reason}.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{where} must hold one JSON object, got {shown(value)}.")
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"the key {shown(key)} occurs twice")
        result[key] = value
    return result


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
