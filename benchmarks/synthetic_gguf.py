"""Writes GGUF files of a pair with random weights: real in every size and type, senseless in text.

The tensors have the types that `paceline convert` gives them. Blocks are drawn as bytes and never
exist as numbers, so that a file is written about as fast as a disk takes it, in bounded memory.
Scales are such that every matrix has unit gain: activations stay near one through all layers.
The same geometry, type and seed give the same bytes.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paceline.checkpoint.convert import FileDtype, stored_dtype
from paceline.checkpoint.gguf_config import CENTROIDS_KEY, ORDERING_KEY
from paceline.checkpoint.gguf_format import Value
from paceline.checkpoint.gguf_metadata import drafter_metadata, rope_divisors, target_metadata
from paceline.checkpoint.gguf_names import (
    ROPE_FREQUENCIES,
    gguf_name,
    gguf_table,
    without_centroids,
)
from paceline.checkpoint.gguf_tokenizer import added_token, tokenizer_metadata
from paceline.checkpoint.gguf_writer import TensorToWrite, write_gguf
from paceline.checkpoint.huggingface import GenerationDefaults
from paceline.checkpoint.names import TensorSpec
from paceline.checkpoint.quantise import BLOCK, BLOCK_BYTES, as_bytes
from paceline.config import DrafterConfig, TargetConfig
from paceline.errors import CheckpointError
from paceline.tokenizer import BYTE_TOKENS, SPACE
from released_geometries import Geometry

FORMAT = 2  # in the file names: raise it when the bytes change, so that old files are not reused
DTYPES: tuple[FileDtype, ...] = ("Q4_0", "Q8_0", "BF16")
PIECE = 1 << 24  # values drawn at a time

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class SyntheticPair:
    """Two files that lie side by side."""

    target: Path
    drafter: Path


def write_pair(geometry: Geometry, dtype: FileDtype, folder: Path, seed: int = 0) -> SyntheticPair:
    """Write a pair, or take the one that an earlier run has written to the same folder.

    Raises:
        CheckpointError: the folder cannot be written, or its disk is too full.
    """
    name = f"{geometry.name}-{geometry.layers}-layers-{dtype}-{seed}-v{FORMAT}"
    pair = SyntheticPair(target=folder / f"{name}.gguf", drafter=folder / f"{name}-assistant.gguf")
    models = {pair.target: geometry.target, pair.drafter: geometry.drafter}
    wanted = {path: config for path, config in models.items() if not path.is_file()}
    needed = sum(tensor.num_bytes for x in wanted.values() for tensor in _tensors(x, dtype, seed))
    _prepare(folder, needed)
    tokenizer = tokenizer_metadata(tokenizer_document(geometry.target.vocab_size)) if wanted else {}
    for path, config in wanted.items():
        metadata = _metadata(config, path.stem, dtype, seed) | tokenizer
        write_gguf(path, metadata, _tensors(config, dtype, seed))
    return pair


def _prepare(folder: Path, needed: int) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise CheckpointError(
            f"cannot write to {folder} ({error.strerror}): name another folder with --work."
        ) from error
    if needed > free:
        raise CheckpointError(
            f"the model's files need {needed / 1e9:.1f} GB, but the disk of {folder} has "
            f"{free / 1e9:.1f} GB left. Name another folder with --work, or cut --layers."
        )


def _metadata(
    config: TargetConfig | DrafterConfig, name: str, dtype: FileDtype, seed: int
) -> dict[str, Value]:
    if isinstance(config, TargetConfig):
        defaults = GenerationDefaults(eos_token_ids=config.eos_token_ids)
        return target_metadata(config, defaults, name=name, dtype=dtype)
    metadata = drafter_metadata(config, name=name, dtype=dtype)
    if not config.num_centroids:
        return metadata
    random = _generator(seed, "clusters")
    centroids = random.standard_normal(config.num_centroids * config.hidden_size, np.float32)
    metadata[CENTROIDS_KEY] = Value("f32", centroids, is_array=True)
    ordering = random.permutation(config.vocab_size)
    metadata[ORDERING_KEY] = Value("i32", ordering, is_array=True)
    return metadata


# --- Tensors ------------------------------------------------------------------------------------


def _tensors(
    config: TargetConfig | DrafterConfig, dtype: FileDtype, seed: int
) -> list[TensorToWrite]:
    specs = without_centroids(gguf_table(config)).specs
    of_drafter = isinstance(config, DrafterConfig)
    tensors = [
        _tensor(spec, config, stored_dtype(spec, dtype, of_drafter=of_drafter), seed)
        for spec in specs
    ]
    if "global" in config.layer_kinds:
        divisors = rope_divisors(config)
        tensors.append(
            TensorToWrite(
                name=ROPE_FREQUENCIES,
                dtype="F32",
                shape=divisors.shape,
                pieces=lambda: [as_bytes(divisors)],
            )
        )
    return tensors


def _tensor(
    spec: TensorSpec, config: TargetConfig | DrafterConfig, dtype: str, seed: int
) -> TensorToWrite:
    def pieces() -> Iterator[Bytes]:
        random = _generator(seed, type(config).__name__, spec.name)
        if len(spec.shape) == 1:
            centre = _centre(spec, config)
            yield as_bytes(random.uniform(0.9 * centre, 1.1 * centre, spec.shape).astype("<f4"))
            return
        deviation = _deviation(spec, config)
        total = math.prod(spec.shape)
        for start in range(0, total, PIECE):
            yield random_values(random, min(PIECE, total - start), dtype, deviation)

    return TensorToWrite(name=gguf_name(spec.name), dtype=dtype, shape=spec.shape, pieces=pieces)


def _centre(spec: TensorSpec, config: TargetConfig | DrafterConfig) -> float:
    """Of a vector's values: norms near one, but for what would not leave activations near one."""
    name = spec.name.rpartition("self_attn.")[2]
    if name in ("q_norm.weight", "k_norm.weight"):
        return spec.shape[0] ** -0.25  # so that scores, which nothing divides, vary by about one
    if spec.name.endswith("router.scale"):
        return config.hidden_size**0.5  # undoes the division that is part of the router
    if spec.name.endswith("layer_scalar"):
        return 0.7  # each layer adds to the stream
    return 1.0


def _deviation(spec: TensorSpec, config: TargetConfig | DrafterConfig) -> float:
    """Standard deviation of a matrix of unit gain."""
    if spec.name == "embed_tokens_per_layer.weight":
        assert isinstance(config, TargetConfig)
        return float(config.per_layer_size**-0.5)
    return float(spec.shape[-1] ** -0.5)


def _generator(seed: int, *names: str) -> np.random.Generator:
    words = [seed, *"/".join(names).encode()]
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence(words)))


# Nibbles and bytes by which random ones are replaced, so that values centre on zero.
_CODES = np.array([8, *range(1, 16)], np.uint8)
_NIBBLES = (_CODES[None, :] | _CODES[:, None] << 4).reshape(-1)
_INT8 = np.array([0, *range(1, 128), 0, *range(129, 256)], np.uint8)
_NIBBLE_DEVIATION = float(np.std(_CODES.astype(np.float64) - 8))
_INT8_DEVIATION = float(np.std(_INT8.view(np.int8).astype(np.float64)))
_BFLOAT16_RMS = math.sqrt(7 / 3)  # of magnitudes spread evenly over 1 to 2
_SCALES = np.linspace(0.75, 1.25, 8)


def random_values(random: np.random.Generator, count: int, dtype: str, deviation: float) -> Bytes:
    """The stored bytes of `count` values of zero mean and about the given standard deviation.

    Args:
        count: whole blocks for block types.
    """
    if dtype == "Q4_0":
        return _blocks(random, count, _NIBBLES, deviation / _NIBBLE_DEVIATION, BLOCK // 2)
    if dtype == "Q8_0":
        return _blocks(random, count, _INT8, deviation / _INT8_DEVIATION, BLOCK)
    if dtype == "BF16":
        return as_bytes(_bfloat16(random, count, deviation))
    return as_bytes((random.standard_normal(count, np.float32) * deviation).astype("<f4"))


def _blocks(
    random: np.random.Generator, count: int, table: Bytes, scale: float, size: int
) -> Bytes:
    """Blocks of a half-precision scale and `size` bytes of codes."""
    number = count // BLOCK
    blocks = np.empty((number, 2 + size), np.uint8)
    halves = (_SCALES * scale).astype("<f2")
    chosen = halves[np.frombuffer(random.bytes(number), np.uint8) & 7]
    blocks[:, :2] = chosen.reshape(-1, 1).view(np.uint8)
    drawn = np.frombuffer(random.bytes(number * size), np.uint8)
    np.take(table, drawn.reshape(number, size), out=blocks[:, 2:])
    return blocks.reshape(-1)


def _bfloat16(random: np.random.Generator, count: int, deviation: float) -> NDArray[Any]:
    """Random sign and fraction under the one exponent that comes nearest."""
    exponent = 127 + round(math.log2(deviation / _BFLOAT16_RMS))
    drawn = np.frombuffer(random.bytes(2 * count), "<u2")
    return (drawn & np.uint16(0x807F)) | np.uint16(exponent << 7)


def tensor_bytes_per_value(dtype: str) -> float:
    """What a value takes in a file."""
    return BLOCK_BYTES[dtype] / BLOCK if dtype in BLOCK_BYTES else {"BF16": 2, "F32": 4}[dtype]


# --- Vocabulary ---------------------------------------------------------------------------------

CONTROL = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
TURNS = {105: "<|turn>", 106: "<turn|>"}
FIRST_BYTE = 238  # where the released vocabulary has its byte tokens too


def tokenizer_document(size: int) -> dict[str, Any]:
    """A tokenizer.json of `size` tokens in Gemma's form: control tokens, bytes, characters, and
    pairs of characters with a merge for each.
    """
    texts: dict[int, str] = dict(enumerate(CONTROL)) | TURNS
    texts |= {FIRST_BYTE + i: text for i, text in enumerate(BYTE_TOKENS)}
    texts |= {i: f"<unused{i}>" for i in range(FIRST_BYTE) if i not in texts}
    first = FIRST_BYTE + len(BYTE_TOKENS)
    letters = _letters(size - first)
    texts |= dict(enumerate(letters, first))
    first += len(letters)
    pairs = list(islice(product(letters, repeat=2), size - first))
    texts |= {first + i: left + right for i, (left, right) in enumerate(pairs)}
    special = [i for i in sorted(texts) if i < FIRST_BYTE]
    return {
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
        "pre_tokenizer": None,
        "added_tokens": [added_token(i, texts[i], True) for i in special],
        "model": {
            "type": "BPE",
            "byte_fallback": True,
            "vocab": {texts[i]: i for i in sorted(texts)},
            "merges": [list(pair) for pair in pairs],
        },
    }


def ordinary_tokens(count: int, vocab_size: int, seed: int = 0) -> list[int]:
    """A prompt of <bos> and random tokens that are text."""
    random = _generator(seed, "prompt")
    first = FIRST_BYTE + len(BYTE_TOKENS)
    return [2, *(int(token) for token in random.integers(first, vocab_size, count - 1))]


def _letters(room: int) -> Sequence[str]:
    """Enough characters that they and their pairs fill the room."""
    number = math.isqrt(room) + 1
    plain = [SPACE, "\n", *(chr(i) for i in range(33, 127))]
    return [*plain, *(chr(i) for i in range(0x4E00, 0x4E00 + number))][:number]
