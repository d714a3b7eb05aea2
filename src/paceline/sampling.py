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
from paceline.noise import MAX_SEED, gumbel
from paceline.score_row import (
    NOISE_REACH,
    SUM_TOLERANCE,
    Ids,
    ScoreRow,
    Scores,
    exact_weight_sum,
    score_row,
    temper,
)

MAX_CANDIDATES = 256
MAX_LOGIT_BIASES = 1024
MAX_TOP_LOGPROBS = 20
MIN_REPETITION_PENALTY = 1e-6  # smaller ones could overflow a logit

_NUCLEUS_STEP = 256  # more than most nuclei have


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
        floor -= rule.temperature * NOISE_REACH
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
    return temper(values, rule.temperature) + gumbel(rule.seed, position, ids)


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

    `is_greedy`: nothing is drawn at random.

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
        self._penalises = params.repetition_penalty != 1.0 or bool(
            params.presence_penalty or params.frequency_penalty
        )
        self._vocab_size = vocab_size
        self._rule = _draw_rule(params, seed, suppressed_token_ids, vocab_size)
        self._prompt_ids = np.unique(np.array(list(prompt_token_ids), np.int64))
        self._output_counts: Counter[int] = Counter()
        self._changed_ids = self._rule.bias_ids
        if params.repetition_penalty != 1.0:
            self._changed_ids = np.union1d(self._prompt_ids, self._changed_ids)
        self._num_candidates = self._candidates_needed()
        self._suppressed = self._rule.suppressed_ids()
        self.is_greedy = params.temperature == 0.0
        self.takes_order = self._num_candidates == 1 + len(self._suppressed)

    @property
    def num_candidates(self) -> int:
        """How many candidates of a row `choose` can use; 0 if it needs the whole row."""
        return self._num_candidates

    def _candidates_needed(self) -> int:
        """Biased tokens are looked up in the row. Of the others, the most likely must be there
        even if all biased ones stand before them."""
        params = self._params
        if params.top_logprobs is not None or self._penalises:
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
        if self._penalises:
            self._output_counts[token_id] += 1
            if self._output_counts[token_id] == 1:
                self._changed_ids = np.union1d(self._changed_ids, [token_id])

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
        row = score_row(logits, self._changed_ids, self._changed_scores(logits))
        if not math.isfinite(row.peak):
            raise _unusable(row.peak, position)
        token = self._chosen(row, position)
        if self._params.top_logprobs is None:
            return Choice(token_id=token)
        return _with_logprobs(token, row, self._params.top_logprobs)

    def _chosen(self, row: ScoreRow, position: int) -> int:
        params = self._params
        if params.temperature == 0.0:
            return int(row.highest(1)[0])
        if _filters(params, self._vocab_size):
            return self._sampled(*_filtered(row, params, self._vocab_size), position)
        ids = row.contenders(params.temperature, self._rule.seed, position)
        return self._sampled(ids, _tempered(row, ids, params.temperature), position)

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
        """(ids, scores) as `ScoreRow.highest` would order them, up to `num_candidates` or more."""
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

    def _changed_scores(self, logits: NDArray[np.float32]) -> NDArray[np.float64]:
        """What penalties, bias and suppression make of the logits of `_changed_ids`. [n]"""
        scores = logits[self._changed_ids].astype(np.float64)
        if self._penalises:
            self._penalise(scores)
        with np.errstate(invalid="ignore"):  # inf at a suppressed token: the NaN is refused later
            scores[np.searchsorted(self._changed_ids, self._rule.bias_ids)] += self._rule.biases
        return scores

    def _penalise(self, scores: NDArray[np.float64]) -> None:
        params = self._params
        output_ids = np.fromiter(self._output_counts.keys(), np.int64)
        output = np.searchsorted(self._changed_ids, output_ids)
        if params.repetition_penalty != 1.0:
            prompt = np.searchsorted(self._changed_ids, self._prompt_ids)
            seen = np.union1d(prompt, output)
            scores[seen] = np.where(
                scores[seen] < 0.0,
                scores[seen] * params.repetition_penalty,
                scores[seen] / params.repetition_penalty,
            )
        counts = np.fromiter(self._output_counts.values(), np.float64)
        scores[output] -= params.presence_penalty + params.frequency_penalty * counts

    def _sampled(
        self, ids: NDArray[np.integer], tempered: NDArray[np.float64], position: int
    ) -> int:
        if len(ids) == 1:
            return int(ids[0])
        reachable = np.flatnonzero(tempered >= -NOISE_REACH)
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


def _tempered(row: ScoreRow, ids: Ids, temperature: float) -> NDArray[np.float64]:
    """`temper` of the whole row, at `ids`."""
    with np.errstate(over="ignore"):
        scaled: NDArray[np.float64] = (row.scores(ids) - row.peak) / temperature
    return scaled


def _filters(params: SamplingParams, vocab_size: int) -> bool:
    return 0 < params.top_k < vocab_size or params.top_p < 1.0 or params.min_p > 0.0


def _filtered(
    row: ScoreRow, params: SamplingParams, vocab_size: int
) -> tuple[NDArray[np.integer], NDArray[np.float64]]:
    """The tokens that pass all filters, in no particular order, and their tempered scores."""
    if 0 < params.top_k < vocab_size:
        ids = row.highest(params.top_k)
        return _narrowed(ids, row.scores(ids), params)
    if params.top_p < 1.0:
        ids = _nucleus_of_row(row, params)
    else:
        ids = row.at_least(_min_p_floor(row.peak, params))
    return _above_min_p(ids, _tempered(row, ids, params.temperature), params.min_p)


def _narrowed(
    ids: NDArray[np.integer], scores: Scores, params: SamplingParams
) -> tuple[NDArray[np.integer], NDArray[np.float64]]:
    """Temperature, top_p and min_p on the tokens that top_k has left, the highest score first."""
    tempered = temper(scores, params.temperature)
    if params.top_p < 1.0:
        weights = np.exp(tempered)
        needed = _num_needed(np.cumsum(weights), params.top_p * float(weights.sum()))
        ids, tempered = ids[:needed], tempered[:needed]
    return _above_min_p(ids, tempered, params.min_p)


def _above_min_p(
    ids: NDArray[np.integer], tempered: NDArray[np.float64], min_p: float
) -> tuple[NDArray[np.integer], NDArray[np.float64]]:
    if min_p == 0.0:
        return ids, tempered
    kept = np.flatnonzero(np.exp(tempered) >= min_p)  # the best one's weight is 1
    return ids[kept], tempered[kept]


def _min_p_floor(peak: float, params: SamplingParams) -> float:
    """No token that `_above_min_p` keeps scores less: the logarithm is right to 1e-12, and the
    sum to its last bit."""
    lowest = peak + params.temperature * (math.log(params.min_p) - 1e-9)
    return math.nextafter(lowest, -math.inf)


def _nucleus_of_row(row: ScoreRow, params: SamplingParams) -> Ids:
    """The fewest most likely tokens whose probabilities sum to `top_p` or more, highest first.

    The definition takes the probabilities from `exact_weight_sum`. `row.weight_sum` decides only
    where every sum within its tolerance would put the edge at the same token, so that the nucleus
    is one function of scores and parameters, whoever holds the row.

    Cost: ranks only as many tokens as it needs, in steps; few are enough for most rows.
    """
    total, tolerance = row.weight_sum(params.temperature), SUM_TOLERANCE
    count = _NUCLEUS_STEP
    while True:
        ids = row.highest(count)
        sums = np.cumsum(np.exp(_tempered(row, ids, params.temperature)))
        wanted = params.top_p * total
        if tolerance and _num_needed(sums, wanted * (1.0 - tolerance)) != _num_needed(
            sums, wanted * (1.0 + tolerance)
        ):
            total, tolerance = exact_weight_sum(row, params.temperature), 0.0
            continue
        needed = _num_needed(sums, wanted)
        if needed <= len(ids) or len(ids) < count:
            return ids[:needed]
        count *= 8


def _num_needed(sums: NDArray[np.float64], wanted: float) -> int:
    """How many tokens, one more than there are if all do not reach `wanted`."""
    return int(np.searchsorted(sums, wanted)) + 1


def _with_logprobs(token_id: int, row: ScoreRow, top_logprobs: int) -> Choice:
    log_sum = np.log(row.weight_sum(1.0))
    top = row.highest(top_logprobs) if top_logprobs else np.empty(0, np.int64)
    ids = np.concatenate([[token_id], top])
    token, *others = (_tempered(row, ids, 1.0) - log_sum).tolist()
    return Choice(
        token_id=token_id,
        logprob=token,
        top=tuple((i, x) for i, x in zip(top.tolist(), others, strict=True) if x > -math.inf),
    )
