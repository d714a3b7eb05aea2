"""A replay takes the seconds that one computes by hand, and a recording says what rounds would do.

Hand-made records of a few tokens; recording is tested against rounds of the engine itself.
"""

import json
from dataclasses import replace
from itertools import cycle

import pytest

import recorded_answers
import replay_controller as report
import replayed_answers
from fakes import FakeDrafter, FakeTarget, byte_ids, fake_pair
from paceline.bench.prompts import BenchPrompt
from paceline.engine import Engine
from paceline.errors import ConfigError
from paceline.runtime.protocols import Draft
from paceline.speculative.acceptance import Profiles
from paceline.speculative.adaptive import AdaptiveDraftLength
from paceline.speculative.controller import DraftContext, DraftPlan
from paceline.speculative.learned import Learned
from paceline.speculative.simulation import Machine
from paceline.speculative.sources import TextDraft
from recorded_answers import GREEDY, Answer, Recording, record
from replayed_answers import (
    FREE,
    MACHINE,
    Choice,
    CountedLength,
    Deciding,
    FixedDrafting,
    Setting,
    SimulatedEngine,
    noise_of,
)
from shipped import native_pair

# Powers of two, so that sums are exact.
SIMPLE = Machine(
    name="simple",
    passes=((1, 1.0), (3, 2.0), (5, 4.0)),
    draft_fixed=0.25,
    draft_step=0.125,
    overhead=0.0625,
    pass_s=1.0,
)
LIMIT = 4


def answer_of(token_ids, drafts, *, max_tokens=1000, kind="chat", prompt="a prompt", margins=None):
    drafts = [
        Draft(tuple(tokens), tuple(margins[place]) if margins else (1.0,) * len(tokens))
        for place, tokens in enumerate(drafts)
    ]
    return Answer(
        prompt=prompt,
        kind=kind,
        max_tokens=max_tokens,
        prompt_ids=(90, 91),
        token_ids=tuple(token_ids),
        text_kinds=("prose",) * len(drafts),
        drafts=tuple(drafts),
    )


def steady_answer(num_tokens, *, is_right, first=0, **settings):
    """No token occurs twice, so that there is nothing to draft from texts."""
    token_ids = range(first, first + num_tokens)
    drafts = [[token + 1 + k if is_right else -1 for k in range(LIMIT)] for token in token_ids[:-1]]
    return answer_of(token_ids, drafts, **settings)


def recording_of(answers, **settings):
    kept = {
        "pair": "hand-made",
        "ships": False,
        "max_draft_tokens": LIMIT,
        "end_token_ids": (7,),
        "sets": {"own": tuple(answers)},
        "skipped": {"own": 0},
        "provenance": {"commit": None},
    }
    return Recording(**kept | settings)


class Told:
    """Makes the same choice each round, and notes what came of it."""

    def __init__(self, choice):
        self.choice = choice
        self.contexts, self.outcomes, self.emitted = [], [], []

    def choose(self, context):
        self.contexts.append(context)
        return self.choice

    def observe(self, outcome, token_ids):
        self.outcomes.append(outcome)
        self.emitted.append(token_ids)
        return 0.0

    def end(self):
        return 0.0


def rounds_of(answer, choice, **settings):
    told = Told(choice)
    replayed_answers.replay(answer, told, SIMPLE, LIMIT, **settings)
    return told


# --- Rounds -------------------------------------------------------------------------------------


def test_a_fixed_length_takes_the_seconds_that_one_computes_by_hand():
    answer = answer_of([1, 2, 3, 4, 5], [(2, 3, 9), (9,), (9,), (5, 9)])
    # 2 is right and 3 the bonus, 9 is wrong, 5 is right: three drafts of one token.
    one = replayed_answers.replay(answer, FixedDrafting(1, LIMIT), SIMPLE, LIMIT)
    assert one.sources == ("drafter",) * 3
    assert one.seconds == 3 * (1.5 + 0.25 + 0.125 + 0.0625)
    # 2 and 3 are right and 4 the bonus, 5 ends it: two drafts of two tokens.
    two = replayed_answers.replay(answer, FixedDrafting(2, LIMIT), SIMPLE, LIMIT)
    assert two.sources == ("drafter",) * 2
    assert two.seconds == 2 * (2.0 + 0.25 + 2 * 0.125 + 0.0625)
    off = replayed_answers.replay(answer, FixedDrafting(0, LIMIT), SIMPLE, LIMIT)
    assert off.sources == ("none",) * 4
    assert off.seconds == 4 * 1.0625 == Setting(machine=SIMPLE, limit=LIMIT).off_s(answer)


def test_a_draft_past_the_end_is_judged_up_to_the_end():
    answer = answer_of([1, 2, 3], [(2, 3, 4, 5), (3, 4)])
    told = rounds_of(answer, Choice(DraftPlan(max_draft_tokens=4)))
    [only] = told.outcomes
    assert (only.num_draft_tokens, only.num_verified_tokens, only.num_accepted_tokens) == (4, 2, 2)
    assert (only.cost.num_rows, only.cost.num_tokens) == (5, 2)
    assert told.emitted == [(2, 3)]
    wrong_at_the_end = answer_of([1, 2, 3], [(2, 9, 4, 5), (3, 4)])
    [only] = rounds_of(wrong_at_the_end, Choice(DraftPlan(max_draft_tokens=4))).outcomes
    assert (only.num_draft_tokens, only.num_verified_tokens, only.num_accepted_tokens) == (4, 4, 1)
    assert only.cost.num_tokens == 2  # the bonus token is the last one


def test_room_is_what_is_left_beside_the_bonus_token():
    short, long = steady_answer(6, is_right=True, max_tokens=6), steady_answer(6, is_right=True)
    told = rounds_of(short, Choice(DraftPlan(max_draft_tokens=0)))
    assert [context.room for context in told.contexts] == [4, 3, 2, 1, 0]
    assert [context.context_length for context in told.contexts] == [2, 3, 4, 5, 6]
    told = rounds_of(replace(short, max_tokens=7), Choice(DraftPlan(max_draft_tokens=3)))
    assert [(c.room, c.text_room) for c in told.contexts] == [(4, 5), (1, 1)]
    assert [outcome.num_draft_tokens for outcome in told.outcomes] == [3, 1]
    told = rounds_of(long, Choice(DraftPlan(max_draft_tokens=9)))
    assert [(c.room, c.text_room) for c in told.contexts] == [(LIMIT, 15)]


def test_a_token_below_its_bound_is_held_back_but_paid_for():
    answer = answer_of([1, 2, 3, 4], [(2, 3), (9,), (4,)], margins=[(0.5, 0.4), (0.9,), (0.3,)])
    plan = DraftPlan(max_draft_tokens=2, min_confidences=(0.5, 0.5))
    first, second = rounds_of(answer, Choice(plan)).outcomes
    assert (first.num_draft_tokens, first.num_draft_steps, first.confidences) == (1, 2, (0.5,))
    assert (first.source, first.num_accepted_tokens) == ("drafter", 1)
    assert (second.num_draft_tokens, second.num_draft_steps, second.source) == (0, 1, "none")
    assert (second.cost.num_rows, second.cost.num_drafts) == (1, 1)
    assert (second.cost.draft_s, second.cost.verify_s) == (0.375, 1.0)


def test_a_text_takes_the_place_of_the_drafter():
    answer = answer_of([1, 2, 3, 4], [(9,), (9,), (9,)])
    text = TextDraft((2, 3, 9), "suffix", 2.5, 3.0)
    told = rounds_of(answer, Choice(DraftPlan(max_draft_tokens=1), text, 0.5))
    [only] = told.outcomes
    assert (only.source, only.num_draft_steps, only.cost.draft_s) == ("suffix", 0, 0.0)
    assert (only.num_accepted_tokens, only.num_verified_tokens) == (2, 3)
    assert (only.plan.max_draft_tokens, only.plan.expected_tokens) == (3, 2.5)
    assert only.cost.overhead_s == 0.0625 + 0.5


def test_noise_is_told_and_not_counted():
    answer, choice = steady_answer(40, is_right=False), Choice(DraftPlan(max_draft_tokens=2))
    noisy = replace(SIMPLE, noise=0.3, hiccups=0.2)
    quiet, loud = Told(choice), Told(choice)
    counted = replayed_answers.replay(answer, quiet, SIMPLE, LIMIT)
    assert replayed_answers.replay(answer, loud, SIMPLE, LIMIT, noise_of(noisy, 3)) == counted
    seen = [
        o.cost.verify_s / q.cost.verify_s
        for o, q in zip(loud.outcomes, quiet.outcomes, strict=True)
    ]
    assert max(seen) > 2 > 1 > min(seen)


# --- The controller -----------------------------------------------------------------------------


def loss(answers, setting):
    """Share of the time without drafting that the controller loses."""
    engine = SimulatedEngine(setting)
    taken = sum(engine.answer(answer).seconds for answer in answers)
    return taken / sum(map(setting.off_s, answers)) - 1.0


@pytest.mark.parametrize("deciding", [FREE, Deciding()], ids=["free", "paid"])
def test_a_right_drafter_makes_it_faster_and_a_wrong_one_costs_little(deciding):
    setting = Setting(machine=MACHINE, limit=LIMIT, deciding=deciding)
    right, wrong = (
        [steady_answer(200, is_right=is_right, first=200 * n) for n in range(6)]
        for is_right in (True, False)
    )
    assert loss(right, setting) < -0.35
    assert loss(wrong, setting) < 0.04


def test_the_text_that_is_drafted_from_is_the_prompt_and_all_of_the_answer():
    words = tuple(range(10, 40))
    answer = replace(answer_of(words, [(0,)] * 29), prompt_ids=words * 2)
    replayed = SimulatedEngine(Setting(machine=MACHINE, limit=LIMIT)).answer(answer)
    assert set(replayed.sources) == {"suffix"}
    assert len(replayed.sources) < 8, replayed.sources


def test_what_repeats_is_drafted_from_the_text():
    words = list(range(10, 40)) * 4
    answer = answer_of(words, [(0,)] * (len(words) - 1))
    setting = Setting(machine=MACHINE, limit=LIMIT)
    replayed = SimulatedEngine(setting).answer(answer)
    assert replayed.sources.count("suffix") > 5
    alone = SimulatedEngine(setting).answer(answer, has_texts=False)
    assert "suffix" not in alone.sources
    assert replayed.seconds < alone.seconds
    ends = replace(setting, end_token_ids=frozenset(words))
    assert SimulatedEngine(ends).answer(answer).seconds > replayed.seconds, "none reaches past one"


def test_decisions_and_what_is_learned_are_counted_and_nothing_else_changes():
    inner = AdaptiveDraftLength(MACHINE.calibrated(), Profiles(), LIMIT)
    counted = CountedLength(inner)
    assert counted.profiles is inner.profiles
    plan = counted.plan(DraftContext(room=4, context_length=9, kind="prose"))
    assert (counted.num_decided, counted.num_learned) == (1, 0)
    assert counted.decision is inner.decision
    assert inner.decision.plan is plan
    counted.decision = None
    assert inner.decision is None
    [outcome] = rounds_of(answer_of([1, 2], [(2,)]), Choice(plan)).outcomes
    counted.observe_all([outcome])
    counted.observe_parked(outcome, 3)
    assert (counted.num_decided, counted.num_learned) == (1, 2)


@pytest.mark.parametrize(
    "name",
    ["decide_s", "learn_s", "draft_round_s", "text_round_s", "parked_text_round_s"],
)
def test_deciding_takes_time(name):
    """So little that no decision is another one."""
    words = (*range(10, 50), *range(10, 40))
    answer = answer_of(words, [(0,)] * (len(words) - 1))
    setting = Setting(machine=MACHINE, limit=LIMIT, deciding=FREE)
    free = SimulatedEngine(setting).answer(answer)
    paid = SimulatedEngine(replace(setting, deciding=replace(FREE, **{name: 1e-12}))).answer(answer)
    assert free.sources == paid.sources
    times = (paid.seconds - free.seconds) / 1e-12
    assert 0.9 < times < len(free.sources) + 0.1


class Ending(replayed_answers.AutoDrafting):
    """Notes what its end has taken."""

    def end(self):
        self.end_s = super().end()
        return self.end_s


def test_what_an_answer_leaves_is_learned_when_it_ends():
    """The drafter is parked by then, and its last decision stands for more rounds than follow."""
    learned, deciding = Learned(MACHINE.calibrated()), replace(FREE, learn_s=1e-12)
    drafting = Ending(learned, LIMIT, deciding, None)
    replayed_answers.replay(steady_answer(40, is_right=False), drafting, MACHINE, LIMIT)
    assert drafting.end_s == 1e-12


# --- Recording ----------------------------------------------------------------------------------


class Restless:
    """Another draft length each round, some with bounds; notes what the engine tells it."""

    def __init__(self, plans):
        self.plans = cycle(plans)
        self.contexts, self.outcomes = [], []

    def plan(self, context):
        self.contexts.append(context)
        return next(self.plans)

    def observe(self, outcome):
        self.outcomes.append(outcome)


class RestlessDrafting(Told):
    """The same in a replay."""

    def __init__(self, plans):
        super().__init__(None)
        self.plans = cycle(plans)

    def choose(self, context):
        self.contexts.append(context)
        return Choice(next(self.plans))


def seen_in(outcomes):
    """All that is told of rounds but seconds."""
    nothing = {"draft_s": 0.0, "verify_s": 0.0, "overhead_s": 0.0}
    return [outcome._replace(cost=outcome.cost._replace(**nothing)) for outcome in outcomes]


def check_recording(pair, prompt, max_tokens, plans):
    """A replay does what rounds of the engine do."""
    [answer] = recorded_answers.Recorder(pair, max_tokens).answers(prompt)
    policy, drafting = Restless(plans), RestlessDrafting(plans)
    [text] = prompt.turns
    result = Engine(pair).generate(text, sampling=GREEDY, max_tokens=max_tokens, draft=policy)
    assert answer.token_ids == result.token_ids
    replayed_answers.replay(answer, drafting, SIMPLE, pair.drafter.max_draft_tokens)
    assert drafting.contexts == policy.contexts
    assert seen_in(drafting.outcomes) == seen_in(policy.outcomes)
    return policy.outcomes


LENGTHS = [DraftPlan(max_draft_tokens=n) for n in (3, 0, 8, 1, 5, 2, 8, 8)]


@pytest.mark.parametrize("ends_at", [None, 21, 24, 27, 30])
@pytest.mark.parametrize("shift", [0, 1, 2])
def test_a_recording_says_what_rounds_of_the_engine_do(ends_at, shift):
    """Answers that end within drafts, and answers that end for want of room."""
    target = FakeTarget(ends_at=ends_at)
    pair = fake_pair(target, FakeDrafter(target, lambda position: position % 5 == 0))
    prompt = BenchPrompt(name="one", kind="chat", turns=("ab",))
    plans = LENGTHS[shift:] + LENGTHS[:shift]
    outcomes = check_recording(pair, prompt, 30, plans)
    assert any(outcome.num_accepted_tokens for outcome in outcomes)
    if ends_at is None:
        assert outcomes[-1].num_draft_tokens == outcomes[-1].num_verified_tokens


def test_a_recording_of_the_shipped_pair_does_too():
    bounded = [
        DraftPlan(max_draft_tokens=6, min_confidences=(bound,) * 6) for bound in (1.0, 2.0, 4.0)
    ]
    prompt = BenchPrompt(name="one", kind="prose", turns=("Why is the sky blue?",))
    outcomes = check_recording(native_pair(), prompt, 48, [*bounded, *LENGTHS])
    assert any(outcome.num_accepted_tokens > 1 for outcome in outcomes)
    assert any(outcome.num_draft_steps > outcome.num_draft_tokens for outcome in outcomes)


def test_turns_follow_each_other_and_what_the_model_cannot_take_is_skipped():
    target = FakeTarget()
    pair = fake_pair(target, FakeDrafter(target))
    prompts = [
        BenchPrompt(name="two turns", kind="chat", turns=("a", "b")),
        BenchPrompt(name="too long", kind="chat", turns=("a", "b" * 300)),
    ]
    said = []
    found = record(pair, {"own": prompts}, ships=False, max_tokens=9, say=said.append)
    assert (found.skipped, said) == ({"own": 1}, ["own: 2 answers, 1 prompts skipped"])
    first, second = found.sets["own"]
    assert {first.prompt, second.prompt} == {"two turns"}
    assert second.prompt_ids[: len(first.prompt_ids)] == first.prompt_ids
    assert byte_ids("b")[0] in second.prompt_ids
    assert len(first.drafts) == len(first.text_kinds) == 8
    for answer in (first, second):  # the drafter is right, and the last token leaves no room
        coming = [answer.token_ids[place + 1 : -1] for place in range(8)]
        assert [draft.tokens for draft in answer.drafts] == coming
    assert found.max_draft_tokens == 8


def test_a_pair_without_a_drafter_cannot_be_recorded():
    with pytest.raises(ConfigError, match="fake has no drafter to record"):
        record(fake_pair(FakeTarget()), {}, ships=False, max_tokens=9)


# --- Sets and drafters that can only lose -------------------------------------------------------


def test_each_kind_is_compared_with_its_own_best_length():
    setting = Setting(machine=SIMPLE, limit=LIMIT, deciding=FREE)
    right = [steady_answer(25, is_right=True, kind="code", prompt=f"right {n}") for n in range(2)]
    wrong = [steady_answer(9, is_right=False, prompt="wrong", first=900) for _ in range(2)]
    result = report.judge("own", [*right, *wrong, answer_of([1], [])], 3, setting)
    chat, code = result.kinds
    assert (chat.kind, chat.answers, chat.tokens, chat.best_length) == ("chat", 2, 16, 0)
    assert (code.kind, code.answers, code.tokens, code.best_length) == ("code", 2, 48, 2)
    # Two of three tokens are drafted in 2 + 0.25 + 2 * 0.125 + 0.0625 seconds.
    assert code.best_speed == pytest.approx(3 * 1.0625 / 2.5625)
    assert chat.best_speed == 1.0
    assert result.total.best_speed == pytest.approx(64 * 1.0625 / (16 * 1.0625 + 16 * 2.5625))
    assert result.total.against_best == pytest.approx(result.total.speed / result.total.best_speed)
    assert (result.prompts, result.skipped, result.worst, result.worst_tokens) == (
        3,
        3,
        "wrong",
        18,
    )
    assert result.worst_speed == pytest.approx(chat.speed)
    assert sum(result.sources.values()) == pytest.approx(1.0)


def test_a_set_without_rounds_is_refused():
    with pytest.raises(ConfigError, match="no answer of the set own has a second token"):
        report.judge("own", [answer_of([1], [])], 0, Setting(machine=SIMPLE, limit=LIMIT))


def test_adverse_texts_are_long_and_keep_what_was_recorded():
    recorded = [steady_answer(30, is_right=True, first=30 * n, max_tokens=30) for n in range(3)]
    recording = recording_of(recorded)
    wrong, right = report.wrong_answers(recording, 0), report.joined_answers(recording)
    assert {len(answer.token_ids) for answer in (*wrong, *right)} == {200}
    assert len(wrong) == len(right) == 12
    assert not any(set(draft.tokens) - {-1} for answer in wrong for draft in answer.drafts)
    assert wrong == report.wrong_answers(recording, 0)
    assert right[0].token_ids[:26] == (*range(25), 30)  # the last drafts are short of room
    assert {answer.token_ids[0] for answer in right} == {0, 30, 60}


def test_a_recording_without_whole_drafts_is_refused():
    short = recording_of([steady_answer(4, is_right=True, max_tokens=4)])
    for adverse in (report.joined_answers, lambda recording: report.wrong_answers(recording, 0)):
        with pytest.raises(ConfigError, match=r"no draft of 4 tokens\. .*--max-tokens 20"):
            adverse(short)


# --- Command line -------------------------------------------------------------------------------


@pytest.fixture
def records(tmp_path):
    answers = [
        steady_answer(60, is_right=n % 3 > 0, first=60 * n, kind=f"kind {n % 2}", prompt=f"p{n}")
        for n in range(8)
    ]
    path = tmp_path / "records.json"
    recorded_answers.write_recording(path, recording_of(answers))
    return path


def test_a_recording_can_be_read_again(records):
    again = recorded_answers.read_recording(records)
    recorded_answers.write_recording(records.with_name("again.json"), again)
    assert records.with_name("again.json").read_bytes() == records.read_bytes()
    assert again == recorded_answers.read_recording(records)
    assert again.answers[0] == steady_answer(60, is_right=False, kind="kind 0", prompt="p0")


def test_the_report_is_whole_and_the_same_twice(records, capsys):
    written = records.with_name("found.json")
    outputs = []
    for _ in range(2):
        arguments = ["replay", str(records), "--fresh", "--json", str(written)]
        assert report.main(arguments) == 0
        outputs.append(capsys.readouterr().out.splitlines())
    assert outputs[0][:-1] == outputs[1][:-1]
    found = json.loads(outputs[0][-1])
    assert json.loads(written.read_text())["sets"] == found["sets"]
    assert {"commit", "command", "versions"} <= set(found["provenance"])
    assert [a["drafter"] for a in found["adverse"]] == ["always wrong", "ten times slower", "both"]
    assert {a["engine"] for a in found["adverse"]} == {"knows nothing"}
    assert found["deciding"]["decide_s"] == Deciding().decide_s
    assert [row["kind"] for row in found["sets"][0]["kinds"]] == ["kind 0", "kind 1"]
    assert "an engine that knows no drafter begins each set" in outputs[0]
    assert report.main([*arguments, "--free-deciding", "--seed", "3"]) == 0
    free = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(free["deciding"].values()) == {0.0}
    assert free["sets"][0]["total"]["speed"] > found["sets"][0]["total"]["speed"]


def test_an_engine_begins_with_what_lies_beside_the_drafter():
    ships = recording_of([], ships=True)
    assert report.profiles_of(ships, None, fresh=False)().of("prose").counts[0] > 0
    assert report.profiles_of(ships, None, fresh=True)() is None
    setting = Setting(
        machine=MACHINE,
        limit=LIMIT,
        new_profiles=report.profiles_of(ships, None, fresh=False),
    )
    recording = recording_of([steady_answer(60, is_right=True)], ships=True)
    found = report.adversities(recording, setting)
    assert [a.engine for a in found] == ["knows nothing", "knows its profile"] * 3
    assert all(0.0 < a.mean_loss <= a.worst_loss < 0.1 for a in found), found


BAD = [
    (["record", "{folder}/x.json", "--max-tokens", "1"], "--max-tokens=1 is out of range"),
    (["record", "{folder}/x.json", "--limit", "0"], "--limit=0 is out of range"),
    (["record", "{folder}/no/x.json"], "there is no folder"),
    (["record", "{folder}/x.json", "--prompts", "{folder}/no.jsonl"], "cannot be read"),
    (["record", "{folder}/x.json", "--prompts", "{folder}/own.jsonl"], "are called own: rename"),
    (["replay", "{folder}/no.json"], "no.json cannot be read"),
    (["replay", "{folder}/own.jsonl"], "own.jsonl is not a recording: "),
    (["replay", "{folder}/records.json"], "is of hand-made, which does not ship with Paceline"),
    (["replay", "{folder}/records.json", "--drafter", "{folder}/no.gguf"], "there is no folder"),
    (["replay", "{folder}/records.json", "--seed", "-1"], "--seed=-1 is out of range"),
    (["replay", "{folder}/records.json", "--fresh", "--json", "{folder}/no/x"], "no folder"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_options_give_clear_errors(records, capsys, arguments, message):
    folder = records.parent
    (folder / "own.jsonl").write_text('{"kind": "chat", "prompt": "Hello"}\n')
    assert report.main([argument.format(folder=folder) for argument in arguments]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert message in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: command"),
        (["record", "x", "--model", "m.gguf"], "--model and --drafter go together"),
        (["replay", "x", "--fresh", "--drafter", "d.gguf"], "leave out --drafter"),
    ],
)
def test_options_that_contradict_each_other_are_refused(capsys, arguments, message):
    with pytest.raises(SystemExit, match="2"):
        report.main(arguments)
    assert message in capsys.readouterr().err


DAMAGE = {
    "form": ("another", "not of the form"),
    "max_draft_tokens": (99, "max_draft_tokens is out of range"),
    "end_token_ids": (3, "not iterable"),
    "sets": ({"other": []}, "must be an object with own"),
    "skipped": (4, "not iterable"),
}


@pytest.mark.parametrize("field", DAMAGE)
def test_a_damaged_recording_is_refused(records, field):
    value, message = DAMAGE[field]
    content = json.loads(records.read_text())
    records.write_text(json.dumps(content | {field: value}))
    with pytest.raises(ConfigError, match=message):
        recorded_answers.read_recording(records)


def test_an_answer_that_lacks_drafts_is_refused(records):
    content = json.loads(records.read_text())
    del content["sets"]["own"][2]["drafts"][-1]
    records.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="p2 has 59 kinds of text and 58 drafts for 59 places"):
        recorded_answers.read_recording(records)
