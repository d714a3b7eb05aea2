"""The user's earlier answers as a source of drafts: kept only where the user asks for it.

One file of token ids for each vocabulary, at most 131,072 of them, the oldest forgotten first. It
holds what the model wrote, readable by the user alone; deleting it is always safe. A damaged file
counts as none.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from paceline.speculative.suffix import SEPARATOR, IndexedText

MAX_TOKENS = 1 << 17
MAX_FILE_BYTES = 16 * MAX_TOKENS
FORM = "paceline earlier answers 1"
PATTERN = "answers-*.json"


def answers_file(folder: Path, token_texts: Iterable[bytes]) -> Path:
    """The file for a vocabulary, told by its tokens: ids mean nothing under another one."""
    digest = hashlib.sha256()
    for text in token_texts:
        digest.update(len(text).to_bytes(4, "little") + text)
    return folder / PATTERN.replace("*", digest.hexdigest()[:16])


def forget(folder: Path) -> int:
    """Delete every file of earlier answers; how many there were.

    Raises:
        OSError: one could not be deleted.
    """
    files = list(folder.glob(PATTERN))
    for file in files:
        file.unlink(missing_ok=True)
    return len(files)


class EarlierAnswers:
    """Earlier answers, newest last, and the index over them.

    Args:
        file: where they are kept between processes; None keeps them in this one only.
        vocab_size: ids from here on are no tokens, and make a file a damaged one.
    """

    def __init__(self, file: Path | None, vocab_size: int, max_tokens: int = MAX_TOKENS) -> None:
        self._file = file
        self._max_tokens = max_tokens
        answers = _read(file, vocab_size) if file else []
        self._answers = deque(answer[-max_tokens:] for answer in answers)
        self._index()

    @property
    def num_tokens(self) -> int:
        return self._num_tokens

    def add(self, token_ids: Sequence[int]) -> None:
        """Take a finished answer, and write the file. That it cannot be written is no error."""
        kept = tuple(token_ids[-self._max_tokens :])
        if not kept:
            return
        self._answers.append(kept)
        self._num_tokens += len(kept)
        if self._num_tokens > self._max_tokens:
            self._forget_the_oldest()
        else:
            self._take(kept)
        if self._file is not None:
            _write(self._file, self._answers)

    def _index(self) -> None:
        self.text = IndexedText()
        self._num_tokens = sum(map(len, self._answers))
        if self._num_tokens > self._max_tokens:
            self._forget_the_oldest()
            return
        for answer in self._answers:
            self._take(answer)

    def _take(self, answer: Sequence[int]) -> None:
        self.text.extend([*answer, SEPARATOR])

    def _forget_the_oldest(self) -> None:
        """Down to half, so that the next index is far away."""
        while len(self._answers) > 1 and self._num_tokens > self._max_tokens // 2:
            self._num_tokens -= len(self._answers.popleft())
        self._index()


def _read(file: Path, vocab_size: int) -> list[tuple[int, ...]]:
    try:
        if file.stat().st_size > MAX_FILE_BYTES:
            return []
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return []
    if not isinstance(content, dict) or content.get("form") != FORM:
        return []
    answers = content.get("answers")
    if not isinstance(answers, list) or not all(_is_answer(a, vocab_size) for a in answers):
        return []
    return [tuple(answer) for answer in answers]


def _is_answer(answer: object, vocab_size: int) -> bool:
    return (
        isinstance(answer, list)
        and bool(answer)
        and all(type(token) is int and 0 <= token < vocab_size for token in answer)
    )


def _write(file: Path, answers: Iterable[Sequence[int]]) -> None:
    """Whole or not at all, for the user's eyes only."""
    content = json.dumps({"form": FORM, "answers": [list(answer) for answer in answers]})
    new = file.with_name(f"{file.name}.{os.getpid()}.new")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(content)
        new.replace(file)
    except OSError:
        with suppress(OSError):
            new.unlink(missing_ok=True)
