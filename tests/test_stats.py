"""Statistics store counts and derive every rate from them."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.stats import GenerationStats, SourceStats

ROUNDS = [(4, 4), (4, 0), (0, 0), (2, 1), (4, 2)]


def recorded(rounds, **fields):
    stats = GenerationStats(**fields)
    for drafted, accepted in rounds:
        stats.record_round(drafted, accepted)
    return stats


def test_counts_of_a_hand_worked_generation():
    stats = recorded(ROUNDS)
    assert (stats.rounds, stats.plain_rounds) == (5, 1)
    assert stats.acceptance_histogram == [1, 1, 1, 0, 1]
    assert stats.drafted_per_position == [4, 4, 3, 3]
    assert stats.accepted_per_position == [3, 2, 1, 1]
    assert (stats.drafted_tokens, stats.accepted_tokens) == (14, 7)
    assert stats.acceptance_rate == 7 / 14
    assert stats.acceptance_length == 1 + 7 / 4  # the plain round is not in it


def test_rates_are_none_when_nothing_was_measured():
    for stats in (GenerationStats(), recorded([(0, 0)] * 3, generated_tokens=1, decode_s=1.0)):
        assert stats.acceptance_rate is None
        assert stats.acceptance_length is None
        assert stats.decode_tps is None
        assert stats.prefill_tps is None


def test_speeds_leave_out_what_was_not_computed():
    stats = GenerationStats(
        prompt_tokens=120, cached_tokens=20, prefill_s=0.5, generated_tokens=41, decode_s=2.0
    )
    assert stats.prefill_tps == 200.0
    assert stats.decode_tps == 20.0  # the first token belongs to the prefill


@settings(derandomize=True, deadline=None)
@given(
    st.lists(
        st.lists(
            st.integers(0, 8).flatmap(lambda k: st.tuples(st.just(k), st.integers(0, k))),
            max_size=6,
        ),
        max_size=4,
    )
)
def test_a_merge_equals_one_recording_of_all_rounds(generations):
    total = GenerationStats(generations=0)
    for rounds in generations:
        total.add(recorded(rounds, prompt_tokens=3, generated_tokens=9, decode_s=0.5))
    count = len(generations)
    everything = [one for rounds in generations for one in rounds]
    assert total == recorded(
        everything,
        generations=count,
        prompt_tokens=3 * count,
        generated_tokens=9 * count,
        decode_s=0.5 * count,
    )


def test_a_merge_sums_all_amounts_and_averages_the_wait():
    total = GenerationStats(generations=0)
    parts = {"prompt_tokens": 5, "cached_tokens": 2, "generated_tokens": 9}
    seconds = {"prefill_s": 0.25, "decode_s": 1.0, "draft_s": 0.125, "verify_s": 0.5}
    for ttft_s in (1.0, 2.0, 6.0):
        total.add(GenerationStats(ttft_s=ttft_s, **parts, **seconds))
    report = total.to_json()
    assert report["ttft_s"] == pytest.approx(3.0, rel=1e-15)
    assert {name: report[name] for name in parts} == {n: 3 * v for n, v in parts.items()}
    assert {name: report[name] for name in seconds} == {n: 3 * v for n, v in seconds.items()}
    assert total.decode_tps == (27 - 3) / 3.0  # one first token per generation


def test_sources_are_counted_apart():
    total = recorded([(4, 2), (0, 0)])
    other = recorded([(1, 1)])
    other.record_round(9, 8, "suffix")
    other.record_round(3, 0, "suffix")
    total.add(other)
    assert total.sources == {
        "drafter": SourceStats(rounds=2, drafted_tokens=5, accepted_tokens=3),
        "suffix": SourceStats(rounds=2, drafted_tokens=12, accepted_tokens=8),
    }
    assert other.sources["drafter"].rounds == 1
    assert total.to_json()["sources"]["suffix"] == {
        "rounds": 2,
        "drafted_tokens": 12,
        "accepted_tokens": 8,
    }


def test_a_merge_leaves_the_other_untouched():
    one, other = recorded([(2, 1)]), recorded([(4, 3)])
    one.add(other)
    one.record_round(4, 4)
    assert other == recorded([(4, 3)])


def test_json_names_are_stable():
    report = recorded(ROUNDS).to_json()
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert list(report) == [
        "generations",
        "prompt_tokens",
        "cached_tokens",
        "generated_tokens",
        "rounds",
        "plain_rounds",
        "drafted_tokens",
        "accepted_tokens",
        "acceptance_rate",
        "acceptance_length",
        "acceptance_histogram",
        "drafted_per_position",
        "accepted_per_position",
        "sources",
        "ttft_s",
        "prefill_s",
        "decode_s",
        "draft_s",
        "verify_s",
        "prefill_tps",
        "decode_tps",
    ]


@pytest.mark.parametrize(("drafted", "accepted"), [(2, 3), (0, 1), (2, -1)])
def test_impossible_rounds_are_our_own_bug(drafted, accepted):
    with pytest.raises(AssertionError):
        GenerationStats().record_round(drafted, accepted)
