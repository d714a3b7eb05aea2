"""Typed access to one JSON object.

Every complaint names the file, the key, what was got and what was expected.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NoReturn

from paceline.checkpoint.strict_json import shown
from paceline.errors import CheckpointError

MAX_TOKEN_LIST = 1024
MAX_TOKEN_ID = (1 << 31) - 1
MAX_NUMBER = 1e30

_ABSENT = object()


class Fields:
    """One JSON object.

    Args:
        where: what it is, for messages: the file, or "text_config in FILE".
    """

    def __init__(self, values: dict[str, Any], where: str) -> None:
        self.values = values
        self.where = where

    def refuse(self, key: str, expected: str, got: object = _ABSENT) -> NoReturn:
        value = self.values.get(key) if got is _ABSENT else got
        raise CheckpointError(f"{key} in {self.where} is {shown(value)}: expected {expected}.")

    def whole(self, key: str, default: int, low: int, high: int, null: int | None = None) -> int:
        """A whole number in [low, high]; `default` where absent, `null` for null if given."""
        if key not in self.values:
            return default
        value = self.values[key]
        if value is None and null is not None:
            return null
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            self.refuse(key, f"a whole number from {low} to {high}")
        return value

    def number(self, key: str, default: float) -> float:
        """A finite number; `default` where absent or null."""
        value = self.optional_number(key)
        return default if value is None else value

    def optional_number(self, key: str) -> float | None:
        """A finite number, or None where absent or null."""
        value = self.values.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.refuse(key, "a number")
        if not abs(value) <= MAX_NUMBER:
            self.refuse(key, f"a number within {MAX_NUMBER:g}")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            self.refuse(key, "true or false")
        return value

    def text(self, key: str, default: str | None) -> str | None:
        value = self.values.get(key, default)
        if value is not None and not isinstance(value, str):
            self.refuse(key, "a text")
        return value

    def child(self, key: str) -> Fields | None:
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            self.refuse(key, "an object")
        return Fields(value, f"{key} in {self.where}")

    def token_ids(self, key: str, default: tuple[int, ...]) -> tuple[int, ...]:
        """One token id, a list of them, or null for none."""
        value = self.values.get(key, default)
        if value is None:
            return ()
        ids = list(value) if isinstance(value, list | tuple) else [value]
        if len(ids) > MAX_TOKEN_LIST:
            self.refuse(key, f"at most {MAX_TOKEN_LIST} token ids")
        for token in ids:
            whole = isinstance(token, int) and not isinstance(token, bool)
            if not whole or not 0 <= token <= MAX_TOKEN_ID:
                self.refuse(key, "token ids", got=token)
        return tuple(ids)

    def fixed(self, key: str, allowed: tuple[object, ...], reason: str) -> None:
        """Refuse any value but those; absent is fine."""
        if key not in self.values:
            return
        value = self.values[key]
        if not any(type(value) is type(x) and value == x for x in allowed):
            names = " or ".join("null" if x is None else repr(x) for x in allowed)
            self.refuse(key, f"{names} ({reason})")

    def only(self, *keys: str) -> None:
        for key in self.values:
            if key not in keys:
                self.refuse(key, f"nothing there but {' and '.join(keys)}")


def unique(ids: Iterable[int]) -> tuple[int, ...]:
    """Each id once, in the order of its first appearance."""
    return tuple(dict.fromkeys(ids))
