"""Hugging Face folders of a target or a drafter: opened with every check made, and written.

Owns generation_config.json. The pieces are next door: `config_file`, `names`, `weights`,
`safetensors_file`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from paceline.checkpoint.config_file import (
    CONFIG_FILE,
    DRAFTER_TYPES,
    drafter_json,
    read_drafter_config,
    read_target_config,
    target_json,
)
from paceline.checkpoint.fields import Fields, unique
from paceline.checkpoint.names import NameTable, drafter_table, target_prefix, target_table
from paceline.checkpoint.safetensors_file import SINGLE_FILE, open_tensors, write_safetensors
from paceline.checkpoint.strict_json import read_json_object, read_small_text
from paceline.checkpoint.weights import Weights, all_usable, is_permutation, open_weights
from paceline.config import MAX_VOCABULARY, DrafterConfig, TargetConfig, check_range
from paceline.errors import CheckpointError, ConfigError

GENERATION_FILE = "generation_config.json"
TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
CHAT_TEMPLATE_FILE = "chat_template.jinja"

StoredDtype = Literal["BF16", "F32"]
TORCH_NAMES = {"BF16": "bfloat16", "F32": "float32"}

ASSISTANT_TOKENS = 4
"""`num_assistant_tokens` of a written drafter: transformers 5.22.2 fails without one."""

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class GenerationDefaults:
    """How a model's maker wants its tokens chosen.

    The defaults here stand for a maker who says nothing: the most likely token, as transformers
    does without `do_sample`; no filter that nobody asked for.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    eos_token_ids: tuple[int, ...] = ()
    suppressed_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("temperature", self.temperature, 0.0, 2.0),
            ("top_p", self.top_p, 1e-6, 1.0),
        ):
            if not low <= value <= high:
                raise ConfigError(f"{name} {value} is out of range: expected {low} to {high}.")
        check_range("top_k", self.top_k, 0, MAX_VOCABULARY)


@dataclass(frozen=True, kw_only=True)
class TargetFolder:
    """A target on disk: checked, nothing copied yet."""

    path: Path
    config: TargetConfig
    weights: Weights
    defaults: GenerationDefaults
    chat_template: str  # Jinja text, never run; "" if the folder has none

    @property
    def tokenizer_file(self) -> Path:
        return self.path / TOKENIZER_FILE


@dataclass(frozen=True, kw_only=True)
class DrafterFolder:
    """A drafter on disk: checked, nothing copied yet."""

    path: Path
    config: DrafterConfig
    weights: Weights


def open_target(folder: Path) -> TargetFolder:
    """Open a Gemma 4 target.

    Raises:
        CheckpointError: a file is missing, damaged or of another model.
    """
    config = read_target_config(config_file(folder))
    files = open_tensors(folder)
    table = target_table(config, target_prefix(files.entries, str(folder)))
    return TargetFolder(
        path=folder,
        config=config,
        weights=open_weights(table, files, str(folder)),
        defaults=read_generation_defaults(folder, config),
        chat_template=read_chat_template(folder),
    )


def is_drafter(folder: Path) -> bool:
    """Whether a folder's config.json says that it holds a drafter.

    Raises:
        CheckpointError: it has none, or a damaged one.
    """
    return read_json_object(config_file(folder)).get("model_type") in DRAFTER_TYPES


def open_drafter(folder: Path) -> DrafterFolder:
    """Open a Gemma 4 drafter.

    Raises:
        CheckpointError: a file is missing, damaged or of another model.
    """
    config = read_drafter_config(config_file(folder))
    weights = open_weights(drafter_table(config), open_tensors(folder), str(folder))
    return DrafterFolder(path=folder, config=config, weights=weights)


def config_file(folder: Path) -> Path:
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise CheckpointError(
            f"{folder} has no {CONFIG_FILE}: expected the folder of a Hugging Face model."
        )
    return path


def read_chat_template(folder: Path) -> str:
    """The folder's Jinja template as text, "" if there is none.

    Raises:
        CheckpointError: a file is too large, not UTF-8 or not JSON.
    """
    if (path := folder / CHAT_TEMPLATE_FILE).is_file():
        return read_small_text(path)
    if not (path := folder / TOKENIZER_CONFIG_FILE).is_file():
        return ""
    template = read_json_object(path).get("chat_template")
    return template if isinstance(template, str) else ""


def read_generation_defaults(folder: Path, config: TargetConfig) -> GenerationDefaults:
    """Sampling settings, end tokens and suppressed tokens (reference section 6.5).

    End tokens are those of config.json and generation_config.json together. Without the file, or
    without `do_sample`, the most likely token is taken.

    Raises:
        CheckpointError: the file is damaged or a value is out of range.
    """
    path = folder / GENERATION_FILE
    if not path.exists():
        return GenerationDefaults(eos_token_ids=config.eos_token_ids)
    fields = Fields(read_json_object(path), str(path))
    sampled = fields.flag("do_sample", False)
    eos = fields.token_ids("eos_token_id", ())
    suppressed = fields.token_ids("suppress_tokens", ())
    for token in eos + suppressed:
        if token >= config.vocab_size:
            raise CheckpointError(
                f"{path} names token {token}, but the vocabulary has {config.vocab_size} tokens."
            )
    try:
        return GenerationDefaults(
            temperature=fields.number("temperature", 1.0) if sampled else 0.0,
            top_k=fields.whole("top_k", 0, 0, MAX_VOCABULARY, null=0) if sampled else 0,
            top_p=fields.number("top_p", 1.0) if sampled else 1.0,
            eos_token_ids=unique(config.eos_token_ids + eos),
            suppressed_token_ids=unique(suppressed),
        )
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error


def write_target_folder(
    folder: Path,
    config: TargetConfig,
    weights: Arrays,
    *,
    defaults: GenerationDefaults | None = None,
    tokenizer_file: Path | None = None,
    dtype: StoredDtype = "BF16",
) -> None:
    """Write a target that Paceline and transformers load.

    Args:
        weights: float32 arrays by the names of `runtime.torch.models.TargetModel`'s state.
        defaults: become generation_config.json.
        tokenizer_file: a tokenizer.json to copy.
        dtype: how the weights are stored; BF16 rounds to nearest even.

    Raises:
        CheckpointError: a weight is missing, unknown, of a wrong shape, or not finite.
    """
    table = target_table(config)
    _check_arrays(table, weights)
    folder.mkdir(parents=True, exist_ok=True)
    _write_weights(folder, table, weights, dtype)
    if defaults is not None:
        _write_json(folder / GENERATION_FILE, _generation_json(config, defaults))
    if tokenizer_file is not None:
        shutil.copyfile(tokenizer_file, folder / TOKENIZER_FILE)
    _write_json(folder / CONFIG_FILE, target_json(config, TORCH_NAMES[dtype]))


def write_drafter_folder(
    folder: Path, config: DrafterConfig, weights: Arrays, *, dtype: StoredDtype = "BF16"
) -> None:
    """Write a drafter that Paceline and transformers load.

    Args:
        weights: float32 arrays by the names of `runtime.torch.models.DrafterModel`'s state, and
            int64 for `masked_embedding.token_ordering`.
        dtype: how the weights are stored; BF16 rounds to nearest even.

    Raises:
        CheckpointError: a weight is missing, unknown, of a wrong shape, or not finite.
    """
    table = drafter_table(config)
    _check_arrays(table, weights)
    folder.mkdir(parents=True, exist_ok=True)
    _write_weights(folder, table, weights, dtype)
    _write_json(folder / GENERATION_FILE, {"num_assistant_tokens": ASSISTANT_TOKENS})
    _write_json(folder / CONFIG_FILE, drafter_json(config, TORCH_NAMES[dtype]))


def _check_arrays(table: NameTable, weights: Arrays) -> None:
    specs = {spec.name: spec for spec in table.specs}
    for name in weights.keys() ^ specs.keys():
        raise CheckpointError(
            f"cannot write the model: {name} is {'missing' if name in specs else 'not part of it'}."
        )
    for name, spec in specs.items():
        array = weights[name]
        wanted = np.int64 if spec.kind == "token_ordering" else np.float32
        if array.shape != spec.shape or array.dtype != wanted:
            raise CheckpointError(
                f"cannot write {name}: got {array.dtype} {list(array.shape)}, expected "
                f"{np.dtype(wanted)} {list(spec.shape)}."
            )
        if spec.kind == "weight" and not all_usable(array, "F32"):
            raise CheckpointError(f"cannot write {name}: it holds a NaN or an infinite value.")
        if spec.kind == "token_ordering" and not is_permutation(array):
            raise CheckpointError(f"cannot write {name}: each token id must be there exactly once.")


def _write_weights(folder: Path, table: NameTable, weights: Arrays, dtype: StoredDtype) -> None:
    write_safetensors(
        folder / SINGLE_FILE,
        {table.file_name(spec): weights[spec.name] for spec in table.specs},
        dtypes={table.file_name(spec): dtype for spec in table.specs if spec.kind == "weight"},
        metadata={"format": "pt"},  # as transformers writes it
    )


def _generation_json(config: TargetConfig, defaults: GenerationDefaults) -> dict[str, Any]:
    result: dict[str, Any] = {
        "pad_token_id": config.pad_token_id,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(defaults.eos_token_ids),
        "do_sample": defaults.temperature > 0,
    }
    if defaults.temperature > 0:
        result["temperature"] = defaults.temperature
        result["top_k"] = defaults.top_k
        result["top_p"] = defaults.top_p
    if defaults.suppressed_token_ids:
        result["suppress_tokens"] = list(defaults.suppressed_token_ids)
    return result


def _write_json(path: Path, value: dict[str, Any]) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)
