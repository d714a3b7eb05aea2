"""The checks of the text and of its law fail on the bugs they are there for.

Everything is real here but for the bug: a tiny torch pair, its drafter, its cache, its rounds.
The law is checked on the full path. Given what came before, the target's own distribution of each
token is known from a fresh pass, so the ranks of the emitted tokens must be distributed as those
passes say, whatever was drafted.
"""

from itertools import count

import numpy as np
import pytest

from equality import Divergence, Matrix, answers, check, compare
from fakes import WINDOW as FAKE_WINDOW
from fakes import FakeDrafter, FakeTarget, fake_pair
from paceline.engine import Engine
from paceline.noise import gumbel
from paceline.runtime.protocols import Rows
from paceline.runtime.torch.cache import LayerStore
from paceline.sampling import SamplingParams
from paceline.speculative import round as rounds
from paceline.speculative.round import Verdict
from score_row_twin import NumpyScoreRow
from tiny_pair import VOCAB_SIZE, WINDOW, tiny_pair

PROMPTS = [
    [2, *np.random.default_rng(seed).integers(3, VOCAB_SIZE, 60).tolist()] for seed in range(8)
]

# --- The bugs -----------------------------------------------------------------------------------


def noise_keyed_by_call_count(monkeypatch):
    calls = count()
    planted = lambda seed, position, ids: gumbel(seed, next(calls), ids)  # noqa: E731
    monkeypatch.setattr("paceline.sampling.gumbel", planted)
    # Native rows know the noise themselves, and would leave the planted one nothing to decide.
    monkeypatch.setattr("paceline.sampling.score_row", NumpyScoreRow)


def bonus_from(row_of):
    """The token that ends a round is chosen from row `row_of(row, last)`."""

    def verify(sequence, draft, output, start):
        emitted, logits = [], output.logits
        for row, scores in enumerate(logits):
            choice = sequence.sampler.choose(scores, start + row)
            accepted = row < len(draft) and draft[row] == choice.token_id
            if not accepted:
                planted = logits[row_of(row, len(draft))]
                choice = sequence.sampler.choose(planted, start + row)
            sequence.sampler.commit(choice.token_id)
            emitted.append(choice.token_id)
            if not sequence.push(choice, drafted=accepted) or not accepted:
                break
        return Verdict(
            token_ids=tuple(emitted),
            num_verified_tokens=len(draft),
            num_accepted_tokens=len(emitted) - 1,
        )

    return lambda monkeypatch: monkeypatch.setattr(rounds, "verify", verify)


def ring_overwritten_by_rejected_drafts(monkeypatch):
    """As in rings that hold the window and nothing more: whoever writes position p overwrites
    p - window, which rows before p still see when p is taken back."""
    honest = LayerStore.write

    def write(self, start, keys, values):
        honest(self, start, keys, values)
        kept = max(0, WINDOW - start)  # rows whose older neighbour does not exist
        if self.is_ring and kept < len(keys):
            honest(self, start + kept - WINDOW, keys[kept:], values[kept:])

    monkeypatch.setattr(LayerStore, "write", write)


def bonus_chosen_anew(monkeypatch):
    """After a mismatch the target's token is thrown away and drawn again with other noise."""

    def verify(sequence, draft, output, start):
        verdict = honest(sequence, draft, output, start)
        row = len(verdict.token_ids) - 1
        if row == len(draft):
            return verdict
        again = sequence.sampler.choose(output.logits[row], start + row + 100_000)
        sequence.tokens[-1] = sequence.tokens[-1]._replace(token_id=again.token_id)
        return verdict._replace(token_ids=(*verdict.token_ids[:-1], again.token_id))

    honest = rounds.verify
    monkeypatch.setattr(rounds, "verify", verify)


def hidden_of_the_wrong_row(monkeypatch):
    honest = rounds.settle

    def settle(sequence, draft, output):
        verdict = honest(sequence, draft, output)
        sequence.hidden = output.hidden[max(0, len(verdict.token_ids) - 2)]
        return verdict

    monkeypatch.setattr(rounds, "settle", settle)


BONUS_FROM_THE_LAST_ROW = bonus_from(lambda row, last: last)
BONUS_FROM_THE_ROW_BEFORE = bonus_from(lambda row, last: max(0, row - 1))

# --- The text -----------------------------------------------------------------------------------


def check_text(temperature, drafters=("recorded", "real")):
    matrix = Matrix(
        prompts=PROMPTS[:4],
        max_tokens=30,
        runs=[(name, 6) for name in drafters],
        temperatures=[temperature],
        params=SamplingParams(),
    )
    return check(tiny_pair(), matrix)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_text_is_equal_without_a_bug(temperature):
    recorded, real = check_text(temperature).runs
    assert recorded.acceptance_length > 3
    assert temperature == 0.0 or real.acceptance_length > 1.1


TEXT_BUGS = {
    "bonus from the last row": BONUS_FROM_THE_LAST_ROW,
    "bonus from the row before": BONUS_FROM_THE_ROW_BEFORE,
    "bonus chosen anew": bonus_chosen_anew,
    "ring overwritten by rejected drafts": ring_overwritten_by_rejected_drafts,
    "noise keyed by call count": noise_keyed_by_call_count,
}


@pytest.mark.parametrize("bug", TEXT_BUGS)
@pytest.mark.parametrize("drafter", ["recorded", "real"])
def test_the_text_differs_with_a_bug(monkeypatch, bug, drafter):
    TEXT_BUGS[bug](monkeypatch)
    with pytest.raises(Divergence):
        check_text(1.0, [drafter])


@pytest.mark.parametrize("bug", ["bonus from the last row", "ring overwritten by rejected drafts"])
def test_the_greedy_text_differs_with_a_bug(monkeypatch, bug):
    TEXT_BUGS[bug](monkeypatch)
    with pytest.raises(Divergence):
        check_text(0.0, ["recorded"])


def test_a_wrong_hidden_row_costs_drafts_but_no_token(monkeypatch):
    """The hidden state goes to the drafter only, so this bug cannot show in any text; the fakes
    insist on the right row instead."""
    before = drafted_answers(3, 40)
    hidden_of_the_wrong_row(monkeypatch)
    after = drafted_answers(3, 40)
    compare(before, after, "with a wrong hidden row")
    assert [r.stats.acceptance_histogram for r in before] != [
        r.stats.acceptance_histogram for r in after
    ]
    target = FakeTarget()
    engine = Engine(fake_pair(target, FakeDrafter(target)))
    with pytest.raises(AssertionError, match="hidden"):
        engine.generate("hello", max_tokens=30, draft=4)


def fake_text(*, ring_slots, draft):
    target = FakeTarget(ring_slots=ring_slots)
    drafter = FakeDrafter(target, lambda position: position % 3 == 0, checks_hidden=False)
    engine = Engine(fake_pair(target, drafter))
    sampling = SamplingParams(seed=1)
    return engine.generate("hello", sampling=sampling, max_tokens=40, draft=draft).text


def test_a_ring_without_slack_shows_in_the_fakes_too():
    expected = fake_text(ring_slots=None, draft=0)
    assert fake_text(ring_slots=None, draft=8) == expected
    assert fake_text(ring_slots=FAKE_WINDOW, draft=0) == expected
    assert fake_text(ring_slots=FAKE_WINDOW, draft=8) != expected


# --- The law ------------------------------------------------------------------------------------

LAW_PROMPTS = PROMPTS * 2
# Chi-square over two tables of up to 16 ranks. Each token adds to a rank an indicator whose mean
# is known, given the past; its variance p (1 - p) is below the p that the statistic divides by.
# An honest sum with 32 degrees of freedom exceeds 86 once in a million.
LAW_BOUND = 86.0


def drafted_answers(draft, max_tokens):
    """Seeded answers to every prompt, drafted by the real drafter."""
    matrix = Matrix(
        prompts=LAW_PROMPTS, max_tokens=max_tokens, batch_size=16, params=SamplingParams()
    )
    return answers(Engine(tiny_pair(), kept_caches=0), matrix, 1.0, draft)


def law_statistic(results):
    """How far the ranks of the emitted tokens are from the target's law: one table for those that
    follow an accepted draft, one for the others."""
    seen, expected = np.zeros((2, VOCAB_SIZE)), np.zeros((2, VOCAB_SIZE))
    for prompt, result in zip(LAW_PROMPTS, results, strict=True):
        table = 0
        for probabilities, token in zip(own_law(prompt, result), result.tokens, strict=True):
            order = np.argsort(-probabilities, kind="stable").tolist()
            expected[table] += probabilities[order]
            seen[table, order.index(token.token_id)] += 1
            table = int(token.drafted)
    return sum(map(chi_square, seen, expected))


def chi_square(seen, expected):
    """Ranks that are too rare for a chi-square (expected below 5) are counted as one."""
    common = int((expected >= 5).sum())  # expected counts fall with the rank
    seen, expected = (np.append(x[:common], x[common:].sum()) for x in (seen, expected))
    return ((seen - expected) ** 2 / np.maximum(expected, 1.0)).sum()


def own_law(prompt, result):
    """[n, V]: the target's distribution of each token of an answer, by one fresh pass."""
    target, token_ids = tiny_pair().target, (*prompt, *result.token_ids)
    cache = target.new_cache(len(token_ids), 0)
    rows = Rows(cache=cache, token_ids=token_ids, num_outputs=1 + len(result.tokens))
    logits = target.forward([rows])[0].logits[:-1].astype(np.float64)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def test_the_full_path_follows_the_law_of_the_target():
    results = drafted_answers(5, 80)
    assert sum(len(result.tokens) for result in results) == 16 * 80
    assert sum(result.stats.accepted_tokens for result in results) > 200
    assert law_statistic(results) < LAW_BOUND


@pytest.mark.parametrize(
    ("bug", "draft", "max_tokens"),
    [
        ("bonus from the last row", 3, 40),
        ("bonus from the row before", 3, 64),
        ("ring overwritten by rejected drafts", 5, 80),
    ],
)
def test_the_law_is_broken_by_a_bug(monkeypatch, bug, draft, max_tokens):
    """Noise keyed by call count is not among them: fresh noise has the same law, only the text
    changes."""
    TEXT_BUGS[bug](monkeypatch)
    results = drafted_answers(draft, max_tokens)
    monkeypatch.undo()
    assert law_statistic(results) > LAW_BOUND
