"""Writes GGUF files: whole or not at all, tensor data piece by piece."""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from paceline.checkpoint import gguf_format as gguf


@dataclass(frozen=True, kw_only=True)
class TensorToWrite:
    """One tensor.

    Args:
        dtype: ggml's name of the type.
        shape: as NumPy has it; its last axis holds whole blocks.
        pieces: called once; the data in order, as bytes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    pieces: Callable[[], Iterable[NDArray[np.uint8]]]

    @property
    def num_bytes(self) -> int:
        return gguf.tensor_bytes(self.dtype, math.prod(self.shape))


def write_gguf(
    path: Path, metadata: Mapping[str, gguf.Value], tensors: Sequence[TensorToWrite]
) -> None:
    """Write a file under a temporary name, then put it in place.

    Cost: one piece of a tensor beyond what the pieces themselves need.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            file.write(_header(metadata, tensors))
            for tensor in tensors:
                _pad(file)
                start = file.tell()
                for piece in tensor.pieces():
                    file.write(piece.tobytes())
                assert file.tell() - start == tensor.num_bytes, tensor.name
            _pad(file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _pad(file: BinaryIO) -> None:
    file.write(bytes(-file.tell() % gguf.DEFAULT_ALIGNMENT))


def _header(metadata: Mapping[str, gguf.Value], tensors: Sequence[TensorToWrite]) -> bytes:
    parts = [gguf.MAGIC, struct.pack("<IQQ", gguf.VERSION, len(tensors), len(metadata))]
    for key, value in metadata.items():
        parts += [_text(key), _value(value)]
    offset = 0
    for tensor in tensors:
        dimensions = tensor.shape[::-1]
        parts += [
            _text(tensor.name),
            struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions),
            struct.pack("<IQ", gguf.TYPE_IDS[tensor.dtype], offset),
        ]
        offset = gguf.padded(offset + tensor.num_bytes, gguf.DEFAULT_ALIGNMENT)
    return b"".join(parts)


def _text(text: str) -> bytes:
    content = text.encode("utf-8")
    return struct.pack("<Q", len(content)) + content


def _value(value: gguf.Value) -> bytes:
    kind = struct.pack("<I", gguf.KINDS.index(value.kind))
    if not value.is_array:
        return kind + _items(value.kind, [value.value])
    start = struct.pack("<I", gguf.KINDS.index(gguf.ARRAY))
    return start + kind + struct.pack("<Q", len(value.value)) + _items(value.kind, value.value)


def _items(kind: str, items: Sequence[object]) -> bytes:
    if kind == gguf.STRING:
        return b"".join(_text(str(item)) for item in items)
    dtype = np.dtype("u1") if kind == gguf.BOOL else gguf.NUMBER_DTYPES[kind]
    return np.asarray(items).astype(dtype).tobytes()
