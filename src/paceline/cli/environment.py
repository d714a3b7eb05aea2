"""The environment variables that the command line obeys. They are read in this file only."""

from __future__ import annotations

import os
from pathlib import Path


def colours_refused() -> bool:
    """NO_COLOR, set to anything: no colours. Underlines are not colours (no-color.org)."""
    return bool(os.environ.get("NO_COLOR"))


def marks_forced() -> bool:
    """FORCE_COLOR, set to anything: marks in the text also where no terminal reads it."""
    return bool(os.environ.get("FORCE_COLOR"))


def terminal_is_dumb() -> bool:
    return os.environ.get("TERM") == "dumb"


def state_folder() -> Path:
    """Where the chat history lives: $XDG_STATE_HOME/paceline, or ~/.local/state/paceline.

    A relative XDG_STATE_HOME is ignored, as the XDG specification asks.
    """
    base = Path(os.environ.get("XDG_STATE_HOME") or "")
    if not base.is_absolute():
        base = Path.home() / ".local" / "state"
    return base / "paceline"
