"""Greedy answers of a pair, and at every place of each the longest draft that is made there.

Whatever a draft length policy asks for is then known, and so is what the target takes of it: see
`replay_controller.py`.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

from paceline.bench.prompts import BenchPrompt, bundled_prompts, read_prompts, select
from paceline.bench.provenance import provenance
from paceline.chat import Message
from paceline.engine import Engine
from paceline.errors import ConfigError, PromptError
from paceline.loading import LoadedPair
from paceline.runtime.protocols import MAX_DRAFT_TOKENS, Draft, Drafter, DraftRequest
from paceline.sampling import SamplingParams
from paceline.speculative.controller import (
    DraftContext,
    DraftPlan,
    RoundOutcome,
)
from paceline.speculative.kept_values import fields_of, whole_of
from wrapped_drafter import WrappedDrafter

FORM = "paceline draft records 1"
OWN = "own"
GREEDY = SamplingParams(temperature=0.0)


# --- Recording ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An answer, and what the drafter says at each place of it.

    At place p the answer has p + 1 tokens, of which the cache holds all but the last. There is a
    place for each token but the last one of the answer, behind which no round begins.

    Args:
        prompt: its name; of several turns each has an answer.
        kind: of the prompt.
        max_tokens: that the answer might have had.
        text_kinds: of the text, by place, see `DraftContext`.
        drafts: by place, the longest there is room for.

    Raises:
        ConfigError: these do not belong together.
    """

    prompt: str
    kind: str
    max_tokens: int
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    text_kinds: tuple[str, ...]
    drafts: tuple[Draft, ...]

    def __post_init__(self) -> None:
        counts = (len(self.text_kinds), len(self.drafts), len(self.token_ids) - 1)
        if not self.prompt_ids or len(set(counts)) > 1:
            raise ConfigError(
                f"the answer to {self.prompt} has {counts[0]} kinds of text and {counts[1]} drafts "
                f"for {counts[2]} places, and a prompt of {len(self.prompt_ids)} tokens."
            )

    @property
    def num_places(self) -> int:
        return len(self.drafts)


@dataclass(frozen=True, kw_only=True)
class Recording:
    """Answers to sets of prompts.

    Args:
        pair: name of the target.
        ships: the pair is the one that ships with Paceline.
        max_draft_tokens: longest draft of its drafter.
        sets: answers by the name of their set.
        skipped: prompts that the model could not take, likewise.
        provenance: of the recording.
    """

    pair: str
    ships: bool
    max_draft_tokens: int
    end_token_ids: tuple[int, ...]
    sets: dict[str, tuple[Answer, ...]]
    skipped: dict[str, int]
    provenance: dict[str, object]

    @property
    def answers(self) -> list[Answer]:
        return list(chain.from_iterable(self.sets.values()))


class NotingDrafter(WrappedDrafter):
    """A drafter whose drafts are noted and kept from the target.

    Args:
        inner: makes them.
    """

    def __init__(self, inner: Drafter) -> None:
        super().__init__(inner)
        self.noted: list[Draft] = []

    def draft(self, requests: Sequence[DraftRequest]) -> list[Draft]:
        self.noted += self.inner.draft(requests)
        return [Draft(tokens=(), confidences=())] * len(requests)


class LongestDraft:
    """Asks for the most at every place, and notes what kind of text is written there."""

    def __init__(self, limit: int) -> None:
        self.text_kinds: list[str] = []
        self._plan = DraftPlan(max_draft_tokens=limit)

    def plan(self, context: DraftContext) -> DraftPlan:
        self.text_kinds.append(context.kind)
        return self._plan

    def observe(self, outcome: RoundOutcome) -> None:
        """Nothing is verified, so that nothing can be learned."""


class Recorder:
    """Answers prompts with a pair and notes the drafts of all places.

    Args:
        max_tokens: of each answer.

    Raises:
        ConfigError: the pair has no drafter.
    """

    def __init__(self, pair: LoadedPair, max_tokens: int) -> None:
        if pair.drafter is None:
            raise ConfigError(f"{pair.name} has no drafter to record. Pass one: --drafter FILE.")
        self.max_tokens = max_tokens
        self._drafter = NotingDrafter(pair.drafter)
        self._engine = Engine(replace(pair, drafter=self._drafter))

    def answers(self, prompt: BenchPrompt) -> list[Answer]:
        """The answers to all turns of a prompt.

        Raises:
            PromptError: the model cannot take one of them.
        """
        messages: list[Message] = []
        answers = []
        for turn in prompt.turns:
            messages.append(Message(role="user", content=turn))
            answer, text = self._answer(prompt, messages)
            messages.append(Message(role="assistant", content=text))
            answers.append(answer)
        return answers

    def _answer(self, prompt: BenchPrompt, messages: Sequence[Message]) -> tuple[Answer, str]:
        engine, policy = self._engine, LongestDraft(self._drafter.max_draft_tokens)
        prompt_ids = tuple(engine.encode(messages))
        self._drafter.noted = []
        result = engine.generate(
            messages, sampling=GREEDY, max_tokens=self.max_tokens, draft=policy
        )
        num_places = len(policy.text_kinds)
        nothing = repeat(Draft(tokens=(), confidences=()))  # at the end there is no room for any
        answer = Answer(
            prompt=prompt.name,
            kind=prompt.kind,
            max_tokens=min(self.max_tokens, engine.context_length - len(prompt_ids)),
            prompt_ids=prompt_ids,
            token_ids=result.token_ids,
            text_kinds=tuple(policy.text_kinds),
            drafts=tuple(islice(chain(self._drafter.noted, nothing), num_places)),
        )
        return answer, result.text


def record(
    pair: LoadedPair,
    sets: dict[str, list[BenchPrompt]],
    *,
    ships: bool,
    max_tokens: int,
    say: Callable[[str], None] = lambda text: None,
) -> Recording:
    """Record the answers to sets of prompts. A prompt that the model cannot take is skipped.

    Args:
        say: is told what was done, after each set.

    Raises:
        ConfigError: the pair has no drafter.
    """
    recorder = Recorder(pair, max_tokens)
    assert pair.drafter is not None
    found: dict[str, tuple[Answer, ...]] = {}
    skipped: dict[str, int] = {}
    for name, prompts in sets.items():
        answers: list[Answer] = []
        skipped[name] = 0
        for prompt in prompts:
            try:
                answers += recorder.answers(prompt)
            except PromptError:
                skipped[name] += 1
        found[name] = tuple(answers)
        say(f"{name}: {len(answers)} answers, {skipped[name]} prompts skipped")
    return Recording(
        pair=pair.name,
        ships=ships,
        max_draft_tokens=pair.drafter.max_draft_tokens,
        end_token_ids=tuple(sorted(pair.defaults.eos_token_ids)),
        sets=found,
        skipped=skipped,
        provenance=provenance(threads=pair.threads),
    )


def sets_of(files: Sequence[Path], limit: int | None) -> dict[str, list[BenchPrompt]]:
    """The project's own prompts and those of files, by the name of the set.

    Raises:
        PromptError: a file cannot be used.
        ConfigError: two sets have one name.
    """
    sets = {OWN: bundled_prompts()}
    for file in files:
        if file.stem in sets:
            raise ConfigError(f"two sets of prompts are called {file.stem}: rename one of them.")
        sets[file.stem] = read_prompts(file)
    return {name: select(prompts, limit=limit) for name, prompts in sets.items()}


# --- Files --------------------------------------------------------------------------------------


def write_recording(path: Path, recording: Recording) -> None:
    """
    Raises:
        ConfigError: the file cannot be written.
    """
    sets = {name: [vars(answer) for answer in found] for name, found in recording.sets.items()}
    write_document(path, {"form": FORM} | vars(recording) | {"sets": sets})


def write_document(path: Path, document: object, indent: int | None = None) -> None:
    """
    Raises:
        ConfigError: the file cannot be written.
    """
    try:
        text = json.dumps(document, allow_nan=False, indent=indent)
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror or error}.") from error


def read_recording(path: Path) -> Recording:
    """
    Raises:
        ConfigError: the file cannot be read, or holds something else.
    """
    try:
        return _recording_of(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, TypeError, RecursionError) as error:
        reason = str(error).rstrip(".")
        raise ConfigError(
            f"{path} is not a recording: {reason}. Write one with "
            f"`python benchmarks/replay_controller.py record {path}`."
        ) from error


def _recording_of(value: object) -> Recording:
    names = [field.name for field in fields(Recording)]
    kept = dict(fields_of(value, ["form", *names], "a recording"))
    if kept.pop("form") != FORM:
        raise ConfigError(f'it is not of the form "{FORM}".')
    whole_of(kept["max_draft_tokens"], "max_draft_tokens", 1, MAX_DRAFT_TOKENS)
    kept["end_token_ids"] = tuple(kept["end_token_ids"])
    sets = fields_of(kept["sets"], kept["skipped"], "the sets of a recording")
    kept["sets"] = {name: tuple(map(_answer_of, answers)) for name, answers in sets.items()}
    return Recording(**kept)


def _answer_of(value: object) -> Answer:
    names = [field.name for field in fields(Answer)]
    kept: dict[str, Any] = dict(fields_of(value, names, "an answer"))
    kept["drafts"] = [Draft(tuple(tokens), tuple(margins)) for tokens, margins in kept["drafts"]]
    for name in ("prompt_ids", "token_ids", "text_kinds", "drafts"):
        kept[name] = tuple(kept[name])
    return Answer(**kept)
