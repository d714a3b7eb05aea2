"""`paceline convert`: a Hugging Face folder to GGUF, with a report of what that costs."""

from __future__ import annotations

import json
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paceline.cli import terminal
from paceline.cli.progress import LateBar
from paceline.errors import CheckpointError, ConfigError, MissingDependencyError, OutOfMemoryError

if TYPE_CHECKING:
    from paceline.checkpoint.convert import Conversion, FileDtype
    from paceline.checkpoint.huggingface import DrafterFolder, TargetFolder
    from paceline.quality import Divergence

NUM_SHOWN = 10


class FileType(StrEnum):
    Q4_0 = "q4_0"
    Q8_0 = "q8_0"
    BF16 = "bf16"
    F32 = "f32"


DTYPES: dict[FileType, FileDtype] = {
    FileType.Q4_0: "Q4_0",
    FileType.Q8_0: "Q8_0",
    FileType.BF16: "BF16",
    FileType.F32: "F32",
}


def convert(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Hugging Face folder of a Gemma 4.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT.gguf", help="The file to write.")],
    file_type: Annotated[
        FileType,
        typer.Option("--type", help="Type of the matrices; what is sensitive is kept higher."),
    ] = FileType.Q8_0,
    drafter: Annotated[
        str,
        typer.Option(
            metavar="FOLDER|auto|none",
            help="Also write this drafter, as OUT-assistant.gguf; auto takes the one that lies "
            "with the model.",
        ),
    ] = "auto",
    tokenizer: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="tokenizer.json for a FOLDER that is a drafter."),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the whole report here, as JSON.")
    ] = None,
    no_divergence: Annotated[
        bool,
        typer.Option("--no-divergence", help="Do not run both models to compare predictions."),
    ] = False,
    no_progress: Annotated[
        bool, typer.Option("--no-progress", help="Draw no progress bars.")
    ] = False,
) -> None:
    """Convert a model, and the drafter that lies with it, to GGUF.

    llama.cpp loads the files too. The report goes to standard error, the tensors that lost most
    first.
    """
    _check_outputs(out, report)
    progress = not no_progress
    divergence = None
    if _is_drafter(folder):
        conversions = [_write_lone_drafter(folder, out, file_type, tokenizer, progress)]
    else:
        conversions = _write_pair(folder, out, file_type, drafter, progress)
        if not no_divergence:
            divergence = _divergence(folder, out, progress)
    for conversion in conversions:
        print(f"wrote {conversion.path}: {conversion.num_bytes:,} bytes")
    _show(conversions, divergence)
    if report is not None:
        report.write_text(
            json.dumps(_document(conversions, divergence, file_type), indent=1) + "\n",
            encoding="utf-8",
        )


def _check_outputs(out: Path, report: Path | None) -> None:
    """Find out before a long run whether its results can be written."""
    if out.suffix != ".gguf":
        raise ConfigError(f"{out} must end in .gguf.")
    for path in (out, report):
        if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
            raise ConfigError(f"{path} is not a file in a folder that exists.")


def _is_drafter(folder: Path) -> bool:
    from paceline.checkpoint.huggingface import is_drafter

    return is_drafter(folder)


def _write_lone_drafter(
    folder: Path, out: Path, file_type: FileType, tokenizer: Path | None, progress: bool
) -> Conversion:
    from paceline.loading import display_name

    file = tokenizer or _tokenizer_of(folder)
    return _write_drafter(
        _open_drafter(folder), out, file_type, display_name(folder), file, progress
    )


def _tokenizer_of(folder: Path) -> Path:
    """The drafter's own, or its target's, which lies beside it or around it."""
    from paceline.checkpoint.huggingface import TOKENIZER_FILE
    from paceline.loading import DRAFTER_SUFFIX

    resolved = folder.resolve()
    target = resolved.with_name(resolved.name.removesuffix(DRAFTER_SUFFIX))
    for place in (resolved, target, resolved.parent):
        if (place / TOKENIZER_FILE).is_file():
            return place / TOKENIZER_FILE
    raise CheckpointError(
        f"{folder} has no {TOKENIZER_FILE}, and its target's was not found beside it: pass it with "
        "--tokenizer."
    )


def _write_pair(
    folder: Path, out: Path, file_type: FileType, drafter: str, progress: bool
) -> list[Conversion]:
    from paceline.checkpoint.huggingface import open_target
    from paceline.config import check_pair
    from paceline.loading import DRAFTER_SUFFIX, display_name, find_drafter

    target = open_target(folder)
    name = display_name(folder)
    drafter_path = find_drafter(folder, None if drafter == "none" else drafter)
    if drafter_path is None:
        return [_write_target(target, out, file_type, name, progress)]
    opened = _open_drafter(drafter_path)
    check_pair(target.config, opened.config)
    path = out.with_name(out.stem + DRAFTER_SUFFIX + out.suffix)
    tokenizer = target.tokenizer_file
    return [
        _write_target(target, out, file_type, name, progress),
        _write_drafter(opened, path, file_type, name + DRAFTER_SUFFIX, tokenizer, progress),
    ]


def _open_drafter(folder: Path) -> DrafterFolder:
    from paceline.checkpoint.huggingface import open_drafter

    if folder.is_file():
        raise CheckpointError(f"{folder} is a file already: only folders are converted.")
    return open_drafter(folder)


def _write_target(
    target: TargetFolder, out: Path, file_type: FileType, name: str, progress: bool
) -> Conversion:
    from paceline.checkpoint.convert import convert_target
    from paceline.loading import ByteCounter

    with LateBar("converting the model", enabled=progress) as bar:
        count = ByteCounter(target.weights.num_bytes, bar).count
        return convert_target(target, out, DTYPES[file_type], name=name, count=count)


def _write_drafter(
    drafter: DrafterFolder,
    out: Path,
    file_type: FileType,
    name: str,
    tokenizer: Path,
    progress: bool,
) -> Conversion:
    from paceline.checkpoint.convert import convert_drafter
    from paceline.loading import ByteCounter

    with LateBar("converting the drafter", enabled=progress) as bar:
        count = ByteCounter(drafter.weights.num_bytes, bar).count
        return convert_drafter(
            drafter, out, DTYPES[file_type], name=name, tokenizer_file=tokenizer, count=count
        )


def _divergence(folder: Path, out: Path, progress: bool) -> Divergence | None:
    """None, with a note, where the models cannot be run."""
    from paceline.quality import measure_divergence

    try:
        with LateBar("comparing predictions", enabled=progress) as bar:
            return measure_divergence(folder, out, bar)
    except (MissingDependencyError, OutOfMemoryError) as error:
        terminal.note(f"note: predictions were not compared: {error}")
        return None


def _show(conversions: list[Conversion], divergence: Divergence | None) -> None:
    for conversion in conversions:
        _show_tensors(conversion)
    if divergence is not None:
        terminal.note(
            f"predictions over {divergence.num_positions} tokens: KL {divergence.mean_kl:.6f} "
            f"(worst {divergence.worst_kl:.6f}), same first choice "
            f"{100 * divergence.top1_agreement:.1f} %"
        )


def _show_tensors(conversion: Conversion) -> None:
    """A table, the tensors first that lost most."""
    tensors = sorted(conversion.tensors, key=lambda tensor: -tensor.relative_error)
    shown = tensors[:NUM_SHOWN]
    width = max(len(tensor.name) for tensor in shown)
    terminal.note(f"{conversion.path.name}\n  {'tensor':<{width}}  type  relative error")
    for tensor in shown:
        terminal.note(f"  {tensor.name:<{width}}  {tensor.dtype:<4}  {tensor.relative_error:14.6f}")
    if len(tensors) > len(shown):
        terminal.note(f"  and {len(tensors) - len(shown)} that lost less; --report has all.")


def _document(
    conversions: list[Conversion], divergence: Divergence | None, file_type: FileType
) -> dict[str, Any]:
    return {
        "type": file_type.value,
        "files": [
            {
                "path": str(conversion.path),
                "num_bytes": conversion.num_bytes,
                "tensors": [asdict(tensor) for tensor in conversion.tensors],
            }
            for conversion in conversions
        ],
        "divergence": None if divergence is None else asdict(divergence),
    }
