"""What an engine has learned about drafting, shared by its sequences.

Costs of this machine, acceptance of this drafter by kind of text, and trust in texts.
"""

from __future__ import annotations

from paceline.speculative.acceptance import Profiles
from paceline.speculative.adaptive import AdaptiveDraftLength
from paceline.speculative.controller import DraftLengthPolicy
from paceline.speculative.costs import CostModel
from paceline.speculative.sources import SharedTrust


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

    def new_policy(self, max_draft_tokens: int) -> DraftLengthPolicy:
        """What decides for one sequence, with a drafter of this limit (0: there is none)."""
        return AdaptiveDraftLength(self.costs, self.profiles, max_draft_tokens)
