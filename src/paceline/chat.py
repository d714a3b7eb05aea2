"""Conversations in Gemma 4's turn format, as token ids (reference sections 6.3 and 6.4).

    <bos>[<|turn>system\\n[<|think|>\\n]{system text}{tool declarations}<turn|>\\n]
    <|turn>user\\n{text}<turn|>\\n
    <|turn>model\\n...

Control tokens are written by id and everything else as plain text, so that no message can open a
turn, call a tool or end the prompt. Equal to the template that Gemma 4 ships, but for one point:
text that came with tool calls stays before them, where the model wrote it. The template puts it
after the results, which would close a turn that has yet to be answered.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from paceline.errors import PromptError
from paceline.tokenizer import Tokenizer, TokenWriter
from paceline.tool_syntax import (
    JsonValue,
    MalformedCallError,
    ToolCall,
    ToolDeclaration,
    parse_call,
    write_call,
    write_declaration,
    write_response,
)

__all__ = [
    "JsonValue",
    "MalformedCallError",
    "Message",
    "Role",
    "ToolCall",
    "ToolDeclaration",
    "opens_empty_thought",
    "parse_call",
    "reasoning_is_open",
    "render",
]

Role = Literal["system", "developer", "user", "assistant", "tool"]

SYSTEM_ROLES = ("system", "developer")
MODEL_ROLES = ("assistant", "tool")
TURN_NAMES: dict[Role, str] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "model",
    "tool": "model",
}

THOUGHT = "thought\n"
SPELLED_THOUGHT = re.compile(r"<\|channel>thought\n.*?<channel\|>", re.DOTALL)
EMPTY_THOUGHT = re.compile(r"<\|channel>thought(?:\n|\\n)<channel\|>")


@dataclass(frozen=True)
class Message:
    """One message of a conversation.

    Args:
        role: who speaks; "developer" is another word for "system".
        content: text; of a tool, its result: text or any other JSON value.
        reasoning: what the assistant thought before it answered.
        tool_calls: what the assistant called. One "tool" message for each must follow, in order.
        tool_name: of a tool's result, the tool; None takes it from the call that it answers.
    """

    role: Role
    content: JsonValue
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_name: str | None = None


def render(
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    *,
    tools: Sequence[ToolDeclaration] = (),
    thinking: bool = False,
    empty_thought: bool = False,
) -> list[int]:
    """The prompt after which the model answers the last message.

    Reasoning is left out up to the last user message, and kept after it: a model that calls tools
    goes on with its own thought. After a tool's result the model's turn continues.

    Args:
        tools: what the model may call.
        thinking: ask the model to think before it answers.
        empty_thought: without thinking, open the answer with an empty thought, as the larger
            models' templates do and that of E2B does not; see `opens_empty_thought`.

    Raises:
        PromptError: a message, a tool or a character cannot be written; the message says which.

    Equals: Gemma 4's chat template, tests/test_chat.py.
    """
    resolved = _resolved(messages)
    writer = TokenWriter(tokenizer)
    writer.control("bos")
    system = resolved.pop(0) if resolved[0].role in SYSTEM_ROLES else None
    if system or tools or thinking:
        _write_opening(writer, system, tools, thinking)
    _write_turns(writer, resolved)
    if resolved and resolved[-1].role == "tool":
        if thinking:
            _open_thought(writer)
        return writer.token_ids()
    _open_turn(writer, "model")
    if empty_thought and not thinking:
        _open_thought(writer)
        writer.control("channel_end")
    return writer.token_ids()


def opens_empty_thought(chat_template: str) -> bool:
    """Whether a checkpoint's Jinja template opens answers with an empty thought channel.

    That line is all in which the templates of the larger models differ from that of E2B.
    """
    return EMPTY_THOUGHT.search(chat_template) is not None


def reasoning_is_open(token_ids: Sequence[int], tokenizer: Tokenizer) -> bool:
    """Whether the answer to this prompt begins inside a thought that the prompt has opened."""
    control = tokenizer.control
    borders = (control.channel_start, control.channel_end, control.turn_start, control.turn_end)
    last = next((token_id for token_id in reversed(token_ids) if token_id in borders), None)
    return last is not None and last == control.channel_start


def _write_opening(
    writer: TokenWriter,
    system: Message | None,
    tools: Sequence[ToolDeclaration],
    thinking: bool,
) -> None:
    _open_turn(writer, "system")
    if thinking:
        writer.control("think")
        writer.text("\n")
    if system:
        writer.text(_text(system))
    for tool in tools:
        write_declaration(writer, tool)
    _close_turn(writer)


def _write_turns(writer: TokenWriter, messages: Sequence[Message]) -> None:
    """Every turn closed, but for one that waits for what the model makes of a tool's result."""
    last_user = max((i for i, m in enumerate(messages) if m.role == "user"), default=-1)
    previous: Role | None = None
    for index, message in enumerate(messages):
        if not (message.role in MODEL_ROLES and previous in MODEL_ROLES):
            if previous:
                _close_turn(writer)
            _open_turn(writer, TURN_NAMES[message.role])
        _write_message(writer, message, with_reasoning=index > last_user)
        previous = message.role
    if previous and previous != "tool":
        _close_turn(writer)


def _write_message(writer: TokenWriter, message: Message, *, with_reasoning: bool) -> None:
    if message.role == "tool":
        assert message.tool_name is not None, "filled in by _resolved"
        write_response(writer, message.tool_name, message.content)
        return
    if with_reasoning and (reasoning := message.reasoning.strip()):
        _open_thought(writer)
        writer.text(f"{reasoning}\n")
        writer.control("channel_end")
    writer.text(_text(message))
    for call in message.tool_calls:
        write_call(writer, call)


def _open_turn(writer: TokenWriter, name: str) -> None:
    writer.control("turn_start")
    writer.text(f"{name}\n")


def _close_turn(writer: TokenWriter) -> None:
    writer.control("turn_end")
    writer.text("\n")


def _open_thought(writer: TokenWriter) -> None:
    writer.control("channel_start")
    writer.text(THOUGHT)


def _text(message: Message) -> str:
    """The trimmed content; an assistant's without thoughts that a client spelled out in it."""
    assert isinstance(message.content, str), "checked by _resolved"
    if message.role == "assistant":
        return SPELLED_THOUGHT.sub("", message.content).strip()
    return message.content.strip()


def _resolved(messages: Sequence[Message]) -> list[Message]:
    """The messages, checked, with the tool's name in each result."""
    if not messages:
        raise PromptError("the conversation is empty: pass at least one message.")
    resolved, waiting = [], list[ToolCall]()
    for number, message in enumerate(messages, start=1):
        _check_message(message, number)
        if message.role == "tool":
            call = _answered_call(message, waiting, number)
            waiting.remove(call)
            message = replace(message, tool_name=call.name)
        elif waiting:
            raise PromptError(
                f"message {number} comes before the result of the call of {waiting[0].name!r}. "
                "Add one 'tool' message for each call, right after the calls."
            )
        else:
            waiting = list(message.tool_calls)
        resolved.append(message)
    if waiting:
        raise PromptError(
            f"the conversation ends before the result of the call of {waiting[0].name!r}. Add one "
            "'tool' message for each call."
        )
    return resolved


def _answered_call(message: Message, waiting: Sequence[ToolCall], number: int) -> ToolCall:
    """The first open call, or the first of the tool that the result names."""
    for call in waiting:
        if message.tool_name in (None, call.name):
            return call
    tool = f" of {message.tool_name!r}" if message.tool_name else ""
    raise PromptError(
        f"message {number} is a tool's result, but no call{tool} waits for one. Put it after the "
        "assistant's message that holds the call."
    )


def _check_message(message: Message, number: int) -> None:
    where = f"message {number}"
    if not isinstance(message, Message):
        raise PromptError(f"{where} is a {type(message).__name__}: expected a Message.")
    if message.role not in tuple(TURN_NAMES):
        raise PromptError(
            f"{where} has the role {message.role!r}: expected one of {', '.join(TURN_NAMES)}."
        )
    if message.role != "tool" and not isinstance(message.content, str):
        raise PromptError(
            f"{where} has a content of type {type(message.content).__name__}: expected text."
        )
    if not isinstance(message.reasoning, str):
        raise PromptError(f"{where} has reasoning that is no text.")
    if message.role != "assistant" and (message.reasoning or message.tool_calls):
        raise PromptError(
            f"{where} has reasoning or tool calls, but its role is {message.role!r}: only the "
            "assistant thinks and calls tools."
        )
    if message.role != "tool" and message.tool_name:
        raise PromptError(f"{where} names a tool, but its role is {message.role!r}, not 'tool'.")
