"""The environment variables that the command line obeys. They are read in this file only.

PACELINE_ISA works in the native runtime itself (native/dispatch.cc); here it is only shown.
"""

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


def cache_folder() -> Path:
    """Where measured costs and, if asked for, earlier answers are kept: $XDG_CACHE_HOME/paceline,
    or ~/.cache/paceline. A relative XDG_CACHE_HOME is ignored."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or "")
    if not base.is_absolute():
        base = Path.home() / ".cache"
    return base / "paceline"


def forced_instruction_set() -> str | None:
    """PACELINE_ISA: the instruction set that the native runtime is to use."""
    return os.environ.get("PACELINE_ISA") or None


def hub_folder() -> Path:
    """Where `hf download` keeps models: $HF_HUB_CACHE, else hub/ in $HF_HOME, else below the
    user's cache folder."""
    if os.environ.get("HF_HUB_CACHE"):
        return Path(os.environ["HF_HUB_CACHE"])
    if os.environ.get("HF_HOME"):
        return Path(os.environ["HF_HOME"]) / "hub"
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "huggingface" / "hub"
