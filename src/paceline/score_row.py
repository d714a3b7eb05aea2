"""One row of scores over the vocabulary, and the questions that cost a look at all of it.

Native where the extension module is built. The NumPy class defines every answer and needs nothing.
Knows no parameters and chooses nothing: `sampling` decides from the answers.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from paceline.noise import MAX_GUMBEL, MIN_GUMBEL

try:
    from paceline._native import ScoreRow as _NativeScoreRow
except ModuleNotFoundError:  # a torch installation without a compiler
    _NativeScoreRow = None  # type: ignore[assignment, misc]

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

    Cost: natively, for 262,144 tokens, 0.05 ms, as much again for the highest 256, and a fraction
    of a millisecond each for the sum and the contenders.

    Equals: `NumpyScoreRow`, but for the last bits of `weight_sum` and contenders that it leaves
    out (tests/test_score_row.py).
    """
    if _NativeScoreRow is None:
        return NumpyScoreRow(logits, changed_ids, changed_scores)
    return _NativeScoreRow(np.ascontiguousarray(logits), changed_ids, changed_scores)


class NumpyScoreRow:
    """Protocol `ScoreRow`, as its definition."""

    def __init__(
        self,
        logits: NDArray[np.float32],
        changed_ids: Ids,
        changed_scores: NDArray[np.float64],
    ) -> None:
        self._scores: Scores = logits
        if len(changed_ids):
            self._scores = logits.astype(np.float64)
            self._scores[changed_ids] = changed_scores

    @property
    def peak(self) -> float:
        return float(self._scores.max())

    def scores(self, ids: Ids) -> NDArray[np.float64]:
        return self._scores[ids].astype(np.float64)

    def at_least(self, floor: float) -> Ids:
        return np.flatnonzero(self._scores >= np.float64(floor))

    def highest(self, count: int) -> Ids:
        if count == 1:
            return np.array([np.argmax(self._scores)])
        return _highest(self._scores, count)

    def weight_sum(self, temperature: float) -> float:
        return exact_weight_sum(self, temperature)

    def contenders(self, temperature: float, seed: int, position: int) -> Ids:
        return self.at_least(self.peak - temperature * NOISE_REACH)


def _highest(scores: Scores, count: int) -> Ids:
    if 0 < count < len(scores):
        places = np.flatnonzero(scores >= np.partition(scores, -count)[-count])
    else:
        places = np.arange(len(scores))
    order = np.argsort(-scores[places], kind="stable")
    return places[order[:count]]


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
