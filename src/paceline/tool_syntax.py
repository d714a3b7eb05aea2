"""Gemma 4's notation for tools: declarations, calls and results, written and read.

A string stands between two `<|"|>` control tokens, so that its text needs no escaping: text can
never become that token. Reading is strict, and bounded in depth (reference section 6.4).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from paceline.errors import PromptError
from paceline.tokenizer import Tokenizer, TokenWriter

JsonValue = None | bool | int | float | str | Sequence["JsonValue"] | Mapping[str, "JsonValue"]

MAX_DEPTH = 32
NAME = re.compile(r"[\w.:/-]{1,128}")
BARE_KEY = re.compile(r"[^\s{}\[\]:,](?:[^{}\[\]:,\n]*[^\s{}\[\]:,])?")
NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
SYNTAX = re.compile(r"[{}\[\]:,]|[^{}\[\]:,]+")
WORDS: dict[str, JsonValue] = {"true": True, "false": False, "null": None}


@dataclass(frozen=True)
class ToolCall:
    """A tool that the model wants to be run, by name, with its arguments."""

    name: str
    arguments: Mapping[str, JsonValue] = field(default_factory=dict)


@dataclass(frozen=True)
class ToolDeclaration:
    """A tool that the model may call.

    Args:
        name: letters, digits and `_ . : / -`.
        description: what it does, for the model to read.
        parameters: a JSON schema of an object; empty for a tool without parameters.
    """

    name: str
    description: str
    parameters: Mapping[str, JsonValue] = field(default_factory=dict)


class _Schema(dict[str, JsonValue]):
    """An object written in its own order, with bare keys."""


class MalformedCallError(ValueError):
    """The text between the tool call's control tokens is no call."""


def write_declaration(writer: TokenWriter, tool: ToolDeclaration) -> None:
    """
    Raises:
        PromptError: the name, the description or the schema cannot be written.
    """
    _check_name(tool.name)
    if not isinstance(tool.description, str) or not isinstance(tool.parameters, Mapping):
        raise PromptError(
            f"tool {tool.name!r}: expected a text as description and a JSON schema as parameters."
        )
    writer.control("tool_start")
    writer.text(f"declaration:{tool.name}{{description:")
    _write_string(writer, tool.description)
    if tool.parameters:
        writer.text(",parameters:")
        write_value(writer, _parameters(tool.parameters), quote_keys=True)
    writer.text("}")
    writer.control("tool_end")


def write_call(writer: TokenWriter, call: ToolCall) -> None:
    """
    Raises:
        PromptError: the name or an argument cannot be written.
    """
    _check_name(call.name)
    if not isinstance(call.arguments, Mapping):
        raise PromptError(
            f"the call of {call.name!r} has arguments of type {type(call.arguments).__name__}: "
            "expected an object. Parse JSON text first."
        )
    writer.control("tool_call_start")
    writer.text(f"call:{call.name}")
    write_value(writer, call.arguments)
    writer.control("tool_call_end")


def write_response(writer: TokenWriter, name: str, result: JsonValue) -> None:
    """What a tool gave back; anything but an object is written as `{value:...}`.

    Raises:
        PromptError: the name or the result cannot be written.
    """
    _check_name(name)
    writer.control("tool_response_start")
    writer.text(f"response:{name}")
    write_value(writer, result if isinstance(result, Mapping) else {"value": result})
    writer.control("tool_response_end")


def write_value(
    writer: TokenWriter, value: JsonValue, *, quote_keys: bool = False, depth: int = 0
) -> None:
    """
    Raises:
        PromptError: the value is no JSON, or nested too deeply.
    """
    if depth > MAX_DEPTH:
        raise PromptError(f"a tool value is nested more than {MAX_DEPTH} levels deep: flatten it.")
    if isinstance(value, str):
        _write_string(writer, value)
    elif isinstance(value, Mapping):
        _write_object(writer, value, quote_keys, depth)
    elif isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        writer.text("[")
        for index, item in enumerate(value):
            writer.text("," if index else "")
            write_value(writer, item, quote_keys=quote_keys, depth=depth + 1)
        writer.text("]")
    else:
        writer.text(_bare(value))


def parse_call(token_ids: Sequence[int], tokenizer: Tokenizer) -> ToolCall:
    """The call written by the tokens between `<|tool_call>` and `<tool_call|>`.

    Raises:
        MalformedCallError: they are no call, or one nested more than `MAX_DEPTH` deep.
    """
    parts = _split_at_quotes(token_ids, tokenizer)
    header, brace, rest = parts[0].partition("{")
    name = header.strip().removeprefix("call:")
    if not brace or not header.strip().startswith("call:") or not NAME.fullmatch(name):
        raise MalformedCallError("expected call:NAME{")
    return ToolCall(name, _Reader(["{" + rest, *parts[1:]]).call_arguments())


def _check_name(name: str) -> None:
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise PromptError(
            f"the tool name {name!r} cannot be used: expected 1 to 128 letters, digits and _.:/- "
            "characters. Rename the tool."
        )


def _write_string(writer: TokenWriter, text: str) -> None:
    writer.control("string_quote")
    writer.text(text)
    writer.control("string_quote")


def _write_key(writer: TokenWriter, key: str, *, quoted: bool) -> None:
    """A bare key where it can be read back, else a quoted one."""
    if quoted or not BARE_KEY.fullmatch(key):
        _write_string(writer, key)
    else:
        writer.text(key)
    writer.text(":")


def _write_object(
    writer: TokenWriter, value: Mapping[str, JsonValue], quote_keys: bool, depth: int
) -> None:
    schema = isinstance(value, _Schema)
    writer.text("{")
    for index, (key, item) in enumerate(value.items() if schema else _sorted_items(value)):
        writer.text("," if index else "")
        _write_key(writer, key, quoted=quote_keys and not schema)
        write_value(writer, item, quote_keys=quote_keys, depth=depth + 1)
    writer.text("}")


def _sorted_items(value: Mapping[str, JsonValue]) -> list[tuple[str, JsonValue]]:
    """By key without regard to case, as Jinja's `dictsort` does."""
    if not all(isinstance(key, str) for key in value):
        raise PromptError("an object for a tool has a key that is no text: expected text keys.")
    return sorted(value.items(), key=lambda item: item[0].lower())


def _bare(value: JsonValue) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int | float) and math.isfinite(value):
        return repr(value)
    raise PromptError(
        f"the tool value {value!r} cannot be written: expected JSON (text, finite numbers, true, "
        "false, null, lists and objects)."
    )


def _parameters(schema: Mapping[str, JsonValue]) -> _Schema:
    """The schema of all parameters, reduced to what the model was trained to read."""
    written = _Schema()
    if properties := schema.get("properties"):
        written["properties"] = _properties(properties, 1)
    if required := schema.get("required"):
        written["required"] = required
    written["type"] = _type(schema.get("type", "object"))
    return written


def _properties(properties: JsonValue, depth: int) -> _Schema:
    if depth > MAX_DEPTH:
        raise PromptError(f"a tool's schema is nested more than {MAX_DEPTH} levels deep.")
    if not isinstance(properties, Mapping):
        raise PromptError(f"a tool's schema has properties={properties!r}: expected an object.")
    return _Schema(
        (key, _property(key, schema, depth)) for key, schema in _sorted_items(properties)
    )


def _property(key: str, schema: JsonValue, depth: int) -> _Schema:
    """One parameter: description, what its type allows, nullable, and its type at the end."""
    if not isinstance(schema, Mapping):
        raise PromptError(f"the tool parameter {key!r} has the schema {schema!r}, no object.")
    kind = _type(schema.get("type", ""))
    written = _Schema()
    if description := schema.get("description"):
        written["description"] = description
    if kind == "STRING" and schema.get("enum"):
        written["enum"] = schema["enum"]
    if kind == "ARRAY" and schema.get("items"):
        written["items"] = _items(schema["items"], depth)
    if schema.get("nullable"):
        written["nullable"] = True
    if kind == "OBJECT":
        written["properties"] = _properties(schema.get("properties") or {}, depth + 1)
        if required := schema.get("required"):
            written["required"] = required
    written["type"] = kind
    return written


def _items(schema: JsonValue, depth: int) -> _Schema:
    """The schema of an array's items, key by key."""
    if not isinstance(schema, Mapping):
        raise PromptError(f"the items of a tool's array have the schema {schema!r}, no object.")
    written = _Schema()
    for key, value in _sorted_items(schema):
        if key == "properties":
            written[key] = _properties(value, depth + 1)
        elif key == "type":
            written[key] = _type(value)
        elif value is not None:
            written[key] = value
    return written


def _type(kind: JsonValue) -> JsonValue:
    """A type name, or several, in upper case."""
    if isinstance(kind, str):
        return kind.upper()
    if isinstance(kind, Sequence) and all(isinstance(name, str) for name in kind):
        return [str(name).upper() for name in kind]
    raise PromptError(f"a tool's schema has the type {kind!r}: expected a text such as 'string'.")


def _split_at_quotes(token_ids: Sequence[int], tokenizer: Tokenizer) -> list[str]:
    """Texts between quote tokens: those at odd places are strings, the others syntax."""
    parts: list[list[int]] = [[]]
    for token_id in token_ids:
        if token_id == tokenizer.control.string_quote:
            parts.append([])
        elif token_id in tokenizer.control_ids:
            raise MalformedCallError(f"unexpected {tokenizer.token_text(token_id)}")
        else:
            parts[-1].append(token_id)
    if len(parts) % 2 == 0:
        raise MalformedCallError("a string is not closed")
    return [tokenizer.decode(part) for part in parts]


@dataclass(frozen=True)
class _Quoted:
    text: str


class _Reader:
    """Recursive descent over `{key:value,...}` with strings already set apart."""

    def __init__(self, parts: Sequence[str]) -> None:
        self._symbols = list(_symbols(parts))
        self._next = 0

    def call_arguments(self) -> dict[str, JsonValue]:
        arguments = self._object(depth=0)
        if self._next != len(self._symbols):
            raise MalformedCallError("text follows the arguments")
        return arguments

    def _take(self) -> str | _Quoted:
        if self._next == len(self._symbols):
            raise MalformedCallError("the call ends too early")
        self._next += 1
        return self._symbols[self._next - 1]

    def _take_if(self, symbol: str) -> bool:
        found = self._next < len(self._symbols) and self._symbols[self._next] == symbol
        self._next += found
        return found

    def _expect(self, symbol: str) -> None:
        if (got := self._take()) != symbol:
            raise MalformedCallError(f"expected {symbol}, got {got}")

    def _value(self, depth: int) -> JsonValue:
        if depth > MAX_DEPTH:
            raise MalformedCallError(f"nested more than {MAX_DEPTH} levels deep")
        if self._next < len(self._symbols) and self._symbols[self._next] == "{":
            return self._object(depth)
        if self._take_if("["):
            return self._list(depth)
        symbol = self._take()
        return symbol.text if isinstance(symbol, _Quoted) else _bare_value(symbol)

    def _object(self, depth: int) -> dict[str, JsonValue]:
        self._expect("{")
        result: dict[str, JsonValue] = {}
        if self._take_if("}"):
            return result
        while True:
            key = self._key()
            if key in result:
                raise MalformedCallError(f"the key {key} appears twice")
            self._expect(":")
            result[key] = self._value(depth + 1)
            if self._take_if("}"):
                return result
            self._expect(",")

    def _key(self) -> str:
        symbol = self._take()
        if isinstance(symbol, _Quoted):
            return symbol.text
        if not BARE_KEY.fullmatch(symbol):
            raise MalformedCallError(f"expected a key, got {symbol}")
        return symbol

    def _list(self, depth: int) -> list[JsonValue]:
        result: list[JsonValue] = []
        if self._take_if("]"):
            return result
        while True:
            result.append(self._value(depth + 1))
            if self._take_if("]"):
                return result
            self._expect(",")


def _symbols(parts: Sequence[str]) -> Iterator[str | _Quoted]:
    for index, part in enumerate(parts):
        if index % 2:
            yield _Quoted(part)
        else:
            yield from filter(None, (match[0].strip() for match in SYNTAX.finditer(part)))


def _bare_value(text: str) -> JsonValue:
    if text in WORDS:
        return WORDS[text]
    number = NUMBER.fullmatch(text)
    if not number:
        raise MalformedCallError(f"expected a value, got {text}")
    try:
        value = float(text) if number[1] or number[2] else int(text)
    except ValueError as error:  # an integer of thousands of digits
        raise MalformedCallError(str(error)) from error
    if not math.isfinite(value):
        raise MalformedCallError(f"{text} is too large")
    return value
