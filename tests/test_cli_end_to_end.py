"""The real commands with real files: a random pair always, the shipped pair where it lies."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cli_fakes import Outcome, stream_of
from paceline.cli import app
from random_pair import write_random_pair


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_pair(tmp_path_factory.mktemp("models") / "random")


@pytest.fixture
def run(monkeypatch, capsys):
    def run(*argv: object, stdin: bytes | str | object = b"") -> Outcome:
        monkeypatch.setattr(sys, "stdin", stream_of(stdin))
        code = app.main([str(word) for word in argv])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


def generated(run, *argv: object, **arguments: object) -> str:
    outcome = run("generate", *argv, **arguments)
    assert (outcome.code, outcome.stderr) == (0, "")
    return outcome.stdout


# --- a random pair: everything but the sense of the text

WORDS = ("Why is the sky blue?", "--max-tokens", "40", "--seed", "3")


@pytest.mark.parametrize("temperature", ["0", "1"])
def test_the_text_is_the_same_with_any_draft_length(run, pair, temperature):
    words = (*WORDS, "--model", pair, "--temperature", temperature)
    plain = generated(run, *words, "--draft", "off")
    assert len(plain) > 20
    for draft in ("1", "4", "8"):
        assert generated(run, *words, "--draft", draft) == plain
    assert generated(run, *words, "--drafter", "none") == plain
    assert generated(run, *words[1:], stdin=words[0]) == plain


def test_statistics_say_that_drafts_were_verified(run, pair):
    outcome = run("generate", *WORDS, "--model", pair, "--draft", "4", "--stats", "json")
    stats = json.loads(outcome.stderr)
    assert stats["generated_tokens"] == 40
    assert stats["finish_reason"] == "length"
    assert stats["drafted_tokens"] > 0
    assert stats["seed"] == 3


def test_raw_text_is_continued(run, pair):
    plain = generated(run, *WORDS, "--model", pair)
    assert generated(run, *WORDS, "--model", pair, "--raw") != plain


def test_a_stop_string_cuts(run, pair):
    text = generated(run, *WORDS, "--model", pair).removesuffix("\n")
    stop = text[10:13]
    cut = generated(run, *WORDS, "--model", pair, "--stop", stop).removesuffix("\n")
    assert cut == text[: text.index(stop)]


def test_chat_keeps_the_conversation(run, pair):
    options = ("--model", pair, "--max-tokens", "20", "--temperature", "0", "--seed", "1")
    both = run("chat", *options, stdin="The cat sat.\nAnd the dog?\n")
    one = run("chat", *options, stdin="And the dog?\n")
    assert (both.code, both.stderr) == (0, "")
    assert not both.stdout.endswith(one.stdout)
    again = run("chat", *options, "--draft", "off", stdin="The cat sat.\nAnd the dog?\n")
    assert again.stdout == both.stdout


def test_bench_and_demo_agree_that_outputs_are_equal(run, pair):
    outcome = run(
        "bench", "--model", pair, "--kind", "shell", "--limit", "1", "--repeats", "2",
        "--max-tokens", "16", "--compare", "off,1,3",
    )  # fmt: skip
    assert outcome.code == 0, outcome.stderr
    report = json.loads(outcome.stdout.splitlines()[-1])
    assert [row["draft"] for row in report["runs"]] == [0, 1, 3]
    assert all(row["equal"] and row["decode_tps"] > 0 for row in report["runs"])
    demo = run("demo", "Why?", "--model", pair, "--max-tokens", "16", "--repeats", "1")
    assert demo.code == 0
    assert "The two answers are equal" in demo.stdout


LONG = "the cat " * 300
MODEL_ERRORS = [
    (["--model", "no/such/folder"], "Why?", "there is no folder 'no/such/folder'", 1),
    (["--model", __file__], "Why?", "is a file: pass the folder", 1),
    (["--drafter", "no-such-drafter"], "Why?", "there is no folder 'no-such-drafter'", 1),
    (["--drafter", "none", "--draft", "2"], "Why?", "--draft 2 needs a drafter", 2),
    (["--draft", "99"], "Why?", "--draft 99 is too large: this drafter supports 1 to", 2),
    ([], LONG, "this model's context holds 256", 1),
    (["--stop", ""], "Why?", "stop", 2),
]


@pytest.mark.parametrize(("options", "prompt", "message", "code"), MODEL_ERRORS)
def test_errors_of_models(run, pair, options, prompt, message, code):
    model = [] if "--model" in options else ["--model", pair]
    outcome = run("generate", prompt, *model, *options)
    assert (outcome.code, outcome.stdout) == (code, "")
    assert outcome.stderr.startswith("error: ")
    assert message in outcome.stderr
    assert outcome.stderr.count("\n") == 1


def test_a_truncated_file_is_named(run, pair, tmp_path):
    broken = write_random_pair(tmp_path / "broken")
    file = broken / "model.safetensors"
    with file.open("r+b") as opened:
        opened.truncate(file.stat().st_size - 100)
    outcome = run("generate", "Why?", "--model", broken)
    assert (outcome.code, outcome.stdout) == (1, "")
    assert outcome.stderr.startswith("error: ")
    assert "model.safetensors" in outcome.stderr


# --- the shipped pair, as a newcomer runs it


def program(*argv: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "paceline", *argv]
    return subprocess.run(command, input=stdin, capture_output=True, check=False)


def test_shipped_pair_demo():
    result = program("demo", "--max-tokens", "48", "--repeats", "1")
    text = result.stdout.decode("utf-8")
    assert result.returncode == 0, result.stderr
    assert "The two answers are equal" in text
    assert "acceptance length" in text
    assert "speed-up" in text


def test_shipped_pair_answers_the_same_with_and_without_drafting():
    question = b"How do I count the lines of a file with wc?\n"
    options = ("--temperature", "1", "--seed", "5", "--max-tokens", "48")
    plain = program("generate", *options, "--draft", "off", stdin=question)
    drafted = program("generate", *options, "--draft", "4", stdin=question)
    assert plain.returncode == drafted.returncode == 0, plain.stderr + drafted.stderr
    assert plain.stdout == drafted.stdout
    assert plain.stdout.strip()


def test_shipped_pair_chat_and_bench(run):
    chat = run("chat", "--max-tokens", "24", "--seed", "1", stdin="Hello!\n/stats\n")
    assert (chat.code, "1 answer" in chat.stderr) == (0, True)
    outcome = run(
        "bench", "--limit", "1", "--repeats", "1", "--max-tokens", "24", "--compare", "off,4"
    )
    assert outcome.code == 0, outcome.stderr
    report = json.loads(outcome.stdout.splitlines()[-1])
    assert report["equal"] is True
    assert len(report["kinds"]) == 16
