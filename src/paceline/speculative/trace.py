"""What each round did and how long it took, written to a file as it happens.

A name that ends in .jsonl gets an object a line; one that ends in .json is for the viewers of
Perfetto and Chrome. Knows rounds only: who runs them, reports them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from paceline.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class RoundTrace:
    """One sequence's part of a round.

    Args:
        sequence: number of the sequence, counted from 0 in the order of their opening.
        round: number of the round in its sequence, from 0.
        position: of the first token that the round emitted.
        kind: of the text, see `OutputText.kind`.
        source: who drafted, "none" where nobody did.
        max_draft_tokens: the draft length that was decided on.
        num_draft_tokens: what came of it, and was verified.
        num_accepted_tokens: without the bonus token.
        num_tokens: emitted.
        predicted_gain: expected speed over that of plain decoding; None where nobody predicts.
        started_s: on the clock that `time.perf_counter` reads.
        draft_s: these three are of the whole round, which several sequences may share.
    """

    sequence: int
    round: int
    position: int
    kind: str
    source: str
    max_draft_tokens: int
    num_draft_tokens: int
    num_accepted_tokens: int
    num_tokens: int
    predicted_gain: float | None
    started_s: float
    draft_s: float
    verify_s: float
    overhead_s: float


RoundHook = Callable[[RoundTrace], None]


class JsonLines:
    """An object a line, under the names of `RoundTrace`; times count from the first round."""

    suffix = ".jsonl"

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._epoch: float | None = None

    def write(self, trace: RoundTrace) -> None:
        if self._epoch is None:
            self._epoch = trace.started_s
        row = asdict(trace) | {"started_s": trace.started_s - self._epoch}
        self._file.write(json.dumps(row) + "\n")

    def finish(self) -> None:
        """The last line is the end."""


class TraceEvents:
    """The Trace Event Format: a row for each sequence, a slice for each round and in it for its
    draft and its pass, and a counter of accepted tokens."""

    suffix = ".json"

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._epoch: float | None = None
        self._separator = ""
        file.write('{"displayTimeUnit": "ms", "traceEvents": [')

    def write(self, trace: RoundTrace) -> None:
        if self._epoch is None:
            self._epoch = trace.started_s
        start = trace.started_s - self._epoch
        verified = start + trace.draft_s
        whole = trace.draft_s + trace.verify_s + trace.overhead_s
        shown = {k: v for k, v in asdict(trace).items() if k not in ("sequence", "started_s")}
        name = f"{trace.source} {trace.num_accepted_tokens}/{trace.num_draft_tokens}"
        self._slice(trace, name, start, whole, shown)
        if trace.draft_s:
            self._slice(trace, "draft", start, trace.draft_s, {})
        self._slice(trace, "verify", verified, trace.verify_s, {})
        counts = {"drafted": trace.num_draft_tokens, "accepted": trace.num_accepted_tokens}
        self._event(
            name=f"tokens of sequence {trace.sequence}", ph="C", ts=start * 1e6, pid=1, args=counts
        )

    def _slice(
        self, trace: RoundTrace, name: str, start: float, seconds: float, shown: dict[str, Any]
    ) -> None:
        self._event(
            name=name,
            ph="X",
            ts=start * 1e6,
            dur=seconds * 1e6,
            pid=1,
            tid=trace.sequence + 1,
            args=shown,
        )

    def _event(self, **event: Any) -> None:
        self._file.write(self._separator + "\n" + json.dumps(event))
        self._separator = ","

    def finish(self) -> None:
        self._file.write("\n]}\n")


FORMATS: tuple[type[JsonLines] | type[TraceEvents], ...] = (JsonLines, TraceEvents)


def check_trace(path: Path, option: str = "--trace") -> None:
    """Find out before a long run whether its trace can be written.

    Raises:
        ConfigError: the name has another ending, or lies in no folder.
    """
    if path.suffix not in {form.suffix for form in FORMATS}:
        raise ConfigError(
            f"{option} {path} must end in .jsonl, for an object a line, or .json, for Perfetto."
        )
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise ConfigError(f"{option} {path} is not a file in a folder that exists.")


class TraceFile:
    """A `RoundHook` that writes to a file; leaving a `with` block ends it.

    Raises:
        ConfigError: see `check_trace`.
    """

    def __init__(self, path: Path) -> None:
        check_trace(path)
        self._file = path.open("w", encoding="utf-8")
        form = next(form for form in FORMATS if form.suffix == path.suffix)
        self._writer = form(self._file)

    def __call__(self, trace: RoundTrace) -> None:
        self._writer.write(trace)

    def __enter__(self) -> TraceFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Write the end. Harmless when repeated."""
        if not self._file.closed:
            self._writer.finish()
            self._file.close()
