"""An engine with a canned answer, and a way to run the command line in this process."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from paceline.calibration import Calibration
from paceline.cli import app, common
from paceline.config import TargetConfig
from paceline.engine import Generation
from paceline.output import Delta
from paceline.sampling import SamplingParams
from paceline.sequence import EmittedToken
from paceline.stats import GenerationStats

TERMINAL = object()
"""Passed as input: standard input is a terminal on which nobody types."""

ANSWER = (
    Delta(kind="text", text="The sky ", drafted=False, tool_call=None),
    Delta(kind="text", text="is ", drafted=True, tool_call=None),
    Delta(kind="text", text="blue.", drafted=True, tool_call=None),
)
ANSWER_TEXT = "The sky is blue."


def text_delta(text: str, *, drafted: bool = False) -> Delta:
    return Delta(kind="text", text=text, drafted=drafted, tool_call=None)


def reasoning_delta(text: str) -> Delta:
    return Delta(kind="reasoning", text=text, drafted=False, tool_call=None)


CONFIG = TargetConfig(
    hidden_size=8,
    vocab_size=16,
    layer_kinds=("sliding", "global"),
    num_heads=2,
    num_kv_heads=1,
    num_global_kv_heads=1,
    head_dim=4,
    global_head_dim=4,
    ffn_size=16,
    sliding_window=4,
    context_length=512,
)
PAIR = SimpleNamespace(
    name="fake",
    dtype="float32",
    threads=3,
    num_target_parameters=1000,
    num_drafter_parameters=10,
    bytes_per_token=4000,
    runtime="torch",
    target=SimpleNamespace(config=CONFIG),
)


CALIBRATION = Calibration(
    passes={1: 0.05, 2: 0.055, 4: 0.07, 16: 0.2}, draft=(0.001, 0.002), sweeps=7, seconds=1.25
)


@dataclass(kw_only=True)
class FakeEngine:
    """Answers everything with the same deltas, one token each.

    Args:
        deltas: the answer.
        interrupt_after: raise KeyboardInterrupt after so many deltas.
        error: raise this instead of answering.
        changed_by_draft: a broken engine: with drafting on, the last token is another.
        speed_up: how much faster drafting is, by its length.
    """

    deltas: Sequence[Delta] = ANSWER
    interrupt_after: int | None = None
    error: Exception | None = None
    changed_by_draft: bool = False
    speed_up: dict[Any, float] = field(default_factory=dict)
    pair: Any = field(default_factory=lambda: PAIR)
    max_draft_tokens: int = 8
    context_length: int = 512
    finish_reason: str = "stop"
    calls: list[dict[str, Any]] = field(default_factory=list)
    calibration: Any = None
    on_round: Any = None
    kept: int = 0

    def keep_learned(self) -> None:
        self.kept += 1

    def measure_costs(self) -> Calibration:
        return CALIBRATION

    def recalibrate(self) -> Calibration:
        return CALIBRATION

    def default_sampling(self) -> SamplingParams:
        return SamplingParams(temperature=1.0, top_k=64, top_p=0.95)

    def stream(self, prompt: Any, **arguments: Any) -> FakeStream:
        self.calls.append({"prompt": prompt, **arguments})
        if self.error:
            raise self.error
        return FakeStream(self, arguments.get("draft"), arguments["sampling"].seed)

    def generate(self, prompt: Any, **arguments: Any) -> Generation:
        stream = self.stream(prompt, **arguments)
        for _ in stream:
            pass
        return stream.result


class FakeStream:
    def __init__(self, engine: FakeEngine, draft: Any, seed: int | None) -> None:
        self._engine = engine
        self._asked = draft
        self._draft = 4 if draft in (None, "auto") else draft
        self._seed = 7 if seed is None else seed
        self._given: list[Delta] = []
        self._reason = engine.finish_reason

    def __iter__(self) -> Iterator[Delta]:
        for index, delta in enumerate(self._engine.deltas):
            if index == self._engine.interrupt_after:
                raise KeyboardInterrupt
            self._given.append(delta)
            yield delta

    def __enter__(self) -> FakeStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if len(self._given) < len(self._engine.deltas):
            self._reason = "cancelled"

    @property
    def result(self) -> Generation:
        broken = self._engine.changed_by_draft and self._draft > 0
        ids = list(range(len(self._given)))
        if ids and broken:
            ids[-1] += 100
        texts = {
            kind: "".join(d.text for d in self._given if d.kind == kind)
            for kind in ("text", "reasoning")
        }
        return Generation(
            text=texts["text"],
            reasoning=texts["reasoning"],
            tool_calls=(),
            tokens=tuple(EmittedToken(token_id=i, drafted=False) for i in ids),
            finish_reason=self._reason,
            stats=self._stats(len(ids)),
            seed=self._seed,
        )

    def _stats(self, num_tokens: int) -> GenerationStats:
        seconds = 0.05 * max(0, num_tokens - 1) / self._engine.speed_up.get(self._asked, 1.0)
        stats = GenerationStats(
            prompt_tokens=5,
            generated_tokens=num_tokens,
            ttft_s=0.25,
            prefill_s=0.25,
            decode_s=seconds,
        )
        for _ in range(2):
            stats.record_round(self._draft, min(self._draft, 3))
        return stats


@dataclass(frozen=True)
class Outcome:
    code: int
    stdout: str
    stderr: str


class CommandLine:
    """Runs `main` in this process, with a fake engine in place of the loading of one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys
        self.engine = FakeEngine()
        self.loaded: list[tuple[Any, ...]] = []
        monkeypatch.setattr(common, "load_engine", self._load)
        monkeypatch.setattr(
            "paceline.bench.ceiling.read_speed", lambda threads, num_bytes: 400_000.0
        )
        for name in ("NO_COLOR", "FORCE_COLOR"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("TERM", "xterm")

    def _load(self, model: str | None, drafter: str, **options: Any) -> FakeEngine:
        self.loaded.append((model, drafter, options))
        return self.engine

    def run(self, *argv: str, stdin: bytes | str | object = b"") -> Outcome:
        self._monkeypatch.setattr(sys, "stdin", stream_of(stdin))
        code = app.main(list(argv))
        captured = self._capsys.readouterr()
        return Outcome(code, captured.out, captured.err)


class FakeTerminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


def stream_of(data: bytes | str | object) -> io.TextIOWrapper | None:
    """Standard input that holds this; None is a closed one."""
    if data is None or isinstance(data, io.TextIOWrapper):
        return data
    if data is TERMINAL:
        return FakeTerminal(io.BytesIO())
    return io.TextIOWrapper(io.BytesIO(data.encode() if isinstance(data, str) else data))
