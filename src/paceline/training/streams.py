"""Token streams by kind of text, and random batches drawn from a weighted mixture of them.

A stream is all documents of one kind, one after the other, each opened by <bos>. Conversations
follow the turn format of `paceline.chat`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from paceline.training.corpus import Document

BOS, EOS, TURN_START, TURN_END = 2, 1, 105, 106
Tokens = NDArray[np.uint16]
Mask = NDArray[np.bool_]
TRAIN, HELD_OUT = "train", "held_out"


@dataclass(frozen=True)
class Stream:
    """Tokens, and for each whether the model is asked to predict it when tuning."""

    tokens: Tokens
    answers: Mask


def document_ids(document: Document, tokenizer: Tokenizer) -> tuple[list[int], list[bool]]:
    """Token ids of one document, and which of them belong to an answer."""

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    if document.prompt is None:
        ids = [BOS, *encode(document.text), EOS]
        return ids, [True] * len(ids)
    newline = encode("\n")
    question = [BOS, TURN_START, *encode(f"user\n{document.prompt.strip()}"), TURN_END, *newline]
    question += [TURN_START, *encode("model\n")]
    answer = [*encode(document.text.strip()), TURN_END]
    ids = [*question, *answer, *newline]
    return ids, [False] * len(question) + [True] * len(answer) + [False] * len(newline)


def stream_name(document: Document) -> str:
    return f"{document.kind}-{'plain' if document.prompt is None else 'chat'}"


def build_streams(documents: Iterable[Document], tokenizer: Tokenizer, folder: Path) -> None:
    """Write `<part>.<stream>.npz` for every stream, and `streams.json` with the token counts."""
    parts: dict[str, tuple[list[NDArray[np.uint16]], list[NDArray[np.bool_]]]] = {}
    for document in documents:
        part = HELD_OUT if document.held_out else TRAIN
        ids, answers = document_ids(document, tokenizer)
        tokens, masks = parts.setdefault(f"{part}.{stream_name(document)}", ([], []))
        tokens.append(np.asarray(ids, dtype=np.uint16))
        masks.append(np.asarray(answers, dtype=np.bool_))
    folder.mkdir(parents=True, exist_ok=True)
    counts: dict[str, int] = {}
    for name, (tokens, masks) in parts.items():
        joined = np.concatenate(tokens)
        np.savez(folder / f"{name}.npz", tokens=joined, answers=np.concatenate(masks))
        counts[name] = len(joined)
    (folder / "streams.json").write_text(json.dumps(counts, indent=2) + "\n")


def load_streams(folder: Path, part: str) -> dict[str, Stream]:
    streams = {}
    for path in sorted(folder.glob(f"{part}.*.npz")):
        with np.load(path) as arrays:
            streams[path.name.split(".")[1]] = Stream(arrays["tokens"], arrays["answers"])
    return streams


class Mixture:
    """Random windows of a weighted mixture of streams."""

    def __init__(
        self, streams: Mapping[str, Stream], weights: Mapping[str, float], seed: int
    ) -> None:
        self.streams = [streams[name] for name in weights]
        total = sum(weights.values())
        self.shares = [weight / total for weight in weights.values()]
        self.random = np.random.default_rng(seed)

    def batch(
        self, size: int, length: int, answers_only: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs [B, T] and labels [B, T]; a label of -100 is not predicted."""
        inputs = np.empty((size, length), dtype=np.int64)
        labels = np.empty((size, length), dtype=np.int64)
        for row in range(size):
            stream = self.streams[self.random.choice(len(self.streams), p=self.shares)]
            start = int(self.random.integers(0, len(stream.tokens) - length - 1))
            window = stream.tokens[start : start + length + 1].astype(np.int64)
            inputs[row], labels[row] = window[:-1], window[1:]
            if answers_only:
                labels[row][~stream.answers[start + 1 : start + length + 1]] = -100
        return torch.from_numpy(inputs), torch.from_numpy(labels)


def held_out_windows(stream: Stream, length: int, limit: int) -> torch.Tensor:
    """The first `limit` windows of a held-out stream, for evaluation. [n, T + 1]"""
    count = min(limit, (len(stream.tokens) - 1) // length)
    windows = [stream.tokens[i * length : (i + 1) * length + 1] for i in range(count)]
    return torch.from_numpy(np.stack(windows).astype(np.int64))
