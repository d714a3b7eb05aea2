"""Measuring: prompts, order of runs, statistics, the document, the figure, and the command."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli_fakes import CALIBRATION, CommandLine, FakeEngine, text_delta
from paceline.bench import figure, provenance
from paceline.bench.ceiling import Ceiling, read_speed
from paceline.bench.explain import explain, explanation_document, explanation_lines
from paceline.bench.measure import Plan, measure, measure_prompt
from paceline.bench.prompts import (
    BenchPrompt,
    bundled_prompts,
    parse_prompts,
    read_prompts,
    select,
)
from paceline.bench.report import document, table
from paceline.bench.summary import (
    Spread,
    auto_against_best,
    by_kind,
    slower_runs,
    summarise,
    worst_run,
)
from paceline.cli.bench import parse_compare
from paceline.errors import ConfigError, MissingDependencyError, PromptError
from paceline.sampling import SamplingParams
from paceline.stats import GenerationStats

KINDS = ("shell", "maths", "code", "edit", "prose", "chat", "extraction")
CEILING = Ceiling(bytes_per_token=4000, read_bytes_per_s=400_000.0)
AUTO = (0, 2, 4, "auto")
GREEDY = SamplingParams(temperature=0.0, seed=0)


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(monkeypatch, capsys)


def prompt(name: str = "a", kind: str = "shell", turns: tuple[str, ...] = ("Why?",)) -> BenchPrompt:
    return BenchPrompt(name=name, kind=kind, turns=turns)


def plan(drafts: tuple[int, ...] = (0, 2), repeats: int = 2) -> Plan:
    return Plan(drafts=drafts, repeats=repeats, max_tokens=16, sampling=GREEDY)


# --- prompts


def test_bundled_prompts():
    prompts = bundled_prompts()
    assert list(dict.fromkeys(p.kind for p in prompts)) == list(KINDS)
    assert len(prompts) >= 40
    for kind in KINDS:
        assert len(select(prompts, kinds=[kind])) >= 5
    assert all(len(p.turns) == 1 and len(p.turns[0]) <= 400 for p in prompts)
    assert all(p.name.startswith(f"{p.kind}/") for p in prompts)
    assert len({p.turns for p in prompts}) == len(prompts)


FORMS = [
    ('{"kind": "shell", "prompt": "How?"}', "shell/1", "shell", ("How?",)),
    ('{"name": "n", "kind": "shell", "prompt": "How?"}', "n", "shell", ("How?",)),
    (
        '{"question_id": 81, "category": "writing", "turns": ["A", "B"], "reference": []}',
        "spec_bench/81",
        "writing",
        ("A", "B"),
    ),
    ('{"question": "How many?", "answer": "#### 3"}', "gsm8k/1", "maths", ("How many?",)),
    (
        '{"task_id": "HumanEval/0", "prompt": "def f():\\n", "entry_point": "f"}',
        "HumanEval/0",
        "code",
        ("Complete this Python function:\n\ndef f():\n",),
    ),
]


@pytest.mark.parametrize(("line", "name", "kind", "turns"), FORMS)
def test_forms_of_prompts(line, name, kind, turns):
    assert parse_prompts(line, source="x") == [BenchPrompt(name=name, kind=kind, turns=turns)]


BAD_PROMPTS = [
    ("", "there are no prompts in it"),
    ("\n\n", "there are no prompts in it"),
    ("{", "line 1 is not JSON"),
    ("[" * 100_000, "line 1 is not JSON"),
    ("3", "line 1 is not a prompt"),
    ("{}", "line 1 is not a prompt"),
    ('{"kind": "shell"}', "line 1 is not a prompt"),
    ('{"prompt": "How?"}', "line 1 is not a prompt"),
    ('{"kind": "shell", "prompt": " "}', "line 1 is not a prompt"),
    ('{"kind": 3, "prompt": "How?"}', "line 1 is not a prompt"),
    ('{"category": "a", "turns": []}', "line 1 is not a prompt"),
    ('{"category": "a", "turns": "How?"}', "line 1 is not a prompt"),
    ('{"category": "a", "turns": ["A", 3]}', "line 1 is not a prompt"),
    ('{"task_id": "a"}', "line 1 is not a prompt"),
    ('{"question": null}', "line 1 is not a prompt"),
    ('{"question": "a"}\n\nx', "line 3 is not JSON"),
    ('{"name": "n", "kind": "a", "prompt": "b"}\n' * 2, "the name n occurs twice"),
]


@pytest.mark.parametrize(("text", "message"), BAD_PROMPTS, ids=range(len(BAD_PROMPTS)))
def test_bad_prompts(text, message):
    with pytest.raises(PromptError, match=message):
        parse_prompts(text, source="x")


def test_a_prompt_file_that_is_not_utf8(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_bytes(b"\xff")
    with pytest.raises(PromptError, match="is not UTF-8 text: byte 0"):
        read_prompts(file)


def test_select_keeps_the_order_and_limits_each_kind():
    prompts = [prompt(f"{kind}{i}", kind) for i in range(3) for kind in ("b", "a")]
    assert select(prompts) == prompts
    assert [p.name for p in select(prompts, limit=1)] == ["b0", "a0"]
    assert [p.name for p in select(prompts, kinds=["a"], limit=2)] == ["a0", "a1"]


# --- the order of runs


@given(
    st.lists(st.integers(1, 16), unique=True, max_size=4), st.integers(1, 12)
)  # fmt: skip
def test_rounds_are_fair(lengths, repeats):
    """Each length runs once a round, and no length always stands at the same place."""
    drafts = (0, *lengths)
    rounds = list(plan(drafts, repeats).rounds())
    assert [counts for counts, _ in rounds] == [False] + [True] * repeats
    assert all(sorted(order) == sorted(drafts) for _, order in rounds)
    for (_, one), (_, other) in itertools.pairwise(rounds):
        assert one == other[::-1]
    assert sum(len(order) for _, order in rounds) == plan(drafts, repeats).num_runs


def test_runs_alternate_and_the_first_round_does_not_count():
    engine = FakeEngine()
    seen = []
    runs = measure_prompt(engine, prompt(), plan((0, 2, 4), repeats=2), seen.append)
    assert [call["draft"] for call in engine.calls] == [0, 2, 4, 4, 2, 0, 0, 2, 4]
    assert [len(run.repeats) for run in runs] == [2, 2, 2]
    assert seen == list(range(1, 10))


def test_all_runs_ask_the_same():
    engine = FakeEngine()
    measure_prompt(engine, prompt(), plan())
    asked = [{k: v for k, v in call.items() if k != "draft"} for call in engine.calls]
    assert all(call == asked[0] for call in asked)
    assert asked[0]["sampling"] == GREEDY


def test_turns_are_answered_in_one_conversation():
    engine = FakeEngine()
    (off,) = measure_prompt(engine, prompt(turns=("A", "B")), plan((0,), repeats=1))
    assert [m.content for m in engine.calls[1]["prompt"]] == ["A", "The sky is blue.", "B"]
    assert off.repeats[0].generations == 2
    assert len(off.output.token_ids) == 6


def test_a_difference_is_found():
    runs = measure_prompt(FakeEngine(changed_by_draft=True), prompt(), plan((0, 2)))
    assert [run.equal for run in runs] == [True, False]


def test_a_prompt_that_does_not_fit_is_skipped_and_named():
    engine = FakeEngine(error=PromptError("the prompt has 900 tokens."))
    runs, skipped = measure(engine, [prompt("long")], plan())
    assert runs == []
    assert [(s.prompt.name, s.reason) for s in skipped] == [("long", "the prompt has 900 tokens.")]


def test_progress_counts_the_runs_of_all_prompts():
    seen = []
    measure(FakeEngine(), [prompt("a"), prompt("b")], plan(repeats=1), lambda *p: seen.append(p))
    assert seen == [(done, 8) for done in range(1, 9)]


# --- statistics


def summaries_of(engine: FakeEngine, prompts: list[BenchPrompt], drafts=(0, 2, 4), repeats=3):
    runs, _ = measure(engine, prompts, plan(drafts, repeats))
    return summarise(runs)


def test_ratios_pair_runs_of_one_repeat():
    """A machine that slows down from repeat to repeat leaves the ratio as it is."""
    engine = FakeEngine(speed_up={2: 1.5})
    runs = measure_prompt(engine, prompt(), plan((0, 2), repeats=3))
    for run in runs:
        for repeat, stats in enumerate(run.repeats):
            stats.decode_s *= 2.0**repeat
    _, drafted = summarise(runs)
    assert drafted.ratio is not None
    assert drafted.ratio.median == pytest.approx(1.5)
    assert (drafted.ratio.low, drafted.ratio.high) == pytest.approx((1.5, 1.5))
    assert by_kind([drafted])[0].decode_tps == drafted.decode_tps
    assert drafted.decode_tps == Spread(
        median=pytest.approx(15.0), low=pytest.approx(7.5), high=pytest.approx(30.0)
    )


def test_kinds_are_medians_over_prompts_and_totals_over_totals():
    summaries = summaries_of(
        FakeEngine(speed_up={2: 2.0, 4: 0.5}),
        [prompt("a", "shell"), prompt("b", "shell"), prompt("c", "maths")],
    )
    kinds = by_kind(summaries)
    assert [(k.kind, k.draft, k.num_prompts) for k in kinds] == [
        ("shell", 0, 2), ("shell", 2, 2), ("shell", 4, 2),
        ("maths", 0, 1), ("maths", 2, 1), ("maths", 4, 1),
        ("all", 0, 3), ("all", 2, 3), ("all", 4, 3),
    ]  # fmt: skip
    last = kinds[-1]
    assert last.ratio is not None
    assert last.ratio.median == pytest.approx(0.5)
    assert last.acceptance_length == pytest.approx(4.0)
    assert kinds[0].acceptance_length is None
    worst = worst_run(summaries)
    assert worst is not None
    assert (worst.prompt, worst.draft) == ("a", 4)


def test_one_kind_has_no_row_for_all():
    assert {k.kind for k in by_kind(summaries_of(FakeEngine(), [prompt()]))} == {"shell"}


def test_an_answer_of_one_token_has_no_speed():
    summaries = summaries_of(FakeEngine(deltas=[text_delta("4")]), [prompt()])
    assert [s.decode_tps for s in summaries] == [None] * 3
    assert [s.ratio for s in summaries] == [None] * 3
    assert worst_run(summaries) is None
    assert table(summaries)[1].split() == ["shell", "off", "1", "-", "-", "yes"]
    json.dumps(document(summaries, [], plan(), CEILING, {}), allow_nan=False)


@given(st.lists(st.floats(0.01, 1e6), max_size=9))
def test_a_spread_holds_its_median(values):
    spread = Spread.of(values)
    assert (spread is None) == (not values)
    if spread:
        assert spread.low <= spread.median <= spread.high


def test_table():
    summaries = summaries_of(
        FakeEngine(speed_up={2: 1.25}), [prompt("a", "shell"), prompt("b", "maths")], (0, 2)
    )
    assert table(summaries) == [
        "kind   draft  prompts  tok/s  speed-up        (spread)  tokens/round  equal",
        "shell    off        1   20.0      1.00                                  yes",
        "shell      2        1   25.0      1.25  (1.25 to 1.25)          3.00    yes",
        "maths    off        1   20.0      1.00                                  yes",
        "maths      2        1   25.0      1.25  (1.25 to 1.25)          3.00    yes",
        "all      off        2   20.0      1.00                                  yes",
        "all        2        2   25.0      1.25  (1.25 to 1.25)          3.00    yes",
        "worst prompt: a with draft 2, 1.25 times the speed without drafting",
    ]


# --- the ceiling


def test_the_ceiling_is_bytes_over_bandwidth():
    assert CEILING.decode_tps == 100.0
    assert read_speed(2, num_bytes=1 << 16) > 0


# --- where it comes from


def test_provenance_names_everything_needed_to_repeat():
    record = provenance.provenance(threads=3)
    assert record["threads"] == 3
    assert set(record) == {
        "commit", "uncommitted_changes", "command", "date", "processor", "threads", "versions",
    }  # fmt: skip
    assert {"python", "paceline", "numpy"} <= set(record["versions"])
    assert record["processor"]


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        (["/somewhere/bin/paceline", "bench", "--kind", "a b"], "paceline bench --kind 'a b'"),
        (["/somewhere/paceline/__main__.py", "bench"], "paceline bench"),
        (["benchmarks/equality.py", "--prompts", "4"], "python benchmarks/equality.py --prompts 4"),
    ],
)
def test_a_command_is_what_was_typed(monkeypatch, argv, command):
    monkeypatch.setattr("sys.argv", argv)
    assert provenance.command_line() == command


def test_an_untracked_installation_has_no_commit(monkeypatch):
    """As in an environment that lies in the repository of another project."""
    asked = []

    def git(*arguments: str) -> str | None:
        asked.append(arguments[0])
        return None if arguments[0] == "ls-files" else "0123abc"

    monkeypatch.setattr(provenance, "_git", git)
    assert provenance.source_commit() is None
    assert asked == ["ls-files"]


def test_without_git_there_is_no_commit(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert provenance.source_commit() is None


@pytest.mark.parametrize(
    ("cpuinfo", "name"),
    [("processor : 0\nmodel name\t: Quick 9000\n", "Quick 9000"), ("model name :\n", None)],
)
def test_processor_name(tmp_path, cpuinfo, name):
    file = tmp_path / "cpuinfo"
    file.write_text(cpuinfo)
    found = provenance.processor_name(file)
    assert found == name if name else found
    assert provenance.processor_name(tmp_path / "none")


# --- the command


def test_the_last_line_is_one_document(cli, tmp_path):
    cli.engine.speed_up = {2: 1.5, 4: 2.0, "auto": 1.8}
    file = tmp_path / "result.json"
    outcome = cli.run("bench", "--limit", "1", "--json", str(file), "--seed", "3")
    assert (outcome.code, outcome.stderr) == (0, "")
    report = json.loads(outcome.stdout.splitlines()[-1])
    assert json.loads(file.read_text(encoding="utf-8")) == report
    assert len(report["runs"]) == len(KINDS) * 4
    keys = {"prompt", "kind", "draft", "decode_tps", "ratio", "acceptance_length", "equal"}
    assert all(keys <= run.keys() for run in report["runs"])
    assert all(keys - {"prompt"} <= kind.keys() for kind in report["kinds"])
    assert {"commit", "command", "processor", "threads", "versions"} <= report.keys()
    assert report["settings"] == {
        "drafts": [0, 2, 4, "auto"], "repeats": 5, "max_tokens": 128, "temperature": 0.0, "seed": 3,
    }  # fmt: skip
    assert report["ceiling"] == {
        "bytes_per_token": 4000, "read_bytes_per_s": 400_000, "decode_tps": 100.0, "reached": 0.2,
    }  # fmt: skip
    assert report["model"]["name"] == "fake"
    assert report["threads"] == 3
    assert outcome.stdout.startswith(
        "ceiling without drafting: 100.0 tok/s (0.0 MB of weights a token, read at 0.0 GB/s)\n"
    )
    assert "reached without drafting: 20 % of the ceiling" in outcome.stdout
    run = report["runs"][2]
    assert (run["prompt"], run["draft"], run["ratio"]) == ("shell/list-hidden-files", 4, 2.0)
    assert (run["acceptance_length"], run["equal"]) == (4.0, True)
    assert "worst prompt: shell/list-hidden-files with draft 2, 1.50 times" in outcome.stdout


def test_a_different_output_is_a_failure_with_a_full_report(cli):
    cli.engine.changed_by_draft = True
    outcome = cli.run("bench", "--kind", "shell", "--limit", "1", "--compare", "off,2")
    assert outcome.code == 1
    report = json.loads(outcome.stdout.splitlines()[-1])
    assert report["equal"] is False
    assert [run["equal"] for run in report["runs"]] == [True, False]
    assert "NO" in outcome.stdout


def test_skipped_prompts_are_told(cli, tmp_path):
    cli.engine.error = PromptError("the prompt has 900 tokens.")
    outcome = cli.run("bench", "--kind", "shell", "--limit", "1")
    assert "skipped: shell/list-hidden-files: the prompt has 900 tokens." in outcome.stderr
    report = json.loads(outcome.stdout.splitlines()[-1])
    assert report["skipped"][0]["prompt"] == "shell/list-hidden-files"
    assert outcome.code == 1
    assert outcome.stderr.endswith("error: none of the 1 prompts could be measured, see above.\n")


def test_a_skipped_prompt_among_others_is_no_failure(cli, monkeypatch):
    generate = cli.engine.generate

    def refuse_one(prompt, **arguments):
        if "scp" in prompt[0].content:
            raise PromptError("the prompt has 900 tokens.")
        return generate(prompt, **arguments)

    monkeypatch.setattr(cli.engine, "generate", refuse_one)
    outcome = cli.run("bench", "--kind", "shell", "--repeats", "1")
    assert outcome.code == 0
    assert outcome.stderr == "skipped: shell/copy-over-ssh: the prompt has 900 tokens.\n"


def test_a_file_of_prompts(cli, tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text(FORMS[3][0] + "\n" + FORMS[4][0] + "\n", encoding="utf-8")
    outcome = cli.run("bench", "--prompts", str(file), "--compare", "2", "--repeats", "1")
    report = json.loads(outcome.stdout.splitlines()[-1])
    assert [(run["prompt"], run["draft"]) for run in report["runs"]] == [
        ("gsm8k/1", 0), ("gsm8k/1", 2), ("HumanEval/0", 0), ("HumanEval/0", 2),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "drafts"),
    [
        ("off,2,4", (0, 2, 4)),
        ("4,2", (0, 4, 2)),
        ("2, off, 2", (0, 2)),
        ("off", (0,)),
        ("0,1", (0, 1)),
        ("off,2,auto,auto", (0, 2, "auto")),
    ],
)
def test_compare(text, drafts):
    assert parse_compare(text) == drafts


@pytest.mark.parametrize("text", ["", ",", "off,", "two", "1.5", "-1"])
def test_bad_compare(text):
    with pytest.raises(ConfigError, match="--compare must be auto, off or a whole number"):
        parse_compare(text)


# --- auto, and why


def test_auto_is_compared_with_the_best_length_of_each_kind():
    prompts = [prompt("a", "shell"), prompt("b", "maths")]
    summaries = summaries_of(FakeEngine(speed_up={2: 2.0, 4: 1.6, "auto": 1.9}), prompts, AUTO)
    compared = auto_against_best(summaries)
    assert [(one.kind, one.best) for one in compared] == [
        ("shell", "2"), ("maths", "2"), ("all", "the best of each kind"),
    ]  # fmt: skip
    assert [one.ratio for one in compared] == pytest.approx([0.95] * 3)
    assert slower_runs(summaries) == []
    assert table(summaries)[-5:] == [
        "auto against the best fixed length, shell: 0.950 (best: 2)",
        "auto against the best fixed length, maths: 0.950 (best: 2)",
        "auto against the best fixed length, all: 0.950 (best: the best of each kind)",
        "worst prompt with auto: a, 1.900; off against off 1.000 to 1.000",
        "below 0.98 of drafting off, beyond its own noise: none",
    ]


def test_off_is_the_best_length_where_all_others_lose():
    summaries = summaries_of(FakeEngine(speed_up={2: 0.5, 4: 0.6}), [prompt()], AUTO)
    assert [(one.best, one.ratio) for one in auto_against_best(summaries)] == [("off", 1.0)]


def test_a_slower_prompt_is_named_unless_it_may_be_noise():
    runs, _ = measure(FakeEngine(speed_up={"auto": 0.95}), [prompt("a")], plan(AUTO, 3))
    assert [s.prompt for s in slower_runs(summarise(runs))] == ["a"]
    assert "below 0.98 of drafting off, beyond its own noise: a" in table(summarise(runs))[-1]
    for repeat, stats in enumerate(runs[0].repeats):
        stats.decode_s *= 1.0 + 0.05 * (repeat == 1)
    assert summarise(runs)[0].noise.low == pytest.approx(1 / 1.05)
    assert slower_runs(summarise(runs)) == []


@pytest.mark.parametrize("drafts", [(0, 2, 4), (0, "auto")])
def test_without_auto_or_a_length_nothing_is_compared(drafts):
    assert auto_against_best(summaries_of(FakeEngine(), [prompt()], drafts)) == []


def test_auto_without_measured_speed_is_not_compared():
    assert auto_against_best(summaries_of(FakeEngine(deltas=[text_delta("4")]), [prompt()])) == []


def with_rounds(summary, rounds, **seconds):
    totals = GenerationStats(generated_tokens=1 + sum(1 + a for _, a in rounds), **seconds)
    for drafted, accepted in rounds:
        totals.record_round(drafted, accepted)
    return replace(summary, totals=totals)


def test_an_explanation_by_hand():
    """Half of the first tokens are taken, and half of the second ones after them."""
    off, four, auto = summaries_of(FakeEngine(), [prompt()], (0, 2, "auto"))
    four_rounds = [(2, 0), (2, 0), (2, 1), (2, 2)]
    found = explain(
        [
            with_rounds(off, [(0, 0)] * 7, decode_s=7 * 0.06, verify_s=7 * 0.05),
            with_rounds(four, four_rounds, decode_s=4 * 0.08),
            with_rounds(auto, [(0, 0), (2, 2)], decode_s=0.12),
        ],
        CALIBRATION,
    )
    assert found.costs.overhead_s == pytest.approx(0.01)
    assert [found.costs.pass_s(rows) for rows in (1, 2, 3, 4, 10, 28)] == pytest.approx(
        [0.05, 0.055, 0.0625, 0.07, 0.135, 0.33]
    )
    assert found.acceptance == (0.5, 0.5)
    two, itself = found.predictions
    round_s = 0.0625 + 0.001 + 2 * 0.002 + 0.01
    assert two.predicted == pytest.approx(1.75 * 0.06 / round_s)
    assert two.measured == pytest.approx((7 / 0.32) / (7 / 0.42))
    assert itself.predicted == pytest.approx(4 * 0.06 / (0.06 + round_s))
    lines = explanation_lines(found)
    assert "a round takes 10.000 ms besides" in lines
    assert "accepted, if all before were: 1: 50 %  2: 50 %" in lines
    assert lines[-2:] == ["    2       1.35      1.31", " auto       1.75      2.00"]
    assert json.loads(json.dumps(explanation_document(found)))["acceptance"] == [0.5, 0.5]


def test_an_explanation_without_a_drafter():
    off, two = summaries_of(FakeEngine(), [prompt()], (0, 2))
    plain = [with_rounds(s, [(0, 0)] * 3, decode_s=0.3, verify_s=0.3) for s in (off, two)]
    found = explain(plain, replace(CALIBRATION, passes={1: 0.1}, draft=None))
    assert found.acceptance == ()
    assert found.predictions[0].predicted == 1.0
    assert "no drafter is loaded" in explanation_lines(found)


def test_bench_explains_itself(cli, tmp_path):
    figures = [tmp_path / "one.svg", tmp_path / "two.svg"]
    for file in figures:
        outcome = cli.run("bench", "--limit", "1", "--explain", "--figure", str(file))
        assert outcome.code == 0, outcome.stderr
    report = json.loads(outcome.stdout.splitlines()[-1])
    assert [p["draft"] for p in report["explanation"]["predictions"]] == [2, 4, "auto"]
    assert report["explanation"]["passes_s"] == {"1": 0.05, "2": 0.055, "4": 0.07, "16": 0.2}
    assert "draft  predicted  measured" in outcome.stdout
    one, two = (file.with_name(f"{file.stem}-explain.svg").read_bytes() for file in figures)
    assert one == two


def test_an_explanation_needs_a_fixed_length(cli):
    outcome = cli.run("bench", "--explain", "--compare", "off,auto")
    assert (outcome.code, cli.loaded) == (2, [])
    assert "--explain needs a draft length to learn from" in outcome.stderr


# --- the figure


def test_a_figure_is_drawn_the_same_twice(cli, tmp_path):
    files = [tmp_path / "one.svg", tmp_path / "two.svg"]
    for file in files:
        assert cli.run("bench", "--limit", "1", "--figure", str(file)).code == 0
    text = files[0].read_text(encoding="utf-8")
    assert text == files[1].read_text(encoding="utf-8")
    assert text.startswith("<?xml")


def test_a_png_figure_without_measured_speed(cli, tmp_path):
    cli.engine.deltas = [text_delta("4")]
    file = tmp_path / "speed.png"
    assert cli.run("bench", "--limit", "1", "--figure", str(file)).code == 0
    assert file.read_bytes().startswith(b"\x89PNG")


def test_a_missing_matplotlib_is_told_before_the_run(cli, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependencyError):
        figure.check_figure(Path("speed.svg"))
    outcome = cli.run("bench", "--figure", "speed.svg")
    assert outcome.code == 1
    assert "pip install 'paceline[report]'" in outcome.stderr
    assert cli.loaded == []
