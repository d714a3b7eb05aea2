"""How far a converted target's predictions are from those of its original.

Both run in turn, so that memory holds one of them at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from paceline.loading import load_pair
from paceline.runtime.protocols import Rows, Target
from paceline.tokenizer import Tokenizer

PROMPTS = (
    "The sky is blue because sunlight is scattered by the air, and short waves more than long.",
    "def fibonacci(n):\n    a, b = 0, 1\n    for _ in range(n):\n        a, b = b, a + b\n",
    "To list all files in a folder, the hidden ones too, use ls with the option -a.",
    "Dear Ms Novak,\n\nthank you for your letter of 12 March. We shall send the parts on Monday.",
)

Step = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """Over all positions of `PROMPTS`.

    Args:
        mean_kl: of the original's distribution from the converted one's, in nats.
        worst_kl: at the worst position.
        top1_agreement: share of positions where both have the same most likely token.
    """

    mean_kl: float
    worst_kl: float
    top1_agreement: float
    num_positions: int


def measure_divergence(original: Path, converted: Path, progress: Step) -> Divergence:
    """Run both over `PROMPTS`.

    Raises:
        MissingDependencyError: the runtime is not installed.
    """
    progress(0, 2)
    first = _log_probabilities(original)
    progress(1, 2)
    second = _log_probabilities(converted)
    progress(2, 2)
    return divergence(first, second)


def divergence(first: NDArray[np.float32], second: NDArray[np.float32]) -> Divergence:
    """Of two tables of log probabilities [positions, V]."""
    kl = (np.exp(first) * (first - second)).sum(axis=1, dtype=np.float64)
    return Divergence(
        mean_kl=float(kl.mean()),
        worst_kl=float(kl.max()),
        top1_agreement=float((first.argmax(axis=1) == second.argmax(axis=1)).mean()),
        num_positions=len(kl),
    )


def _log_probabilities(path: Path) -> NDArray[np.float32]:
    pair = load_pair(path, None)
    rows = [_logits(pair.target, pair.tokenizer, text) for text in PROMPTS]
    logits = np.concatenate(rows)
    logits -= logits.max(axis=1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return logits


def _logits(target: Target, tokenizer: Tokenizer, text: str) -> NDArray[np.float32]:
    token_ids = [tokenizer.control.bos, *tokenizer.encode_text(text)]
    token_ids = token_ids[: target.config.context_length]
    cache = target.new_cache(len(token_ids), 0)
    rows = Rows(cache=cache, token_ids=token_ids, num_outputs=len(token_ids))
    return target.forward([rows])[0].logits
