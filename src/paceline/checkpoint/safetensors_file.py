"""Reads and writes safetensors files, single and sharded, without a tensor library.

Every length and offset of a header is checked against the file before anything is allocated;
tensors are then read-only views of the memory-mapped file. Knows no model and no tensor names.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from paceline.checkpoint.mapped_file import FileRange, MappedFile
from paceline.checkpoint.strict_json import parse_json_object, read_json_object, shown
from paceline.errors import CheckpointError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

MAX_HEADER_BYTES = 16 << 20  # the largest released model needs less than 1 MiB
MAX_INDEX_BYTES = 16 << 20
MAX_DIMENSIONS = 8
MAX_SIZE = 1 << 62
LENGTH_BYTES = 8
CHUNK = 1 << 20  # elements converted at a time when writing

# How each stored type is seen through NumPy; BF16 and F8 as their bits.
DTYPES = {
    "BOOL": np.dtype("?"),
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
    "F8_E4M3": np.dtype("u1"),
    "F8_E5M2": np.dtype("u1"),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "F32": np.dtype("<f4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F64": np.dtype("<f8"),
}
_OWN_NAMES = {DTYPES[name]: name for name in DTYPES if name not in ("BF16", "F8_E4M3", "F8_E5M2")}

_TENSOR_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,255}")
_SHARD_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,200}\.safetensors")


@dataclass(frozen=True, kw_only=True)
class TensorEntry:
    """Where one tensor lies: `start` counts from the beginning of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    num_bytes: int

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)


class SafetensorsFile:
    """One file: its entries by name, and views of their data.

    Raises:
        CheckpointError: the file is missing or its header does not fit it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                self.entries = _read_header(file, size, path)
                self._file = MappedFile(path, file)
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error.strerror}.") from error
        if len(self._file.data) != size:
            raise CheckpointError(f"{path} changed its size while it was being read.")

    def tensor(self, name: str) -> NDArray[Any]:
        """A read-only view of the tensor, mapped and not copied."""
        entry = self.entries[name]
        dtype = DTYPES[entry.dtype]
        flat = np.frombuffer(self._file.data, dtype, entry.num_elements, entry.start)
        return flat.reshape(entry.shape)

    def range_of(self, name: str) -> FileRange:
        entry = self.entries[name]
        return FileRange(file=self._file, start=entry.start, num_bytes=entry.num_bytes)


class TensorFiles:
    """All tensors of a checkpoint folder, whichever of its files they are in."""

    def __init__(self, files: Mapping[str, SafetensorsFile]) -> None:
        self._files = files  # by tensor name
        self.entries = {name: file.entries[name] for name, file in files.items()}

    def tensor(self, name: str) -> NDArray[Any]:
        return self._files[name].tensor(name)

    def range_of(self, name: str) -> FileRange:
        return self._files[name].range_of(name)

    def path_of(self, name: str) -> Path:
        return self._files[name].path


def open_tensors(folder: Path) -> TensorFiles:
    """Open `model.safetensors`, or the shards that `model.safetensors.index.json` lists.

    Where both exist the single file is taken, as transformers does.

    Raises:
        CheckpointError: neither exists, a shard is missing or damaged, or index and shards differ.
    """
    single = folder / SINGLE_FILE
    if single.is_file():
        file = SafetensorsFile(single)
        return TensorFiles(dict.fromkeys(file.entries, file))
    if (folder / INDEX_FILE).is_file():
        return _open_shards(folder)
    raise CheckpointError(
        f"{folder} holds neither {SINGLE_FILE} nor {INDEX_FILE}.{_other_format(folder)}"
    )


def _other_format(folder: Path) -> str:
    if any(folder.glob("*.gguf")):
        return " It holds a GGUF file: pass that file instead of the folder."
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt")):
        return " It holds pickled weights, which Paceline never loads: convert them to safetensors."
    return " Is the download complete?"


def _open_shards(folder: Path) -> TensorFiles:
    index = folder / INDEX_FILE
    weight_map = _read_weight_map(index)
    shards: dict[str, SafetensorsFile] = {}
    for shard in sorted(set(weight_map.values())):
        if not (folder / shard).is_file():
            raise CheckpointError(
                f"the shard {folder / shard} is missing: {index.name} lists it. "
                "Is the download complete?"
            )
        shards[shard] = SafetensorsFile(folder / shard)
    for shard, file in shards.items():
        _check_shard(index, weight_map, shard, file)
    for name, shard in weight_map.items():
        if name not in shards[shard].entries:
            raise CheckpointError(f"{index} places {name} in {shard}, but it is not there.")
    return TensorFiles({name: shards[shard] for name, shard in weight_map.items()})


def _check_shard(
    index: Path, weight_map: Mapping[str, str], shard: str, file: SafetensorsFile
) -> None:
    for name in file.entries:
        if name not in weight_map:
            raise CheckpointError(f"{file.path} holds {name}, which {index.name} does not list.")
        if weight_map[name] != shard:
            raise CheckpointError(
                f"{name} is in two shards: {shard} holds it, {index.name} places it in "
                f"{weight_map[name]}."
            )


def _read_weight_map(index: Path) -> dict[str, str]:
    weight_map = read_json_object(index, MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map: it must list the tensors' files.")
    for name, shard in weight_map.items():
        if not _TENSOR_NAME.fullmatch(name):
            raise CheckpointError(f"{index} lists a tensor with the odd name {shown(name)}.")
        if not isinstance(shard, str) or not _SHARD_NAME.fullmatch(shard):
            raise CheckpointError(
                f"{index} places {name} in {shown(shard)}: expected the plain name of a "
                ".safetensors file in the same folder."
            )
    return weight_map


def _read_header(file: BinaryIO, size: int, path: Path) -> dict[str, TensorEntry]:
    start = file.read(LENGTH_BYTES)
    if len(start) < LENGTH_BYTES:
        raise CheckpointError(f"{path} is no safetensors file: it has only {size} bytes.")
    if start == b"version ":
        raise CheckpointError(
            f"{path} is a Git LFS pointer, not the weights: run `git lfs pull` in its folder."
        )
    length = int.from_bytes(start, "little")
    if length > size - LENGTH_BYTES:
        raise CheckpointError(
            f"{path} is truncated or no safetensors file: its header claims {length} bytes, the "
            f"file has {size - LENGTH_BYTES} after the length. Download it again."
        )
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"the header of {path} has {length} bytes: expected at most {MAX_HEADER_BYTES}."
        )
    header = file.read(length)
    if not header.startswith(b"{") or not header.rstrip(b" ").endswith(b"}"):
        raise CheckpointError(f"the header of {path} must begin with {{ and end with }}.")
    values = parse_json_object(header, f"the header of {path}")
    _check_metadata(values.pop("__metadata__", {}), path)
    data_start = LENGTH_BYTES + length
    entries = {name: _parse_entry(name, value, data_start, path) for name, value in values.items()}
    _check_coverage(entries, data_start, size, path)
    return entries


def _check_metadata(metadata: object, path: Path) -> None:
    texts = isinstance(metadata, dict) and all(isinstance(x, str) for x in metadata.values())
    if not texts:
        raise CheckpointError(f"__metadata__ in {path} must map names to texts.")


def _parse_entry(name: str, value: object, data_start: int, path: Path) -> TensorEntry:
    if not _TENSOR_NAME.fullmatch(name):
        raise CheckpointError(
            f"{path} holds a tensor with the odd name {shown(name)}: expected letters, digits, "
            "dots, dashes and underscores."
        )
    where = f"tensor {name} in {path}"
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{where} must have dtype, shape and data_offsets and nothing else.")
    dtype = value["dtype"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise CheckpointError(
            f"{where} has the unknown type {shown(dtype)}: expected one of {', '.join(DTYPES)}."
        )
    shape = _sizes(value["shape"], MAX_DIMENSIONS, f"the shape of {where}")
    offsets = _sizes(value["data_offsets"], 2, f"data_offsets of {where}")
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(f"data_offsets of {where} must be [begin, end], got {offsets}.")
    num_bytes = offsets[1] - offsets[0]
    expected = math.prod(shape) * DTYPES[dtype].itemsize
    if num_bytes != expected:
        raise CheckpointError(
            f"{where} takes {num_bytes} bytes, but its shape {list(shape)} in {dtype} needs "
            f"{expected}."
        )
    return TensorEntry(
        name=name, dtype=dtype, shape=shape, start=data_start + offsets[0], num_bytes=num_bytes
    )


def _sizes(value: object, limit: int, what: str) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > limit:
        raise CheckpointError(f"{what} must be a list of at most {limit} sizes.")
    for size in value:
        if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= MAX_SIZE:
            raise CheckpointError(f"{what} holds {shown(size)}: expected whole numbers from 0 on.")
    return tuple(value)


def _check_coverage(
    entries: Mapping[str, TensorEntry], data_start: int, size: int, path: Path
) -> None:
    """The tensors must fill the rest of the file, each byte belonging to one of them."""
    position = data_start
    for entry in sorted(entries.values(), key=lambda entry: (entry.start, entry.num_bytes)):
        end = entry.start + entry.num_bytes
        if end > size:
            raise CheckpointError(
                f"{path} is truncated: tensor {entry.name} ends at byte {end}, the file has {size}."
                " Download it again."
            )
        if entry.start < position:
            raise CheckpointError(f"tensor {entry.name} in {path} overlaps another one.")
        if entry.start > position:
            raise CheckpointError(
                f"{path} has {entry.start - position} bytes before tensor {entry.name} that belong "
                "to none."
            )
        position = end
    if position != size:
        raise CheckpointError(f"{path} has {size - position} bytes after its last tensor.")


def write_safetensors(
    path: Path,
    tensors: Mapping[str, NDArray[Any]],
    *,
    dtypes: Mapping[str, str] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a file whole or not at all: under a temporary name, then put in place.

    Args:
        dtypes: how to store tensors whose type NumPy does not tell: "BF16" stores float32
            rounded to nearest even, and uint16 as bits; "F16" and "F32" convert. Tensors not
            named here keep their own type.
        metadata: texts for the header.

    Cost: one slice of a tensor beyond the tensors themselves.
    """
    stored = {name: (dtypes or {}).get(name) or _own_dtype(name, x) for name, x in tensors.items()}
    # The widest types first: then every tensor is aligned to its type.
    order = sorted(tensors, key=lambda name: (-DTYPES[stored[name]].itemsize, name))
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            file.write(_header(order, tensors, stored, metadata or {}))
            for name in order:
                for piece in _pieces(tensors[name], stored[name]):
                    file.write(piece.tobytes())
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _own_dtype(name: str, array: NDArray[Any]) -> str:
    dtype = array.dtype.newbyteorder("<")
    if dtype not in _OWN_NAMES:
        raise CheckpointError(f"cannot store {name}: safetensors has no type for {array.dtype}.")
    return _OWN_NAMES[dtype]


def _header(
    order: list[str],
    tensors: Mapping[str, NDArray[Any]],
    stored: Mapping[str, str],
    metadata: Mapping[str, str],
) -> bytes:
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    begin = 0
    for name in order:
        end = begin + tensors[name].size * DTYPES[stored[name]].itemsize
        header[name] = {
            "dtype": stored[name],
            "shape": list(tensors[name].shape),
            "data_offsets": [begin, end],
        }
        begin = end
    content = json.dumps(header, separators=(",", ":")).encode()
    content += b" " * (-len(content) % 8)
    return len(content).to_bytes(LENGTH_BYTES, "little") + content


def _pieces(array: NDArray[Any], dtype: str) -> Iterator[NDArray[Any]]:
    flat = array.reshape(-1)
    for begin in range(0, flat.size, CHUNK):
        piece = flat[begin : begin + CHUNK]
        if dtype == "BF16" and piece.dtype != np.uint16:
            yield to_bfloat16(piece)
        else:
            yield piece.astype(DTYPES[dtype], copy=False)


def to_bfloat16(values: NDArray[Any]) -> NDArray[np.uint16]:
    """Bits of the nearest bfloat16, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    quiet_nan = (bits >> 16) | 0x40
    return np.where(np.isnan(values), quiet_nan, rounded).astype("<u2")
