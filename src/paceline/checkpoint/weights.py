"""The weights of one opened model, handed out in slices that were checked on the way.

No slice with a NaN, an infinity or a value beyond bfloat16's range leaves this module, and no
token ordering that is not a permutation. Knows no tensor library.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paceline.checkpoint.mapped_file import FileRange
from paceline.checkpoint.names import OUTPUT_HEAD, NameTable, TensorSpec, check_tensors
from paceline.checkpoint.quantise import BLOCK, BLOCK_BYTES, dequantise
from paceline.checkpoint.safetensors_file import TensorFiles
from paceline.errors import CheckpointError

SLICE = 1 << 20  # elements, whole blocks; bounds the memory that loading takes beyond the weights
LARGEST_BFLOAT16 = 3.3895313892515355e38
BFLOAT16_EXPONENT = 0x7F80


@dataclass(frozen=True, kw_only=True)
class Weight:
    """One tensor of a model, still in its file.

    Args:
        spec: its name in Paceline's modules, its shape and kind.
        where: its name in the file and the file, for messages.
        dtype: the name of its type, one of safetensors' or of `quantise.BLOCK_BYTES`.
        data: a view of the file; bfloat16 as uint16 bits, block types as flat bytes.
        file: where `data` lies; None where it is in memory only.
    """

    spec: TensorSpec
    where: str
    dtype: str
    data: NDArray[Any]
    file: FileRange | None = None

    @property
    def num_elements(self) -> int:
        return math.prod(self.spec.shape)

    @property
    def num_bytes(self) -> int:
        return int(self.data.nbytes)

    @property
    def slice_dtype(self) -> str:
        """The type of what `slices` hands out: block types come as float32."""
        return "F32" if self.dtype in BLOCK_BYTES else self.dtype

    def num_bytes_of(self, num_elements: int) -> int:
        """What so many elements take in the file."""
        return self.num_bytes * num_elements // self.num_elements

    def forget(self) -> None:
        """Give back the memory that reading `data` took; reading again is possible."""
        if self.file is not None:
            self.file.forget()

    def slices(self) -> Iterator[tuple[int, NDArray[Any]]]:
        """(first element, up to SLICE elements) in order, flat, each checked.

        Raises:
            CheckpointError: a value is not finite, or a token ordering names a token twice.
        """
        self.check_ordering()
        for start in range(0, self.num_elements, SLICE):
            piece = self._elements(start, start + SLICE)
            if self.spec.kind == "weight" and not all_usable(piece, self.slice_dtype):
                raise self.damaged()
            yield start, piece

    def check_ordering(self) -> None:
        """
        Raises:
            CheckpointError: this is a token ordering and names a token twice.
        """
        if self.spec.kind == "token_ordering" and not is_permutation(self.data):
            raise CheckpointError(
                f"{self.where} must hold each of the {self.data.size} token ids exactly once."
            )

    def damaged(self) -> CheckpointError:
        """What to raise where a value cannot be used."""
        return CheckpointError(
            f"{self.where} holds a NaN, an infinite or an absurdly large value: the file "
            "is damaged or its training failed. Download it again."
        )

    def _elements(self, start: int, end: int) -> NDArray[Any]:
        flat = self.data.reshape(-1)
        if self.dtype not in BLOCK_BYTES:
            return flat[start:end]
        size = BLOCK_BYTES[self.dtype]
        return dequantise(flat[start // BLOCK * size : end // BLOCK * size], self.dtype)


def all_usable(values: NDArray[Any], dtype: str) -> bool:
    """Whether every value is finite and stays finite in bfloat16."""
    if dtype == "BF16":
        return not bool(np.any((values & BFLOAT16_EXPONENT) == BFLOAT16_EXPONENT))
    if dtype == "F16":
        return bool(np.all(np.isfinite(values)))
    return bool(np.all(np.abs(values) <= LARGEST_BFLOAT16))  # false for NaN


def is_permutation(ids: NDArray[Any]) -> bool:
    """Whether the n values are 0 to n - 1, each once."""
    return bool(np.array_equal(np.sort(ids), np.arange(ids.size)))


@dataclass(frozen=True, kw_only=True)
class Weights:
    """All tensors of one model."""

    tensors: tuple[Weight, ...]

    @property
    def num_parameters(self) -> int:
        return sum(x.num_elements for x in self.tensors if x.spec.kind == "weight")

    @property
    def num_bytes(self) -> int:
        return sum(x.num_bytes for x in self.tensors)

    @property
    def dtypes(self) -> dict[str, str]:
        """The type of each tensor, by its name in Paceline's modules."""
        return {x.spec.name: x.dtype for x in self.tensors}

    @property
    def main_dtype(self) -> str:
        """The type of most weights of the layers' matrices."""
        counts: Counter[str] = Counter()
        for tensor in self.tensors:
            if len(tensor.spec.shape) > 1 and tensor.spec.name.startswith("layers."):
                counts[tensor.dtype] += tensor.num_elements
        return counts.most_common(1)[0][0]


def open_weights(table: NameTable, files: TensorFiles, where: str) -> Weights:
    """Match a folder's tensors with what the model needs.

    Raises:
        CheckpointError: a tensor is missing, unknown, of a wrong shape or type, or the output
            head is not the embedding.
    """
    check_tensors(table, files.entries, where)
    _check_output_head(table, files, where)
    return Weights(tensors=tuple(_weight(table, spec, files) for spec in table.specs))


def _weight(table: NameTable, spec: TensorSpec, files: TensorFiles) -> Weight:
    name = table.file_name(spec)
    return Weight(
        spec=spec,
        where=f"{name} in {files.path_of(name)}",
        dtype=files.entries[name].dtype,
        data=files.tensor(name),
        file=files.range_of(name),
    )


def _check_output_head(table: NameTable, files: TensorFiles, where: str) -> None:
    """A separate output matrix is superfluous if equal to the embedding, else another model."""
    if OUTPUT_HEAD not in files.entries:
        return
    entries = files.entries[OUTPUT_HEAD], files.entries[table.embedding]
    same_kind = entries[0].shape == entries[1].shape and entries[0].dtype == entries[1].dtype
    if not same_kind or not _equal_bytes(files, OUTPUT_HEAD, table.embedding):
        raise CheckpointError(
            f"{OUTPUT_HEAD} in {where} differs from {table.embedding}: Gemma 4 ties the two, so "
            "Paceline cannot run this model. Export it with tied embeddings."
        )


def _equal_bytes(files: TensorFiles, first: str, second: str) -> bool:
    a, b = (files.tensor(name).reshape(-1).view(np.uint8) for name in (first, second))
    step = 2 * SLICE
    return all(np.array_equal(a[i : i + step], b[i : i + step]) for i in range(0, a.size, step))
