"""GGUF files of a target or a drafter, opened with every check made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from paceline.checkpoint.gguf_config import (
    CENTROIDS_KEY,
    END_TOKENS_KEY,
    ORDERING_KEY,
    read_drafter_config,
    read_generation_defaults,
    read_target_config,
)
from paceline.checkpoint.gguf_file import ArrayValue, GgufFile
from paceline.checkpoint.gguf_names import (
    CENTROIDS,
    check_gguf_tensors,
    gguf_table,
    in_metadata,
    without_centroids,
)
from paceline.checkpoint.gguf_tokenizer import TEMPLATE_KEY, ends_by_name, num_tokens
from paceline.checkpoint.huggingface import TOKENIZER_FILE, GenerationDefaults
from paceline.checkpoint.names import NameTable, TensorSpec
from paceline.checkpoint.strict_json import shown
from paceline.checkpoint.weights import Weight, Weights
from paceline.config import DrafterConfig, TargetConfig
from paceline.errors import CheckpointError

SUFFIX = ".gguf"


@dataclass(frozen=True, kw_only=True)
class TargetFile:
    """A target in one file: checked, nothing copied yet."""

    path: Path
    file: GgufFile
    config: TargetConfig
    weights: Weights
    defaults: GenerationDefaults
    chat_template: str  # Jinja text, never run; "" if the file has none

    @property
    def tokenizer_file(self) -> Path:
        """Where it exists, it goes before the file's own vocabulary."""
        return self.path.with_name(TOKENIZER_FILE)


@dataclass(frozen=True, kw_only=True)
class DrafterFile:
    """A drafter in one file: checked, nothing copied yet."""

    path: Path
    config: DrafterConfig
    weights: Weights


def open_target_file(path: Path) -> TargetFile:
    """Open a Gemma 4 target.

    Raises:
        CheckpointError: the file is missing, damaged or of another model.
    """
    file = GgufFile(path)
    config = read_target_config(file)
    _check_vocabulary(file, config.vocab_size)
    ends = () if END_TOKENS_KEY in file.metadata else ends_by_name(file)
    template = file.metadata.get(TEMPLATE_KEY)
    return TargetFile(
        path=path,
        file=file,
        config=config,
        weights=_weights(gguf_table(config), file),
        defaults=read_generation_defaults(file, config, ends),
        chat_template=template if isinstance(template, str) else "",
    )


def open_drafter_file(path: Path) -> DrafterFile:
    """Open a Gemma 4 drafter.

    Raises:
        CheckpointError: the file is missing, damaged or of another model.
    """
    file = GgufFile(path)
    config = read_drafter_config(file)
    table = gguf_table(config)
    if not config.num_centroids or CENTROIDS in file.entries:
        return DrafterFile(path=path, config=config, weights=_weights(table, file))
    weights = _weights(without_centroids(table), file)
    clusters = tuple(_from_metadata(spec, file) for spec in table.specs if in_metadata(spec))
    return DrafterFile(
        path=path, config=config, weights=Weights(tensors=weights.tensors + clusters)
    )


def _check_vocabulary(file: GgufFile, vocab_size: int) -> None:
    count = num_tokens(file)
    if count != vocab_size:
        raise CheckpointError(
            f"{file.path} has {count} tokens, but the embedding has {vocab_size} rows: the "
            "vocabulary does not fit. Convert the model again."
        )


def _weights(table: NameTable, file: GgufFile) -> Weights:
    check_gguf_tensors(table, file.entries, str(file.path))
    return Weights(tensors=tuple(_weight(spec, file) for spec in table.specs))


def _weight(spec: TensorSpec, file: GgufFile) -> Weight:
    name = spec.file_name
    return Weight(
        spec=spec,
        where=f"{name} in {file.path}",
        dtype=file.entries[name].dtype,
        data=file.tensor(name),
        file=file.range_of(name),
    )


def _from_metadata(spec: TensorSpec, file: GgufFile) -> Weight:
    """The centroids or the token ordering of a file that Paceline wrote."""
    ordering = spec.kind == "token_ordering"
    key = ORDERING_KEY if ordering else CENTROIDS_KEY
    value = file.metadata.get(key)
    kind = "i32" if ordering else "f32"
    length = int(np.prod(spec.shape))
    if not isinstance(value, ArrayValue) or value.kind != kind or value.length != length:
        raise CheckpointError(
            f"{key} in {file.path} is {shown(value)}: expected an array of {length} {kind}."
        )
    data = value.numbers()
    if ordering:
        data = data.astype(np.int64)
    return Weight(
        spec=spec,
        where=f"{key} in {file.path}",
        dtype="I64" if ordering else "F32",
        data=data.reshape(spec.shape),
    )
