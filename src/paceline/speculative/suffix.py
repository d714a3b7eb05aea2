"""Where the end of a text occurred before, and what came after it there.

An `IndexedText` finds the places. A `WrittenText` grows by a token at a time, and each `Follower`
keeps up with the places of one text meanwhile and learns in a `Trust` how often they were right.
All that runs for each token, and whether a proposal is worth a pass of the target is decided before
each pass, so both are native: one call for all followers of a text. What the round is worth without
a proposal is known in `sources`.
"""

from paceline.extension import _native
from paceline.runtime.protocols import MAX_DRAFT_TOKENS

__all__ = ["MAX_PROPOSAL", "SEPARATOR", "Follower", "IndexedText", "Trust", "WrittenText"]

SEPARATOR = _native.SEPARATOR
Follower = _native.Follower
IndexedText = _native.IndexedText
Trust = _native.Trust
WrittenText = _native.WrittenText

MAX_PROPOSAL = MAX_DRAFT_TOKENS
