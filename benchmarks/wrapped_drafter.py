"""A drafter around another one: it has the other's limits and drafts in its own way."""

from __future__ import annotations

from paceline.config import DrafterConfig
from paceline.runtime.protocols import Drafter


class WrappedDrafter:
    """The base of drafters that lack nothing but `draft`.

    Args:
        inner: lends its limits.
    """

    def __init__(self, inner: Drafter) -> None:
        self.inner = inner

    @property
    def config(self) -> DrafterConfig:
        return self.inner.config

    @property
    def max_draft_tokens(self) -> int:
        return self.inner.max_draft_tokens
