"""Values that were kept in a file and that nobody vouches for: each is checked as it is taken."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from paceline.errors import ConfigError


def fields_of(value: object, names: Iterable[str], what: str) -> dict[str, Any]:
    """An object with these fields and no others.

    Raises:
        ConfigError: it is something else.
    """
    expected = sorted(names)
    if not isinstance(value, dict) or sorted(map(str, value)) != expected:
        raise ConfigError(f"{what} must be an object with {', '.join(expected)}.")
    return value


def list_of(value: object, what: str, max_length: int, length: int | None = None) -> list[Any]:
    """A list of at most `max_length` items, or of exactly `length`.

    Raises:
        ConfigError: it is something else.
    """
    if not isinstance(value, list) or len(value) > max_length:
        raise ConfigError(f"{what} must be a list of at most {max_length} items.")
    if length is not None and len(value) != length:
        raise ConfigError(f"{what} has {len(value)} items: expected {length}.")
    return value


def number_of(value: object, what: str, low: float, high: float) -> float:
    """A finite number from `low` to `high`.

    Raises:
        ConfigError: it is something else.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{what} must be a number, got {type(value).__name__}.")
    if not low <= value <= high:  # nor is NaN
        raise ConfigError(f"{what} is out of range: expected {low:g} to {high:g}.")
    return float(value)


def whole_of(value: object, what: str, low: int, high: int) -> int:
    """A whole number from `low` to `high`.

    Raises:
        ConfigError: it is something else.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{what} must be a whole number, got {type(value).__name__}.")
    if not low <= value <= high:
        raise ConfigError(f"{what} is out of range: expected {low} to {high}.")
    return value


def numbers_of(value: object, what: str, length: int, low: float, high: float) -> list[float]:
    """Exactly `length` numbers.

    Raises:
        ConfigError: it is something else.
    """
    return [number_of(item, what, low, high) for item in list_of(value, what, length, length)]


def flag_of(value: object, what: str) -> bool:
    """True or false.

    Raises:
        ConfigError: it is something else.
    """
    if not isinstance(value, bool):
        raise ConfigError(f"{what} must be true or false, got {type(value).__name__}.")
    return value


def format_of(value: object, expected: int, what: str) -> None:
    """Refuse what another version has written.

    Raises:
        ConfigError: it is of another format.
    """
    if isinstance(value, bool) or value != expected:
        raise ConfigError(f"{what} is not of format {expected}: it comes from another version.")
