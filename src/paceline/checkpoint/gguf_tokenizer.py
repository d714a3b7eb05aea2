"""A GGUF file's vocabulary and merges, to and from a tokenizer.

What llama.cpp calls the model "gemma4": BPE with byte fallback, spaces as U+2581. Its token types
say which tokens text can become.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from paceline.checkpoint.gguf_config import EOS_KEY, EOT_KEY
from paceline.checkpoint.gguf_file import ArrayValue, GgufFile
from paceline.checkpoint.gguf_format import BOOL, STRING, Value
from paceline.checkpoint.strict_json import shown
from paceline.errors import CheckpointError
from paceline.tokenizer import BYTE_TOKENS, LOOKS_LIKE_CONTROL, ROUND_TRIP_PROBE, SPACE, Tokenizer

MODEL_KEY, TOKENS_KEY, TYPES_KEY, SCORES_KEY, MERGES_KEY = (
    f"tokenizer.ggml.{name}" for name in ("model", "tokens", "token_type", "scores", "merges")
)
TEMPLATE_KEY = "tokenizer.chat_template"
MODEL = "gemma4"

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
SCORE = -1000.0  # what llama.cpp's converter gives every token; BPE has no use for it

SHOWN_BY_LLAMA_CPP = frozenset(
    [
        "<|channel>",
        "<channel|>",
        "<|tool_call>",
        "<tool_call|>",
        "<|tool_response>",
        "<tool_response|>",
        '<|"|>',
    ]
)
"""Control tokens that its converter marks as user-defined, so that its parser sees them."""

ENDS_BY_NAME = ("<eos>", "<turn|>", "<|tool_response>")
"""Tokens that llama.cpp takes for the end of an answer, whatever the metadata say."""

PROBES = (
    ROUND_TRIP_PROBE,
    "The quick brown fox\n\n\njumps over 13 lazy dogs.",
    "<bos><|turn>user\n<turn|> <eos> <table></table> <unused7> <0x0A>",
    "x = {'a': [1, 2, 3]}\n\tif x:\n\t\treturn  x  # …",
)
FORM = {
    "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
    "pre_tokenizer": None,
}


def read_tokenizer(file: GgufFile) -> Tokenizer:
    """The tokenizer that the metadata hold.

    Raises:
        CheckpointError: it is missing, damaged, or not Gemma 4's.
    """
    with _naming(file):
        return Tokenizer(_document(file))


def num_tokens(file: GgufFile) -> int:
    """
    Raises:
        CheckpointError: the file has no vocabulary.
    """
    with _naming(file):
        return _array(file, TOKENS_KEY).length


def ends_by_name(file: GgufFile) -> tuple[int, ...]:
    """Ids of `ENDS_BY_NAME`."""
    tokens = _array(file, TOKENS_KEY).texts()
    return tuple(tokens.index(text) for text in ENDS_BY_NAME if text in tokens)


@contextmanager
def _naming(file: GgufFile) -> Iterator[None]:
    """Say in every error which file it is about."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{file.path}: {error}") from error


def _document(file: GgufFile) -> dict[str, Any]:
    model = file.metadata.get(MODEL_KEY)
    if model != MODEL:
        raise CheckpointError(
            f"{MODEL_KEY} is {shown(model)}, expected {MODEL!r}: convert the model again with a "
            "newer converter, or put its tokenizer.json beside the file."
        )
    tokens = _array(file, TOKENS_KEY).texts()
    return _document_from(tokens, _token_types(file, len(tokens)), _array(file, MERGES_KEY).texts())


def document_of(metadata: dict[str, Value]) -> dict[str, Any]:
    """The tokenizer.json that says what `tokenizer_metadata` has written."""
    keys = (TOKENS_KEY, TYPES_KEY, MERGES_KEY)
    tokens, types, merges = (metadata[key].value for key in keys)
    return _document_from(tokens, types, merges)


def _document_from(tokens: list[str], types: list[int], merges: list[str]) -> dict[str, Any]:
    vocab = {text: index for index, text in enumerate(tokens)}
    if len(vocab) != len(tokens):
        twice = next(text for index, text in enumerate(tokens) if vocab[text] != index)
        raise CheckpointError(f"the token {shown(twice)} occurs twice in {TOKENS_KEY}.")
    added = [
        added_token(index, text, _is_control(text, types[index]))
        for index, text in enumerate(tokens)
        if types[index] in (CONTROL, USER_DEFINED, UNUSED, UNKNOWN)
    ]
    model = {
        "type": "BPE",
        "byte_fallback": True,
        "vocab": vocab,
        "merges": [_merge(text) for text in merges],
    }
    return FORM | {"added_tokens": added, "model": model}


def _array(file: GgufFile, key: str) -> ArrayValue:
    value = file.metadata.get(key)
    if not isinstance(value, ArrayValue) or not value.length:
        raise CheckpointError(
            f"{key} is {'missing' if value is None else shown(value)}: expected an array. The file "
            "has no vocabulary; convert the model again."
        )
    return value


def _token_types(file: GgufFile, count: int) -> list[int]:
    """One type per token; all normal where the file does not say."""
    if TYPES_KEY not in file.metadata:
        return [NORMAL] * count
    value = _array(file, TYPES_KEY)
    if value.length != count or value.kind != "i32":
        raise CheckpointError(
            f"{TYPES_KEY} is {value}: expected one i32 for each of {count} tokens."
        )
    return [int(x) for x in value.numbers()]


def _is_control(text: str, kind: int) -> bool:
    return kind != USER_DEFINED or bool(LOOKS_LIKE_CONTROL.fullmatch(text))


def _merge(text: str) -> list[str]:
    """Two tokens with a space between; neither can hold one, for spaces are U+2581."""
    left, _, right = text.partition(" ")
    if not left or not right or " " in right:
        raise CheckpointError(f"the merge {shown(text)} is damaged: expected two tokens.")
    return [left, right]


def added_token(index: int, text: str, special: bool) -> dict[str, Any]:
    """An entry of `added_tokens` in tokenizer.json."""
    return {
        "id": index,
        "content": text,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": special,
    }


def tokenizer_metadata(document: dict[str, Any], template: str = "") -> dict[str, Value]:
    """The metadata that hold a tokenizer.

    Args:
        document: a parsed tokenizer.json.
        template: the chat template, for programs that use it; "" for none.

    Raises:
        CheckpointError: GGUF cannot say what this tokenizer does.
    """
    tokenizer = Tokenizer(document)
    texts = [tokenizer.token_text(i) or f"[EMPTY_{i}]" for i in range(tokenizer.vocab_size)]
    metadata = {
        MODEL_KEY: Value(STRING, MODEL),
        TOKENS_KEY: Value(STRING, texts, is_array=True),
        SCORES_KEY: Value("f32", np.full(len(texts), SCORE), is_array=True),
        TYPES_KEY: Value("i32", _types(tokenizer, document, texts), is_array=True),
        MERGES_KEY: Value(STRING, _merge_texts(document), is_array=True),
        EOS_KEY: Value("u32", tokenizer.control.eos),
        EOT_KEY: Value("u32", tokenizer.control.turn_end),
        "tokenizer.ggml.add_space_prefix": Value(BOOL, False),
        "tokenizer.ggml.add_bos_token": Value(BOOL, True),
    }
    for key, text in (("unknown", "<unk>"), ("mask", "<mask>")):
        if text in texts:
            metadata[f"tokenizer.ggml.{key}_token_id"] = Value("u32", texts.index(text))
    if template:
        metadata[TEMPLATE_KEY] = Value(STRING, template)
    return metadata


def check_same_tokens(original: Tokenizer, written: Tokenizer) -> None:
    """Refuse a tokenizer that does not come back from its file as it was.

    Raises:
        CheckpointError: a probe text has other ids, or a token other bytes.
    """
    texts = [*PROBES, *(original.token_text(i) for i in range(original.vocab_size))]
    same_ids = all(original.encode_text(x) == written.encode_text(x) for x in texts)
    same_bytes = all(
        original.token_bytes(i) == written.token_bytes(i) for i in range(original.vocab_size)
    )
    if not same_ids or not same_bytes or original.control != written.control:
        raise CheckpointError(
            "this tokenizer does more than GGUF can say: it would encode some texts otherwise. "
            "Only Gemma's own form can be converted."
        )


def _types(tokenizer: Tokenizer, document: dict[str, Any], texts: list[str]) -> list[int]:
    added = {token["content"] for token in document.get("added_tokens") or []}

    def of(index: int, text: str) -> int:
        if text in BYTE_TOKENS:
            return BYTE
        if text in SHOWN_BY_LLAMA_CPP:
            return USER_DEFINED
        if index in tokenizer.control_ids:
            return CONTROL
        if not tokenizer.token_text(index):
            return UNUSED
        return USER_DEFINED if text in added else NORMAL

    return [of(index, text) for index, text in enumerate(texts)]


def _merge_texts(document: dict[str, Any]) -> list[str]:
    merges = [x if isinstance(x, str) else " ".join(x) for x in document["model"]["merges"]]
    for text in merges:
        _merge(text)
    return merges
