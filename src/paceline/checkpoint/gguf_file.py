"""Reads GGUF files: header, metadata, and views of the memory-mapped tensors.

Every count, length and offset is checked against the file before it is used, so that a hostile
file costs no more memory than a good one of its size. Knows no model and no tensor names.
"""

from __future__ import annotations

import math
import mmap
import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paceline.checkpoint import gguf_format as gguf
from paceline.checkpoint.mapped_file import FileRange, MappedFile
from paceline.checkpoint.safetensors_file import MAX_SIZE, TensorEntry
from paceline.checkpoint.strict_json import shown
from paceline.errors import CheckpointError

MAX_KEYS = 1 << 12
MAX_TENSORS = 1 << 15
MAX_KEY_BYTES = 1 << 10
MAX_ARRAY_LENGTH = 1 << 23  # the merges of the largest vocabulary are half a million
MAX_METADATA_BYTES = 256 << 20
MAX_TEXT_BYTES = 16 << 20
ALIGNMENTS = tuple(1 << power for power in range(3, 17))
MIN_TENSOR_INFO = 8 + 1 + 4 + 8 + 4 + 8

_KEY = re.compile(r"[\x21-\x7e]+")
_TENSOR_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*")
_ELEMENTS = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "I32": "<i4", "I64": "<i8"}


@dataclass(frozen=True, kw_only=True)
class ArrayValue:
    """An array in the metadata: checked to lie in the file, decoded when it is asked for."""

    key: str
    kind: str
    length: int
    start: int
    file: GgufFile

    def __repr__(self) -> str:
        return f"an array of {self.length} {self.kind}"

    def numbers(self) -> NDArray[Any]:
        """A copy of the items, whose kind the caller has checked."""
        assert self.kind != gguf.STRING
        dtype = np.dtype("u1") if self.kind == gguf.BOOL else gguf.NUMBER_DTYPES[self.kind]
        numbers = np.frombuffer(self.file.data, dtype, self.length, self.start).copy()
        self.file.mapped.forget(self.start, numbers.nbytes)
        return numbers

    def texts(self) -> list[str]:
        """
        Raises:
            CheckpointError: they are no texts, or not UTF-8.
        """
        if self.kind != gguf.STRING:
            raise CheckpointError(f"{self.key} in {self.file.path} is {self}: expected texts.")
        reader = Reader(self.file.data, self.start, self.file.path)
        texts = [reader.text(f"{self.key}[{index}]") for index in range(self.length)]
        self.file.mapped.forget(self.start, reader.position - self.start)
        return texts


Metadata = int | float | bool | str | ArrayValue


class GgufFile:
    """One file: its metadata by key, its tensors by name.

    Shapes are given as NumPy and PyTorch have them, the file's dimensions reversed.

    Raises:
        CheckpointError: the file is missing, or its header does not fit it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size < 24:
                    raise CheckpointError(f"{path} is no GGUF file: it has only {size} bytes.")
                self.mapped = MappedFile(path, file)
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error.strerror}.") from error
        self.data = self.mapped.data
        reader = Reader(self.data, 0, path)
        num_tensors, num_keys = _read_header(reader)
        self.metadata = _read_metadata(reader, num_keys, self)
        self.entries = _read_tensors(reader, num_tensors, self._alignment())
        self.mapped.forget(0, reader.position)

    def _alignment(self) -> int:
        alignment = self.metadata.get(gguf.ALIGNMENT_KEY, gguf.DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment not in ALIGNMENTS:
            raise CheckpointError(
                f"{gguf.ALIGNMENT_KEY} in {self.path} is {shown(alignment)}: expected a power of "
                f"two from {ALIGNMENTS[0]} to {ALIGNMENTS[-1]}."
            )
        return alignment

    def tensor(self, name: str) -> NDArray[Any]:
        """A read-only view: elements in their shape, or the flat bytes of a block type."""
        entry = self.entries[name]
        if entry.dtype in _ELEMENTS:
            flat = np.frombuffer(self.data, _ELEMENTS[entry.dtype], entry.num_elements, entry.start)
            return flat.reshape(entry.shape)
        return np.frombuffer(self.data, np.uint8, entry.num_bytes, entry.start)

    def range_of(self, name: str) -> FileRange:
        entry = self.entries[name]
        return FileRange(file=self.mapped, start=entry.start, num_bytes=entry.num_bytes)


class Reader:
    """A position in the file that never leaves it."""

    def __init__(self, data: mmap.mmap, position: int, path: Path) -> None:
        self.data = data
        self.position = position
        self.size = len(data)
        self.path = path

    def skip(self, num_bytes: int, what: str) -> int:
        """Step over some bytes; returns where they begin."""
        start = self.position
        if num_bytes > self.size - start:
            raise CheckpointError(
                f"{self.path} is truncated or damaged: {what} takes {num_bytes} bytes at byte "
                f"{start}, but the file has {self.size}. Download it again."
            )
        self.position = start + num_bytes
        return start

    def number(self, code: str, what: str) -> Any:
        start = self.skip(struct.calcsize(code), what)
        return struct.unpack_from(code, self.data, start)[0]

    def u32(self, what: str) -> int:
        return int(self.number("<I", what))

    def u64(self, what: str) -> int:
        return int(self.number("<Q", what))

    def text(self, what: str, limit: int = MAX_TEXT_BYTES) -> str:
        length = self.u64(f"the length of {what}")
        if length > limit:
            raise CheckpointError(
                f"{what} in {self.path} has {length} bytes: expected at most {limit}."
            )
        start = self.skip(length, what)
        try:
            return self.data[start : self.position].decode("utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{what} in {self.path} is not UTF-8 text.") from error

    def skip_texts(self, count: int, what: str) -> None:
        """Step over an array of texts, each length checked."""
        data, position, last = self.data, self.position, self.size - 8
        for _ in range(count):
            if position > last:
                break
            position += 8 + int.from_bytes(data[position : position + 8], "little")
        else:
            if position <= self.size:
                self.position = position
                return
        raise CheckpointError(
            f"{self.path} is truncated or damaged: {what} runs past the end of the file."
        )


def _read_header(reader: Reader) -> tuple[int, int]:
    """Checked (number of tensors, number of keys)."""
    path = reader.path
    start = reader.skip(4, "the magic number")
    magic = reader.data[start : start + 4]
    if magic == b"vers":
        raise CheckpointError(
            f"{path} is a Git LFS pointer, not the weights: run `git lfs pull` in its folder."
        )
    if magic != gguf.MAGIC:
        raise CheckpointError(f"{path} is no GGUF file: it begins with {magic!r}.")
    version = reader.u32("the version")
    if version not in gguf.READABLE_VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        if swapped in gguf.READABLE_VERSIONS:
            raise CheckpointError(f"{path} is big-endian: only little-endian GGUF is supported.")
        raise CheckpointError(f"{path} is GGUF version {version}: expected 2 or 3.")
    num_tensors, num_keys = reader.u64("the tensor count"), reader.u64("the key count")
    for name, count, limit in (("tensors", num_tensors, MAX_TENSORS), ("keys", num_keys, MAX_KEYS)):
        if count > limit:
            raise CheckpointError(f"{path} claims {count} {name}: expected at most {limit}.")
    if num_tensors * MIN_TENSOR_INFO > reader.size:
        raise CheckpointError(
            f"{path} is truncated: it claims {num_tensors} tensors in {reader.size} bytes."
        )
    return num_tensors, num_keys


def _read_metadata(reader: Reader, count: int, file: GgufFile) -> dict[str, Metadata]:
    metadata: dict[str, Metadata] = {}
    for index in range(count):
        key = reader.text(f"metadata key {index}", MAX_KEY_BYTES)
        if not _KEY.fullmatch(key):
            raise CheckpointError(f"{reader.path} has a metadata key with the odd name {key!r}.")
        if key in metadata:
            raise CheckpointError(f"{reader.path} has the metadata key {key} twice.")
        metadata[key] = _read_value(reader, key, file)
        if reader.position > MAX_METADATA_BYTES:
            raise CheckpointError(
                f"the metadata of {reader.path} take more than {MAX_METADATA_BYTES >> 20} MiB."
            )
    return metadata


def _read_value(reader: Reader, key: str, file: GgufFile) -> Metadata:
    kind = _read_kind(reader, key)
    if kind == gguf.STRING:
        return reader.text(key)
    if kind == gguf.BOOL:
        return _flag(reader.number("<B", key), key, reader.path)
    if kind != gguf.ARRAY:
        dtype = gguf.NUMBER_DTYPES[kind]
        value = np.frombuffer(reader.data, dtype, 1, reader.skip(dtype.itemsize, key))[0]
        # A float32 stands for the shortest decimal that it is nearest to: 1e-6, not 9.99999997e-7.
        return float(str(value)) if kind == "f32" else value.item()
    return _read_array(reader, key, file)


def _read_array(reader: Reader, key: str, file: GgufFile) -> ArrayValue:
    kind = _read_kind(reader, key)
    if kind == gguf.ARRAY:
        raise CheckpointError(f"{key} in {reader.path} is an array of arrays: none is expected.")
    length = reader.u64(f"the length of {key}")
    if length > MAX_ARRAY_LENGTH:
        raise CheckpointError(
            f"{key} in {reader.path} has {length} items: expected at most {MAX_ARRAY_LENGTH}."
        )
    start = reader.position
    if kind == gguf.STRING:
        reader.skip_texts(length, key)
    else:
        size = 1 if kind == gguf.BOOL else gguf.NUMBER_DTYPES[kind].itemsize
        reader.skip(length * size, key)
    return ArrayValue(key=key, kind=kind, length=length, start=start, file=file)


def _read_kind(reader: Reader, key: str) -> str:
    number = reader.u32(f"the type of {key}")
    if number >= len(gguf.KINDS):
        raise CheckpointError(f"{key} in {reader.path} has the unknown type {number}.")
    return gguf.KINDS[number]


def _flag(value: int, key: str, path: Path) -> bool:
    if value > 1:
        raise CheckpointError(f"{key} in {path} must be 0 or 1, got {value}.")
    return bool(value)


def _read_tensors(reader: Reader, count: int, alignment: int) -> dict[str, TensorEntry]:
    """Entries whose data lie one after the other, as ggml requires, and end in the file."""
    infos: dict[str, tuple[TensorEntry, int]] = {}
    for index in range(count):
        entry, offset = _read_tensor(reader, index)
        if entry.name in infos:
            raise CheckpointError(f"{reader.path} has the tensor {entry.name} twice.")
        infos[entry.name] = entry, offset
    data_start = gguf.padded(reader.position, alignment)
    entries, end = {}, 0
    for name, (entry, offset) in infos.items():
        if offset % alignment:
            raise CheckpointError(
                f"tensor {name} in {reader.path} is not aligned: its offset {offset} is no "
                f"multiple of {alignment}."
            )
        if offset != end:
            raise CheckpointError(
                f"tensor {name} in {reader.path} has the offset {offset}: expected {end}, where "
                "the tensor before it ends."
            )
        _check_end(reader, entry, data_start + offset)
        end = gguf.padded(offset + entry.num_bytes, alignment)
        entries[name] = TensorEntry(
            name=name,
            dtype=entry.dtype,
            shape=entry.shape,
            start=data_start + offset,
            num_bytes=entry.num_bytes,
        )
    if entries and reader.size > data_start + end:
        raise CheckpointError(
            f"{reader.path} has {reader.size - data_start - end} bytes after its last tensor."
        )
    return entries


def _check_end(reader: Reader, entry: TensorEntry, start: int) -> None:
    if start + entry.num_bytes > reader.size:
        raise CheckpointError(
            f"{reader.path} is truncated: tensor {entry.name} ends at byte "
            f"{start + entry.num_bytes}, the file has {reader.size}. Download it again."
        )


def _read_tensor(reader: Reader, index: int) -> tuple[TensorEntry, int]:
    """One tensor's description, and its offset as the file has it."""
    name = reader.text(f"the name of tensor {index}", gguf.MAX_TENSOR_NAME)
    if not _TENSOR_NAME.fullmatch(name):
        raise CheckpointError(
            f"{reader.path} holds a tensor with the odd name {shown(name)}: expected letters, "
            "digits, dots, dashes and underscores."
        )
    where = f"tensor {name} in {reader.path}"
    num_dimensions = reader.u32(f"the dimensions of {where}")
    if not 1 <= num_dimensions <= gguf.MAX_DIMENSIONS:
        raise CheckpointError(
            f"{where} has {num_dimensions} dimensions: expected 1 to {gguf.MAX_DIMENSIONS}."
        )
    dimensions = [reader.u64(f"the shape of {where}") for _ in range(num_dimensions)]
    if min(dimensions) == 0 or math.prod(dimensions) > MAX_SIZE:
        raise CheckpointError(f"{where} has the impossible shape {dimensions[::-1]}.")
    number = reader.u32(f"the type of {where}")
    if number not in gguf.TENSOR_TYPES:
        raise CheckpointError(
            f"{where} has the unknown type {number}: it was written by a newer or other program."
        )
    dtype, block, size = gguf.TENSOR_TYPES[number]
    if dimensions[0] % block:
        raise CheckpointError(
            f"{where} has rows of {dimensions[0]} values: {dtype} needs a multiple of {block}."
        )
    num_bytes = math.prod(dimensions) // block * size
    entry = TensorEntry(
        name=name, dtype=dtype, shape=tuple(dimensions[::-1]), start=0, num_bytes=num_bytes
    )
    return entry, reader.u64(f"the offset of {where}")
