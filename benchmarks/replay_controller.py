"""Judges the draft length controller on recorded answers and a simulated machine, free of noise.

    python benchmarks/replay_controller.py record FILE.json --prompts gsm8k_test.jsonl --limit 60
    python benchmarks/replay_controller.py replay FILE.json

A recording holds greedy answers of a pair and, at every place of each, the longest draft that the
drafter makes there: whatever a policy asks for is then known, and so is what the target takes of
it. The replay runs the real controller over the answers of each set, with its drafts from texts,
one engine for all of them. What a round takes is what it takes on a simulated machine, to which
what deciding takes is added; the controller is told of noise and hiccups that are not counted.

- each kind of prompt: speed over drafting off, and over the fixed length that is best for it;
- drafters that can only lose, one always wrong, one ten times as slow, and one that is both: loss
  to drafting off, without texts to draft from.

The same recording and source give the same figures to the bit. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, repeat
from pathlib import Path
from random import Random

from paceline.bench.provenance import provenance
from paceline.config import check_range
from paceline.engine import MAX_MAX_TOKENS
from paceline.errors import ConfigError, PacelineError
from paceline.loading import find_drafter, find_target, load_pair
from paceline.runtime.protocols import Draft
from paceline.speculative.acceptance import Profiles
from paceline.speculative.learned import profiles_file, read_profiles
from paceline.speculative.simulation import Machine
from recorded_answers import (
    Answer,
    Recording,
    read_recording,
    record,
    sets_of,
    write_document,
    write_recording,
)
from replayed_answers import (
    FREE,
    MACHINE,
    Deciding,
    Replay,
    Setting,
    SimulatedEngine,
)

FIXED_LENGTHS = (1, 2, 3, 4, 6, 8)
FEW, BAD = 0.98, 0.94
"""Prompts that run slower than these shares of the speed without drafting are counted."""

ADVERSE_ANSWERS, ADVERSE_TOKENS, ADVERSE_PROMPT, ADVERSE_KIND = 12, 200, 50, "prose"
SLOWNESS = 10.0
NOT_A_TOKEN = -1


# --- Sets of answers ----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Timed:
    """Seconds of an answer: without drafting, by fixed length, and with the controller."""

    answer: Answer
    off_s: float
    fixed_s: dict[int, float]
    auto: Replay


@dataclass(frozen=True, kw_only=True)
class Row:
    """Answers to prompts of one kind, or of all.

    Args:
        tokens: that rounds have emitted.
        speed: of the controller, over drafting off.
        best_length: fixed length of least time, 0 if that is drafting off; of all kinds together
            there is none, for each has its own.
        best_speed: with the best length, over drafting off.
        against_best: speed of the controller over that of the best length.
    """

    kind: str
    answers: int
    tokens: int
    speed: float
    best_length: int | None
    best_speed: float
    against_best: float


@dataclass(frozen=True, kw_only=True)
class SetResult:
    """A set of prompts.

    Args:
        skipped: prompts that the model could not take.
        below_few: prompts that ran at less than 0.98 of the speed without drafting.
        below_bad: those at less than 0.94 of it.
        worst: name of the slowest prompt; its speed, and tokens of its answers.
        sources: share of rounds by who drafted.
    """

    name: str
    kinds: tuple[Row, ...]
    total: Row
    prompts: int
    skipped: int
    below_few: int
    below_bad: int
    worst: str
    worst_speed: float
    worst_tokens: int
    sources: dict[str, float]


def timed(answers: Sequence[Answer], setting: Setting) -> list[Timed]:
    """The answers by one new engine, and by each fixed length."""
    engine = SimulatedEngine(setting)
    lengths = [length for length in FIXED_LENGTHS if length <= setting.limit]
    return [
        Timed(
            answer=answer,
            off_s=setting.off_s(answer),
            fixed_s={length: setting.fixed_s(answer, length) for length in lengths},
            auto=engine.answer(answer),
        )
        for answer in answers
        if answer.num_places
    ]


def judge(name: str, answers: Sequence[Answer], skipped: int, setting: Setting) -> SetResult:
    """Replay a set.

    Raises:
        ConfigError: none of its answers has a round.
    """
    found = timed(answers, setting)
    if not found:
        raise ConfigError(
            f"no answer of the set {name} has a second token: record without it, or more of it."
        )
    speeds = _speeds(found)
    worst = min(speeds, key=lambda prompt: (speeds[prompt], prompt))
    kinds = kind_rows(found)
    return SetResult(
        name=name,
        kinds=kinds,
        total=total_row(kinds, found),
        prompts=len(speeds),
        skipped=skipped,
        below_few=sum(speed < FEW for speed in speeds.values()),
        below_bad=sum(speed < BAD for speed in speeds.values()),
        worst=worst,
        worst_speed=speeds[worst],
        worst_tokens=sum(len(t.answer.token_ids) for t in found if t.answer.prompt == worst),
        sources=_shares(chain.from_iterable(t.auto.sources for t in found)),
    )


def kind_rows(found: Sequence[Timed]) -> tuple[Row, ...]:
    """A row for each kind of prompt, by name."""
    kinds = sorted({t.answer.kind for t in found})
    return tuple(_kind_row(kind, [t for t in found if t.answer.kind == kind]) for kind in kinds)


def _kind_row(kind: str, found: Sequence[Timed]) -> Row:
    off_s, auto_s = _off_and_auto_s(found)
    by_length = {0: off_s}
    for length in found[0].fixed_s:
        by_length[length] = sum(t.fixed_s[length] for t in found)
    best = min(by_length, key=by_length.__getitem__)
    return _row(kind, found, off_s, auto_s, best, by_length[best])


def total_row(kinds: Sequence[Row], found: Sequence[Timed]) -> Row:
    """All kinds, against the best length of each."""
    off_s, auto_s = _off_and_auto_s(found)
    off_by_kind = {
        row.kind: sum(t.off_s for t in found if t.answer.kind == row.kind) for row in kinds
    }
    best_s = sum(off_by_kind[row.kind] / row.best_speed for row in kinds)
    return _row("all", found, off_s, auto_s, None, best_s)


def _off_and_auto_s(found: Sequence[Timed]) -> tuple[float, float]:
    return sum(t.off_s for t in found), sum(t.auto.seconds for t in found)


def _row(
    kind: str,
    found: Sequence[Timed],
    off_s: float,
    auto_s: float,
    best_length: int | None,
    best_s: float,
) -> Row:
    return Row(
        kind=kind,
        answers=len(found),
        tokens=sum(t.answer.num_places for t in found),
        speed=off_s / auto_s,
        best_length=best_length,
        best_speed=off_s / best_s,
        against_best=best_s / auto_s,
    )


def _speeds(found: Sequence[Timed]) -> dict[str, float]:
    """Speed over drafting off by prompt, all its turns together."""
    turns: dict[str, list[Timed]] = {}
    for t in found:
        turns.setdefault(t.answer.prompt, []).append(t)
    seconds = {prompt: _off_and_auto_s(answers) for prompt, answers in turns.items()}
    return {prompt: off_s / auto_s for prompt, (off_s, auto_s) in seconds.items()}


def _shares(names: Iterator[str]) -> dict[str, float]:
    counts = Counter(names)
    return {name: counts[name] / counts.total() for name in sorted(counts)}


# --- Drafters that can only lose ----------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Adversity:
    """Loss to drafting off, as a share of its time.

    Args:
        engine: what it knew of the drafter when the first answer began.
        mean_loss: of all answers, which one engine gives one after another.
    """

    drafter: str
    engine: str
    mean_loss: float
    first_loss: float
    worst_loss: float


def adversities(recording: Recording, setting: Setting) -> list[Adversity]:
    """Each such drafter, met by an engine that knows nothing of it and, where there are profiles,
    by one that begins with them.

    Raises:
        ConfigError: the recording holds no draft that is as long as the drafter's longest.
    """
    wrong, right = wrong_answers(recording, setting.seed), joined_answers(recording)
    machine = setting.machine
    slow = replace(
        machine,
        draft_fixed=SLOWNESS * machine.draft_fixed,
        draft_step=SLOWNESS * machine.draft_step,
    )
    drafters = (
        ("always wrong", wrong, machine),
        ("ten times slower", right, slow),
        ("both", wrong, slow),
    )
    engines = [("knows nothing", replace(setting, new_profiles=lambda: None))]
    if setting.new_profiles() is not None:
        engines.append(("knows its profile", setting))
    return [
        _adversity(drafter, engine, answers, known, real)
        for drafter, answers, real in drafters
        for engine, known in engines
    ]


def _adversity(
    drafter: str, engine: str, answers: Sequence[Answer], setting: Setting, real: Machine
) -> Adversity:
    simulated = SimulatedEngine(setting, real)
    losses = [
        simulated.answer(answer, has_texts=False).seconds / setting.off_s(answer) - 1.0
        for answer in answers
    ]
    return Adversity(
        drafter=drafter,
        engine=engine,
        mean_loss=statistics.fmean(losses),
        first_loss=losses[0],
        worst_loss=max(losses),
    )


def whole_places(answer: Answer, limit: int) -> int:
    """How many places of an answer have room for the longest draft."""
    return max(0, min(answer.num_places, answer.max_tokens - 1 - limit))


def wrong_answers(recording: Recording, seed: int) -> list[Answer]:
    """Texts of which the drafter says nothing right, as sure of it as it was in the recording."""
    limit, random = recording.max_draft_tokens, Random(seed)
    margins = [
        draft.confidences
        for answer in recording.answers
        for draft in answer.drafts[: whole_places(answer, limit)]
        if len(draft.confidences) == limit
    ]
    if not margins:
        raise _nothing_whole(limit)
    num_places = ADVERSE_TOKENS - 1
    return [
        _adverse_answer(
            number,
            token_ids=(0,) * ADVERSE_TOKENS,
            text_kinds=(ADVERSE_KIND,) * num_places,
            drafts=tuple(
                Draft((NOT_A_TOKEN,) * limit, random.choice(margins)) for _ in range(num_places)
            ),
        )
        for number in range(ADVERSE_ANSWERS)
    ]


def joined_answers(recording: Recording) -> list[Answer]:
    """Recorded answers one after another, each as far as its drafts are as long as they can be."""
    limit = recording.max_draft_tokens
    pieces = [answer for answer in recording.answers if whole_places(answer, limit)]
    if not pieces:
        raise _nothing_whole(limit)
    starts = (number * len(pieces) // ADVERSE_ANSWERS for number in range(ADVERSE_ANSWERS))
    return [
        _joined(number, pieces[start:] + pieces[:start], limit)
        for number, start in enumerate(starts)
    ]


def _joined(number: int, pieces: Sequence[Answer], limit: int) -> Answer:
    token_ids: list[int] = []
    text_kinds: list[str] = []
    drafts: list[Draft] = []
    for piece in chain.from_iterable(repeat(pieces)):
        if len(token_ids) >= ADVERSE_TOKENS:
            break
        num_places = whole_places(piece, limit)
        token_ids += piece.token_ids[:num_places]
        text_kinds += piece.text_kinds[:num_places]
        drafts += piece.drafts[:num_places]
    return _adverse_answer(
        number,
        token_ids=tuple(token_ids[:ADVERSE_TOKENS]),
        text_kinds=tuple(text_kinds[: ADVERSE_TOKENS - 1]),
        drafts=tuple(drafts[: ADVERSE_TOKENS - 1]),
    )


def _adverse_answer(
    number: int,
    *,
    token_ids: tuple[int, ...],
    text_kinds: tuple[str, ...],
    drafts: tuple[Draft, ...],
) -> Answer:
    return Answer(
        prompt=f"adverse/{number}",
        kind="adverse",
        max_tokens=ADVERSE_TOKENS,
        prompt_ids=tuple(range(ADVERSE_PROMPT)),
        token_ids=token_ids,
        text_kinds=text_kinds,
        drafts=drafts,
    )


def _nothing_whole(limit: int) -> ConfigError:
    return ConfigError(
        f"the recording holds no draft of {limit} tokens. Record answers that are longer: "
        f"--max-tokens {4 * (limit + 1)}."
    )


# --- Report -------------------------------------------------------------------------------------


def table(result: SetResult) -> list[str]:
    """What is printed of a set."""
    skipped = f", {result.skipped} prompts skipped" if result.skipped else ""
    lines = [
        f"{result.name}: {result.prompts} prompts{skipped}",
        f"{'kind':18} {'answers':>7} {'tokens':>7} {'auto':>7} {'best':>5} {'fixed':>7}"
        f" {'auto to best':>13}",
    ]
    for row in (*result.kinds, result.total):
        best = "each" if row.best_length is None else row.best_length or "off"
        lines.append(
            f"{row.kind:18} {row.answers:7} {row.tokens:7} {row.speed:7.3f} {best:>5}"
            f" {row.best_speed:7.3f} {row.against_best:13.3f}"
        )
    shares = ", ".join(f"{name} {share:.1%}" for name, share in result.sources.items())
    return [
        *lines,
        f"below {FEW} of off: {result.below_few} of {result.prompts} prompts, below {BAD}: "
        f"{result.below_bad}; the worst, {result.worst} ({result.worst_tokens} tokens), at "
        f"{result.worst_speed:.3f}",
        f"rounds by source: {shares}",
    ]


def adverse_table(found: Sequence[Adversity]) -> list[str]:
    """What is printed of drafters that can only lose."""
    lines = [
        f"loss to drafting off, {ADVERSE_TOKENS} tokens, {ADVERSE_ANSWERS} answers",
        f"{'drafter':17} {'engine':18} {'mean':>7} {'first':>7} {'worst':>7}",
    ]
    return lines + [
        f"{a.drafter:17} {a.engine:18} {a.mean_loss:7.2%} {a.first_loss:7.2%} {a.worst_loss:7.2%}"
        for a in found
    ]


# --- Command line -------------------------------------------------------------------------------


def profiles_of(
    recording: Recording, drafter: Path | None, *, fresh: bool
) -> Callable[[], Profiles | None]:
    """What is known of the recorded drafter before its first draft: what lies beside it.

    Raises:
        ConfigError: it is not known where that is.
        CheckpointError: there is no such drafter.
    """
    if fresh:
        return lambda: None
    if drafter is None and not recording.ships:
        raise ConfigError(
            f"the recording is of {recording.pair}, which does not ship with Paceline. Pass its "
            "drafter, beside which its acceptance lies: --drafter FILE. Or pass --fresh."
        )
    found = find_drafter(find_target(None), "auto" if drafter is None else drafter)
    return lambda: None if found is None else read_profiles(profiles_file(found))


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record", help="write answers and drafts of a pair to a file")
    recording.add_argument("records", type=Path, help="the file")
    add = recording.add_argument
    add("--model", type=Path, help="another pair than the one that ships")
    add("--drafter", type=Path, help="of that model")
    add("--threads", type=int)
    add("--prompts", type=Path, action="append", default=[], help="one more set; may be repeated")
    add("--max-tokens", type=int, default=64, help="of each answer")
    add("--limit", type=int, help="prompts of each kind")
    replaying = commands.add_parser("replay", help="judge the controller on such a file")
    replaying.add_argument("records", type=Path, help="the file")
    add = replaying.add_argument
    add("--drafter", type=Path, help="the recorded one, if the pair does not ship")
    add("--fresh", action="store_true", help="begin without the acceptance beside the drafter")
    add("--free-deciding", action="store_true", help="do not count what deciding takes")
    add("--seed", type=int, default=0, help="of the noise")
    add("--json", type=Path, help="write the JSON document there too")
    asked = parser.parse_args(arguments)
    if asked.command == "record" and (asked.model is None) != (asked.drafter is None):
        recording.error("--model and --drafter go together")
    if asked.command == "replay" and asked.fresh and asked.drafter is not None:
        replaying.error("--fresh reads nothing beside a drafter: leave out --drafter")
    return asked


def check_folder(path: Path) -> None:
    """Find out before the long part.

    Raises:
        ConfigError: there is no folder to write the file to.
    """
    if not path.parent.is_dir():
        raise ConfigError(f"{path} cannot be written: there is no folder {path.parent}.")


def run_record(asked: argparse.Namespace) -> dict[str, object]:
    """Record, and say what was recorded.

    Raises:
        PacelineError: an option is not possible, or a file cannot be used.
    """
    check_range("--max-tokens", asked.max_tokens, 2, MAX_MAX_TOKENS)
    if asked.limit is not None:
        check_range("--limit", asked.limit, 1, MAX_MAX_TOKENS)
    check_folder(asked.records)
    sets = sets_of(asked.prompts, asked.limit)
    pair = load_pair(asked.model, asked.drafter or "auto", threads=asked.threads)
    ships = asked.model is None
    recording = record(pair, sets, ships=ships, max_tokens=asked.max_tokens, say=_say)
    write_recording(asked.records, recording)
    return {
        "recorded": {name: len(answers) for name, answers in recording.sets.items()},
        "skipped": recording.skipped,
        "model": recording.pair,
        "max_tokens": asked.max_tokens,
        "provenance": recording.provenance,
    }


def run_replay(asked: argparse.Namespace) -> dict[str, object]:
    """Replay, print the tables, keep the results.

    Raises:
        PacelineError: an option is not possible, or a file cannot be used.
    """
    check_range("--seed", asked.seed, 0, 1 << 32)
    if asked.json is not None:
        check_folder(asked.json)
    recording = read_recording(asked.records)
    setting = Setting(
        machine=MACHINE,
        limit=recording.max_draft_tokens,
        end_token_ids=frozenset(recording.end_token_ids),
        deciding=FREE if asked.free_deciding else Deciding(),
        new_profiles=profiles_of(recording, asked.drafter, fresh=asked.fresh),
        seed=asked.seed,
    )
    document = document_of(recording, setting, print)
    document["provenance"] = provenance(threads=1)
    if asked.json is not None:
        write_document(asked.json, document, indent=1)
    return document


def document_of(
    recording: Recording, setting: Setting, say: Callable[[str], None]
) -> dict[str, object]:
    """All that a replay finds.

    Args:
        say: is told each line of the tables, as soon as it is known.

    Raises:
        ConfigError: the recording does not hold enough.
    """
    knows_profile = setting.new_profiles() is not None
    say(f"an engine that knows {'its drafter' if knows_profile else 'no drafter'} begins each set")
    results = []
    for name, answers in recording.sets.items():
        results.append(judge(name, answers, recording.skipped[name], setting))
        say("\n".join(["", *table(results[-1])]))
    adverse = adversities(recording, setting)
    say("\n".join(["", *adverse_table(adverse)]))
    return {
        "sets": [asdict(result) for result in results],
        "adverse": [asdict(found) for found in adverse],
        "model": recording.pair,
        "knows_profile": knows_profile,
        "machine": asdict(setting.machine),
        "deciding": asdict(setting.deciding),
        "seed": setting.seed,
        "recorded": recording.provenance,
    }


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    asked = parse(arguments)
    try:
        document = run_record(asked) if asked.command == "record" else run_replay(asked)
    except PacelineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(document, allow_nan=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
