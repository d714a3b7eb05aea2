"""How likely the target is to take each token of a draft.

The log-odds of a draft token, given that those before it were taken, are an offset of its position
in text of this kind (learned slowly, from all sequences) plus how easy this text is, which each
sequence follows by Bayes' rule. Where the drafter says how sure it is, a logistic curve of that
margin tells good tokens of a draft from bad ones. Knows no tokens, seconds or draft lengths.

A pass empties the processor's caches of whatever does not belong to it, so that what runs between
two of them is native: an `AcceptanceModel` for each sequence, which learns a `Profile` of its kind
of text. What is here is how profiles are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from paceline.errors import ConfigError
from paceline.extension import _native
from paceline.runtime.protocols import MAX_DRAFT_TOKENS
from paceline.speculative.kept_values import fields_of, format_of, numbers_of

__all__ = ["MAX_POSITIONS", "AcceptanceModel", "Judgement", "MarginCurve", "Profile", "Profiles"]

AcceptanceModel = _native.AcceptanceModel
MarginCurve = _native.MarginCurve
Profile = _native.Profile
LARGEST_OFFSET = _native.LARGEST_OFFSET

MAX_POSITIONS = MAX_DRAFT_TOKENS
MAX_KINDS = 16

PROBE_FIRST = 4
"""A parked drafter is first tried after so many rounds."""

FORMAT = 1
MOST_TOKENS, MOST_MARGIN_TOKENS = 1e15, 1e9
"""That a kept profile, or its curve, can claim to have seen."""


class Judgement(NamedTuple):
    """What came of a draft.

    Args:
        num_accepted: of its tokens.
        num_judged: tokens that were observed: the accepted ones and the first that was not. Those
            after it, and those behind the end of the text, say nothing.
        margins: the drafter's, of all its tokens; fewer or none where none are known.
    """

    num_accepted: int
    num_judged: int
    margins: Sequence[float] = ()


@dataclass(slots=True)
class Probing:
    """When a parked drafter is tried again. Answers share it, lest each begin with drafts that
    failed in all answers before.

    Args:
        num_parked: rounds since it was tried last.
        interval: rounds after which it is tried.
        loss: tokens that the last tries have cost, on average.
    """

    num_parked: int = 0
    interval: int = PROBE_FIRST
    loss: float = 0.0


class Profiles:
    """A profile for each kind of text, shared by the sequences of an engine."""

    def __init__(self) -> None:
        self._profiles: dict[str, Profile] = {}
        self._probing: dict[Profile, Probing] = {}

    def probing(self, kind: str) -> Probing:
        return self._probing.setdefault(self.of(kind), Probing())

    def of(self, kind: str) -> Profile:
        """Kinds beyond the first few are one."""
        if kind not in self._profiles and len(self._profiles) >= MAX_KINDS:
            kind = next(iter(self._profiles))
        profile = self._profiles.get(kind)
        if profile is None:
            profile = self._profiles[kind] = Profile()
        return profile

    def to_dict(self) -> dict[str, Any]:
        """All that was learned, ready for `json.dumps`."""
        profiles = {kind: _kept_profile(profile) for kind, profile in self._profiles.items()}
        return {"format": FORMAT, "profiles": profiles}

    @classmethod
    def from_dict(cls, value: object) -> Profiles:
        """
        Raises:
            ConfigError: it is not what `to_dict` gives.
        """
        kept = fields_of(value, ("format", "profiles"), "acceptance profiles")
        format_of(kept["format"], FORMAT, "acceptance profiles")
        found = kept["profiles"]
        if not isinstance(found, dict) or len(found) > MAX_KINDS:
            raise ConfigError(f"there must be an object with at most {MAX_KINDS} profiles.")
        profiles = cls()
        profiles._profiles = {str(kind): _profile_of(kept) for kind, kept in found.items()}
        return profiles


def _kept_profile(profile: Profile) -> dict[str, Any]:
    return {
        "knots": profile.knots,
        "counts": profile.counts,
        "levels": profile.levels,
        "curve": _kept_curve(profile.curve),
    }


def _profile_of(value: object) -> Profile:
    kept = fields_of(value, ("knots", "counts", "levels", "curve"), "a profile")
    new = Profile()
    levels = numbers_of(kept["levels"], "levels", len(new.levels), 0.0, 1.0)
    if not 0.99 < sum(levels) < 1.01:
        raise ConfigError("the weights of the levels of a profile do not add up to 1.")
    return Profile(
        numbers_of(kept["knots"], "knots", len(new.knots), -LARGEST_OFFSET, LARGEST_OFFSET),
        numbers_of(kept["counts"], "counts", len(new.counts), 0.0, MOST_TOKENS),
        levels,
        _curve_of(kept["curve"]),
    )


def _kept_curve(curve: MarginCurve) -> dict[str, Any]:
    return {"seen": curve.seen, "accepted": curve.accepted, "margins": curve.margins}


def _curve_of(value: object) -> MarginCurve:
    names = ("seen", "accepted", "margins")
    kept, bins = fields_of(value, names, "a margin curve"), len(MarginCurve().seen)
    seen, accepted, margins = (
        numbers_of(kept[name], name, bins, 0.0, MOST_MARGIN_TOKENS) for name in names
    )
    if any(right > all_ for right, all_ in zip(accepted, seen, strict=True)):
        raise ConfigError("a margin curve has accepted more than it has seen.")
    return MarginCurve(seen, accepted, margins)
