"""One row of scores over the vocabulary, and the questions that cost a look at all of it.

Knows no parameters and chooses nothing: `sampling` decides from the answers.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from paceline.extension import _native
from paceline.noise import MAX_GUMBEL, MIN_GUMBEL

Scores = NDArray[np.float32] | NDArray[np.float64]
Ids = NDArray[np.int64]

NOISE_REACH = MAX_GUMBEL - MIN_GUMBEL + 0.5
"""A token further than this below another one cannot overtake it, whatever noise the two get. The
half covers the rounding of the sums."""

SUM_TOLERANCE = 1e-9
"""How far, of its value, `weight_sum` may be from `exact_weight_sum`. It is at most 1e-12."""

_LOWEST = -float(np.finfo(np.float64).max)


class ScoreRow(Protocol):
    """All but `peak` and `scores` may be asked only where the peak is finite."""

    @property
    def peak(self) -> float:
        """The highest score; NaN if one is NaN."""

    def scores(self, ids: Ids) -> NDArray[np.float64]:
        """[n] the scores of `ids` [n]."""

    def at_least(self, floor: float) -> Ids:
        """Ids of the scores that are no less, ascending."""

    def highest(self, count: int) -> Ids:
        """Ids of the `count` highest scores, highest first, the lower id first on a tie."""

    def weight_sum(self, temperature: float) -> float:
        """The sum over all tokens of `exp((score - peak) / temperature)`, in one fixed order."""

    def contenders(self, temperature: float, seed: int, position: int) -> Ids:
        """Ids, ascending, with every token among them that has the highest noised score:
        `(score - peak) / temperature + gumbel(seed, position, id)`."""


def score_row(
    logits: NDArray[np.float32], changed_ids: Ids, changed_scores: NDArray[np.float64]
) -> ScoreRow:
    """The scores of one row.

    Args:
        logits: [V]
        changed_ids: [n] ascending, each once.
        changed_scores: [n] what these tokens score instead of their logits.

    Cost: for 262,144 tokens 0.05 ms, as much again for the highest 256, and a fraction of a
    millisecond each for the sum and the contenders.

    Equals: tests/score_row_twin.py, but for the last bits of `weight_sum` and contenders that it
    leaves out (tests/test_score_row.py).
    """
    return _native.ScoreRow(np.ascontiguousarray(logits), changed_ids, changed_scores)


def temper(scores: Scores, temperature: float) -> NDArray[np.float64]:
    """`(scores - max) / temperature`, so that the best is 0 and a vanishing temperature sends
    the others to -inf instead of the best to inf."""
    exact = scores.astype(np.float64)
    with np.errstate(over="ignore"):
        scaled: NDArray[np.float64] = (exact - exact.max()) / temperature
    return scaled


def exact_weight_sum(row: ScoreRow, temperature: float) -> float:
    """`row.weight_sum` by its definition: NumPy's sum of NumPy's exponentials, whoever holds the
    row."""
    scores = row.scores(row.at_least(_LOWEST))
    return float(np.exp(temper(scores, temperature)).sum())
