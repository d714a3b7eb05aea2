"""The text of an answer, piece by piece, out of its token ids.

Separates reasoning and tool calls from the text, cuts at stop strings, and lets nothing out that
a later token could still change: no half of a character, no beginning of a stop string. What it
gives does not depend on how the tokens were grouped into rounds. Knows no model.
"""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Sequence
from itertools import groupby
from typing import Literal, NamedTuple, Protocol

from paceline.chat import THOUGHT, MalformedCallError, ToolCall, parse_call
from paceline.errors import ConfigError
from paceline.tokenizer import Tokenizer

DeltaKind = Literal["text", "reasoning", "tool_call"]
TextKind = Literal["reasoning", "prose", "code"]


class Delta(NamedTuple):
    """A piece of the answer that no later token changes.

    Args:
        kind: the answer's text, reasoning, or one whole tool call.
        text: what to show; of a tool call its own notation.
        drafted: the drafter had foreseen the token that completed this text (of a tool call: all
            of its tokens).
        tool_call: the call, where `kind` is "tool_call".
    """

    kind: DeltaKind
    text: str
    drafted: bool
    tool_call: ToolCall | None = None


class OutputText:
    """Turns the tokens of one answer into deltas.

    Stop strings are looked for in the text only, and in each stretch of it by itself: reasoning
    and tool calls neither hold one nor join two halves of one. Of several stop strings the first
    to be complete cuts, of those that end together the longest.

    Args:
        stop: strings that end the text and are not part of it.
        raw: plain text, without reasoning or tool calls; control tokens give nothing.
        in_reasoning: the prompt has opened a thought already, see `chat.reasoning_is_open`.

    Raises:
        ConfigError: a stop string is empty or no text.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        stop: Sequence[str] = (),
        raw: bool = False,
        in_reasoning: bool = False,
    ) -> None:
        self.tool_calls: list[ToolCall] = []
        self._tokenizer = tokenizer
        self._raw = raw
        self._stops = _StopStrings(stop)
        self._fences = _Fences()
        self._section: _Section = _Thought("") if in_reasoning else self._new_text()
        self._drafted = False
        self._finished = False
        self._shown: dict[DeltaKind, list[str]] = {"text": [], "reasoning": [], "tool_call": []}

    @property
    def stopped(self) -> bool:
        """A stop string has ended the text."""
        return self._stops.stopped

    @property
    def text(self) -> str:
        """The text so far, without reasoning and tool calls."""
        return "".join(self._shown["text"])

    @property
    def reasoning(self) -> str:
        return "".join(self._shown["reasoning"])

    @property
    def num_tool_calls(self) -> int:
        return len(self.tool_calls)

    @property
    def kind(self) -> TextKind:
        """What the next token belongs to, as far as can be told before it comes. "code" is inside
        a fence or a tool call, and all of a text that began with a bracket, as JSON does."""
        if isinstance(self._section, _Thought):
            return "reasoning"
        structured = isinstance(self._section, _Call) or self._fences.inside
        return "code" if structured else "prose"

    def push(self, token_id: int, *, drafted: bool) -> list[Delta]:
        """Take the next token; after a stop string or `finish` it is ignored.

        Returns:
            what became certain by it, in order: often one delta or none.
        """
        if self.stopped or self._finished:
            return []
        self._drafted = drafted
        return self._shown_now(self._take(token_id))

    def finish(self) -> list[Delta]:
        """End the answer: what was held back comes out, unless a stop string has cut it off."""
        if self.stopped or self._finished:
            return []
        self._finished = True
        return self._shown_now(self._close())

    def _shown_now(self, deltas: list[Delta]) -> list[Delta]:
        for delta in deltas:
            self._shown[delta.kind].append(delta.text)
        return deltas

    def _take(self, token_id: int) -> list[Delta]:
        control, section = self._tokenizer.control, self._section
        data = self._tokenizer.token_bytes(token_id)
        if self._raw:
            return section.push(data, self._drafted)
        if token_id == control.tool_call_start:
            return [*self._enter(_Call()), *self._take_call_token(token_id)]
        if token_id == control.channel_start:
            return self._enter(_Thought(THOUGHT))
        if token_id == control.channel_end and isinstance(section, _Thought):
            return self._enter(self._new_text())
        if isinstance(section, _Call):
            return self._take_call_token(token_id)
        return section.push(data, self._drafted)

    def _new_text(self) -> _Text:
        return _Text(self._stops, self._fences)

    def _enter(self, section: _Section) -> list[Delta]:
        deltas = self._close()
        self._section = section
        return deltas

    def _close(self) -> list[Delta]:
        deltas = self._spelled(self._section) if isinstance(self._section, _Call) else []
        return deltas + self._section.finish()

    def _take_call_token(self, token_id: int) -> list[Delta]:
        call = self._section
        assert isinstance(call, _Call)
        call.tokens.append((token_id, self._drafted))
        if token_id != self._tokenizer.control.tool_call_end:
            return []
        token_ids = [token_id for token_id, _ in call.tokens[1:-1]]
        try:
            tool_call = parse_call(token_ids, self._tokenizer)
        except MalformedCallError:
            return self._spelled(call)
        self._section = self._new_text()
        self.tool_calls.append(tool_call)
        return [
            Delta(
                kind="tool_call",
                text=b"".join(map(self._spelling, token_ids)).decode(errors="replace"),
                drafted=all(drafted for _, drafted in call.tokens),
                tool_call=tool_call,
            )
        ]

    def _spelled(self, call: _Call) -> list[Delta]:
        """What is no call becomes text, its control tokens spelled out: nothing is lost."""
        self._section = text = self._new_text()
        deltas = [text.push(self._spelling(token), drafted) for token, drafted in call.tokens]
        return [delta for some in deltas for delta in some]

    def _spelling(self, token_id: int) -> bytes:
        if token_id in self._tokenizer.control_ids:
            return self._tokenizer.token_text(token_id).encode()
        return self._tokenizer.token_bytes(token_id)


class _Piece(NamedTuple):
    """Text that one token made certain."""

    text: str
    drafted: bool


class _Queue:
    """Pieces that wait; `length` counts their characters."""

    def __init__(self) -> None:
        self.length = 0
        self._pieces: deque[_Piece] = deque()

    def append(self, text: str, drafted: bool) -> None:
        if text:
            self.length += len(text)
            self._pieces.append(_Piece(text, drafted))

    def take(self, count: int) -> list[_Piece]:
        """The first `count` characters, each with its flag."""
        taken = []
        self.length -= count
        while count:
            piece = self._pieces.popleft()
            if rest := piece.text[count:]:
                self._pieces.appendleft(_Piece(rest, piece.drafted))
            taken.append(_Piece(piece.text[:count], piece.drafted))
            count -= len(taken[-1].text)
        return taken


class _Section(Protocol):
    """A stretch of the answer of one kind."""

    def push(self, data: bytes, drafted: bool) -> list[Delta]: ...

    def finish(self) -> list[Delta]:
        """What is still held back."""


class _Text:
    def __init__(self, stops: _StopStrings, fences: _Fences) -> None:
        self._decoder = _utf8_decoder()
        self._stops = stops
        self._fences = fences
        self._drafted = False

    def push(self, data: bytes, drafted: bool) -> list[Delta]:
        self._drafted = drafted
        text = self._decoder.decode(data)
        self._fences.push(text)
        return _deltas("text", self._stops.push(text, drafted))

    def finish(self) -> list[Delta]:
        rest = self._stops.push(self._decoder.decode(b"", final=True), self._drafted)
        return _deltas("text", rest + self._stops.release())


class _Fences:
    """Follows a text: a line that begins with ``` or ~~~ opens a fence, or closes the open one.
    What begins with a bracket is inside from the start."""

    FENCES = ("```", "~~~")

    def __init__(self) -> None:
        self.inside = False
        self._begun = False
        self._line_start = ""  # without indentation, no longer than a fence

    def push(self, text: str) -> None:
        if len(self._line_start) == 3 and "\n" not in text:
            return
        for index, line in enumerate(text.split("\n")):
            if index:
                self._line_start = ""
            if line and len(self._line_start) < 3:
                self._line_start = (self._line_start + line).lstrip()[:3]
                if self._line_start in self.FENCES:
                    self.inside = not self.inside
        if not self._begun and self._line_start:
            self._begun = True
            self.inside = self.inside or self._line_start[0] in "{["


class _Thought:
    """A channel, without the label that opens it; one with another label is kept whole."""

    def __init__(self, label: str) -> None:
        self._decoder = _utf8_decoder()
        self._label = label
        self._begun = ""
        self._held = _Queue()
        self._drafted = False

    def push(self, data: bytes, drafted: bool) -> list[Delta]:
        self._drafted = drafted
        self._hold(self._decoder.decode(data))
        if self._begun != self._label and self._label.startswith(self._begun):
            return []
        return self._release()

    def finish(self) -> list[Delta]:
        self._hold(self._decoder.decode(b"", final=True))
        if self._begun == self._label.rstrip():
            self._label = self._begun
        return self._release()

    def _hold(self, text: str) -> None:
        self._begun += text
        self._held.append(text, self._drafted)

    def _release(self) -> list[Delta]:
        self._held.take(len(self._label) if self._begun.startswith(self._label) else 0)
        self._label = self._begun = ""
        return _deltas("reasoning", self._held.take(self._held.length))


class _Call:
    """The tokens of a tool call, its borders included; they count only once it is whole."""

    def __init__(self) -> None:
        self.tokens: list[tuple[int, bool]] = []

    def push(self, data: bytes, drafted: bool) -> list[Delta]:
        raise AssertionError("a call takes tokens, not bytes")

    def finish(self) -> list[Delta]:
        raise AssertionError("a call is parsed or spelled")


class _StopStrings:
    """Holds back the longest end of the text that may be the start of a stop string.

    Raises:
        ConfigError: a stop string is empty or no text.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self.stopped = False
        self._matchers = [_Matcher(text) for text in _checked(texts)]
        self._held = _Queue()

    def push(self, text: str, drafted: bool) -> list[_Piece]:
        """The pieces that no stop string can reach any more."""
        if not self._matchers:
            return [_Piece(text, drafted)] if text else []
        if self.stopped:
            return []
        end = self._held.length
        self._held.append(text, drafted)
        for character in text:
            end += 1
            if found := [len(m.text) for m in self._matchers if m.advance(character)]:
                self.stopped = True
                return self._held.take(end - max(found))
        undecided = max(matcher.matched for matcher in self._matchers)
        return self._held.take(self._held.length - undecided)

    def release(self) -> list[_Piece]:
        """All that is held: the stretch of text ends, and with it every half stop string."""
        for matcher in self._matchers:
            matcher.matched = 0
        return [] if self.stopped else self._held.take(self._held.length)


class _Matcher:
    """Follows one string through a text, by Knuth, Morris and Pratt: constant work a character.

    `matched` characters of the string are the end of the text so far, as many as can be.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.matched = 0
        self._shorter = [0]  # the next longest match that ends at the same character
        for character in text[1:]:
            shorter = self._shorter[-1]
            while shorter and text[shorter] != character:
                shorter = self._shorter[shorter - 1]
            self._shorter.append(shorter + (text[shorter] == character))

    def advance(self, character: str) -> bool:
        """True when the text now ends with the whole string."""
        while self.matched and self.text[self.matched] != character:
            self.matched = self._shorter[self.matched - 1]
        self.matched += self.text[self.matched] == character
        return self.matched == len(self.text)


def _checked(texts: Sequence[str]) -> Sequence[str]:
    if isinstance(texts, str) or not all(isinstance(text, str) and text for text in texts):
        raise ConfigError(
            f"stop={texts!r} cannot be used: expected a list of texts, none of them empty."
        )
    return texts


def _utf8_decoder() -> codecs.IncrementalDecoder:
    return codecs.getincrementaldecoder("utf-8")(errors="replace")


def _deltas(kind: DeltaKind, pieces: Sequence[_Piece]) -> list[Delta]:
    """One delta for each run of pieces with the same flag; none for no text."""
    if len(pieces) == 1:
        return [Delta(kind, *pieces[0])]
    return [
        Delta(kind=kind, text=text, drafted=drafted)
        for drafted, run in groupby(pieces, key=lambda piece: piece.drafted)
        if (text := "".join(piece.text for piece in run))
    ]
