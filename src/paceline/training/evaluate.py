"""Acceptance of a pair on held-out prompts, by kind of prompt, greedy and sampled.

Prompts come from the part of the corpus that training held back; answers are the target's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from paceline.engine import Engine
from paceline.sampling import SamplingParams
from paceline.stats import GenerationStats
from paceline.training.corpus import Document

MAX_TOKENS = 128


def held_out_prompts(documents: Iterable[Document], per_kind: int) -> dict[str, list[str]]:
    """The first `per_kind` held-out prompts of every kind, spread over its documents."""
    prompts: dict[str, list[str]] = {}
    for document in documents:
        if document.held_out and document.prompt is not None:
            prompts.setdefault(document.kind, []).append(document.prompt)
    return {kind: _spread(found, per_kind) for kind, found in prompts.items()}


def _spread(items: Sequence[str], count: int) -> list[str]:
    step = max(len(items) / count, 1.0)
    return [items[int(index * step)] for index in range(min(count, len(items)))]


def acceptance(
    engine: Engine, prompts: Sequence[str], draft: int, sampling: SamplingParams
) -> GenerationStats:
    """Totals over one answer to each prompt. Prompt i is sampled with seed i."""
    total = GenerationStats(generations=0)
    for seed, prompt in enumerate(prompts):
        answer = engine.generate(
            prompt, draft=draft, sampling=replace(sampling, seed=seed), max_tokens=MAX_TOKENS
        )
        total.add(answer.stats)
    return total


def evaluate(engine: Engine, prompts: dict[str, list[str]], draft: int) -> list[dict[str, Any]]:
    """One row per kind and temperature."""
    rows = []
    for kind, questions in prompts.items():
        for temperature in (0.0, 1.0):
            sampling = replace(engine.default_sampling(), temperature=temperature)
            stats = acceptance(engine, questions, draft, sampling)
            rows.append(
                {
                    "kind": kind,
                    "temperature": temperature,
                    "draft": draft,
                    "prompts": len(questions),
                    "generated_tokens": stats.generated_tokens,
                    "acceptance_length": stats.acceptance_length,
                    "acceptance_rate": stats.acceptance_rate,
                    "acceptance_histogram": stats.acceptance_histogram,
                }
            )
    return rows
