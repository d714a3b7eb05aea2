"""`paceline chat`: piped conversations, its commands, and the terminal's line editor."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.history import FileHistory
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from cli_fakes import ANSWER_TEXT, TERMINAL, CommandLine, FakeEngine, reasoning_delta, text_delta
from paceline.cli import line_input, terminal
from paceline.cli.line_input import TerminalInput, read_message
from paceline.cli.slash_commands import COMMANDS
from paceline.errors import MissingDependencyError, PromptError


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(monkeypatch, capsys)


def said(engine: FakeEngine, call: int = -1) -> list[tuple[str, str]]:
    """The messages of one call of the engine."""
    return [(message.role, message.content) for message in engine.calls[call]["prompt"]]


ONE = ANSWER_TEXT + "\n"
PIPED_CASES = [
    ("Why?\n", ONE, "", 0),
    ("Why?", ONE, "", 0),
    ("Why?\nAnd?\n", ONE * 2, "", 0),
    ("\n  \nWhy?\n", ONE, "", 0),
    ("", "", "", 0),
    ("/bye\nWhy?\n", "", "", 0),
    ("//etc is what?\n", ONE, "", 0),
    ('"""One\ntwo"""\n', ONE, "", 0),
    ("/fly\nWhy?\n", ONE, "error: /fly is not a command: /help lists them.", 1),
    ("/help\n", "", "/draft auto|N|off", 0),
    ("/?\n", "", "/draft auto|N|off", 0),
    ("/show\n", "", "context      512 tokens", 0),
    ("/set\n", "", "temperature  1.0", 0),
    ("/stats\n", "", "no answers yet.", 0),
    ("Why?\nAnd?\n/stats\n", ONE * 2, "2 answers · 20.0 tok/s · 6 tokens", 0),
    ("Why?\n/stats\n", ONE, "draft token 4                          0 % accepted (0 of 2)", 0),
    ("Why?\n/stats\n", ONE, "draft token 1  ████████████████████  100 % accepted (2 of 2)", 0),
    ("/undo\n", "", "error: /undo has nothing to take back.", 1),
    ("/regen\n", "", "error: /regen has nothing to answer: ask something first.", 1),
    ("Why?\n/regen\n", ONE * 2, "", 0),
    ("/set seed 4\nWhy?\n/regen\n", ONE * 2, "the answer stays the same", 0),
    ("/draft 9\n", "", "error: /draft 9 is too large: this drafter supports 1 to 8.", 1),
    ("/draft\n", "", "error: /draft needs auto, off or a whole number.", 1),
    ("/draft x\n", "", "error: /draft must be auto, off or a whole number, got 'x'.", 1),
    ("/set speed 9\n", "", "error: /set speed is not a setting: there are temperature", 1),
    ("/set top_k\n", "", "error: /set top_k needs a value.", 1),
    ("/set top_k x\n", "", "error: /set top_k: expected a whole number, got 'x'.", 1),
    ("/set temperature hot\n", "", "error: /set temperature: expected a number", 1),
    ("/set temperature 9\n", "", "error: temperature=9.0 is out of range", 1),
    ("/set max_tokens 0\n", "", "error: /set max_tokens: expected 1 or more, got 0.", 1),
    ("/set stats loud\n", "", "error: /set stats: expected none, footer or json", 1),
    ("/set show_draft maybe\n", "", "error: /set show_draft: expected on or off", 1),
    ("/think perhaps\n", "", "error: expected on or off, got 'perhaps'.", 1),
    ("/read\n", "", "error: /read needs a file.", 1),
    ("/read no/such\n", "", "No such file", 1),
    ("/load no/such\n", "", "error: no/such cannot be read: No such file", 1),
    ("/save no/such/file\n", "", "No such file", 1),
    ("/system\n", "", "there is no system text.", 0),
]


@pytest.mark.parametrize(("stdin", "stdout", "stderr", "code"), PIPED_CASES)
def test_piped_chat(cli, stdin, stdout, stderr, code):
    outcome = cli.run("chat", stdin=stdin)
    assert (outcome.code, outcome.stdout) == (code, stdout), outcome.stderr
    assert stderr in outcome.stderr if stderr else outcome.stderr == ""
    assert "Traceback" not in outcome.stderr


def test_every_command_is_in_the_docs_and_in_the_help(cli):
    page = (Path(__file__).parents[1] / "docs" / "command-line.md").read_text(encoding="utf-8")
    listed = cli.run("chat", stdin="/help\n").stderr
    wanted = "help set show stats draft regen undo system think read save load clear bye"
    assert sorted(COMMANDS) == sorted(wanted.split())
    for name, command in COMMANDS.items():
        assert f"`/{name}" in page
        assert command.usage in listed


def test_a_turn_knows_the_turns_before(cli):
    cli.run("chat", "--system", "Be brief.", stdin="Why?\nAnd?\n")
    assert said(cli.engine) == [
        ("system", "Be brief."),
        ("user", "Why?"),
        ("assistant", ANSWER_TEXT),
        ("user", "And?"),
    ]


CONVERSATION_CASES = [
    ("Why?\n/undo\nAnd?\n", [("user", "And?")]),
    ("Why?\n/clear\nAnd?\n", [("user", "And?")]),
    ("Why?\n/regen\n", [("user", "Why?")]),
    ("//bye\n", [("user", "/bye")]),
    ('"""One\n two\n\nthree"""\n', [("user", "One\n two\n\nthree")]),
    ('"""\nOne\n"""\n', [("user", "One")]),
    ('"""One"""\n', [("user", "One")]),
    ('"""never closed\nby anyone\n', [("user", "never closed\nby anyone")]),
    ("/system Be brief.\nWhy?\n", [("system", "Be brief."), ("user", "Why?")]),
    ("/system Be brief.\n/system off\nWhy?\n", [("user", "Why?")]),
]


@pytest.mark.parametrize(("stdin", "messages"), CONVERSATION_CASES)
def test_what_the_engine_is_asked(cli, stdin, messages):
    cli.run("chat", stdin=stdin)
    assert said(cli.engine) == messages


def test_settings_last_from_their_command_on(cli):
    commands = "/set temperature 0.5\n/set top_k 3\n/set top_p 0.5\n/set min_p 0.2\n/set seed 9\n"
    commands += "/set max_tokens 12\n/set stop END\n/draft 2\n/think\n"
    cli.run(
        "chat", stdin="Why?\n" + commands + "And?\n/draft off\n/think off\n/set seed off\nSo?\n"
    )
    first, second, third = cli.engine.calls
    assert first["sampling"] == cli.engine.default_sampling()
    assert (first["draft"], first["thinking"], first["stop"]) == ("auto", False, ())
    sampling = second["sampling"]
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (0.5, 3, 0.5)
    assert (sampling.min_p, sampling.seed) == (0.2, 9)
    assert (second["max_tokens"], second["stop"]) == (12, ("END",))
    assert (second["draft"], second["thinking"]) == (2, True)
    assert (third["draft"], third["thinking"]) == (0, False)
    assert third["sampling"].seed is None


def test_a_setting_that_fails_changes_nothing(cli):
    cli.run("chat", stdin="/set top_k -1\n/draft 99\n/set max_tokens x\nWhy?\n")
    call = cli.engine.calls[0]
    assert call["sampling"] == cli.engine.default_sampling()
    assert call["draft"] == "auto"


def test_a_file_goes_before_the_next_message_once(cli, tmp_path):
    file = tmp_path / "note.txt"
    file.write_text("Buy lamps.\n", encoding="utf-8")
    cli.run("chat", stdin=f"/read {file}\nSum up.\nAnd?\n")
    assert said(cli.engine, 0) == [("user", "Buy lamps.\n\n\nSum up.")]
    assert said(cli.engine, 1)[-1] == ("user", "And?")


def test_a_binary_file_is_not_read(cli, tmp_path):
    file = tmp_path / "data"
    file.write_bytes(b"\xff\xfe")
    outcome = cli.run("chat", stdin=f"/read {file}\n")
    assert f"error: /read {file} is not UTF-8 text." in outcome.stderr


def test_a_saved_conversation_goes_on(cli, tmp_path):
    file = tmp_path / "talk.json"
    cli.run("chat", "--system", "Be brief.", stdin=f"Warum, bitte schön?\n/save {file}\n")
    document = json.loads(file.read_text(encoding="utf-8"))
    assert [row["role"] for row in document["messages"]] == ["system", "user", "assistant"]
    assert list(tmp_path.iterdir()) == [file]
    cli.run("chat", stdin=f"Other.\n/load {file}\nAnd?\n")
    assert said(cli.engine) == [
        ("system", "Be brief."),
        ("user", "Warum, bitte schön?"),
        ("assistant", ANSWER_TEXT),
        ("user", "And?"),
    ]


BAD_FILES = [
    "",
    "not JSON",
    "[]",
    "{}",
    '{"messages": 3}',
    '{"messages": [3]}',
    '{"messages": [{"role": "user"}]}',
    '{"messages": [{"role": "root", "content": "x"}]}',
    '{"messages": [{"role": "user", "content": ["x"]}]}',
    '{"messages": [{"role": "user", "content": "x"}, {"role": "system", "content": "y"}]}',
    "[" * 100_000,
]


@pytest.mark.parametrize("content", BAD_FILES, ids=range(len(BAD_FILES)))
def test_a_bad_file_leaves_the_conversation_as_it_is(cli, tmp_path, content):
    file = tmp_path / "talk.json"
    file.write_text(content, encoding="utf-8")
    outcome = cli.run("chat", stdin=f"Why?\n/load {file}\nAnd?\n")
    assert outcome.code == 1
    assert f"error: {file} " in outcome.stderr
    assert said(cli.engine)[0] == ("user", "Why?")


def test_an_error_takes_the_question_back_and_the_chat_goes_on(cli):
    cli.engine.error = PromptError("the prompt has 900 tokens.")
    outcome = cli.run("chat", stdin="Why?\n/show\n")
    assert outcome.code == 1
    assert "error: the prompt has 900 tokens.\n" in outcome.stderr
    assert "messages     0" in outcome.stderr


def test_reasoning_is_not_part_of_the_conversation(cli):
    cli.engine.deltas = [reasoning_delta("Hm."), text_delta("42")]
    outcome = cli.run("chat", "--think", stdin="Why?\nAnd?\n")
    assert outcome.stdout == "42\n42\n"
    assert ("assistant", "42") in said(cli.engine)


def test_footers_follow_the_answers(cli):
    outcome = cli.run("chat", "--stats", "footer", stdin="Why?\n/set stats json\nAnd?\n")
    first, second = outcome.stderr.splitlines()
    assert first.startswith("20.0 tok/s · 3 tokens · first token 0.25 s · 75 % of drafts accepted")
    assert json.loads(second)["generated_tokens"] == 3


def test_an_interrupt_of_a_piped_chat_ends_it(cli):
    cli.engine.interrupt_after = 1
    outcome = cli.run("chat", stdin="Why?\nAnd?\n")
    assert (outcome.code, outcome.stdout) == (130, "The sky \n")


# --- on a terminal


class Keys:
    """Feeds the chat with lines; an item that is an exception type is raised instead."""

    def __init__(self, *lines: object) -> None:
        self.lines = list(lines)

    def read_line(self, prompt: str) -> str:
        line = self.lines.pop(0) if self.lines else EOFError
        if isinstance(line, str):
            return line
        raise line


def on_terminal(cli, monkeypatch, *lines: object):
    monkeypatch.setattr("paceline.cli.chat.TerminalInput", lambda **_: Keys(*lines))
    return cli.run("chat", stdin=TERMINAL)


def test_ctrl_c_stops_the_answer_only_and_keeps_its_text(cli, monkeypatch):
    cli.engine.interrupt_after = 1
    outcome = on_terminal(cli, monkeypatch, "Why?", "And?")
    assert (outcome.code, outcome.stdout) == (0, "The sky \n" * 2)
    assert said(cli.engine) == [("user", "Why?"), ("assistant", "The sky "), ("user", "And?")]


def test_ctrl_c_before_the_first_token_takes_the_question_back(cli, monkeypatch):
    cli.engine.interrupt_after = 0
    on_terminal(cli, monkeypatch, "Why?", "And?")
    assert said(cli.engine) == [("user", "And?")]


def test_ctrl_c_at_the_prompt_does_not_leave(cli, monkeypatch):
    outcome = on_terminal(cli, monkeypatch, KeyboardInterrupt, "Why?", EOFError)
    assert (outcome.code, outcome.stdout) == (0, ONE)
    assert "Ctrl-D or /bye leaves." in outcome.stderr


def test_an_error_on_a_terminal_is_no_failure_of_the_program(cli, monkeypatch):
    outcome = on_terminal(cli, monkeypatch, "/fly")
    assert outcome.code == 0
    assert "error: /fly is not a command" in outcome.stderr


@pytest.fixture
def keyboard():
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        yield keys


def test_the_line_editor_and_its_history_file(keyboard, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    source = TerminalInput(keep_history=True)
    keyboard.send_text('Why?\r"""one\rtwo"""\r\x03\x04')
    assert read_message(source) == "Why?"
    assert read_message(source) == "one\ntwo"
    with pytest.raises(KeyboardInterrupt):
        read_message(source)
    with pytest.raises(EOFError):
        read_message(source)
    history = tmp_path / "paceline" / "chat_history"
    newest_first = ['two"""', '"""one', "Why?"]
    assert list(FileHistory(history).load_history_strings()) == newest_first
    assert history.stat().st_mode & 0o777 == 0o600
    assert history.parent.stat().st_mode & 0o777 == 0o700


def test_no_history_leaves_no_file(keyboard, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    source = TerminalInput(keep_history=False)
    keyboard.send_text("Why?\r")
    assert read_message(source) == "Why?"
    assert list(tmp_path.iterdir()) == []


def test_a_state_folder_that_cannot_be_made_costs_the_history_only(
    keyboard, monkeypatch, tmp_path, capsys
):
    (tmp_path / "paceline").write_text("in the way")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    source = TerminalInput(keep_history=True)
    keyboard.send_text("Why?\r")
    assert read_message(source) == "Why?"
    assert "note: no history is kept" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["", "relative/path"])
def test_a_relative_state_folder_is_ignored(monkeypatch, value):
    monkeypatch.setenv("XDG_STATE_HOME", value)
    monkeypatch.setenv("HOME", "/home/someone")
    folder = line_input.environment.state_folder()
    assert folder == Path("/home/someone/.local/state/paceline")


def test_a_missing_line_editor_names_the_install_line(cli, monkeypatch):
    monkeypatch.setitem(sys.modules, "prompt_toolkit", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'paceline\[chat\]'"):
        TerminalInput(keep_history=False)
    outcome = cli.run("chat", stdin=TERMINAL)
    assert outcome.code == 1
    assert "pip install 'paceline[chat]'" in outcome.stderr
    assert cli.run("chat", stdin="Why?\n").stdout == ONE  # a pipe needs no line editor


def test_show_draft_can_be_switched_on(cli, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    outcome = cli.run("chat", stdin="Why?\n/set show_draft on\nAnd?\n")
    plain, marked = outcome.stdout.splitlines()
    assert plain == ANSWER_TEXT
    assert marked == "The sky " + terminal.drafted("is ") + terminal.drafted("blue.")
