"""The slow twin of native/score_row.cc: it defines every answer of a `ScoreRow`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from paceline.score_row import NOISE_REACH, Ids, Scores, exact_weight_sum


class NumpyScoreRow:
    """Protocol `paceline.score_row.ScoreRow`."""

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
