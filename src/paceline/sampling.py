"""Sample matching (contract C2): how a token is chosen from a row of scores.

Owns the sampling parameters, the logit processors, and the two draws that share their noise: the
target's (`Sampler`) and the drafter's (`draw`). Knows no model, cache or round; a row of scores is
a NumPy array.
"""

from __future__ import annotations

import math
import secrets
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from paceline.config import MAX_VOCABULARY, check_range
from paceline.errors import ConfigError, LogitsError
from paceline.noise import MAX_GUMBEL, MAX_SEED, MIN_GUMBEL, gumbel

Scores = NDArray[np.float32] | NDArray[np.float64]
Ids = NDArray[np.int64]

MAX_CANDIDATES = 256
MAX_LOGIT_BIASES = 1024
MAX_TOP_LOGPROBS = 20
MIN_REPETITION_PENALTY = 1e-6  # smaller ones could overflow a logit

# A token further than this below another one cannot overtake it, whatever noise the two get.
# The half covers the rounding of the sums.
_NOISE_REACH = MAX_GUMBEL - MIN_GUMBEL + 0.5


def random_seed() -> int:
    """A seed for a request that brings none, from the operating system's entropy."""
    return secrets.randbits(64)


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How a request wants its tokens chosen. The defaults sample the model's own distribution.

    Args:
        temperature: 0 to 2; 0 takes the most likely token.
        top_k: keep this many most likely tokens; 0 keeps all.
        top_p: keep the most likely tokens until their probabilities reach this sum.
        min_p: drop tokens below this fraction of the most likely one's probability.
        repetition_penalty: divides positive and multiplies negative logits of the tokens of
            prompt and output.
        presence_penalty: subtracted from the logits of the tokens of the output.
        frequency_penalty: the same, times how often the token occurs in the output.
        logit_bias: added to the logits, by token id.
        seed: 0 to 2**64 - 1; None leaves it to the engine.
        top_logprobs: report the log-probability of the token and of this many most likely ones;
            None reports none.

    Raises:
        ConfigError: a value is out of range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    top_logprobs: int | None = None

    def __post_init__(self) -> None:
        _check_number("temperature", self.temperature, 0.0, 2.0)
        check_range("top_k", self.top_k, 0, MAX_VOCABULARY)
        _check_number("top_p", self.top_p, 0.0, 1.0)
        if self.top_p == 0.0:
            raise ConfigError("top_p=0 keeps no token. For the most likely one pass temperature=0.")
        _check_number("min_p", self.min_p, 0.0, 1.0)
        if self.min_p == 1.0:
            raise ConfigError(
                "min_p must be below 1. For the most likely token pass temperature=0."
            )
        _check_number("repetition_penalty", self.repetition_penalty, MIN_REPETITION_PENALTY, 10.0)
        _check_number("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _check_number("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        if self.seed is not None:
            check_range("seed", self.seed, 0, MAX_SEED)
        if self.top_logprobs is not None:
            check_range("top_logprobs", self.top_logprobs, 0, MAX_TOP_LOGPROBS)
        self._check_logit_bias()
        object.__setattr__(self, "logit_bias", dict(self.logit_bias))

    def _check_logit_bias(self) -> None:
        if not isinstance(self.logit_bias, Mapping):
            raise ConfigError(
                f"logit_bias must map token ids to biases, got {type(self.logit_bias).__name__}."
            )
        if len(self.logit_bias) > MAX_LOGIT_BIASES:
            raise ConfigError(
                f"logit_bias has {len(self.logit_bias)} entries: expected at most "
                f"{MAX_LOGIT_BIASES}."
            )
        for token_id, bias in self.logit_bias.items():
            check_range("token id in logit_bias", token_id, 0, MAX_VOCABULARY - 1)
            _check_number(f"logit_bias of token {token_id}", bias, -100.0, 100.0)


def _check_number(name: str, value: float, low: float, high: float) -> None:
    """Raise ConfigError unless `value` is a number in [low, high]. NaN is in no range."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{name} must be a number, got {value!r}.")
    if not low <= value <= high:
        raise ConfigError(f"{name}={value} is out of range: expected {low:g} to {high:g}.")


@dataclass(frozen=True, kw_only=True, eq=False)
class DrawRule:
    """What a drafter needs to draw with the target's noise. No penalties and no filters: a draft
    token only has to be plausible, and these would cost more than they win.

    Args:
        temperature: 0 takes the best score.
        seed: the request's seed.
        bias_ids: [n] token ids, ascending, each once.
        biases: [n] added to their scores; -inf suppresses a token.
    """

    temperature: float
    seed: int
    bias_ids: Ids = field(default_factory=lambda: np.empty(0, np.int64))
    biases: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))

    def suppressed_ids(self) -> frozenset[int]:
        return frozenset(self.bias_ids[self.biases == -np.inf].tolist())


def draw(
    scores: NDArray[np.float32],
    position: int,
    rule: DrawRule,
    token_ids: NDArray[np.integer] | None = None,
) -> tuple[int, float]:
    """Draw a draft token: `argmax_v(scores_v / temperature + noise(seed, position, v))`.

    Args:
        scores: [n] the drafter's logits.
        position: absolute position that the token would take.
        token_ids: [n] the token of each score, in any order, each once; None means 0 .. n-1.

    Returns:
        The token (of equals the lowest id), and its confidence: how far its noised score is ahead
        of the runner-up's, inf if it has none. Scores that leave nothing to choose from give
        confidence 0: a broken drafter costs its drafts, never the text.

    Cost: two passes over the scores, then noise for those that can still come first or second.

    Equals: noise on every token and a full argmax (tests/test_sampling.py).
    """
    values = _biased(scores, rule, token_ids)
    best = int(np.argmax(values))
    if not np.isfinite(values[best]):
        return (best if token_ids is None else int(token_ids[best])), 0.0
    floor = _runner_up(values, best)
    if rule.temperature > 0.0:
        floor -= rule.temperature * _NOISE_REACH
    places = np.flatnonzero(values >= floor)
    ids = places if token_ids is None else token_ids[places]
    return _first_and_margin(_noised(values[places], ids, position, rule), ids)


def _biased(scores: Scores, rule: DrawRule, token_ids: NDArray[np.integer] | None) -> Scores:
    if not len(rule.bias_ids):
        return scores
    values = scores.astype(np.float64)
    places, biases = _biased_places(rule, token_ids)
    with np.errstate(invalid="ignore"):  # inf at a suppressed token: the NaN is refused later
        values[places] += biases
    return values


def _biased_places(
    rule: DrawRule, token_ids: NDArray[np.integer] | None
) -> tuple[Ids, NDArray[np.float64]]:
    if token_ids is None:
        return rule.bias_ids, rule.biases
    entries = np.searchsorted(rule.bias_ids[:-1], token_ids)  # always a valid index
    places = np.flatnonzero(rule.bias_ids[entries] == token_ids)
    return places, rule.biases[entries[places]]


def _runner_up(values: Scores, best: int) -> float:
    """The second highest value, which equals the highest on a tie; -inf if there is only one."""
    below = values[:best].max(initial=-np.inf)
    return float(max(below, values[best + 1 :].max(initial=-np.inf)))


def _noised(
    values: Scores, ids: NDArray[np.integer], position: int, rule: DrawRule
) -> NDArray[np.float64]:
    if rule.temperature == 0.0:
        return values.astype(np.float64)
    return _tempered(values, rule.temperature) + gumbel(rule.seed, position, ids)


def _tempered(values: Scores, temperature: float) -> NDArray[np.float64]:
    """`(values - max) / temperature`, so that the best is 0 and a vanishing temperature sends
    the others to -inf instead of the best to inf."""
    exact = values.astype(np.float64)
    with np.errstate(over="ignore"):
        scaled: NDArray[np.float64] = (exact - exact.max()) / temperature
    return scaled


def _first_and_margin(noised: NDArray[np.float64], ids: NDArray[np.integer]) -> tuple[int, float]:
    best = int(np.argmax(noised))
    margin = float(noised[best]) - _runner_up(noised, best)
    if margin > 0.0:
        return int(ids[best]), margin
    return int(ids[noised == noised[best]].min()), 0.0


class Candidates(NamedTuple):
    """The highest logits of one row, highest first, of equals the lowest id first.

    A runtime that finds them while it computes the row spares the sampler a scan of the whole
    vocabulary. A row with a NaN or an infinity has none.

    Args:
        token_ids: [C]; -1 from the place on where there are no more.
        logits: [C] the row's own bits.
    """

    token_ids: NDArray[np.int32]
    logits: NDArray[np.float32]

    def holds(self, count: int) -> bool:
        return len(self.token_ids) >= count and bool(self.token_ids[count - 1] >= 0)


class Choice(NamedTuple):
    """The target's token at one position.

    `logprob` and `top` (most likely first) come from the distribution after bias, suppression and
    penalties, but before temperature and filters, so they do not depend on how it was sampled.
    """

    token_id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Sampler:
    """Chooses the tokens of one sequence.

    The order is: repetition, presence and frequency penalty, logit bias, suppression,
    temperature, top_k, top_p, min_p, and then the token with the highest noised score. Tokens that
    tie count as ordered by id, the lowest first, in every filter and in the choice.

    Args:
        vocab_size: length of the rows of logits.
        seed: key of the noise, whatever `params.seed` says.
        prompt_token_ids: what the repetition penalty counts as seen.
        suppressed_token_ids: tokens that are never chosen.

    Raises:
        ConfigError: a biased or suppressed token is not in the vocabulary.
    """

    def __init__(
        self,
        params: SamplingParams,
        *,
        vocab_size: int,
        seed: int,
        prompt_token_ids: Iterable[int] = (),
        suppressed_token_ids: Iterable[int] = (),
    ) -> None:
        check_range("seed", seed, 0, MAX_SEED)
        self._params = params
        self._looks_back = self._penalises()
        self._vocab_size = vocab_size
        self._rule = _draw_rule(params, seed, suppressed_token_ids, vocab_size)
        self._prompt_ids = np.unique(np.array(list(prompt_token_ids), np.int64))
        self._output_counts: Counter[int] = Counter()
        self._num_candidates = self._candidates_needed()
        self._suppressed = self._rule.suppressed_ids()
        self.takes_order = self._num_candidates == 1 + len(self._suppressed)

    @property
    def num_candidates(self) -> int:
        """How many candidates of a row `choose` can use; 0 if it needs the whole row."""
        return self._num_candidates

    def _candidates_needed(self) -> int:
        """Biased tokens are looked up in the row. Of the others, the most likely must be there
        even if all biased ones stand before them."""
        params = self._params
        if params.top_logprobs is not None or self._penalises():
            return 0
        wanted = 1 if params.temperature == 0.0 else params.top_k
        needed = wanted + len(self._rule.bias_ids)
        return needed if wanted and needed <= min(MAX_CANDIDATES, self._vocab_size - 1) else 0

    @property
    def draw_rule(self) -> DrawRule:
        """What the drafter draws with, so that it meets the target's noise."""
        return self._rule

    def commit(self, token_id: int) -> None:
        """Append a token to the output that the penalties look back at."""
        if self._looks_back:
            self._output_counts[token_id] += 1

    def best_of(self, token_ids: Sequence[int]) -> int | None:
        """What `choose` chooses if `takes_order`; None if it takes more candidates than these.

        Args:
            token_ids: of candidates of the row, see `Candidates`, without a -1.

        Equals: the whole row (tests/test_sampling.py).
        """
        if len(token_ids) >= self._num_candidates:
            for token_id in token_ids:
                if token_id not in self._suppressed:
                    return token_id
        return None

    def choose(
        self, logits: NDArray[np.float32], position: int, candidates: Candidates | None = None
    ) -> Choice:
        """Choose a token: a pure function of the parameters, the seed, the committed tokens, the
        logits and the position. Commits nothing.

        Args:
            logits: [V]
            position: absolute position that the token will take.
            candidates: of this row; they change the cost, never the choice.

        Raises:
            LogitsError: the row holds NaN or infinity, or no token is left.
        """
        assert logits.shape == (self._vocab_size,), (logits.shape, self._vocab_size)
        needed = self._num_candidates
        if needed and candidates is not None and candidates.holds(needed):
            return Choice(token_id=self._chosen_of(candidates, logits, position))
        scores = self._processed(logits)
        best = int(np.argmax(scores))  # a NaN, if there is one
        if not np.isfinite(scores[best]):
            raise _unusable(float(scores[best]), position)
        if self._params.temperature == 0.0:
            token = best
        else:
            token = self._sampled(*_filtered(scores, self._params), position)
        if self._params.top_logprobs is None:
            return Choice(token_id=token)
        return _with_logprobs(token, scores, self._params.top_logprobs)

    def _processed(self, logits: NDArray[np.float32]) -> Scores:
        """The logits after penalties, bias and suppression; the row itself if there are none."""
        return _biased(self._penalised(logits), self._rule, None)

    def _chosen_of(self, candidates: Candidates, logits: NDArray[np.float32], position: int) -> int:
        """What `choose` chooses from the whole row, from candidates that suffice.

        Equals: the whole row (tests/test_sampling.py).
        """
        ids, scores = self._processed_candidates(candidates, logits)
        if self._params.temperature == 0.0:
            return int(ids[0])
        count = self._params.top_k
        return self._sampled(*_narrowed(ids[:count], scores[:count], self._params), position)

    def _processed_candidates(
        self, candidates: Candidates, logits: NDArray[np.float32]
    ) -> tuple[NDArray[np.integer], Scores]:
        """(ids, scores) as `_highest` would order them, up to `num_candidates` or more."""
        bias_ids = self._rule.bias_ids
        token_ids = candidates.token_ids[: self._num_candidates]
        scores = candidates.logits[: self._num_candidates]
        if not len(bias_ids):
            return token_ids, scores
        places, _ = _biased_places(self._rule, token_ids)
        biased = logits[bias_ids].astype(np.float64) + self._rule.biases
        ids = np.concatenate([np.delete(token_ids, places), bias_ids])
        processed = np.concatenate([np.delete(scores, places), biased])
        order = np.lexsort((ids, -processed))
        return ids[order], processed[order]

    def _penalises(self) -> bool:
        params = self._params
        return params.repetition_penalty != 1.0 or bool(
            params.presence_penalty or params.frequency_penalty
        )

    def _penalised(self, logits: NDArray[np.float32]) -> Scores:
        params = self._params
        repetition = params.repetition_penalty
        if not self._penalises():
            return logits
        scores = logits.astype(np.float64)
        output_ids = np.fromiter(self._output_counts.keys(), np.int64)
        seen = np.concatenate([self._prompt_ids, output_ids])
        scores[seen] = np.where(
            scores[seen] < 0.0, scores[seen] * repetition, scores[seen] / repetition
        )
        counts = np.fromiter(self._output_counts.values(), np.float64)
        scores[output_ids] -= params.presence_penalty + params.frequency_penalty * counts
        return scores

    def _sampled(
        self, ids: NDArray[np.integer], tempered: NDArray[np.float64], position: int
    ) -> int:
        if len(ids) == 1:
            return int(ids[0])
        reachable = np.flatnonzero(tempered >= -_NOISE_REACH)
        ids = ids[reachable]
        noised = tempered[reachable] + gumbel(self._rule.seed, position, ids)
        return int(ids[noised == noised.max()].min())


def _draw_rule(
    params: SamplingParams, seed: int, suppressed: Iterable[int], vocab_size: int
) -> DrawRule:
    table = {**params.logit_bias, **dict.fromkeys(suppressed, -math.inf)}
    for token_id in table:
        check_range("biased or suppressed token id", token_id, 0, vocab_size - 1)
    ids = sorted(table)
    return DrawRule(
        temperature=params.temperature,
        seed=seed,
        bias_ids=np.array(ids, np.int64),
        biases=np.array([table[token_id] for token_id in ids], np.float64),
    )


def _unusable(best: float, position: int) -> LogitsError:
    if best == -math.inf:
        return LogitsError(
            f"no token is left to choose at position {position}: every logit is -inf. "
            "Suppress fewer tokens, or check the model's weights."
        )
    return LogitsError(
        f"the logits at position {position} hold {best}: expected finite numbers. "
        "The model's weights are damaged, or its arithmetic overflowed."
    )


def _filtered(
    scores: Scores, params: SamplingParams
) -> tuple[NDArray[np.integer], NDArray[np.float64]]:
    """The tokens that pass all filters, in no particular order, and their tempered scores."""
    if 0 < params.top_k < len(scores):
        ids = _highest(scores, params.top_k)
    else:
        ids = np.flatnonzero(scores > -np.inf)
    return _narrowed(ids, scores[ids], params)


def _narrowed(
    ids: NDArray[np.integer], scores: Scores, params: SamplingParams
) -> tuple[NDArray[np.integer], NDArray[np.float64]]:
    """Temperature, top_p and min_p on the tokens that top_k has left."""
    tempered = _tempered(scores, params.temperature)
    if params.top_p < 1.0:
        kept = _nucleus(tempered, params.top_p)
        ids, tempered = ids[kept], tempered[kept]
    if params.min_p > 0.0:
        kept = np.flatnonzero(np.exp(tempered) >= params.min_p)  # the best one's weight is 1
        ids, tempered = ids[kept], tempered[kept]
    return ids, tempered


def _nucleus(tempered: NDArray[np.float64], top_p: float) -> Ids:
    """Places of the fewest most likely tokens whose probabilities sum to `top_p` or more.

    Cost: sorts only as many as it needs, in steps; few are enough for most rows.
    """
    weights = np.exp(tempered)
    wanted = top_p * weights.sum()
    count = 256
    while True:
        ranked = _highest(tempered, count)
        needed = int(np.searchsorted(np.cumsum(weights[ranked]), wanted)) + 1
        if needed <= len(ranked) or count >= len(tempered):
            return ranked[:needed]
        count *= 8


def _highest(scores: Scores, count: int) -> Ids:
    """Places of the `count` highest scores, highest first, the lower place first on a tie."""
    if count < len(scores):
        places = np.flatnonzero(scores >= np.partition(scores, -count)[-count])
    else:
        places = np.arange(len(scores))
    order = np.argsort(-scores[places], kind="stable")
    return places[order[:count]]


def _with_logprobs(token_id: int, scores: Scores, top_logprobs: int) -> Choice:
    shifted = _tempered(scores, 1.0)
    logprobs = shifted - np.log(np.exp(shifted).sum())
    top = _highest(scores, top_logprobs) if top_logprobs else ()
    return Choice(
        token_id=token_id,
        logprob=float(logprobs[token_id]),
        top=tuple((int(i), float(logprobs[i])) for i in top if scores[i] > -np.inf),
    )
