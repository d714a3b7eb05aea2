"""What an engine has learned about drafting: shared by its sequences, kept for the next start.

Costs of this machine, acceptance of this drafter by kind of text, and trust in texts, which is
learned anew each time. What was learned on this machine lies in the user's cache folder; what the
drafter's maker has learned of it lies beside the drafter, and is where a new engine begins. A file
that is damaged, or of another machine, model or version, counts as none.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from paceline.errors import ConfigError
from paceline.speculative.acceptance import Profiles
from paceline.speculative.adaptive import AdaptiveDraftLength
from paceline.speculative.controller import DraftLengthPolicy
from paceline.speculative.costs import CostModel
from paceline.speculative.kept_values import fields_of
from paceline.speculative.pace import Openings, PacedDraftLength
from paceline.speculative.sources import SharedTrust

logger = logging.getLogger(__name__)

FORM = "paceline draft costs 1"
PROFILES_FORM, PROFILES_NAME = "paceline draft acceptance 1", "acceptance.json"
MAX_FILE_BYTES = 4 << 20


class Learned:
    """
    Args:
        costs: None knows nothing of this machine until a few passes were seen.
        profiles: None knows nothing of this drafter.
    """

    def __init__(self, costs: CostModel | None = None, profiles: Profiles | None = None) -> None:
        self.costs = costs or CostModel()
        self.profiles = profiles or Profiles()
        self.trust = SharedTrust()
        self._openings: Openings = {}

    def new_policy(self, max_draft_tokens: int) -> DraftLengthPolicy:
        """What decides for one sequence, with a drafter of this limit (0: there is none)."""
        policy = AdaptiveDraftLength(self.costs, self.profiles, max_draft_tokens)
        return PacedDraftLength(policy, self._openings)


class LearnedFile:
    """Where it is kept.

    Args:
        folder: of the user's, made when it is needed.
        key: all that the costs depend on: the machine, the model, threads and versions.
    """

    def __init__(self, folder: Path, key: Mapping[str, str | int]) -> None:
        self.key = dict(key)
        digest = hashlib.sha256(json.dumps(self.key, sort_keys=True).encode()).hexdigest()
        self.path = folder / f"costs-{digest[:16]}.json"

    def load(self) -> Learned | None:
        """What was kept for this key; None if there is nothing that can be used."""
        try:
            content = _json_in(self.path)
            return None if content is None else self._learned(content)
        except (OSError, ValueError, RecursionError) as error:
            logger.warning("%s is of no use and will be written anew: %s", self.path, error)
            return None

    def _learned(self, content: object) -> Learned:
        if not isinstance(content, dict) or content.get("form") != FORM:
            raise ConfigError(f'it is not of the form "{FORM}"')
        if content.get("key") != self.key:
            raise ConfigError("it is of another machine, model or version")
        costs = CostModel.from_dict(content.get("costs"))
        return Learned(costs, Profiles.from_dict(content.get("profiles")))

    def save(self, learned: Learned) -> None:
        """Write it whole or not at all. That it cannot be written is no error."""
        content = {
            "form": FORM,
            "key": self.key,
            "costs": learned.costs.to_dict(),
            "profiles": learned.profiles.to_dict(),
        }
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _write_whole(self.path, content)
        except OSError as error:
            logger.warning("what was learned of this machine cannot be kept: %s", error)


# --- Beside a drafter ---------------------------------------------------------------------------


def profiles_file(drafter: Path) -> Path:
    """Where the profiles of a drafter lie: in its folder, or beside its file."""
    if drafter.is_dir():
        return drafter / PROFILES_NAME
    return drafter.with_name(f"{drafter.stem}.{PROFILES_NAME}")


def read_profiles(path: Path) -> Profiles | None:
    """What is known of a drafter before its first draft here; None if nothing that can be used."""
    try:
        content = _json_in(path)
        if content is None:
            return None
        fields = fields_of(content, ("form", "profiles"), "the acceptance of a drafter")
        if fields["form"] != PROFILES_FORM:
            raise ConfigError(f'it is not of the form "{PROFILES_FORM}"')
        return Profiles.from_dict(fields["profiles"])
    except (OSError, ValueError, RecursionError) as error:
        logger.warning("%s is of no use; drafting begins without it: %s", path, error)
        return None


def write_profiles(path: Path, profiles: Profiles) -> None:
    """Write the file whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    _write_whole(path, {"form": PROFILES_FORM, "profiles": profiles.to_dict()})


# --- Files --------------------------------------------------------------------------------------


def _json_in(path: Path) -> object | None:
    """What a file holds; None if there is none.

    Raises:
        ValueError: it is too large, or no JSON.
    """
    if not path.is_file():  # nor a pipe, which would be waited for
        return None
    with path.open("rb") as file:
        content = file.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError(f"it is larger than {MAX_FILE_BYTES} bytes")
    found: object = json.loads(content)
    return found


def _write_whole(path: Path, content: object) -> None:
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        new.write_text(json.dumps(content, allow_nan=False) + "\n", encoding="utf-8")
        new.replace(path)
    except OSError:
        with suppress(OSError):
            new.unlink(missing_ok=True)
        raise
