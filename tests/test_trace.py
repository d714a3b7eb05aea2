"""A trace tells every round, in two formats."""

import itertools
import json

import pytest

from fakes import CONTROL, FakeDrafter, FakeTarget, byte_ids, fake_pair
from paceline.engine import Engine
from paceline.errors import ConfigError
from paceline.sampling import SamplingParams
from paceline.speculative.trace import RoundTrace, TraceFile

SEEDED = SamplingParams(seed=5)


def traced(on_round, *, draft=4, count=1):
    target = FakeTarget()
    drafter = FakeDrafter(target, lambda position: position % 3 == 0)
    engine = Engine(fake_pair(target, drafter), on_round=on_round)
    prompts = [[CONTROL.bos, *byte_ids("bad" * (1 + n))] for n in range(count)]
    sequences = [engine.open(p, sampling=SEEDED, max_tokens=20, draft=draft) for p in prompts]
    for sequence in sequences:
        engine.prefill(sequence)
    while active := [s for s in sequences if s.finish_reason is None]:
        engine.step(active)
    return [engine.close(sequence) for sequence in sequences]


def test_every_round_of_every_sequence_is_told():
    rounds: list[RoundTrace] = []
    for number, result in enumerate(traced(rounds.append, count=2)):
        own = [trace for trace in rounds if trace.sequence == number]
        assert [trace.round for trace in own] == list(range(result.stats.rounds))
        assert 1 + sum(trace.num_tokens for trace in own) == len(result.tokens) == 20
        position = result.stats.prompt_tokens + 1
        for trace in own:
            assert trace.position == position
            position += trace.num_tokens
            assert trace.num_tokens - 1 <= trace.num_accepted_tokens <= trace.num_draft_tokens
            assert trace.num_draft_tokens <= trace.max_draft_tokens == 4
            assert (trace.kind, trace.predicted_gain) == ("sampled prose", None)
            assert trace.source == ("drafter" if trace.num_draft_tokens else "none")
            assert min(trace.draft_s, trace.verify_s, trace.overhead_s) >= 0.0
        assert sum(trace.num_accepted_tokens for trace in own) == result.stats.accepted_tokens


def test_auto_predicts_its_gain():
    rounds: list[RoundTrace] = []
    traced(rounds.append, draft="auto")
    assert all(trace.predicted_gain is not None for trace in rounds)
    assert any(trace.predicted_gain != 1.0 for trace in rounds)


def test_lines_of_json(tmp_path):
    file = tmp_path / "trace.jsonl"
    with TraceFile(file) as trace:
        (result,) = traced(trace)
        trace.close()
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rows) == result.stats.rounds
    assert list(rows[0]) == list(RoundTrace.__dataclass_fields__)
    assert rows[0]["started_s"] == 0.0
    starts = [row["started_s"] for row in rows]
    assert starts == sorted(starts)


def test_trace_events_for_perfetto(tmp_path):
    """Slices of one row lie in time one after another, and a round's parts inside it."""
    file = tmp_path / "trace.json"
    with TraceFile(file) as trace:
        results = traced(trace, count=2)
    events = json.loads(file.read_text())["traceEvents"]
    for number, result in enumerate(results):
        slices = [e for e in events if e["ph"] == "X" and e["tid"] == number + 1]
        rounds = [e for e in slices if e["name"] not in ("draft", "verify")]
        assert len(rounds) == result.stats.rounds
        assert [e["args"]["round"] for e in rounds] == list(range(len(rounds)))
        for one, after in itertools.pairwise(rounds):
            assert one["ts"] < after["ts"]
        verified = [e for e in slices if e["name"] == "verify"]
        for whole, part in zip(rounds, verified, strict=True):
            assert whole["ts"] <= part["ts"]
            assert part["dur"] <= whole["dur"]
    counters = [e for e in events if e["ph"] == "C"]
    accepted = sum(result.stats.accepted_tokens for result in results)
    assert sum(e["args"]["accepted"] for e in counters) == accepted


def test_an_empty_trace_is_a_valid_file(tmp_path):
    with TraceFile(tmp_path / "trace.json"):
        pass
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"] == []


@pytest.mark.parametrize("name", ["trace", "trace.txt", "no/trace.json", "folder.json"])
def test_a_file_that_cannot_be_one_is_refused(tmp_path, name):
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(ConfigError, match=r"--trace .*(must end in \.jsonl|is not a file)"):
        TraceFile(tmp_path / name)
