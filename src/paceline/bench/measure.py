"""Runs prompts with several draft lengths in turn, and keeps what each run cost.

Off and on alternate within every repeat, and the order turns round from repeat to repeat, so that
a machine that slows down or warms up does not favour one side. The first round is not counted.
Every output is compared with the first one without drafting.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from paceline.bench.prompts import BenchPrompt
from paceline.chat import Message
from paceline.errors import PromptError
from paceline.sampling import SamplingParams
from paceline.stats import GenerationStats

if TYPE_CHECKING:
    from paceline.engine import DraftLength, Engine, Generation

WARM_UP_ROUNDS = 1
RunProgress = Callable[[int, int], None]
"""Called with (runs done, runs in all)."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How to measure. `drafts` begins with 0, which all others are compared with."""

    drafts: tuple[DraftLength, ...]
    repeats: int
    max_tokens: int
    sampling: SamplingParams

    def __post_init__(self) -> None:
        assert self.drafts[:1] == (0,), "drafting off comes first"
        assert self.repeats > 0

    @property
    def num_runs(self) -> int:
        """Runs of one prompt, the warm-up included."""
        return len(self.drafts) * (WARM_UP_ROUNDS + self.repeats)

    def rounds(self) -> Iterator[tuple[bool, tuple[DraftLength, ...]]]:
        """For each round: whether it counts, and the draft lengths in their order."""
        for index in range(WARM_UP_ROUNDS + self.repeats):
            order = self.drafts if index % 2 == 0 else self.drafts[::-1]
            yield index >= WARM_UP_ROUNDS, order


@dataclass(frozen=True, kw_only=True)
class Output:
    """What must not change with the draft length: tokens and text of every turn."""

    token_ids: tuple[int, ...] = ()
    text: str = ""

    def __add__(self, other: Output) -> Output:
        return Output(token_ids=self.token_ids + other.token_ids, text=self.text + other.text)


@dataclass(kw_only=True)
class Run:
    """One prompt with one draft length: the counted repeats, in order."""

    prompt: BenchPrompt
    draft: DraftLength
    repeats: list[GenerationStats] = field(default_factory=list)
    output: Output = Output()
    equal: bool = True


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A prompt that could not be measured, and why."""

    prompt: BenchPrompt
    reason: str


def measure(
    engine: Engine,
    prompts: Sequence[BenchPrompt],
    plan: Plan,
    progress: RunProgress | None = None,
) -> tuple[list[Run], list[Skipped]]:
    """Measure all prompts. One that the model cannot take is skipped and named."""
    runs: list[Run] = []
    skipped: list[Skipped] = []
    for index, prompt in enumerate(prompts):
        done_before = index * plan.num_runs

        def report(done: int, done_before: int = done_before) -> None:
            if progress:
                progress(done_before + done, len(prompts) * plan.num_runs)

        try:
            runs += measure_prompt(engine, prompt, plan, report)
        except PromptError as error:
            skipped.append(Skipped(prompt=prompt, reason=str(error)))
    return runs, skipped


def measure_prompt(
    engine: Engine, prompt: BenchPrompt, plan: Plan, progress: Callable[[int], None] | None = None
) -> list[Run]:
    """One run for each draft length, in the plan's order."""
    runs = {draft: Run(prompt=prompt, draft=draft) for draft in plan.drafts}
    expected: Output | None = None
    done = 0
    for counts, order in plan.rounds():
        for draft in order:
            run = runs[draft]
            run.output, stats = _converse(engine, prompt, draft, plan)
            if expected is None:
                expected = run.output
            run.equal = run.equal and run.output == expected
            if counts:
                run.repeats.append(stats)
            done += 1
            if progress:
                progress(done)
    return list(runs.values())


def _converse(
    engine: Engine, prompt: BenchPrompt, draft: DraftLength, plan: Plan
) -> tuple[Output, GenerationStats]:
    """Ask turn after turn, with the model's own answers in between."""
    messages: list[Message] = []
    output, stats = Output(), GenerationStats(generations=0)
    for turn in prompt.turns:
        messages.append(Message(role="user", content=turn))
        result = engine.generate(
            list(messages), sampling=plan.sampling, max_tokens=plan.max_tokens, draft=draft
        )
        messages.append(Message(role="assistant", content=result.text))
        output += output_of(result)
        stats.add(result.stats)
    return output, stats


def output_of(result: Generation) -> Output:
    return Output(token_ids=result.token_ids, text=result.reasoning + result.text)
