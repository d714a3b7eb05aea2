"""The engine's promises: one text whatever is drafted or kept, errors in words, no loose ends."""

import subprocess
import sys
from dataclasses import replace

import pytest

import paceline
from fakes import (
    ALPHABET,
    CONTROL,
    WINDOW,
    FakeDrafter,
    FakeTarget,
    FakeTokenizer,
    byte_ids,
    fake_engine,
    fake_pair,
)
from paceline.engine import PREFILL_CHUNK, Engine
from paceline.errors import ConfigError, LogitsError, PacelineError, PromptError
from paceline.sampling import SamplingParams
from paceline.stats import GenerationStats

SEEDED = SamplingParams(seed=5)


def sometimes(position):
    return position % 4 == 0


def both(sampling, **settings):
    """The same request with drafting off and on, in engines of their own."""
    return [
        fake_engine(sometimes).generate("hello", draft=k, sampling=sampling, **settings)
        for k in (0, 1, 4, 8)
    ]


# --- One text -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0.0},
        {"temperature": 1.5},
        {"top_k": 3},
        {"top_p": 0.7},
        {"min_p": 0.2},
        {"repetition_penalty": 1.8},
        {"presence_penalty": 1.5},
        {"frequency_penalty": 2.0},
        {"frequency_penalty": -1.0, "temperature": 0.0},
        {"logit_bias": {ALPHABET[0]: -100.0, ALPHABET[1]: 3.0}},
        {"top_logprobs": 0},
        {"top_logprobs": 5, "repetition_penalty": 1.3, "frequency_penalty": 0.5},
    ],
    ids=str,
)
def test_every_sampling_setting_works_with_drafts(fields):
    """Tokens and log-probabilities to the bit: row i of a draft has the history of row i."""
    off, *on = both(SamplingParams(seed=5, **fields), max_tokens=60)
    bare = [(token.token_id, token.logprob, token.top) for token in off.tokens]
    for result in on:
        assert [(t.token_id, t.logprob, t.top) for t in result.tokens] == bare
        assert result.text == off.text
        assert result.stats.accepted_tokens > 0


def test_logprobs_come_only_when_asked_for():
    with_them, without = (
        fake_engine().generate("hi", sampling=replace(SEEDED, top_logprobs=n), max_tokens=5)
        for n in (2, None)
    )
    assert all(token.logprob < 0 and len(token.top) == 2 for token in with_them.tokens)
    assert all(token.logprob is None and token.top == () for token in without.tokens)


def test_suppressed_tokens_never_come_with_drafts_or_without():
    target = FakeTarget()
    banned = ALPHABET[:3]
    pair = fake_pair(target, FakeDrafter(target), suppressed_token_ids=tuple(banned))
    for draft in (0, 8):
        result = Engine(pair).generate("hi", sampling=SEEDED, max_tokens=40, draft=draft)
        assert not set(result.token_ids) & set(banned)


def test_a_seed_repeats_and_none_differs():
    engine = fake_engine()
    first, second = (engine.generate("hi", sampling=SEEDED, max_tokens=30) for _ in range(2))
    assert first.token_ids == second.token_ids
    assert first.seed == 5
    free = [engine.generate("hi", max_tokens=30) for _ in range(3)]
    assert len({result.token_ids for result in free}) == 3
    again = engine.generate("hi", sampling=SamplingParams(seed=free[0].seed), max_tokens=30)
    assert again.token_ids == free[0].token_ids


def test_the_models_own_settings_are_the_default():
    target = FakeTarget()
    engine = Engine(fake_pair(target, temperature=0.5, top_k=7, top_p=0.9))
    params = engine.default_sampling()
    assert (params.temperature, params.top_k, params.top_p) == (0.5, 7, 0.9)
    greedy = Engine(fake_pair(target, temperature=0.0))
    assert (
        greedy.generate("hi", max_tokens=9).token_ids
        == greedy.generate("hi", max_tokens=9, sampling=SamplingParams(temperature=0.0)).token_ids
    )


def test_a_batch_gives_what_each_prompt_gives_alone():
    prompts = ["hello", "a", "bad cab", "hello", "é", "dad"]
    settings = {"sampling": SEEDED, "max_tokens": 25, "draft": 4}
    engine = fake_engine(sometimes, kept_caches=0, end_bias=-2.0)
    alone = [engine.generate(prompt, **settings) for prompt in prompts]
    assert len({result.stats.rounds for result in alone}) > 2  # they end at different times
    engine.pair.target.passes.clear()
    for batch_size in (1, 2, 4, 8):
        engine.pair.target.passes.clear()
        together = engine.generate_batch(prompts, batch_size=batch_size, **settings)
        assert [(r.text, r.tokens) for r in together] == [(r.text, r.tokens) for r in alone]
        rows = [len(rows) for rows in engine.pair.target.passes]
        assert max(rows) == min(batch_size, len(prompts))
    assert engine.generate_batch([]) == []


# --- Streams ------------------------------------------------------------------------------------


def test_a_stream_does_nothing_before_it_is_asked():
    engine = fake_engine()
    stream = engine.stream("hello", sampling=SEEDED, max_tokens=20)
    assert engine.pair.target.passes == []
    next(iter(stream))
    assert len(engine.pair.target.passes) >= 1
    stream.close()


def test_a_stream_gives_the_text_in_pieces():
    engine = fake_engine()
    expected = engine.generate("hello", sampling=SEEDED, max_tokens=40)
    with engine.stream("hello", sampling=SEEDED, max_tokens=40) as stream:
        deltas = list(stream)
    assert "".join(delta.text for delta in deltas) == expected.text
    assert len(deltas) > 4
    assert stream.result.token_ids == expected.token_ids
    assert list(stream) == []


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_a_stream_closed_early_is_cancelled_and_stays_closed(taken):
    engine = fake_engine()
    stream = engine.stream("hello", sampling=SEEDED, max_tokens=200)
    deltas = [next(iter(stream)) for _ in range(taken)]
    stream.close()
    stream.close()
    passes = len(engine.pair.target.passes)
    assert list(stream) == []
    assert len(engine.pair.target.passes) == passes
    assert stream.result.finish_reason == "cancelled"
    assert stream.result.text.startswith("".join(delta.text for delta in deltas))
    assert len(engine._prefixes) == (1 if taken else 0)  # given back once


def test_closing_a_finished_stream_changes_nothing():
    engine = fake_engine()
    with engine.stream("hello", sampling=SEEDED, max_tokens=5) as stream:
        for _ in stream:
            pass
        before = stream.result
        stream.close()
    assert stream.result is before
    assert before.finish_reason == "length"
    assert len(engine._prefixes) == 1


def test_closing_a_sequence_twice_gives_its_cache_once():
    engine = fake_engine()
    sequence = engine.begin("hello", sampling=SEEDED, max_tokens=5)
    engine.prefill(sequence)
    assert engine.close(sequence) == engine.close(sequence)
    assert len(engine._prefixes) == 1


def test_prefill_comes_in_chunks_that_report():
    engine = fake_engine(context_length=512)
    reports = []
    text = "a" * (2 * PREFILL_CHUNK)
    stream = engine.stream(
        text, raw=True, sampling=SEEDED, prefill_progress=lambda *at: reports.append(at)
    )
    next(iter(stream))
    length = 1 + len(text)
    assert reports == [(PREFILL_CHUNK, length), (2 * PREFILL_CHUNK, length), (length, length)]
    assert engine.pair.target.passes[:3] == [[PREFILL_CHUNK], [PREFILL_CHUNK], [1]]
    assert engine.pair.target.num_outputs[:3] == [0, 0, 1]
    stream.close()


def test_the_size_of_the_chunks_does_not_show(monkeypatch):
    texts = set()
    for size in (1, 3, PREFILL_CHUNK, 1000):
        monkeypatch.setattr("paceline.engine.PREFILL_CHUNK", size)
        texts.add(fake_engine().generate("abc" * 30, sampling=SEEDED, max_tokens=30).text)
    assert len(texts) == 1


def test_statistics_add_up():
    result = fake_engine(sometimes).generate("hello", sampling=SEEDED, max_tokens=40)
    stats = result.stats
    assert stats.generated_tokens == len(result.tokens) == 40
    assert stats.generated_tokens == 1 + stats.rounds + stats.accepted_tokens
    assert stats.accepted_tokens == sum(token.drafted for token in result.tokens)
    assert stats.prompt_tokens == len(fake_engine().encode("hello"))
    assert stats.ttft_s == stats.prefill_s > 0
    assert stats.decode_s >= stats.draft_s + stats.verify_s > 0
    total = GenerationStats(generations=0)
    total.add(stats)
    assert total.to_json() == stats.to_json()


# --- Interrupts and errors ----------------------------------------------------------------------


@pytest.mark.parametrize("at", [*range(6), 12])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("out of memory")], ids=repr)
def test_an_interrupt_in_a_pass_leaves_a_usable_engine(at, error, monkeypatch):
    """Passes 0 to 2 are the prefill. The pass has written its rows when it is interrupted: those of
    the prompt are kept, those of a draft are not, and the next turn goes on from there."""
    monkeypatch.setattr("paceline.engine.PREFILL_CHUNK", 64)
    prompt, settings = "abc " * 35, {"raw": True, "sampling": SEEDED, "max_tokens": 40, "draft": 4}
    expected = fake_engine(sometimes).generate(prompt, **settings)
    engine = fake_engine(sometimes)
    engine.pair.target.interrupt_at, engine.pair.target.error = at, error
    stream = engine.stream(prompt, **settings)
    with pytest.raises(type(error)):
        for _ in stream:
            pass
    assert stream.result.finish_reason == "cancelled"
    assert stream.result.token_ids == expected.token_ids[: len(stream.result.tokens)]
    assert stream.result.stats.rounds == max(0, at - 3)
    assert len(engine._prefixes) == 1
    again = engine.generate(prompt, **settings)
    assert again.tokens == expected.tokens
    # The prompt's last token is always fed again. After nine rounds the ring has forgotten.
    assert again.stats.cached_tokens == {0: 64, 1: 128, 12: 0}.get(at, 140)


def test_an_interrupt_between_pushed_tokens_leaves_a_usable_engine(monkeypatch):
    """The text is ahead of the cache then."""
    engine = fake_engine()
    sequence = engine.begin("hello", sampling=SEEDED, max_tokens=40, draft=8)
    engine.prefill(sequence)
    engine.step([sequence])
    length, push = sequence.cache.length, sequence.push

    def interrupted(choice, *, drafted):
        if len(sequence.tokens) == 14:
            raise KeyboardInterrupt
        return push(choice, drafted=drafted)

    monkeypatch.setattr(sequence, "push", interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine.step([sequence])
    assert sequence.cache.length == length
    assert engine.close(sequence).finish_reason == "cancelled"
    cached = engine._prefixes._kept[0]
    assert cached.token_ids == sequence.token_ids[: cached.cache.length]


def test_an_interrupt_rolls_back_all_sequences_of_the_pass():
    engine = fake_engine(sometimes)
    sequences = [
        engine.begin(prompt, sampling=SEEDED, max_tokens=40) for prompt in ("hello", "cab")
    ]
    for sequence in sequences:
        engine.prefill(sequence)
    lengths = [sequence.cache.length for sequence in sequences]
    engine.pair.target.interrupt_at = len(engine.pair.target.passes)
    with pytest.raises(KeyboardInterrupt):
        engine.step(sequences)
    assert [sequence.cache.length for sequence in sequences] == lengths
    assert [engine.close(sequence).finish_reason for sequence in sequences] == ["cancelled"] * 2
    assert engine.generate("cab", sampling=SEEDED, max_tokens=9).stats.cached_tokens > 0


def test_a_batch_that_fails_closes_all_it_had_begun():
    engine = fake_engine(kept_caches=9)
    engine.pair.target.interrupt_at = 4
    with pytest.raises(KeyboardInterrupt):
        engine.generate_batch(["a", "b", "c"], sampling=SEEDED, max_tokens=90)
    assert len(engine._prefixes) == 3
    engine.generate_batch(["a", "b", "c"], sampling=SEEDED, max_tokens=9)


def test_a_cache_that_cannot_be_rolled_back_is_emptied():
    engine = fake_engine(ring_slots=WINDOW)
    sequence = engine.open(byte_ids("abcdefghijk"), sampling=SEEDED, max_tokens=40)
    engine.prefill(sequence)
    cache = sequence.cache
    cache.slack = 0
    engine.pair.target.interrupt_at = len(engine.pair.target.passes)
    with pytest.raises(KeyboardInterrupt):
        engine.step([sequence])
    assert cache.length == 0
    engine.close(sequence)
    assert len(engine._prefixes) == 0


def test_damaged_scores_are_an_error_of_ours_and_leave_a_usable_engine(monkeypatch):
    engine = fake_engine()
    scores = engine.pair.target.scores
    monkeypatch.setattr(engine.pair.target, "scores", lambda *args: scores(*args) * float("nan"))
    with pytest.raises(LogitsError, match="hold nan"):
        engine.generate("hello", sampling=SEEDED)
    monkeypatch.undo()
    expected = fake_engine().generate("hello", sampling=SEEDED, max_tokens=20)
    assert engine.generate("hello", sampling=SEEDED, max_tokens=20).token_ids == expected.token_ids


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"draft": 9}, ConfigError, "draft=9 is out of range: this drafter supports 1 to 8"),
        ({"draft": -1}, ConfigError, "draft=-1 is out of range"),
        ({"draft": 2.5}, ConfigError, 'draft=2.5 cannot be used: expected "auto", a number of'),
        ({"draft": True}, ConfigError, "draft=True cannot be used"),
        ({"draft": "4"}, ConfigError, "draft='4' cannot be used"),
        ({"max_tokens": 0}, ConfigError, "max_tokens=0 is out of range"),
        ({"max_tokens": 2.0}, ConfigError, "max_tokens must be a whole number"),
        ({"stop": "abc"}, ConfigError, "expected a list of texts"),
        ({"stop": [""]}, ConfigError, "none of them empty"),
        ({"sampling": SamplingParams(logit_bias={999: 1.0})}, ConfigError, "token id=999"),
        ({"prompt": ""}, PromptError, "the prompt is empty"),
        ({"prompt": " \n"}, PromptError, "the prompt is empty"),
        ({"prompt": []}, PromptError, "the prompt is empty"),
        ({"prompt": "a" * 300}, PromptError, "tokens, but this model's context holds 256"),
        (
            {"prompt": [paceline.Message(role="user", content="a")], "raw": True},
            PromptError,
            "a raw prompt must be text",
        ),
        ({"raw": True, "thinking": True}, PromptError, "leave out thinking and tools"),
    ],
)
def test_a_bad_request_is_refused_before_any_work(settings, error, message):
    engine = fake_engine()
    request = {"prompt": "hello"} | settings
    with pytest.raises(error, match=message) as refusal:
        engine.stream(request.pop("prompt"), **request)
    assert isinstance(refusal.value, PacelineError)
    assert engine.pair.target.passes == []


def test_drafting_needs_a_drafter():
    engine = Engine(fake_pair(FakeTarget()))
    assert engine.max_draft_tokens == 0
    with pytest.raises(ConfigError, match="draft=2 needs a drafter, and none is loaded"):
        engine.stream("hello", draft=2)
    assert engine.generate("hello", max_tokens=3).stats.drafted_tokens == 0
    assert engine.generate("hello", max_tokens=3, draft=0).stats.drafted_tokens == 0


@pytest.mark.parametrize("token_ids", [[], [1, 2, 272], [-1], [2] * 256])
def test_token_ids_are_checked(token_ids):
    with pytest.raises(PromptError):
        fake_engine().open(token_ids)


def test_an_unknown_setting_is_refused():
    with pytest.raises(TypeError, match="temperatur"):
        fake_engine().generate("hello", temperatur=1.0)


# --- Prompts ------------------------------------------------------------------------------------


def test_a_prompt_is_rendered_as_a_chat_or_taken_raw():
    engine = fake_engine()
    turn = (CONTROL.turn_start, *byte_ids("user\nhi"), CONTROL.turn_end, *byte_ids("\n"))
    opening = (CONTROL.turn_start, *byte_ids("model\n"))
    assert engine.encode("hi") == [CONTROL.bos, *turn, *opening]
    assert engine.encode([paceline.Message("user", "hi")]) == engine.encode("hi")
    assert engine.encode("hi", raw=True) == [CONTROL.bos, *byte_ids("hi")]
    assert engine.encode("hi", thinking=True)[:8].count(CONTROL.think) == 0
    assert CONTROL.think in engine.encode("hi", thinking=True)


def test_the_context_holds_prompt_and_answer():
    engine = fake_engine(context_length=64)
    prompt = [CONTROL.bos, *byte_ids("a" * 39)]
    sequence = engine.open(prompt, max_tokens=1000)
    assert sequence.num_tokens_left == 24
    assert engine.open([2] * 63).num_tokens_left == 1
    with pytest.raises(PromptError, match="the prompt has 64 tokens"):
        engine.open([2] * 64)


def test_a_prompt_that_opens_a_thought_is_answered_in_it():
    engine = fake_engine()
    prompt = [*engine.encode("hi"), CONTROL.channel_start, *byte_ids("thought\n")]
    sequence = engine.open(prompt, sampling=SEEDED, max_tokens=9)
    engine.prefill(sequence)
    while sequence.finish_reason is None:
        engine.step([sequence])
    result = engine.close(sequence)
    assert result.text == ""
    assert len(result.reasoning) > 4


# --- Kept caches --------------------------------------------------------------------------------


def converse(engine, turns, **settings):
    """Each turn's prompt is all that was said before, token by token, and some more."""
    history, results = [CONTROL.bos], []
    for turn in turns:
        history += byte_ids(turn)
        sequence = engine.open(history, sampling=SEEDED, raw=True, **settings)
        engine.prefill(sequence)
        while sequence.finish_reason is None:
            engine.step([sequence])
        results.append(engine.close(sequence))
        history += results[-1].token_ids
    return results


@pytest.mark.parametrize("draft", [0, 8])
@pytest.mark.parametrize("ends_at", [None, 17, 18, 19, 20, 21, 22, 23, 24])
@pytest.mark.parametrize("stop", [(), ("a",), ("bc",)])
def test_the_next_turn_feeds_only_what_is_new(draft, ends_at, stop):
    """After a cut anywhere in a draft the cache holds all of the turn but its last token."""
    target = FakeTarget(ends_at=ends_at)
    drafter = FakeDrafter(target, heeds_stop=False)
    turns = ["hello there", "and again", "bye"]
    settings = {"draft": draft, "stop": stop, "max_tokens": 15}
    kept = converse(Engine(fake_pair(target, drafter)), turns, **settings)
    fresh = converse(Engine(fake_pair(target, drafter), kept_caches=0), turns, **settings)
    assert [result.tokens for result in kept] == [result.tokens for result in fresh]
    length = 1
    for turn, result in zip(turns, kept, strict=True):
        assert result.stats.cached_tokens == (0 if turn == turns[0] else length - 1)
        length += len(turn) + len(result.tokens)
        assert result.stats.prompt_tokens + len(result.tokens) == length
    assert [result.stats.cached_tokens for result in fresh] == [0, 0, 0]


def test_a_changed_history_starts_afresh_where_the_ring_has_forgotten():
    engine = fake_engine()
    first = engine.generate("hello", sampling=SEEDED, max_tokens=40)
    again = engine.generate("hello", sampling=SEEDED, max_tokens=40)
    assert again.token_ids == first.token_ids
    assert again.stats.cached_tokens == 0  # 40 tokens back is out of a window of 6
    short = fake_engine()
    short.generate("hello", sampling=SEEDED, max_tokens=3)
    again = short.generate("hello", sampling=SEEDED, max_tokens=40)
    assert again.stats.cached_tokens == again.stats.prompt_tokens - 1
    assert again.token_ids == first.token_ids


def test_a_waiting_sequence_has_no_cache():
    engine = fake_engine()
    engine.generate("hello", sampling=SEEDED, max_tokens=3)
    waiting = engine.begin("hello", sampling=SEEDED)
    assert len(engine._prefixes) == 1
    assert engine.close(waiting).finish_reason == "cancelled"
    assert len(engine._prefixes) == 1


# --- The public door ----------------------------------------------------------------------------


def test_the_public_names_are_there():
    assert all(getattr(paceline, name).__name__ == name for name in paceline.__all__)
    assert set(paceline.__all__) <= set(dir(paceline))
    assert paceline.__version__[0].isdigit()
    with pytest.raises(AttributeError, match="no attribute 'Motor'"):
        _ = paceline.Motor


def imported(statement):
    """The modules that a statement imports, in an interpreter of its own."""
    code = f"import sys; before = set(sys.modules); {statement}; print(*set(sys.modules) - before)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_importing_the_package_imports_nothing_heavy():
    assert not imported("import paceline") & {"torch", "numpy", "tokenizers", "paceline.engine"}
    assert "torch" not in imported("from paceline import Engine, SamplingParams, Message")


def test_the_fakes_are_what_they_stand_for():
    """The fake tokenizer has all that engine and output use of the real one."""
    from paceline.tokenizer import Tokenizer

    public = {name for name in vars(FakeTokenizer) if not name.startswith("_")}
    assert public <= set(dir(Tokenizer)) | {"control", "control_ids"}
