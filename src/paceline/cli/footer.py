"""The line under an answer: speed, tokens, time to first token, drafts accepted.

96.2 tok/s · 214 tokens · first token 0.12 s · 82 % of drafts accepted (2.9 tokens a round)
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from paceline.engine import Generation
    from paceline.stats import GenerationStats


def footer(result: Generation) -> str:
    """One line for people. What was not measured is left out."""
    parts = stats_parts(result.stats)
    if result.reasoning:
        share = len(result.reasoning) / (len(result.reasoning) + len(result.text))
        parts.append(f"{share:.0%} of the text is reasoning".replace("%", " %"))
    if result.finish_reason == "length":
        parts.append("stopped at the token limit")
    if result.finish_reason == "cancelled":
        parts.append("stopped by you")
    return " · ".join(parts)


def stats_parts(stats: GenerationStats) -> list[str]:
    parts = []
    if stats.decode_tps is not None:
        parts.append(f"{stats.decode_tps:.1f} tok/s")
    parts.append(f"{stats.generated_tokens} token{'' if stats.generated_tokens == 1 else 's'}")
    parts.append(f"first token {stats.ttft_s:.2f} s")
    if stats.acceptance_rate is not None:
        parts.append(
            f"{100 * stats.acceptance_rate:.0f} % of drafts accepted "
            f"({stats.acceptance_length:.1f} tokens a round)"
        )
    elif stats.rounds:
        parts.append("drafting off")
    return parts


def stats_json(result: Generation) -> str:
    """One line for programs: all counts and rates, the seed and why the answer ended."""
    outcome = {"finish_reason": result.finish_reason, "seed": result.seed}
    return json.dumps(outcome | result.stats.to_json(), allow_nan=False)
