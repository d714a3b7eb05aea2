"""The command line against a fake engine: (arguments, input) -> (output, errors, exit status)."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cli_fakes import (
    ANSWER_TEXT,
    CALIBRATION,
    TERMINAL,
    CommandLine,
    FakeEngine,
    reasoning_delta,
    stream_of,
    text_delta,
)
from paceline.cli import (
    app,
    bench,
    chat,
    common,
    environment,
    footer,
    generate,
    options,
    progress,
    prompt_input,
    terminal,
)
from paceline.cli import demo as demo_command
from paceline.cli.prompt_input import MAX_FILE_BYTES
from paceline.engine import DEFAULT_MAX_TOKENS, Engine
from paceline.errors import CheckpointError, ConfigError, PromptError
from paceline.stats import GenerationStats

TESTS = Path(__file__).parent


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(monkeypatch, capsys)


# --- generate: what goes where

GENERATE_CASES = [
    (["Why?"], b"", ANSWER_TEXT + "\n", "", 0),
    ([], b"Why?\n", ANSWER_TEXT + "\n", "", 0),
    (["Why?", "--stats", "footer"], b"", ANSWER_TEXT + "\n", "20.0 tok/s · 3 tokens", 0),
    (["Why?", "--stats", "none"], b"", ANSWER_TEXT + "\n", "", 0),
    (["Why?", "--show-draft"], b"", ANSWER_TEXT + "\n", "marks text on a terminal only", 0),
]


@pytest.mark.parametrize(("arguments", "stdin", "stdout", "stderr", "code"), GENERATE_CASES)
def test_generate(cli, arguments, stdin, stdout, stderr, code):
    outcome = cli.run("generate", *arguments, stdin=stdin)
    assert (outcome.code, outcome.stdout) == (code, stdout)
    assert stderr in outcome.stderr if stderr else outcome.stderr == ""


PROMPT_CASES = [
    (["Sum up."], "One.\nTwo.\n", "Sum up.\n\nOne.\nTwo."),
    ([], "One.\r\n", "One."),
    ([], "One.\n\n", "One.\n"),
    (["Sum up."], "", "Sum up."),
    (["Sum up."], TERMINAL, "Sum up."),
    (["Sum up."], None, "Sum up."),
    ([], "naïve ☕", "naïve ☕"),
    (["--raw"], "def f():\n", "def f():\n"),
    (["--raw", "a "], "b\n", "a \n\nb\n"),
]


@pytest.mark.parametrize(("arguments", "stdin", "prompt"), PROMPT_CASES)
def test_the_prompt_is_the_argument_then_the_piped_text(cli, arguments, stdin, prompt):
    assert cli.run("generate", *arguments, stdin=stdin).code == 0
    assert cli.engine.calls[0]["prompt"] == prompt


def test_a_system_text_makes_a_list_of_messages(cli):
    cli.run("generate", "Why?", "--system", "Be brief.")
    assert [(m.role, m.content) for m in cli.engine.calls[0]["prompt"]] == [
        ("system", "Be brief."),
        ("user", "Why?"),
    ]


def test_every_option_reaches_the_engine(cli):
    words = "--model M --drafter D --draft 3 --max-tokens 9 --temperature 0.5 --top-k 2 --top-p 0.9"
    words += " --min-p 0.1 --seed 11 --stop END --stop \n --think --threads 2 --runtime torch"
    words += " --dtype bfloat16"
    outcome = cli.run("generate", "Why?", *words.split(" "), "--no-progress")
    assert outcome.code == 0, outcome.stderr
    assert cli.loaded == [
        (
            "M",
            "D",
            {
                "runtime": options.Runtime.TORCH,
                "dtype": options.Dtype.BFLOAT16,
                "threads": 2,
                "learns": False,
                "remembers": False,
                "progress": False,
            },
        )
    ]
    call = cli.engine.calls[0]
    sampling = call["sampling"]
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (0.5, 2, 0.9)
    assert (sampling.min_p, sampling.seed) == (0.1, 11)
    assert (call["draft"], call["max_tokens"], call["stop"]) == (3, 9, ("END", "\n"))
    assert (call["thinking"], call["raw"]) == (True, False)


def test_options_left_out_leave_the_choice_to_the_model(cli):
    cli.run("generate", "Why?")
    assert cli.loaded[0][:2] == (None, "auto")
    call = cli.engine.calls[0]
    assert call["sampling"] == cli.engine.default_sampling()
    assert (call["draft"], call["raw"], call["thinking"]) == ("auto", False, False)
    assert call["prediction"] is None
    assert (cli.loaded[0][2]["learns"], cli.loaded[0][2]["remembers"]) == (True, False)
    assert cli.engine.kept == 1


@pytest.mark.parametrize(("text", "draft"), [("off", 0), ("0", 0), ("8", 8), ("auto", "auto")])
def test_draft_lengths(cli, text, draft):
    cli.run("generate", "Why?", "--draft", text)
    assert cli.engine.calls[0]["draft"] == draft


def test_text_that_ends_in_a_line_end_gets_no_second_one(cli):
    cli.engine.deltas = [text_delta("a\n"), text_delta("b\n")]
    assert cli.run("generate", "Why?").stdout == "a\nb\n"


def test_reasoning_goes_to_standard_error(cli):
    cli.engine.deltas = [reasoning_delta("Let me "), reasoning_delta("see."), text_delta("42")]
    outcome = cli.run("generate", "Why?", "--think", "--stats", "footer")
    assert outcome.stdout == "42\n"
    assert outcome.stderr.startswith("Let me see.\n")
    assert "85 % of the text is reasoning" in outcome.stderr


def test_stats_as_json_are_one_line(cli):
    outcome = cli.run("generate", "Why?", "--stats", "json", "--seed", "5", "--draft", "2")
    document = json.loads(outcome.stderr)
    assert (document["finish_reason"], document["seed"]) == ("stop", 5)
    assert document["acceptance_histogram"] == [0, 0, 2]
    assert document.keys() >= GenerationStats().to_json().keys()


def test_the_footer_is_shown_unasked_on_a_terminal_only(cli, monkeypatch):
    assert cli.run("generate", "Why?").stderr == ""
    monkeypatch.setattr(terminal, "is_terminal", lambda stream: stream is sys.stderr)
    assert "3 tokens" in cli.run("generate", "Why?").stderr
    assert cli.run("generate", "Why?", "--stats", "none").stderr == ""


# --- errors

BAD_BYTES = b"caf\xe9"
ERROR_CASES = [
    # usage
    (["generate", "x", "--foo"], "", "No such option: --foo", 2),
    (["fly"], "", "No such command 'fly'", 2),
    (["generate", "x", "--max-tokens", "0"], "", "--max-tokens", 2),
    (["generate", "x", "--max-tokens", "many"], "", "--max-tokens", 2),
    (["generate", "x", "--dtype", "int2"], "", "'float32', 'bfloat16'", 2),
    (["generate", "x", "--draft", "9"], "", "this drafter supports 1 to 8. Pass --draft 8", 2),
    (
        ["generate", "x", "--draft", "-1"],
        "",
        "--draft must be auto, off or a whole number, got '-1'",
        2,
    ),
    (["generate", "x", "--draft", "many"], "", "--draft must be auto, off or a whole number", 2),
    (["generate", "x", "--draft", "²"], "", "--draft must be auto, off or a whole number", 2),
    (["generate", "x", "--draft", "9" * 50], "", "--draft must be auto, off or a whole number", 2),
    (["generate", "x", "--temperature", "3"], "", "temperature=3.0 is out of range", 2),
    (["generate", "x", "--temperature", "nan"], "", "temperature=nan is out of range", 2),
    (["generate", "x", "--top-p", "0"], "", "top_p=0 keeps no token", 2),
    (["generate", "x", "--seed", "-1"], "", "seed=-1 is out of range", 2),
    (["generate", "x", "--raw", "--system", "s"], "", "--system belongs to the chat format", 2),
    (["generate", "x", "--raw", "--think"], "", "--think belongs to the chat format", 2),
    (["generate"], TERMINAL, "there is no prompt: pass it as an argument or through a pipe", 2),
    (["generate", ""], TERMINAL, "the prompt is empty", 2),
    (["generate"], "", "the prompt is empty", 2),
    (["generate"], " \n\t\n", "the prompt is empty", 2),
    (["demo", "--draft", "off"], "", "--draft must be auto, or 1 or more", 2),
    (["demo", "--draft", "9"], "", "this drafter supports 1 to 8", 2),
    (
        ["bench", "--compare", "off,x"],
        "",
        "--compare must be auto, off or a whole number, got 'x'",
        2,
    ),
    (["bench", "--compare", "off,9"], "", "--compare 9 is too large", 2),
    (["bench", "--kind", "poetry"], "", "no prompt is of kind 'poetry': the kinds are shell", 2),
    (["bench", "--figure", "speed.pdf"], "", "must end in .svg or .png", 2),
    (["bench", "--json", "no/such/folder.json"], "", "is not a file in a folder that exists", 2),
    (["bench", "--repeats", "0"], "", "--repeats", 2),
    # failures
    (["generate"], BAD_BYTES, "not UTF-8: byte 3 is 0xe9", 1),
    (["generate", "x"], BAD_BYTES, "not UTF-8: byte 3 is 0xe9", 1),
    (["generate"], None, "standard input is closed", 1),
    (["chat"], b"fine\n" + BAD_BYTES, "not UTF-8: byte 8 is 0xe9", 1),
    (["chat"], None, "standard input is closed", 1),
    (["bench", "--prompts", "no/such.jsonl"], "", "no/such.jsonl cannot be read: No such file", 1),
]


@pytest.mark.parametrize(("arguments", "stdin", "message", "code"), ERROR_CASES)
def test_errors(cli, arguments, stdin, message, code):
    outcome = cli.run(*arguments, stdin=stdin)
    assert outcome.code == code
    last = outcome.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last
    assert "Traceback" not in outcome.stderr
    if arguments[0] != "chat":
        assert outcome.stdout == ""
        assert outcome.stderr.count("\n") == 1


class UnreadableBytes(io.BytesIO):
    def read(self, *_: object) -> bytes:
        raise IsADirectoryError(21, "Is a directory")

    readline = read


@pytest.mark.parametrize("verb", ["generate", "chat"])
def test_unreadable_input(cli, verb):
    outcome = cli.run(verb, stdin=io.TextIOWrapper(UnreadableBytes()))
    assert outcome.code == 1
    assert outcome.stderr == "error: standard input cannot be read: Is a directory.\n"


@pytest.mark.parametrize(
    ("error", "message", "code"),
    [
        (PromptError("the prompt has 900 tokens."), "error: the prompt has 900 tokens.\n", 1),
        (ConfigError("stop has 99 strings."), "error: stop has 99 strings.\n", 2),
        (CheckpointError("bad\nfile"), "error: bad file\n", 1),
        (FileNotFoundError(2, "No such file", "a.txt"), "error: a.txt: No such file\n", 1),
        (MemoryError(), "error: the memory is not enough for this model and context.\n", 1),
        (KeyError("k"), "error: KeyError: 'k'. This is a fault of Paceline, not yours:", 1),
    ],
)
def test_errors_of_the_engine(cli, error, message, code):
    cli.engine.error = error
    outcome = cli.run("generate", "Why?")
    assert (outcome.code, outcome.stdout) == (code, "")
    assert outcome.stderr.startswith(message)
    assert outcome.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [["generate", "Why?"], ["generate", "Why?", "--draft", "2"]])
def test_drafting_without_a_drafter(cli, arguments):
    cli.engine.max_draft_tokens = 0
    outcome = cli.run(*arguments)
    if "--draft" in arguments:
        assert outcome.code == 2
        assert "--draft 2 needs a drafter, and none is loaded" in outcome.stderr
    else:
        assert outcome.code == 0


def test_debug_shows_the_traceback(cli):
    cli.engine.error = PromptError("too long.")
    outcome = cli.run("--debug", "generate", "Why?")
    assert outcome.code == 1
    assert outcome.stderr.startswith("Traceback")
    assert outcome.stderr.endswith("error: too long.\n")


def test_an_interrupt_leaves_the_text_and_the_status_130(cli):
    cli.engine.interrupt_after = 1
    outcome = cli.run("generate", "Why?", "--stats", "footer")
    assert (outcome.code, outcome.stdout) == (130, "The sky \n")
    assert "stopped by you" in outcome.stderr


def test_a_config_at_fault_in_a_model_folder_is_no_wrong_usage(monkeypatch):

    def load(*_: object, **__: object) -> None:
        raise ConfigError("hidden_size=0 is out of range.")

    monkeypatch.setattr(Engine, "load", load)
    with pytest.raises(CheckpointError, match="hidden_size=0"):
        common.load_engine(None, "auto")


@pytest.mark.parametrize(("drafter", "given"), [("none", None), ("auto", "auto"), ("d", "d")])
def test_the_drafter_none_means_no_drafter(monkeypatch, drafter, given):
    seen = []
    monkeypatch.setattr(Engine, "load", lambda *a, **k: seen.append(a) or FakeEngine())
    common.load_engine("m", drafter)
    assert seen == [("m", given)]


# --- drafting


def test_a_prediction_is_read_from_a_file(cli, tmp_path):
    file = tmp_path / "old.py"
    file.write_text("x = 1\n", encoding="utf-8")
    cli.run("generate", "Rename x", "--prediction", str(file), "--remember")
    assert cli.engine.calls[0]["prediction"] == "x = 1\n"
    assert cli.loaded[0][2]["remembers"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"ab\xff", "is not UTF-8 text: byte 2 is 0xff"),
        (b"a" * (MAX_FILE_BYTES + 1), "is larger than 4 MB. Pass the part that matters"),
    ],
    ids=["missing", "not UTF-8", "huge"],
)
def test_a_bad_prediction_is_refused_before_loading(cli, tmp_path, content, message):
    file = tmp_path / "old.py"
    if content is not None:
        file.write_bytes(content)
    outcome = cli.run("generate", "Rename x", "--prediction", str(file))
    assert (outcome.code, cli.loaded) == (2, [])
    assert message in outcome.stderr


@pytest.mark.parametrize("option", [["--prediction", "f"], ["--remember"]])
def test_texts_are_drafted_from_with_auto_only(cli, option):
    outcome = cli.run("generate", "Why?", "--draft", "4", *option)
    assert outcome.code == 2
    assert f"{option[0]} needs --draft auto, got --draft 4." in outcome.stderr


@pytest.mark.parametrize("command", [["generate", "Why?"], ["bench"]])
@pytest.mark.parametrize(
    ("name", "message"),
    [("trace.txt", "must end in .jsonl"), ("no/such/trace.json", "in a folder that exists")],
)
def test_a_bad_trace_is_refused_before_loading(cli, tmp_path, command, name, message):
    outcome = cli.run(*command, "--trace", str(tmp_path / name))
    assert (outcome.code, cli.loaded) == (2, [])
    assert message in outcome.stderr


def test_a_trace_is_complete_and_what_was_learned_is_kept_after_an_error(cli, tmp_path):
    file = tmp_path / "trace.json"
    cli.engine.error = PromptError("too long")
    assert cli.run("generate", "Why?", "--trace", str(file)).code == 1
    assert json.loads(file.read_text())["traceEvents"] == []
    assert (cli.engine.kept, cli.engine.on_round) == (1, None)


@pytest.mark.parametrize("on_terminal", [True, False])
def test_a_first_measurement_is_told_to_whom_can_read_it(monkeypatch, capsys, on_terminal):
    engine = FakeEngine(calibration=CALIBRATION)
    monkeypatch.setattr(Engine, "load", lambda *a, **k: engine)
    monkeypatch.setattr(terminal, "is_terminal", lambda stream: on_terminal)
    assert common.load_engine(None, "auto", learns=True) is engine
    told = "measured how fast this machine drafts, in 1.2 s" in capsys.readouterr().err
    assert told == on_terminal


def test_calibrate_shows_what_it_measured(cli):
    outcome = cli.run("calibrate", "--threads", "2")
    assert outcome.stdout.splitlines() == [
        "rows  pass, ms  of one row  ms a row",
        "   1     50.00        1.00     50.00",
        "   2     55.00        1.10     27.50",
        "   4     70.00        1.40     17.50",
        "  16    200.00        4.00     12.50",
        "a draft takes 1.000 ms and 2.000 ms a token, 0.040 passes of one row",
        "lower quartiles of 7, measured in 1.2 s",
    ]
    assert cli.loaded[0][2]["learns"]


def test_calibrate_says_that_the_clock_stands_still(cli, monkeypatch):
    monkeypatch.setattr(FakeEngine, "recalibrate", lambda engine: None)
    outcome = cli.run("calibrate")
    assert (outcome.code, outcome.stdout) == (1, "")
    assert "the clock of this machine stands still" in outcome.stderr


def test_forget_deletes_earlier_answers(cli, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "paceline"
    folder.mkdir()
    (folder / "answers-1.json").touch()
    assert cli.run("forget").stdout == f"deleted 1 file of earlier answers in {folder}.\n"
    assert not list(folder.iterdir())


@pytest.mark.parametrize(("value", "in_home"), [("", True), ("relative", True), ("/x", False)])
def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path, value, in_home):
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    monkeypatch.setenv("HOME", str(tmp_path))
    expected = tmp_path / ".cache" if in_home else Path(value)
    assert environment.cache_folder() == expected / "paceline"


# --- the program as a whole


def test_without_a_command_it_shows_the_help(cli):
    outcome = cli.run()
    assert outcome.code == 0
    assert "Commands:" in outcome.stdout


def test_version(cli):
    assert re.fullmatch(r"paceline \d+\.\d+\.\d+\n", cli.run("--version").stdout)


def test_a_help_text_imports_nothing_slow():
    """What makes `--help` fast; its time is measured by hand, as no test here reads a clock."""
    slow = ["numpy", "torch", "rich", "tokenizers", "prompt_toolkit", "matplotlib", "paceline.chat"]
    code = (
        "import sys; from paceline.cli.app import main\n"
        "for verb in ([], ['generate'], ['chat'], ['bench'], ['demo']): main([*verb, '--help'])\n"
        f"print([name for name in {slow} if name in sys.modules], file=sys.stderr)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stderr == "[]\n"


def test_the_default_length_is_that_of_the_engine():
    assert DEFAULT_MAX_TOKENS == options.MAX_TOKENS


FAKE_PROGRAM = """
import sys
sys.path.insert(0, {tests!r})
import cli_fakes
from paceline.cli import app, common
engine = cli_fakes.FakeEngine({arguments})
common.load_engine = lambda *a, **k: engine
sys.exit(app.main({argv!r}))
"""


def fake_program(argv: list[str], arguments: str = "") -> list[str]:
    code = FAKE_PROGRAM.format(tests=str(TESTS), argv=argv, arguments=arguments)
    return [sys.executable, "-c", code]


def test_a_reader_that_goes_away_is_no_error():
    """As in `paceline generate ... | head -c 1`: the pipe is closed long before the text ends."""
    long_answer = "deltas=[cli_fakes.text_delta('x' * 4096)] * 100"
    process = subprocess.Popen(
        fake_program(["generate", "Why?"], long_answer),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.read(1)
    process.stdout.close()
    _, stderr = process.communicate()
    assert stderr == b""
    assert process.returncode == 1


def test_a_standard_input_that_is_open_for_writing_only(tmp_path):
    descriptor = os.open(tmp_path / "written", os.O_WRONLY | os.O_CREAT)
    try:
        result = subprocess.run(
            fake_program(["generate"]),
            stdin=descriptor,
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        os.close(descriptor)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("error: standard input cannot be read: ")
    assert result.stderr.count("\n") == 1


def test_a_closed_standard_input():
    command = " ".join(["exec", '"$@"', "<&-"])
    result = subprocess.run(
        ["sh", "-c", command, "sh", *fake_program(["generate"])],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr.startswith("error: standard input")


# --- the docs


def test_the_help_in_the_docs_is_the_help_of_the_program():
    import importlib.util

    path = TESTS.parent / "docs" / "update_command_line.py"
    spec = importlib.util.spec_from_file_location("update_command_line", path)
    assert spec is not None
    assert spec.loader is not None
    update = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(update)
    page = (path.parent / "command-line.md").read_text(encoding="utf-8")
    assert update.updated(page) == page, f"run python {path.name}"
    for verb in ("paceline", "generate", "chat", "bench", "demo"):
        assert f"<!-- help: {verb} -->" in page


# --- pieces

FOOTER_CASES = [
    ({}, "96.2 tok/s · 214 tokens · first token 0.12 s · 82 % of drafts accepted "
         "(4.3 tokens a round)"),
    ({"draft": 0}, "96.2 tok/s · 214 tokens · first token 0.12 s · drafting off"),
    ({"tokens": 1, "draft": None}, "1 token · first token 0.12 s"),
    ({"reason": "length", "draft": None, "tokens": 1},
     "1 token · first token 0.12 s · stopped at the token limit"),
]  # fmt: skip


@pytest.mark.parametrize(("case", "line"), FOOTER_CASES)
def test_footer(case, line):
    tokens, draft = case.get("tokens", 214), case.get("draft", 4)
    stats = GenerationStats(
        generated_tokens=tokens, ttft_s=0.123, decode_s=213 / 96.2 if tokens > 1 else 0.0
    )
    for index in range(0 if draft is None else 50):
        stats.record_round(draft, min(draft, 4 if index < 32 else 2))
    result = FakeEngine(finish_reason=case.get("reason", "stop"), deltas=[]).generate(
        "x", sampling=FakeEngine().default_sampling(), draft=draft
    )
    assert footer.footer(_with(result, stats)) == line


def _with(result, stats):
    from dataclasses import replace

    return replace(result, stats=stats)


def test_marks_and_their_legend(cli, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    outcome = cli.run("generate", "Why?", "--show-draft")
    mark, end = "\x1b[4;36m", "\x1b[0m"
    assert outcome.stdout == f"The sky {mark}is {end}{mark}blue.{end}\n"
    assert outcome.stderr == f"{mark}underlined{end}: tokens that the drafter had foreseen\n"


def test_no_color_leaves_the_underline(cli, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    outcome = cli.run("generate", "Why?", "--show-draft", "--think")
    assert "\x1b[4mis \x1b[0m" in outcome.stdout
    assert "36" not in outcome.stdout + outcome.stderr


def test_without_show_draft_there_are_no_marks(cli, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert cli.run("generate", "Why?").stdout == ANSWER_TEXT + "\n"


def test_a_dumb_terminal_gets_no_marks(cli, monkeypatch):
    monkeypatch.setattr(terminal, "is_terminal", lambda stream: stream is not sys.stdin)
    assert "\x1b" in cli.run("generate", "Why?", "--show-draft").stdout
    monkeypatch.setenv("TERM", "dumb")
    assert "\x1b" not in cli.run("generate", "Why?", "--show-draft").stdout


def test_a_model_cannot_steer_the_terminal(cli, monkeypatch):
    attack = "a\x1b]0;owned\x07b\x9b2J\rc\td\n"
    cli.engine.deltas = [text_delta(attack)]
    assert cli.run("generate", "Why?").stdout == attack  # a pipe gets every byte
    monkeypatch.setattr(terminal, "is_terminal", lambda stream: stream is not sys.stdin)
    assert cli.run("generate", "Why?").stdout == "a␛]0;owned␇b\N{REPLACEMENT CHARACTER}2J␍c\td\n"


def test_line_ends_stay_unmarked(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert terminal.drafted("a\n\nb\n") == "\x1b[4;36ma\x1b[0m\n\n\x1b[4;36mb\x1b[0m\n"


class FakeBar:
    def __init__(self) -> None:
        self.task_ids = [0]
        self.seen: list[tuple[int, int]] = []
        self.stopped = False

    def update(self, task: int, *, completed: int, total: int) -> None:
        self.seen.append((completed, total))

    def stop(self) -> None:
        self.stopped = True


@pytest.mark.parametrize(
    ("on_terminal", "enabled", "seen"),
    [(True, True, [(2, 4), (3, 4)]), (False, True, []), (True, False, [])],
)
def test_a_bar_waits_a_second_and_needs_a_terminal(monkeypatch, on_terminal, enabled, seen):
    fake = FakeBar()
    monkeypatch.setattr(progress, "is_terminal", lambda stream: on_terminal)
    monkeypatch.setattr(progress, "_open_bar", lambda label: fake)
    times = iter([0.0, 0.9, 1.0, 1.1])
    bar = progress.LateBar("loading", enabled=enabled, clock=lambda: next(times))
    for done in range(1, 5):
        bar(done, 4)
    assert fake.seen == seen
    assert fake.stopped == bool(seen)


def test_a_bar_draws_with_rich_on_standard_error(monkeypatch, capsys):
    monkeypatch.setattr(progress, "is_terminal", lambda stream: True)
    times = iter([0.0, 5.0])
    with progress.LateBar("loading", clock=lambda: next(times)) as bar:
        bar(1, 4)
        bar(2, 4)
    assert capsys.readouterr().out == ""


def test_long_functions_of_commands_have_a_docstring_for_their_help():
    for function in (generate.generate, chat.chat, bench.bench, demo_command.demo):
        assert function.__doc__


def test_piped_lines_count_bytes_over_the_whole_input(monkeypatch):
    monkeypatch.setattr(sys, "stdin", stream_of(b"one\r\ntwo\n\nth\xffree"))
    lines = prompt_input.piped_lines()
    assert [next(lines), next(lines), next(lines)] == ["one", "two", ""]
    with pytest.raises(PromptError, match="byte 12 is 0xff"):
        next(lines)


def test_main_takes_the_words_of_the_process(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["paceline", "--version"])
    assert app.main() == 0
    assert capsys.readouterr().out.startswith("paceline ")


def test_the_demo_command_shows_equality_and_speed(cli):
    cli.engine.speed_up = {4: 1.5}
    outcome = cli.run("demo")
    assert outcome.code == 0
    assert outcome.stdout.count(ANSWER_TEXT) == 2
    assert "The two answers are equal: 16 bytes, 3 tokens." in outcome.stdout
    assert "acceptance length 4.00 tokens a round, 75 % of drafts accepted" in outcome.stdout
    assert "speed-up 1.50 (1.50 to 1.50): 30.0 against 20.0 tokens/s" in outcome.stdout
    drafts = [call["draft"] for call in cli.engine.calls]
    assert drafts == [0, 4] + [0, 4, 4, 0] * 3


def test_the_demo_says_when_drafting_is_slower(cli):
    cli.engine.speed_up = {4: 0.5}
    assert "Here drafting is slower than not drafting." in cli.run("demo").stdout


def test_the_demo_says_when_answers_differ(cli):
    cli.engine.changed_by_draft = True
    outcome = cli.run("demo", "--repeats", "1")
    assert outcome.code == 1
    assert "The answers DIFFER." in outcome.stdout
    assert "equal" not in outcome.stdout


def test_the_demo_measures_no_speed_of_one_token(cli):
    cli.engine.deltas = [text_delta("4")]
    assert "speed-up not measured: the answer is too short." in cli.run("demo").stdout
