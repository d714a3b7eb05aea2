"""Text to token ids and back, with control tokens kept out of reach of any text.

Reads a Hugging Face tokenizer.json of Gemma's form: BPE with byte fallback, spaces written as
U+2581. Text is encoded by an instance whose vocabulary holds no control token, so that none can
come out whatever the text says; control tokens are inserted by id, through `TokenWriter`.
Knows nothing of turns, tools or models.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import tokenizers

from paceline.errors import CheckpointError, PromptError

MAX_FILE_BYTES = 64 << 20
MAX_VOCABULARY = 1 << 22

SPACE = "▁"
BYTE_TOKENS = {f"<0x{byte:02X}>": bytes([byte]) for byte in range(256)}
SPACE_BYTES = SPACE.encode()
BYTE_VALUES = {text.encode(): value for text, value in BYTE_TOKENS.items()}
LOOKS_LIKE_CONTROL = re.compile(r"<\|[^|<>]+\|?>|<[^|<>]+\|>")
ROUND_TRIP_PROBE = " Two  spaces,\n\ta tab, e\u0301 É ☃ \U0001f600 <0x41> and an end "

ControlName = Literal[
    "pad",
    "bos",
    "eos",
    "turn_start",
    "turn_end",
    "tool_start",
    "tool_end",
    "tool_call_start",
    "tool_call_end",
    "tool_response_start",
    "tool_response_end",
    "string_quote",
    "think",
    "channel_start",
    "channel_end",
]
CONTROL_TEXTS: dict[ControlName, str] = {
    "pad": "<pad>",
    "bos": "<bos>",
    "eos": "<eos>",
    "turn_start": "<|turn>",
    "turn_end": "<turn|>",
    "tool_start": "<|tool>",
    "tool_end": "<tool|>",
    "tool_call_start": "<|tool_call>",
    "tool_call_end": "<tool_call|>",
    "tool_response_start": "<|tool_response>",
    "tool_response_end": "<tool_response|>",
    "string_quote": '<|"|>',
    "think": "<|think|>",
    "channel_start": "<|channel>",
    "channel_end": "<channel|>",
}


@dataclass(frozen=True, kw_only=True)
class ControlTokens:
    """Ids of the control tokens, taken by name from the file; None where it lacks one."""

    bos: int
    eos: int
    turn_start: int
    turn_end: int
    pad: int | None = None
    tool_start: int | None = None
    tool_end: int | None = None
    tool_call_start: int | None = None
    tool_call_end: int | None = None
    tool_response_start: int | None = None
    tool_response_end: int | None = None
    string_quote: int | None = None
    think: int | None = None
    channel_start: int | None = None
    channel_end: int | None = None


REQUIRED_CONTROL: tuple[ControlName, ...] = ("bos", "eos", "turn_start", "turn_end")


class Tokenizer:
    """A vocabulary in use. Immutable, so that threads may share one.

    Args:
        document: the parsed tokenizer.json.

    Raises:
        CheckpointError: the document is not of Gemma's form.
    """

    def __init__(self, document: Mapping[str, Any]) -> None:
        model = _bpe_model(document)
        added = _added_tokens(document)
        vocabulary = _vocabulary(model, added)
        self.control = _control_tokens(vocabulary)
        control_texts = _unreachable_texts(added, vocabulary)
        self.control_ids = frozenset(vocabulary[text] for text in control_texts)
        """All ids that text can never become, those without a field in `control` included."""
        self._texts = _Joined(map(_utf8, _texts_by_id(vocabulary)))
        self._encoder = _text_encoder(document, vocabulary, control_texts)
        self._check_round_trip()

    @classmethod
    def from_file(cls, path: str | Path) -> Tokenizer:
        """Load a tokenizer.json.

        Raises:
            CheckpointError: the file is missing, too large, damaged, or not of Gemma's form.
        """
        try:
            return cls(read_document(Path(path)))
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from error

    @property
    def vocab_size(self) -> int:
        """One more than the highest id."""
        return len(self._texts)

    def encode_text(self, text: str) -> list[int]:
        """Token ids of `text`, taken literally: never a control token, and no <bos>.

        Raises:
            PromptError: the text holds a lone surrogate.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise PromptError(
                f"the text is not valid Unicode: character {error.start} is the lone surrogate "
                f"U+{ord(text[error.start]):04X}. Remove it, or read the text as UTF-8."
            ) from None
        return list(self._encoder.encode(text, add_special_tokens=False).ids)

    def token_bytes(self, token_id: int) -> bytes:
        """What the token adds to the text, as UTF-8 that may begin or end inside a character.

        Empty for control tokens and for ids past the vocabulary (rows that pad a model's head).
        """
        if token_id in self.control_ids:
            return b""
        data = self._texts[token_id] if token_id < len(self._texts) else b""
        return BYTE_VALUES.get(data) or data.replace(SPACE_BYTES, b" ")

    def token_text(self, token_id: int) -> str:
        """The token as the file spells it, control tokens too; "" past the vocabulary."""
        return self._texts[token_id].decode() if token_id < len(self._texts) else ""

    def decode(self, token_ids: Iterable[int]) -> str:
        """The text of some tokens; bytes that are no UTF-8 become U+FFFD."""
        return b"".join(map(self.token_bytes, token_ids)).decode("utf-8", errors="replace")

    def _check_round_trip(self) -> None:
        got = self.decode(self.encode_text(ROUND_TRIP_PROBE))
        if got != ROUND_TRIP_PROBE:
            raise CheckpointError(
                f"text does not survive this tokenizer: {ROUND_TRIP_PROBE!r} came back as "
                f"{got!r}. Expected a normalizer that only writes spaces as U+2581, as Gemma's "
                "does."
            )


class _Joined:
    """Many short byte strings in one: an object each would take ten times the memory."""

    def __init__(self, items: Iterable[bytes]) -> None:
        whole = list(items)
        self._joined = b"".join(whole)
        self._ends = array("I", accumulate(map(len, whole)))

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> bytes:
        return self._joined[self._ends[index - 1] if index else 0 : self._ends[index]]


class TokenWriter:
    """A prompt being written: text and control tokens in turn.

    Text between two control tokens is encoded in one piece, because merges may cross words.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._pending: list[str] = []

    def text(self, text: str) -> None:
        self._pending.append(text)

    def control(self, name: ControlName) -> None:
        """
        Raises:
            PromptError: this model has no such token.
        """
        token_id: int | None = getattr(self._tokenizer.control, name)
        if token_id is None:
            raise PromptError(
                f"this model has no {CONTROL_TEXTS[name]} token, which the prompt needs: leave "
                "out tools and thinking, or use a model that was made for them."
            )
        self._flush()
        self._ids.append(token_id)

    def token_ids(self) -> list[int]:
        """All that was written so far."""
        self._flush()
        return list(self._ids)

    def _flush(self) -> None:
        if text := "".join(self._pending):
            self._ids += self._tokenizer.encode_text(text)
        self._pending.clear()


def read_document(path: Path) -> dict[str, Any]:
    """The parsed tokenizer.json.

    Raises:
        CheckpointError: it is missing, too large, or no JSON object.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise CheckpointError(
            f"cannot read the tokenizer ({error.strerror}): expected the tokenizer.json of a "
            "Hugging Face folder. Check the path."
        ) from error
    if len(data) > MAX_FILE_BYTES:
        raise CheckpointError(
            f"the file is larger than {MAX_FILE_BYTES >> 20} MiB: expected a tokenizer.json, "
            "which takes about 32 MiB. Check that it is the right file."
        )
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"the file is not valid JSON ({error}): expected a tokenizer.json. Fetch it again."
        ) from error
    if not isinstance(document, dict):
        raise CheckpointError(f"expected a JSON object, got a {type(document).__name__}.")
    return document


def _bpe_model(document: Mapping[str, Any]) -> dict[str, Any]:
    """The model's settings and vocabulary, checked to be BPE as Gemma uses it."""
    model = document.get("model")
    if not isinstance(model, dict) or model.get("type") != "BPE":
        kind = model.get("type") if isinstance(model, dict) else None
        raise CheckpointError(f"model.type is {kind!r}: only BPE tokenizers are supported.")
    if model.get("byte_fallback") is not True:
        raise CheckpointError("model.byte_fallback is not true: expected a tokenizer of Gemma's.")
    for key in ("ignore_merges", "dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise CheckpointError(
                f"model.{key} is {model[key]!r}: expected it unset, as in Gemma's tokenizer."
            )
    return model


def _added_tokens(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    added = document.get("added_tokens") or []
    if not isinstance(added, list) or not all(
        isinstance(token, dict) and isinstance(token.get("content"), str) for token in added
    ):
        raise CheckpointError("added_tokens is damaged: expected a list of tokens with a content.")
    return added


def _vocabulary(model: Mapping[str, Any], added: list[dict[str, Any]]) -> dict[str, int]:
    """Every token and its id, the added ones included: ids in range and each used once."""
    vocab = model.get("vocab")
    if not isinstance(vocab, dict):
        raise CheckpointError("model.vocab is missing: expected an object of tokens and ids.")
    vocabulary = dict(vocab)
    for token in added:
        text, token_id = token["content"], token.get("id")
        if vocabulary.setdefault(text, token_id) != token_id:
            raise CheckpointError(
                f"token {text!r} has two ids: {vocabulary[text]} in the vocabulary, {token_id} "
                "among the added tokens."
            )
    for text, token_id in vocabulary.items():
        if type(token_id) is not int or not 0 <= token_id < MAX_VOCABULARY:
            raise CheckpointError(
                f"token {text!r} has the id {token_id!r}: expected 0 to {MAX_VOCABULARY - 1}."
            )
    if len(set(vocabulary.values())) != len(vocabulary):
        raise CheckpointError("two tokens share one id: the vocabulary is damaged.")
    if missing := [text for text in BYTE_TOKENS if text not in vocabulary]:
        raise CheckpointError(
            f"{len(missing)} of the 256 byte tokens are missing, the first is {missing[0]}: "
            "without them some texts cannot be written."
        )
    return vocabulary


def _control_tokens(vocabulary: Mapping[str, int]) -> ControlTokens:
    ids = {name: vocabulary.get(text) for name, text in CONTROL_TEXTS.items()}
    if missing := [CONTROL_TEXTS[name] for name in REQUIRED_CONTROL if ids[name] is None]:
        raise CheckpointError(
            f"the control tokens {' '.join(missing)} are missing: expected the tokenizer of a "
            "Gemma 4. Use the tokenizer.json that belongs to the model."
        )
    assert ids.keys() == {field.name for field in fields(ControlTokens)}
    return ControlTokens(**ids)  # type: ignore[arg-type]  # the required ones were checked


def _unreachable_texts(
    added: list[dict[str, Any]], vocabulary: Mapping[str, int]
) -> frozenset[str]:
    """The tokens that text must not become: special ones, and all that look like them."""
    named = {text for text in CONTROL_TEXTS.values() if text in vocabulary}
    marked = {
        token["content"]
        for token in added
        if token.get("special") or LOOKS_LIKE_CONTROL.fullmatch(token["content"])
    }
    return frozenset(named | marked - BYTE_TOKENS.keys())


def _texts_by_id(vocabulary: Mapping[str, int]) -> tuple[str, ...]:
    texts = [""] * (max(vocabulary.values()) + 1)
    for text, token_id in vocabulary.items():
        texts[token_id] = text
    return tuple(texts)


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise CheckpointError(f"token {text!r} is not valid Unicode.") from error


def _text_encoder(
    document: Mapping[str, Any], vocabulary: Mapping[str, int], control: frozenset[str]
) -> tokenizers.Tokenizer:
    """An encoder of the same text rules whose vocabulary lacks the control tokens.

    The vocabulary goes in past the library's JSON: through it, half a million texts would leave
    some 30 MB of holes in memory between those that stay.
    """
    added = [token for token in _added_tokens(document) if token["content"] not in control]
    rules = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": document.get("normalizer"),
        "pre_tokenizer": document.get("pre_tokenizer"),
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "BPE",
            "vocab": {token["content"]: vocabulary[token["content"]] for token in added},
            "merges": [],
        },
    }
    texts = {text: token_id for text, token_id in vocabulary.items() if text not in control}
    merges = list(_merges(document["model"], control))
    try:
        encoder = tokenizers.Tokenizer.from_str(json.dumps(rules))
        encoder.model = tokenizers.models.BPE(vocab=texts, merges=merges, byte_fallback=True)
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(f"the tokenizers library refuses the file: {error}.") from error
    return encoder


def _merges(model: Mapping[str, Any], control: frozenset[str]) -> Iterator[tuple[str, str]]:
    """The merges, in order, without those that would build a control or a byte token."""
    merges = model.get("merges")
    if not isinstance(merges, list):
        raise CheckpointError("model.merges is missing: expected a list of pairs.")
    for merge in merges:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or [type(part) for part in pair] != [str, str]:
            raise CheckpointError(f"the merge {merge!r} is damaged: expected two tokens.")
        left, right = pair
        built = left + right
        if control.isdisjoint((left, right, built)) and built not in BYTE_TOKENS:
            yield left, right
