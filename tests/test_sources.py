"""Text that is known already is drafted where it pays, and trusted as much as its matches merit."""

import random
from dataclasses import dataclass, replace

import pytest

from paceline.speculative.controller import DraftContext, DraftPlan
from paceline.speculative.sources import (
    EARLIER,
    PREDICTION,
    SUFFIX,
    SharedTrust,
    TextSources,
    text_drafts,
)
from paceline.speculative.suffix import MAX_PROPOSAL, IndexedText, Trust
from suffix_twin import BUCKET_STARTS, MEMORY, SHARED_WEIGHT, STARTING_TRUST

PASSAGE = list(range(100, 160))


def passes(row_cost=0.1, room=MAX_PROPOSAL):
    return [1.0 + row_cost * rows for rows in range(1 + room)]


def written(sources, tokens):
    for token in tokens:
        sources.push(token)
    return sources


def draft(sources, *, kind="prose", room=MAX_PROPOSAL, row_cost=0.1, rate=1.0, other_tokens=0.0):
    return sources.draft(kind, passes(row_cost, room), 0.0, other_tokens, rate)


def test_a_quoted_passage_is_drafted():
    sources = written(TextSources(PASSAGE, SharedTrust()), PASSAGE[10:20])
    found = draft(sources)
    assert found.source == SUFFIX
    assert found.token_ids == tuple(PASSAGE[20 : 20 + len(found.token_ids)])
    assert len(found.token_ids) > 3
    assert 2.0 < found.expected_tokens < 1 + len(found.token_ids)
    assert found.seconds == passes()[len(found.token_ids)]


def test_a_text_without_repeats_proposes_nothing():
    sources = written(TextSources(PASSAGE, SharedTrust()), range(200, 300))
    assert draft(sources, rate=0.0) is None


@pytest.mark.parametrize(
    ("settings", "drafts"),
    [
        ({}, True),
        ({"rate": 3.9}, True),
        ({"rate": 20.0}, False),  # the drafter promises more
        ({"row_cost": 1.5, "rate": 1.0}, False),  # a row costs more than it brings
        ({"room": 0}, False),
        ({"rate": 4.0, "other_tokens": 3.0}, True),  # a round that has a speed already
        ({"rate": 19.0, "other_tokens": 3.0}, False),
    ],
)
def test_a_proposal_must_beat_the_rate_that_is_promised_without_it(settings, drafts):
    sources = written(TextSources(PASSAGE, SharedTrust()), PASSAGE[:30])
    assert (draft(sources, **settings) is not None) == drafts


def test_no_proposal_exceeds_the_room():
    sources = written(TextSources(PASSAGE, SharedTrust()), PASSAGE[:30])
    assert len(draft(sources, room=2).token_ids) == 2


def test_dear_rows_shorten_the_proposal():
    sources = written(TextSources(PASSAGE, SharedTrust()), PASSAGE[:6])
    lengths = [len(draft(sources, row_cost=cost).token_ids) for cost in (0.01, 0.3, 0.6)]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] > lengths[-1]


def test_matches_that_fail_are_trusted_no_more_until_they_hold_again():
    """Words that repeat with ever new tokens after them, as in free text."""
    sources = TextSources([1], SharedTrust())
    assert draft(sources) is None  # the kind of text is known from here on
    for token in range(1000, 1200):
        written(sources, [6, 7, 8, token])
    written(sources, [6, 7, 8])
    assert draft(sources) is None
    for _ in range(60):
        written(sources, [9, 6, 7, 8])
    assert draft(sources).token_ids[:3] == (9, 6, 7)


def test_what_one_sequence_learns_another_starts_from():
    shared = SharedTrust()
    sources = TextSources([1], shared)
    draft(sources)
    for token in range(1000, 1200):
        written(sources, [6, 7, 8, token])
    new = written(TextSources([6, 7, 8, 9], shared), [6, 7, 8])
    assert draft(new, kind="prose", row_cost=0.2) is None
    assert draft(new, kind="code", row_cost=0.2) is not None


def test_a_prediction_is_followed_from_its_start_and_after_an_edit():
    sources = TextSources([1, 2], SharedTrust(), prediction=PASSAGE)
    assert draft(sources).source == PREDICTION
    assert draft(sources).token_ids[0] == PASSAGE[0]
    written(sources, [*PASSAGE[:9], 5, PASSAGE[10]])
    assert draft(sources).token_ids[:2] == tuple(PASSAGE[11:13])


def test_earlier_answers_are_drafted_from():
    earlier = IndexedText()
    earlier.extend(PASSAGE)
    sources = TextSources([1, 2], SharedTrust(), earlier=earlier)
    written(sources, PASSAGE[5:12])
    found = draft(sources)
    assert (found.source, found.token_ids[0]) == (EARLIER, PASSAGE[12])


def test_of_two_sources_the_one_with_the_longer_match_is_taken():
    sources = TextSources([*PASSAGE[7:10], 5], SharedTrust(), prediction=PASSAGE)
    written(sources, PASSAGE[:10])
    assert draft(sources).source == PREDICTION


def test_the_expected_acceptance_is_the_observed_one():
    """Tokens repeat in 70 of 100 cases: after a while a first token is believed to be right in so
    many, give or take four standard deviations of 64 observations (0.23)."""
    generator = random.Random(5)
    sources = TextSources([1], SharedTrust())
    for _ in range(4000):
        written(
            sources, [2, 3, 4, 5 if generator.random() < 0.7 else generator.randrange(99, 10**6)]
        )
    written(sources, [2, 3, 4])
    found = draft(sources, kind="", room=1, row_cost=0.0, rate=0.0)
    assert found.token_ids == (5,)
    assert found.expected_tokens - 1 == pytest.approx(0.7, abs=0.23)


def test_a_trust_of_a_new_sequence_weighs_little_and_says_the_same():
    shared = Trust()
    for _ in range(1000):
        shared.record(40, 1.0, right=False)
    new = shared.of_new_sequence()
    assert new.factor(32) == pytest.approx(shared.factor(32))
    assert new.factor(32) < 0.01
    for length, trust in zip(BUCKET_STARTS[:-1], STARTING_TRUST, strict=False):
        assert new.factor(length) == pytest.approx(trust)
    # One right token beside as many as it weighs, whatever all sequences have seen.
    weight, before = MEMORY * SHARED_WEIGHT, new.factor(100)
    new.record(100, 1.0, right=True)
    assert new.factor(100) == pytest.approx((weight * before + 1) / (weight + 1))
    for _ in range(300):
        new.record(100, 1.0, right=True)
    assert new.factor(100) > 0.9


def test_shares_are_no_more_than_certain():
    trust = Trust()
    for _ in range(50):
        trust.record(2, 0.25, right=True)
    assert trust.factor(2) == 1.0


# --- a round of several sequences


@dataclass(frozen=True)
class Curve:
    """A pass costs 1 and 0.1 for each draft token, up to `cheap` of them, then 5 more."""

    cheap: int = 1000
    draft_fixed: float = 0.02
    draft_step: float = 0.05
    overhead: float = 0.01

    @property
    def passes(self):
        return [1.0 + 0.1 * rows + 5.0 * (rows > self.cheap) for rows in range(100)]

    def curve(self, context_length, num_sequences, max_draft_tokens):
        return self


def context(room=15, text_room=15):
    return DraftContext(room=room, context_length=50, kind="prose", text_room=text_room)


def quoting(length=20):
    return written(TextSources(PASSAGE, SharedTrust()), PASSAGE[:length])


def silent():
    return TextSources([1], SharedTrust())


NO_PLAN = DraftPlan(max_draft_tokens=0)


@pytest.mark.parametrize(
    ("plan", "drafts"),
    [
        (NO_PLAN, True),
        (DraftPlan(max_draft_tokens=4, expected_tokens=2.0, expected_s=1.5, plain_s=1.0), True),
        (DraftPlan(max_draft_tokens=9, expected_tokens=9.0, expected_s=1.5, plain_s=1.0), False),
        (DraftPlan(max_draft_tokens=4), True),  # a policy that says nothing
    ],
)
def test_the_better_of_plan_and_text_is_taken(plan, drafts):
    (found,) = text_drafts([quoting()], [context()], [plan], Curve())
    assert (found is not None) == drafts


@pytest.mark.parametrize("expected_tokens", [1.0, 2.0, 3.0, 9.0])
@pytest.mark.parametrize("num_planned", [0, 1, 4])
def test_the_short_way_of_one_sequence_alone_leads_where_the_long_one_does(
    num_planned, expected_tokens
):
    """A plan that tells its seconds goes the short way, one that leaves them to the costs the long
    one."""
    untold = DraftPlan(max_draft_tokens=num_planned, expected_tokens=expected_tokens)
    seconds = 1.0 + 0.1 * num_planned + 0.01 + 0.02 * (num_planned > 0) + 0.05 * num_planned
    told = replace(untold, expected_s=seconds)
    results = [text_drafts([quoting()], [context()], [plan], Curve()) for plan in (untold, told)]
    assert results[0] == results[1]


def test_a_probe_is_no_excuse_for_a_text_that_does_not_pay():
    """A plan may promise less than plain decoding, to learn; a text may not."""
    probe = DraftPlan(max_draft_tokens=1, expected_tokens=1.0, expected_s=9.0, plain_s=1.0)
    dear = Curve(cheap=0)
    assert text_drafts([quoting()], [context(text_room=3)], [probe], dear) == [None]


def test_without_proposals_no_costs_are_asked_for():
    assert text_drafts([silent(), None], [context()] * 2, [NO_PLAN] * 2, None) == [None, None]


def test_sequences_share_one_budget():
    """The first takes the rows that are cheap; what it took counts for the second."""
    found = text_drafts([quoting(), quoting()], [context()] * 2, [NO_PLAN] * 2, Curve(cheap=6))
    assert [len(draft.token_ids) if draft else 0 for draft in found] == [6, 0]
    alone = text_drafts([None, quoting()], [context()] * 2, [NO_PLAN] * 2, Curve(cheap=6))
    assert len(alone[1].token_ids) == 6


def test_the_drafts_of_others_are_in_the_time_of_the_round():
    plans = [DraftPlan(max_draft_tokens=4), NO_PLAN]
    _, found = text_drafts([None, quoting()], [context()] * 2, plans, Curve())
    rows = 4 + len(found.token_ids)
    assert found.seconds == pytest.approx(1.0 + 0.1 * rows + 0.02 + 4 * 0.05 + 0.01)


def test_the_text_room_is_kept():
    (found,) = text_drafts([quoting()], [context(room=0, text_room=3)], [NO_PLAN], Curve())
    assert len(found.token_ids) == 3
    assert text_drafts([quoting()], [context(text_room=0)], [NO_PLAN], Curve()) == [None]


def test_nothing_is_proposed_after_the_end_of_a_turn():
    end = PASSAGE[23]
    sources = TextSources(PASSAGE, SharedTrust(), end_token_ids=frozenset([end]))
    found = draft(written(sources, PASSAGE[:20]), row_cost=0.0)
    assert found.token_ids == tuple(PASSAGE[20:24])
