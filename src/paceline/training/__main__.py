"""`python -m paceline.training STEP`: makes the pair that ships, step by step.

Every step reads and writes one run folder, and goes on where it stood when started again.
"""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer

from paceline.engine import Engine
from paceline.errors import ConfigError, PacelineError
from paceline.runtime.torch.models import TargetModel
from paceline.speculative.learned import profiles_file, write_profiles
from paceline.tokenizer import Tokenizer
from paceline.training.corpus import Document, read_corpus
from paceline.training.drafter import DrafterRun, train_drafter
from paceline.training.evaluate import evaluate, held_out_prompts
from paceline.training.export import export_drafter, export_target, read_run_state
from paceline.training.profile import TEMPERATURES, learn_profiles
from paceline.training.streams import build_streams
from paceline.training.target import SHIPPED_TARGET, TargetRun, train_target
from paceline.training.vocabulary import save_vocabulary, train_vocabulary

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)
Run = Annotated[Path, typer.Option(help="Folder of the run.")]
Corpus = Annotated[Path, typer.Option(help="Folder with the corpus (see its SOURCES.md).")]
Minutes = Annotated[
    float, typer.Option(min=0.1, help="Length of the run; evaluation is not counted.")
]


class Position(StrEnum):
    """The choices of `DraftPosition`."""

    LAST_WRITTEN = "last_written"
    NEXT = "next"


DEFAULT_RUN = Path("runs/default")
DEFAULT_CORPUS = Path("../shared/corpus")


def _texts(documents: list[Document]) -> list[str]:
    pairs = ((document.prompt or "", document.text) for document in documents)
    return list(chain.from_iterable(pairs))


@app.command()
def prepare(run: Run = DEFAULT_RUN, corpus: Corpus = DEFAULT_CORPUS) -> None:
    """Learn the vocabulary and turn the corpus into token streams."""
    documents = list(read_corpus(corpus))
    training = [document for document in documents if not document.held_out]
    vocabulary = train_vocabulary(_texts(training), SHIPPED_TARGET.vocab_size)
    save_vocabulary(vocabulary, run / "tokenizer.json")
    build_streams(documents, Tokenizer.from_file(run / "tokenizer.json"), run / "streams")


@app.command()
def target(run: Run = DEFAULT_RUN, minutes: Minutes = 90.0) -> None:
    """Train the target."""
    train_target(TargetRun(folder=run, minutes=minutes))


@app.command()
def drafter(run: Run = DEFAULT_RUN, minutes: Minutes = 25.0) -> None:
    """Train the drafter against the run's target, frozen."""
    state = read_run_state(run / "target.state")
    model = TargetModel(SHIPPED_TARGET)
    model.load_state_dict(state)
    train_drafter(DrafterRun(folder=run, minutes=minutes), model)


@app.command()
def export(folder: Path, run: Run = DEFAULT_RUN) -> None:
    """Write the pair as Hugging Face folders: FOLDER and FOLDER/assistant."""
    export_target(run, folder)
    export_drafter(run, folder)


@app.command(name="evaluate")
def evaluate_pair(
    folder: Annotated[
        Path | None, typer.Argument(help="The pair; default: the one that ships.")
    ] = None,
    corpus: Corpus = DEFAULT_CORPUS,
    draft: Annotated[int, typer.Option(help="Tokens to draft each round.")] = 4,
    per_kind: Annotated[int, typer.Option(help="Held-out prompts of each kind.")] = 24,
    position: Annotated[
        Position,
        typer.Option(help="Where draft steps stand (docs/decisions/0002)."),
    ] = Position.LAST_WRITTEN,
) -> None:
    """Measure acceptance on held-out prompts; prints one JSON document."""
    engine = Engine.load(folder)
    drafter: Any = engine.pair.drafter
    if drafter is not None:
        drafter.position = position.value  # both runtimes' drafters have one
    prompts = held_out_prompts(read_corpus(corpus), per_kind)
    typer.echo(json.dumps(evaluate(engine, prompts, draft), indent=1))


@app.command()
def profile(
    target: Annotated[
        Path | None, typer.Argument(help="Folder or file; default: the one that ships.")
    ] = None,
    drafter: Annotated[
        Path | None, typer.Option(help="Folder or file; default: the one that lies with it.")
    ] = None,
    corpus: Corpus = DEFAULT_CORPUS,
    per_kind: Annotated[int, typer.Option(min=1, help="Held-out prompts of each kind.")] = 40,
) -> None:
    """Learn how often drafts are taken, on held-out prompts, and write it beside the drafter.

    New engines then know from their first draft on what it is worth. Depends on the pair and the
    prompts, not on the machine.
    """
    engine = Engine.load(target, drafter or "auto")
    if engine.pair.drafter_path is None:
        raise ConfigError("no drafter lies with this target: name one with --drafter.")
    path = profiles_file(engine.pair.drafter_path)
    prompts = held_out_prompts(read_corpus(corpus), per_kind)
    num_answers = len(TEMPERATURES) * sum(map(len, prompts.values()))
    with typer.progressbar(length=num_answers, label="answers", file=sys.stderr) as bar:
        profiles = learn_profiles(engine, prompts, lambda done, _: bar.update(done - bar.pos))
    write_profiles(path, profiles)
    typer.echo(f"wrote {path}")


def main() -> None:
    try:
        app()
    except PacelineError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
