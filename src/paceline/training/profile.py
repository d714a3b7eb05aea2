"""What a new engine is told of a drafter: how often its drafts are taken, by kind of text.

Drafts of held-out prompts' answers, whole and of one length whatever they cost, so that the result
depends on the pair alone and not on the machine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import chain, zip_longest

from paceline.engine import Engine
from paceline.speculative.acceptance import AcceptanceModel, Profiles
from paceline.speculative.adaptive import judgement_of
from paceline.speculative.controller import DraftContext, DraftPlan, RoundOutcome
from paceline.training.evaluate import MAX_TOKENS

DRAFT_LENGTH = 8
"""Longer drafts than these teach about places that few drafts reach."""

TEMPERATURES = (0.0, 1.0)


class WholeDrafts:
    """Always drafts the same number of tokens, and learns from what comes of them.

    Args:
        profiles: that learn.
    """

    def __init__(self, profiles: Profiles, length: int) -> None:
        self._profiles = profiles
        self._length = length
        self._kind = ""
        self._models: dict[str, AcceptanceModel] = {}

    def plan(self, context: DraftContext) -> DraftPlan:
        self._kind = context.kind
        return DraftPlan(max_draft_tokens=min(self._length, context.room))

    def observe(self, outcome: RoundOutcome) -> None:
        if not outcome.num_draft_tokens:
            return
        if self._kind not in self._models:
            self._models[self._kind] = AcceptanceModel(self._profiles.of(self._kind))
        model = self._models[self._kind]
        model.observe(model.survivals(), [judgement_of(outcome)], ())


def learn_profiles(
    engine: Engine,
    prompts: dict[str, list[str]],
    progress: Callable[[int, int], None] | None = None,
) -> Profiles:
    """Answer prompts, kinds in turn since what comes last counts most, greedy and sampled.

    Args:
        prompts: by kind; number i is sampled with seed i.
        progress: called with (answers done, answers in all).
    """
    profiles = Profiles()
    length = min(DRAFT_LENGTH, engine.max_draft_tokens)
    in_turn = list(filter(None, chain.from_iterable(zip_longest(*prompts.values()))))
    settings = [(seed, prompt, t) for seed, prompt in enumerate(in_turn) for t in TEMPERATURES]
    for done, (seed, prompt, temperature) in enumerate(settings, 1):
        engine.generate(
            prompt,
            draft=WholeDrafts(profiles, length),
            sampling=replace(engine.default_sampling(), temperature=temperature, seed=seed),
            max_tokens=MAX_TOKENS,
        )
        if progress:
            progress(done, len(settings))
    return profiles
