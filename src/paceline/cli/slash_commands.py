"""The commands of a chat: one function each, found through one table.

All that they say goes to standard error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum, auto
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paceline.cli import common, options
from paceline.cli.footer import stats_parts
from paceline.cli.terminal import note
from paceline.errors import ConfigError

if TYPE_CHECKING:
    from paceline.cli.chat_session import ChatSession


class Next(Enum):
    """What the chat does after a command."""

    READ = auto()
    ANSWER = auto()
    LEAVE = auto()


@dataclass(frozen=True)
class SlashCommand:
    usage: str
    help: str
    run: Callable[[ChatSession, str], Next]


def run(session: ChatSession, line: str) -> Next:
    """Obey one line that begins with a slash.

    Raises:
        ConfigError: there is no such command, or it cannot take these words.
    """
    name, _, argument = line[1:].strip().partition(" ")
    command = COMMANDS.get("help" if name == "?" else name)
    if command is None:
        raise ConfigError(f"/{name} is not a command: /help lists them. // sends a leading slash.")
    return command.run(session, argument.strip())


def _help(session: ChatSession, argument: str) -> Next:
    width = max(len(command.usage) for command in COMMANDS.values())
    for command in COMMANDS.values():
        note(f"{command.usage:{width}}  {command.help}")
    note('"""' + " " * (width - 1) + "begins and ends a message of several lines")
    return Next.READ


# --- settings


def _number(kind: type[int] | type[float]) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            return kind(text)
        except ValueError:
            wanted = "a whole number" if kind is int else "a number"
            raise ConfigError(f"expected {wanted}, got {text!r}.") from None

    return parse


def _switch(text: str) -> bool:
    if text not in ("on", "off"):
        raise ConfigError(f"expected on or off, got {text!r}.")
    return text == "on"


def _seed(text: str) -> int | None:
    return None if text == "off" else int(_number(int)(text))


def _max_tokens(text: str) -> int:
    value = int(_number(int)(text))
    if value < 1:
        raise ConfigError(f"expected 1 or more, got {value}.")
    return value


def _stop(text: str) -> tuple[str, ...]:
    return () if text == "off" else (text,)


def _stats_format(text: str) -> options.StatsFormat:
    try:
        return options.StatsFormat(text)
    except ValueError:
        raise ConfigError(f"expected none, footer or json, got {text!r}.") from None


SAMPLING_SETTINGS: dict[str, Callable[[str], Any]] = {
    "temperature": _number(float),
    "top_k": _number(int),
    "top_p": _number(float),
    "min_p": _number(float),
    "seed": _seed,
}
ANSWER_SETTINGS: dict[str, Callable[[str], Any]] = {
    "max_tokens": _max_tokens,
    "stop": _stop,
    "stats": _stats_format,
    "show_draft": _switch,
}


def _set(session: ChatSession, argument: str) -> Next:
    name, _, value = argument.partition(" ")
    name, value = name.replace("-", "_"), value.strip()
    settings = session.settings
    if not name:
        for line in _settings_lines(session):
            note(line)
    elif name not in SAMPLING_SETTINGS | ANSWER_SETTINGS:
        known = ", ".join([*SAMPLING_SETTINGS, *ANSWER_SETTINGS])
        raise ConfigError(f"/set {name} is not a setting: there are {known}.")
    elif not value:
        raise ConfigError(f"/set {name} needs a value.")
    elif name in SAMPLING_SETTINGS:
        parsed = _parsed(name, SAMPLING_SETTINGS[name], value)
        settings.sampling = replace(settings.sampling, **{name: parsed})
    else:
        setattr(settings, name, _parsed(name, ANSWER_SETTINGS[name], value))
    return Next.READ


def _parsed(name: str, parse: Callable[[str], Any], value: str) -> Any:
    try:
        return parse(value)
    except ConfigError as error:
        raise ConfigError(f"/set {name}: {error}") from None


def _settings_lines(session: ChatSession) -> list[str]:
    settings = session.settings
    values: dict[str, object] = {
        name: getattr(settings.sampling, name) for name in SAMPLING_SETTINGS
    }
    values |= {name: getattr(settings, name) for name in ANSWER_SETTINGS}
    values["seed"] = "off" if settings.sampling.seed is None else settings.sampling.seed
    values["stop"] = " ".join(map(repr, settings.stop)) or "off"
    values["show_draft"] = "on" if settings.show_draft else "off"
    width = max(map(len, values))
    return [f"{name:{width}}  {value}" for name, value in values.items()]


def _show(session: ChatSession, argument: str) -> Next:
    limit = session.engine.max_draft_tokens
    draft = session.settings.draft
    for line in _settings_lines(session):
        note(line)
    drafter = f"up to {limit} by the drafter" if limit else "no drafter is loaded"
    note(f"draft        {'off' if draft == 0 else draft}  ({drafter})")
    note(f"think        {'on' if session.settings.thinking else 'off'}")
    note(f"system       {session.conversation.system or 'off'}")
    note(f"context      {session.engine.context_length} tokens")
    note(f"messages     {len(session.conversation.turns)}")
    return Next.READ


def _stats(session: ChatSession, argument: str) -> Next:
    totals = session.totals
    if not totals.generations:
        note("no answers yet.")
        return Next.READ
    answers = f"{totals.generations} answer{'' if totals.generations == 1 else 's'}"
    note(" · ".join([answers, *stats_parts(totals)]))
    drafted, accepted = totals.drafted_per_position, totals.accepted_per_position
    for position, number in enumerate(drafted):
        kept = accepted[position] if position < len(accepted) else 0
        share = kept / number
        note(
            f"draft token {position + 1}  {'█' * round(20 * share):20}  "
            f"{100 * share:3.0f} % accepted ({kept} of {number})"
        )
    return Next.READ


def _draft(session: ChatSession, argument: str) -> Next:
    if not argument:
        raise ConfigError("/draft needs auto, off or a whole number.")
    draft = options.parse_draft(argument, option="/draft")
    session.settings.draft = common.check_draft(session.engine, draft, option="/draft")
    return Next.READ


def _system(session: ChatSession, argument: str) -> Next:
    if not argument:
        note(session.conversation.system or "there is no system text.")
    else:
        session.conversation.system = None if argument == "off" else argument
    return Next.READ


def _think(session: ChatSession, argument: str) -> Next:
    session.settings.thinking = not argument or _switch(argument)
    return Next.READ


# --- the conversation


def _regen(session: ChatSession, argument: str) -> Next:
    if not session.conversation.undo_answer():
        raise ConfigError("/regen has nothing to answer: ask something first.")
    if session.settings.sampling.seed is not None or session.settings.sampling.temperature == 0:
        note("note: with a fixed seed or temperature 0 the answer stays the same.")
    return Next.ANSWER


def _undo(session: ChatSession, argument: str) -> Next:
    if not session.conversation.undo():
        raise ConfigError("/undo has nothing to take back.")
    return Next.READ


def _clear(session: ChatSession, argument: str) -> Next:
    session.conversation.turns.clear()
    session.attached.clear()
    return Next.READ


def _read(session: ChatSession, argument: str) -> Next:
    path = _path(argument, "/read")
    try:
        session.attached.append(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise ConfigError(f"/read {path} is not UTF-8 text.") from None
    note(f"{path} goes before your next message.")
    return Next.READ


def _save(session: ChatSession, argument: str) -> Next:
    path = _path(argument, "/save")
    session.conversation.save(path)
    note(f"saved {len(session.conversation.turns)} messages to {path}.")
    return Next.READ


def _load(session: ChatSession, argument: str) -> Next:
    path = _path(argument, "/load")
    session.conversation.load(path)
    note(f"loaded {len(session.conversation.turns)} messages from {path}.")
    return Next.READ


def _path(argument: str, command: str) -> Path:
    if not argument:
        raise ConfigError(f"{command} needs a file.")
    return Path(argument).expanduser()


def _bye(session: ChatSession, argument: str) -> Next:
    return Next.LEAVE


COMMANDS = {
    "help": SlashCommand("/help", "list the commands", _help),
    "set": SlashCommand("/set [NAME VALUE]", "change a setting, or list them", _set),
    "show": SlashCommand("/show", "show all settings and the context", _show),
    "stats": SlashCommand("/stats", "speed and acceptance of all answers so far", _stats),
    "draft": SlashCommand("/draft auto|N|off", "tokens to draft each round", _draft),
    "regen": SlashCommand("/regen", "answer the last question again", _regen),
    "undo": SlashCommand("/undo", "take back the last question and its answer", _undo),
    "system": SlashCommand("/system [TEXT|off]", "set or show the system text", _system),
    "think": SlashCommand("/think [on|off]", "let the model reason first", _think),
    "read": SlashCommand("/read FILE", "put a file's text before the next message", _read),
    "save": SlashCommand("/save FILE", "save the conversation", _save),
    "load": SlashCommand("/load FILE", "go on with a saved conversation", _load),
    "clear": SlashCommand("/clear", "forget the conversation", _clear),
    "bye": SlashCommand("/bye", "leave", _bye),
}
