"""Converts an opened Hugging Face folder to a GGUF file, slice by slice.

Owns the choice of a type for each tensor, and measures what each loses. llama.cpp loads the files.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from paceline.checkpoint.gguf_config import CENTROIDS_KEY, ORDERING_KEY
from paceline.checkpoint.gguf_format import Value
from paceline.checkpoint.gguf_metadata import drafter_metadata, rope_divisors, target_metadata
from paceline.checkpoint.gguf_names import ROPE_FREQUENCIES, gguf_name
from paceline.checkpoint.gguf_tokenizer import (
    check_same_tokens,
    document_of,
    tokenizer_metadata,
)
from paceline.checkpoint.gguf_writer import TensorToWrite, write_gguf
from paceline.checkpoint.huggingface import DrafterFolder, TargetFolder
from paceline.checkpoint.names import TensorSpec
from paceline.checkpoint.quantise import BLOCK, BLOCK_BYTES, as_bytes, dequantise, quantise
from paceline.checkpoint.weights import Weight, Weights
from paceline.config import DecoderConfig, DrafterConfig
from paceline.errors import CheckpointError
from paceline.tokenizer import Tokenizer, read_document

FileDtype = Literal["Q4_0", "Q8_0", "BF16", "F32"]

ALWAYS_F32 = ("router.proj.weight",)
NEVER_BELOW_Q8_0 = (
    "embed_tokens.weight",
    "embed_tokens_per_layer.weight",
    "per_layer_model_projection.weight",
    "per_layer_input_gate.weight",
    "per_layer_projection.weight",
    "pre_projection.weight",
    "post_projection.weight",
)
"""Embedding and head, per-layer embeddings and what leads in and out of them (reference section
8: 4 bits there double the divergence for 1 % of the size), and the drafter's ends."""

DRAFTER_HEAD = "embed_tokens.weight"
"""A drafter's embedding is only its output head, and most of its bytes: it has the file's own type.
The shipped pair in Q4_0 (42 prompts of 64 tokens, four a draft) emitted 3.065 tokens a round with
it in Q4_0 and 3.063 in Q8_0; at temperature 1, 2.094 and 2.090. E2B's drafter shrinks by a third.
"""

CountBytes = Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class TensorQuality:
    """What one tensor lost: `relative_error` is |stored - original| / |original|, L2 norms."""

    name: str
    dtype: str
    num_bytes: int
    relative_error: float


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """A file that was written."""

    path: Path
    num_bytes: int
    tensors: tuple[TensorQuality, ...]


@dataclass(kw_only=True)
class _ErrorSum:
    """Squared norms of one tensor, summed over its slices."""

    lost: float = 0.0
    whole: float = 0.0

    def add(self, original: NDArray[np.float32], stored: NDArray[np.float32]) -> None:
        self.lost += _squares(original - stored)
        self.whole += _squares(original)

    @property
    def relative(self) -> float:
        return math.sqrt(self.lost / self.whole) if self.whole else 0.0


def convert_target(
    folder: TargetFolder, path: Path, dtype: FileDtype, *, name: str, count: CountBytes
) -> Conversion:
    """Write a target with its tokenizer.

    Args:
        name: of the model, for people.
        count: called with the number of bytes read since the last call.

    Raises:
        CheckpointError: a value is not finite or too large, GGUF cannot say what this model is,
            or the disk is too full.
    """
    config = folder.config
    if config.per_layer_size:  # llama.cpp wants a row per token and no more
        config = replace(config, per_layer_vocab_size=config.vocab_size)
    metadata = target_metadata(config, folder.defaults, name=name, dtype=dtype)
    metadata |= _tokenizer(folder.tokenizer_file, config.vocab_size, folder.chat_template)
    return _convert(path, config, metadata, folder.weights, dtype, count)


def convert_drafter(
    folder: DrafterFolder,
    path: Path,
    dtype: FileDtype,
    *,
    name: str,
    tokenizer_file: Path,
    count: CountBytes,
) -> Conversion:
    """Write a drafter. llama.cpp wants a vocabulary in it, so its target's tokenizer is needed.

    The clusters of a centroid head go into the metadata: llama.cpp refuses them as tensors, and
    drafts with the whole head.

    Raises:
        CheckpointError: as `convert_target`.
    """
    config = folder.config
    metadata = drafter_metadata(config, name=name, dtype=dtype)
    metadata |= _tokenizer(tokenizer_file, config.vocab_size)
    clusters = [x for x in folder.weights.tensors if x.spec.name.startswith("masked_embedding.")]
    for weight in clusters:
        metadata |= _cluster_metadata(weight, count)
    others = tuple(x for x in folder.weights.tensors if x not in clusters)
    return _convert(path, config, metadata, Weights(tensors=others), dtype, count)


def stored_dtype(spec: TensorSpec, dtype: FileDtype, *, of_drafter: bool = False) -> str:
    """The type of one tensor in a file of type `dtype`."""
    name = spec.name.rpartition("layers.")[2].lstrip("0123456789.")
    if len(spec.shape) == 1 or name in ALWAYS_F32 or dtype == "F32":
        return "F32"
    if dtype in BLOCK_BYTES and spec.shape[-1] % BLOCK:
        return "BF16"
    if of_drafter and name == DRAFTER_HEAD:
        return dtype
    if dtype == "Q4_0" and name in NEVER_BELOW_Q8_0:
        return "Q8_0"
    return dtype


def _convert(
    path: Path,
    config: DecoderConfig,
    metadata: dict[str, Value],
    weights: Weights,
    dtype: FileDtype,
    count: CountBytes,
) -> Conversion:
    of_drafter = isinstance(config, DrafterConfig)
    tensors = [
        _Tensor(weight, stored_dtype(weight.spec, dtype, of_drafter=of_drafter), config, count)
        for weight in weights.tensors
    ]
    to_write = [tensor.to_write() for tensor in tensors]
    if "global" in config.layer_kinds:
        to_write.append(_plain_tensor(ROPE_FREQUENCIES, rope_divisors(config)))
    _check_space(path, sum(tensor.num_bytes for tensor in to_write))
    write_gguf(path, metadata, to_write)
    return Conversion(
        path=path,
        num_bytes=path.stat().st_size,
        tensors=tuple(tensor.quality() for tensor in tensors),
    )


@dataclass
class _Tensor:
    """One weight on its way into the file."""

    weight: Weight
    dtype: str
    config: DecoderConfig
    count: CountBytes
    error: _ErrorSum = field(default_factory=_ErrorSum)

    @property
    def shape(self) -> tuple[int, ...]:
        shape = self.weight.spec.shape
        if self.weight.spec.name == "embed_tokens_per_layer.weight":
            return (self.config.vocab_size, *shape[1:])
        return shape

    def to_write(self) -> TensorToWrite:
        return TensorToWrite(
            name=gguf_name(self.weight.spec.name),
            dtype=self.dtype,
            shape=self.shape,
            pieces=self._pieces,
        )

    def _pieces(self) -> Iterator[NDArray[np.uint8]]:
        end = math.prod(self.shape)
        for start, piece in self.weight.slices():
            self.count(self.weight.num_bytes_of(len(piece)))
            if start < end:
                values = _as_float32(piece[: end - start], self.weight.slice_dtype)
                yield self._stored(values)

    def _stored(self, values: NDArray[np.float32]) -> NDArray[np.uint8]:
        try:
            stored = quantise(values, self.dtype)
        except CheckpointError as error:
            raise CheckpointError(f"{self.weight.where}: {error}") from error
        self.error.add(values, dequantise(stored, self.dtype))
        return stored

    def quality(self) -> TensorQuality:
        written = self.to_write()
        return TensorQuality(
            name=written.name,
            dtype=written.dtype,
            num_bytes=written.num_bytes,
            relative_error=self.error.relative,
        )


def _as_float32(piece: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    return dequantise(as_bytes(piece), dtype)


def _squares(values: NDArray[np.float32]) -> float:
    wide = values.astype(np.float64)
    return float(np.dot(wide, wide))


def _plain_tensor(name: str, values: NDArray[np.float32]) -> TensorToWrite:
    return TensorToWrite(
        name=name, dtype="F32", shape=values.shape, pieces=lambda: [as_bytes(values)]
    )


def _cluster_metadata(weight: Weight, count: CountBytes) -> dict[str, Value]:
    pieces = [np.array(piece) for _, piece in weight.slices()]
    count(weight.num_bytes)
    values = np.concatenate(pieces)
    if weight.spec.kind == "token_ordering":
        return {ORDERING_KEY: Value("i32", values, is_array=True)}
    return {CENTROIDS_KEY: Value("f32", _as_float32(values, weight.slice_dtype), is_array=True)}


def _tokenizer(path: Path, vocab_size: int, template: str = "") -> dict[str, Value]:
    document = read_document(path)
    tokenizer = Tokenizer(document)
    if tokenizer.vocab_size != vocab_size:
        raise CheckpointError(
            f"{path} has {tokenizer.vocab_size} tokens, but the model has {vocab_size}: it "
            "belongs to another model."
        )
    metadata = tokenizer_metadata(document, template)
    check_same_tokens(tokenizer, Tokenizer(document_of(metadata)))
    return metadata


def _check_space(path: Path, needed: int) -> None:
    free = shutil.disk_usage(path.absolute().parent).free
    if needed > free:
        raise CheckpointError(
            f"{path} needs {needed / 1e9:.1f} GB, but its disk has {free / 1e9:.1f} GB left."
        )
