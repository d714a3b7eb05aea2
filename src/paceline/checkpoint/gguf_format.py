"""The constants of GGUF, for its reader and its writer (ggml's docs/gguf.md, version 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

MAGIC = b"GGUF"
VERSION = 3
READABLE_VERSIONS = (2, 3)  # alike on little-endian machines
DEFAULT_ALIGNMENT = 32
ALIGNMENT_KEY = "general.alignment"
MAX_TENSOR_NAME = 63  # bytes; ggml keeps 64 with the end mark
MAX_DIMENSIONS = 4

STRING, ARRAY, BOOL = "string", "array", "bool"
KINDS = ("u8", "i8", "u16", "i16", "u32", "i32", "f32", BOOL, STRING, ARRAY, "u64", "i64", "f64")
"""Kinds of metadata values; the place is the number in the file."""

NUMBER_DTYPES = {
    kind: np.dtype(f"<{kind[0]}{int(kind[1:]) // 8}")
    for kind in KINDS
    if kind not in (STRING, ARRAY, BOOL)
}

TENSOR_TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
}
"""Number in the file -> name, values per block, bytes per block."""

TYPE_IDS = {name: number for number, (name, _, _) in TENSOR_TYPES.items()}
BLOCK_SIZES = {name: (values, size) for name, values, size in TENSOR_TYPES.values()}


@dataclass(frozen=True)
class Value:
    """A metadata value to be written.

    Args:
        kind: of the value, or of an array's items.
        value: a number, a text, or a sequence of them.
        is_array: whether it is a sequence.
    """

    kind: str
    value: Any
    is_array: bool = False


def tensor_bytes(dtype: str, num_elements: int) -> int:
    """Bytes of a tensor whose rows are whole blocks."""
    values, size = BLOCK_SIZES[dtype]
    return num_elements // values * size


def padded(size: int, alignment: int) -> int:
    """`size` rounded up to the alignment."""
    return -(-size // alignment) * alignment
