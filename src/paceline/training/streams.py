"""Token streams by kind of text, and random batches drawn from a weighted mixture of them.

A stream is all documents of one kind, one after the other, each opened by <bos>. Conversations
are written by `paceline.chat` itself, so that a model meets in use what it was trained on.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from paceline.chat import Message, render
from paceline.errors import CheckpointError
from paceline.tokenizer import Tokenizer
from paceline.training.corpus import Document

Tokens = NDArray[np.uint16]
Mask = NDArray[np.bool_]
TRAIN, HELD_OUT = "train", "held_out"
NOT_PREDICTED = -100


@dataclass(frozen=True)
class Stream:
    """Tokens, and for each whether the model is asked to predict it when tuning."""

    tokens: Tokens
    answers: Mask


def document_ids(document: Document, tokenizer: Tokenizer) -> tuple[list[int], list[bool]]:
    """Token ids of one document, and which of them belong to an answer."""
    control = tokenizer.control
    if document.prompt is None:
        ids = [control.bos, *tokenizer.encode_text(document.text), control.eos]
        return ids, [True] * len(ids)
    question = render([Message(role="user", content=document.prompt)], tokenizer)
    answer = [*tokenizer.encode_text(document.text.strip()), control.turn_end]
    newline = tokenizer.encode_text("\n")
    ids = [*question, *answer, *newline]
    return ids, [False] * len(question) + [True] * len(answer) + [False] * len(newline)


def stream_name(document: Document) -> str:
    return f"{document.kind}-{'plain' if document.prompt is None else 'chat'}"


def build_streams(documents: Iterable[Document], tokenizer: Tokenizer, folder: Path) -> None:
    """Write `<part>.<stream>.npz` for every stream, and `streams.json` with the token counts."""
    assert tokenizer.vocab_size <= np.iinfo(np.uint16).max + 1
    parts: dict[str, tuple[list[Tokens], list[Mask]]] = {}
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
    """The streams of a part, TRAIN or HELD_OUT, by name.

    Raises:
        CheckpointError: there is none.
    """
    streams = {}
    for path in sorted(folder.glob(f"{part}.*.npz")):
        with np.load(path) as arrays:
            streams[path.name.split(".")[1]] = Stream(arrays["tokens"], arrays["answers"])
    if not streams:
        raise CheckpointError(
            f"there are no {part} streams in {folder}: run `python -m paceline.training prepare` "
            "first, or pass --run with the folder that it wrote."
        )
    return streams


class Mixture:
    """Random windows of a weighted mixture of streams.

    Args:
        weights: by name; those of streams that are not there are left out.
    """

    def __init__(self, streams: Mapping[str, Stream], weights: Mapping[str, float]) -> None:
        self.names = [name for name in weights if name in streams]
        if not self.names:
            raise CheckpointError(
                f"none of the streams {', '.join(weights)} is there: got {', '.join(streams)}. "
                "Run `python -m paceline.training prepare` with the whole corpus."
            )
        self.streams = [streams[name] for name in self.names]
        total = sum(weights[name] for name in self.names)
        self.shares = [weights[name] / total for name in self.names]

    def batch(
        self, random: np.random.Generator, size: int, length: int, answers_only: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs [B, T] and labels [B, T]; a label of NOT_PREDICTED is not predicted.

        Raises:
            CheckpointError: a stream is too short for one window.
        """
        inputs = np.empty((size, length), dtype=np.int64)
        labels = np.empty((size, length), dtype=np.int64)
        for row in range(size):
            index = random.choice(len(self.streams), p=self.shares)
            window, answers = self._window(random, index, length + 1)
            inputs[row], labels[row] = window[:-1], window[1:]
            if answers_only:
                labels[row][~answers[1:]] = NOT_PREDICTED
        return torch.from_numpy(inputs), torch.from_numpy(labels)

    def _window(
        self, random: np.random.Generator, index: int, length: int
    ) -> tuple[NDArray[np.int64], Mask]:
        stream = self.streams[index]
        if len(stream.tokens) < length:
            raise CheckpointError(
                f"the stream {self.names[index]} has {len(stream.tokens)} tokens, but a window "
                f"takes {length}: add text of this kind, or train on shorter windows."
            )
        start = int(random.integers(0, len(stream.tokens) - length + 1))
        cut = slice(start, start + length)
        return stream.tokens[cut].astype(np.int64), stream.answers[cut]


def held_out_windows(stream: Stream, length: int, limit: int) -> torch.Tensor:
    """The first windows of a held-out stream, at most `limit`, for evaluation. [n, T + 1]"""
    count = min(limit, (len(stream.tokens) - 1) // length)
    windows = np.empty((count, length + 1), dtype=np.int64)
    for i in range(count):
        windows[i] = stream.tokens[i * length : (i + 1) * length + 1]
    return torch.from_numpy(windows)
