"""A small tokenizer of Gemma's form, trained on a few sentences, and its file with changes."""

from __future__ import annotations

import functools
import json
from typing import Any

from paceline.tokenizer import Tokenizer
from paceline.training.vocabulary import train_vocabulary

SENTENCES = [
    "system user model assistant thought call: response: declaration: description parameters",
    "properties required type OBJECT STRING value:true,false,null [1, 2] {name:value}",
    "The cat sat on the mat, and the dog did not.\n\nWhy is the sky blue?\n",
    "    def add(first, second):\n\treturn first + second\n",
    "naïve café, 12 + 30 = 42; ls -la | wc -l",
    'He said "hello world" and left. <html> & <b>bold</b>',
] * 4
VOCAB_SIZE = 623  # all that these sentences yield


@functools.cache
def _trained() -> str:
    return str(train_vocabulary(SENTENCES, VOCAB_SIZE).to_str())


def small_document() -> dict[str, Any]:
    """A fresh tokenizer.json to change."""
    document: dict[str, Any] = json.loads(_trained())
    return document


@functools.cache
def small_tokenizer() -> Tokenizer:
    return Tokenizer(small_document())


def reference_encode(text: str) -> list[int]:
    """Ids by the library itself, control tokens in the text recognised."""
    import tokenizers

    ids = tokenizers.Tokenizer.from_str(_trained()).encode(text, add_special_tokens=False).ids
    return list(ids)
