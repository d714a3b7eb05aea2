"""A GGUF file taken apart, so that tests can change any field, lies included, and put it together.

Written from the format's description and not from the package's reader or writer.
"""

from __future__ import annotations

import copy
import struct
from dataclasses import dataclass, field
from typing import Any

SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<B", 10: "<Q"}
SCALARS |= {11: "<q", 12: "<d"}
STRING, ARRAY = 8, 9


@dataclass
class RawTensor:
    name: bytes
    dims: list[int]
    type: int
    offset: int
    data: bytes


@dataclass
class RawFile:
    """Every count may be overridden; None writes the true one."""

    keys: list[tuple[bytes, int, bytes]]  # name, type, value as it stands in the file
    tensors: list[RawTensor]
    magic: bytes = b"GGUF"
    version: int = 3
    num_keys: int | None = None
    num_tensors: int | None = None
    alignment: int = 32
    tail: bytes = b""
    claimed: dict[str, int] = field(default_factory=dict)  # lengths of names, by name

    def copy(self) -> RawFile:
        return copy.deepcopy(self)

    def index(self, key: str) -> int:
        return next(i for i, (name, _, _) in enumerate(self.keys) if name == key.encode())

    def set(self, key: str, kind: int, value: bytes) -> RawFile:
        """Replace a key's value, or add the key."""
        names = [name for name, _, _ in self.keys]
        entry = (key.encode(), kind, value)
        if key.encode() in names:
            self.keys[names.index(key.encode())] = entry
        else:
            self.keys.append(entry)
        return self

    def drop(self, key: str) -> RawFile:
        del self.keys[self.index(key)]
        return self

    def tensor(self, name: str) -> RawTensor:
        return next(x for x in self.tensors if x.name == name.encode())

    def add(self, name: str, dims: list[int], kind: int, data: bytes) -> RawFile:
        self.tensors.append(RawTensor(name.encode(), dims, kind, 0, data))
        return self.place()

    def place(self) -> RawFile:
        """Give every tensor the offset that it belongs at."""
        offset = 0
        for tensor in self.tensors:
            tensor.offset = offset
            offset += len(tensor.data) + -len(tensor.data) % self.alignment
        return self

    def to_bytes(self) -> bytes:
        num_tensors = len(self.tensors) if self.num_tensors is None else self.num_tensors
        num_keys = len(self.keys) if self.num_keys is None else self.num_keys
        parts = [self.magic, struct.pack("<IQQ", self.version, num_tensors, num_keys)]
        for name, kind, value in self.keys:
            parts += [self._name(name), struct.pack("<I", kind), value]
        for tensor in self.tensors:
            parts.append(self._name(tensor.name))
            parts.append(struct.pack("<I", len(tensor.dims)))
            parts += [struct.pack("<Q", size) for size in tensor.dims]
            parts.append(struct.pack("<IQ", tensor.type, tensor.offset))
        header = b"".join(parts)
        body = b"".join(x.data + bytes(-len(x.data) % self.alignment) for x in self.tensors)
        return header + bytes(-len(header) % self.alignment) + body + self.tail

    def _name(self, name: bytes) -> bytes:
        length = self.claimed.get(name.decode("latin1"), len(name))
        return struct.pack("<Q", length) + name


def parse(content: bytes) -> RawFile:
    """Take a good file apart."""
    position = 0

    def take(code: str) -> Any:
        nonlocal position
        value = struct.unpack_from(code, content, position)[0]
        position += struct.calcsize(code)
        return value

    def text() -> bytes:
        nonlocal position
        size = take("<Q")
        position += size
        return content[position - size : position]

    def value(kind: int) -> None:
        if kind == STRING:
            text()
        elif kind == ARRAY:
            item, count = take("<I"), take("<Q")
            for _ in range(count):
                value(item)
        else:
            take(SCALARS[kind])

    assert content[:4] == b"GGUF"
    position = 4
    version, num_tensors, num_keys = take("<I"), take("<Q"), take("<Q")
    keys = []
    for _ in range(num_keys):
        name, kind = text(), take("<I")
        start = position
        value(kind)
        keys.append((name, kind, content[start:position]))
    infos = []
    for _ in range(num_tensors):
        name = text()
        dims = [take("<Q") for _ in range(take("<I"))]
        infos.append((name, dims, take("<I"), take("<Q")))
    start = position + -position % 32
    ends = [offset for _, _, _, offset in infos[1:]] + [len(content) - start]
    tensors = [
        RawTensor(name, dims, kind, offset, content[start + offset : start + end])
        for (name, dims, kind, offset), end in zip(infos, ends, strict=True)
    ]
    raw = RawFile(keys=keys, tensors=tensors, version=version)
    assert raw.to_bytes() == content
    return raw


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def string(value: str | bytes) -> bytes:
    value = value.encode() if isinstance(value, str) else value
    return u64(len(value)) + value


def array(kind: int, items: list[Any]) -> bytes:
    code = SCALARS.get(kind)
    content = b"".join(string(x) if code is None else struct.pack(code, x) for x in items)
    return u32(kind) + u64(len(items)) + content
